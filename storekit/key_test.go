package storekit_test

import (
	"context"
	"crypto/sha256"
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/ratelimit-go/ratelimit/storekit"
	"github.com/stretchr/testify/require"
)

// keyOf returns the key that a backend gets.
func keyOf(t testing.TB, prefix, key string) (got string) {
	t.Helper()
	s := storekit.New(prefix, keyFunc(func(key string) { got = key }))
	_, _ = take(s, key, 0, hourly)
	require.NotEmpty(t, got)
	return got
}

func TestKeys(t *testing.T) {
	for _, tc := range []struct{ prefix, key, want string }{
		{"login", "203.0.113.7", "login/203.0.113.7"},
		{"login", "2001:db8::/64", "login/2001=3Adb8=3A=3A=2F64"},
		{"rl:login:", "alice@example.com", "rl=3Alogin=3A/alice=40example.com"},
		{"a/b", "c", "a=2Fb/c"},
		{"a", "b/c", "a/b=2Fc"},
		{"a", ".b", "a/=2Eb"}, {"a", "b.", "a/b=2E"}, {"a", "b..c", "a/b=2E=2Ec"}, {"a", ".", "a/=2E"}, {"a", "b.=", "a/b=2E=3D"},
		{"a", "\x00\xff é", "a/=00=FF=20=C3=A9"},
		{"a", strings.Repeat("k", 128), "a/" + strings.Repeat("k", 128)},
		{"a", strings.Repeat("k", 129), "a/=sha256=" + fmt.Sprintf("%x", sha256.Sum256([]byte(strings.Repeat("k", 129))))},
	} {
		require.Equal(t, tc.want, keyOf(t, tc.prefix, tc.key))
	}
}

// FuzzKeys checks that two keys never share a record, and that backends get no more than the
// characters that they were promised.
func FuzzKeys(f *testing.F) {
	for _, s := range []string{"a", "a.b", "..", "=2E", "a/b", "=sha256=", "\x00", "é", strings.Repeat("=", 128), strings.Repeat("x", 200)} {
		f.Add("p", s, "p", s+"/")
		f.Add(s, "k", s+"/", "k")
	}
	plain := regexp.MustCompile(`^([A-Za-z0-9=_-]+\.)*[A-Za-z0-9=_-]+/([A-Za-z0-9=_-]+\.)*[A-Za-z0-9=_-]+$`)
	f.Fuzz(func(t *testing.T, prefix, key, prefix2, key2 string) {
		if prefix == "" || key == "" || prefix2 == "" || key2 == "" || len(prefix) > 64 || len(prefix2) > 64 {
			return
		}
		first, second := keyOf(t, prefix, key), keyOf(t, prefix2, key2)
		require.Equal(t, prefix == prefix2 && key == key2, first == second)
		require.Regexp(t, plain, first)
		require.LessOrEqual(t, len(first), 577)
	})
}

// keyFunc is a backend that gets keys.
type keyFunc func(key string)

func (k keyFunc) Update(_ context.Context, key string, f func([]byte, time.Time) ([]byte, time.Duration)) error {
	k(key)
	f(nil, time.Now())
	return nil
}

func (keyFunc) Delete(context.Context, string) error { return nil }
