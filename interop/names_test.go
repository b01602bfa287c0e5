package interop_test

import (
	"encoding/json"
	"log/slog"
	"math/rand/v2"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/dunglas/httpsfv"
	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
)

// randomName returns text of up to 140 bytes, of characters that are special in a structured
// field, in a percent-encoding or in UTF-8. Some of it is no valid name.
func randomName(r *rand.Rand) string {
	alphabet := []rune("ab %\"\\;,=:*?()'%41~!éß日🚦")
	if r.IntN(3) == 0 {
		alphabet = append(alphabet, 0, '\t', '\n', 0x7f, 0x85, 0xa0, 0x200b, 0x202e, 0xfeff)
	}
	var b []byte
	for n := 1 + r.IntN(1+r.IntN(140)); len(b) < n; {
		b = utf8.AppendRune(b, alphabet[r.IntN(len(alphabet))])
	}
	if r.IntN(10) == 0 {
		b[r.IntN(len(b))] = byte(r.IntN(256))
	}
	return string(b)
}

// TestBothParsersReadEveryPolicyName makes limiters with random names, of the limit and of
// the limiter. The fields of each one that New accepts are read by httpsfv and by the npm
// package structured-headers: both must find the name and the parameters.
func TestBothParsersReadEveryPolicyName(t *testing.T) {
	packages := npm(t)
	r := rand.New(rand.NewPCG(1, 2))
	candidates := append(slices.Clone(hostileNames), "", "\xff", "a\x00b", "a\nb", strings.Repeat("x", 129), strings.Repeat("é", 65))
	for range 1500 {
		candidates = append(candidates, randomName(r))
	}
	var accepted, fields []string
	refused := 0
	for i, name := range candidates {
		valid := utf8.ValidString(name) && len(name) <= 128 && !strings.ContainsFunc(name, func(c rune) bool { return !unicode.IsPrint(c) })
		limiter, limit := "names", FixedWindow(7, time.Hour).Named(name)
		if i%2 == 0 {
			limiter, limit = name, FixedWindow(7, time.Hour)
			valid = valid && name != ""
		}
		l, err := new(Registry).New(limiter, Options{Limits: []Limit{limit}, PartitionSecret: []byte("sixteen bytes ..."), Logger: slog.New(slog.DiscardHandler)})
		if !valid {
			require.ErrorContains(t, err, "name", "%q", name)
			refused++
			continue
		}
		require.NoError(t, err, "%q", name)
		if name == "" {
			name = limiter
		}
		header := fieldsOf(l)
		require.Len(t, header["Ratelimit-Policy"], 1)
		require.Len(t, header["Ratelimit"], 1)
		accepted, fields = append(accepted, name), append(fields, header["Ratelimit-Policy"][0], header["Ratelimit"][0])
		closeLimiter(t, l)
	}
	require.Greater(t, len(accepted), 500)
	require.Greater(t, refused, 200)

	var read []any
	require.NoError(t, packages.do("lists", fields, &read))
	require.Len(t, read, len(fields))
	for i, field := range fields {
		list, err := httpsfv.UnmarshalList([]string{field})
		require.NoError(t, err, field)
		require.Equal(t, membersOf(t, list), read[i], field)
		require.Len(t, list, 1)
		item := list[0].(httpsfv.Item)
		name := item.Value.(string)
		if want := accepted[i/2]; strings.ContainsFunc(want, func(c rune) bool { return c > '~' }) {
			name, err = url.PathUnescape(name)
			require.NoError(t, err, field)
			require.Equal(t, want, name)
		} else {
			require.Equal(t, want, name)
		}
		params := map[string]int64{"q": 7, "w": 3600}
		if i%2 == 1 {
			params = map[string]int64{"r": 6, "t": 3600}
		}
		require.Len(t, item.Params.Names(), 3, field)
		for name, want := range params {
			v, _ := item.Params.Get(name)
			require.Equal(t, want, v, field)
		}
		pk, _ := item.Params.Get("pk")
		require.Len(t, pk, 16, field)
	}
}

// membersOf returns a list in the form of testdata/npm/judge.mjs.
func membersOf(t *testing.T, list httpsfv.List) (members any) {
	type object = map[string]any
	all := []any{}
	for _, member := range list {
		item := member.(httpsfv.Item)
		params := []any{}
		for _, name := range item.Params.Names() {
			v, _ := item.Params.Get(name)
			if bytes, ok := v.([]byte); ok {
				v = object{"bytes": bytes} // base64
			}
			params = append(params, []any{name, v})
		}
		all = append(all, object{"value": item.Value, "params": params})
	}
	b, err := json.Marshal(all)
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal(b, &members))
	return members
}
