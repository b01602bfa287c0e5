package redisscript_test

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ratelimit-go/ratelimit/internal/redisscript"
	"github.com/ratelimit-go/ratelimit/internal/rule"
)

func TestAppendKey(t *testing.T) {
	for key, want := range map[string]string{
		"203.0.113.7": "rl:{203.0.113.7}:", "2001:db8::/64": "rl:{2001:db8::/64}:", "1=a": "rl:{1=a}:",
		"{": "rl:{%7B}:", "}": "rl:{%7D}:", "{}x": "rl:{%7B%7Dx}:", "%7B": "rl:{%257B}:", "a b": "rl:{a%20b}:",
		"\x00\n\x7f": "rl:{%00%0A%7F}:", "\xff": "rl:{%FF}:", "á": "rl:{%C3%A1}:", `"\`: "rl:{%22%5C}:", "": "rl:{}:",
		strings.Repeat("k", 128): "rl:{" + strings.Repeat("k", 128) + "}:",
		strings.Repeat("{", 128): "rl:{" + strings.Repeat("%7B", 128) + "}:",
		strings.Repeat("k", 129): "rl:{%sha256:" + sum129 + "}:",
	} {
		require.Equal(t, want, string(redisscript.AppendKey(nil, "rl:", key)))
	}
	require.Equal(t, "before rl:{k}:", string(redisscript.AppendKey([]byte("before "), "rl:", "k")))
}

const sum129 = "9094034fb2d0ce2e407c9b260f2806ab2efb352e200722fd6296d9cf1cf7e6f5" // of sha256sum

// FuzzAppendKey: prefix and key can be read back from a counter's key, so no two pairs
// have the same one. All of it is printable and has one hash tag.
func FuzzAppendKey(f *testing.F) {
	for _, key := range []string{"", "a", "{}", "%7B", "%", "a}:fixed-1h", "\x00\xff", "é", strings.Repeat("%", 128), strings.Repeat("k", 129), "%sha256:00"} {
		f.Add("rl:", key)
		f.Add("rl:api", key)
	}
	f.Fuzz(func(t *testing.T, prefix, key string) {
		if strings.ContainsAny(prefix, "{}") {
			t.Skip("is refused")
		}
		text := string(redisscript.AppendKey(nil, prefix, key))
		head, rest, ok := strings.Cut(text, "{")
		if !ok || head != prefix {
			t.Fatalf("%q, %q: %q", prefix, key, text)
		}
		tag, rest, ok := strings.Cut(rest, "}")
		if !ok || rest != ":" || strings.Contains(tag, "{") {
			t.Fatalf("%q, %q: %q", prefix, key, text)
		}
		var decoded []byte
		for i := 0; i < len(tag); i++ {
			if tag[i] <= ' ' || tag[i] > '~' {
				t.Fatalf("%q: %q", key, text)
			}
			if tag[i] != '%' {
				decoded = append(decoded, tag[i])
				continue
			}
			var b byte
			if _, err := fmt.Sscanf(tag[i:], "%%%02X", &b); err != nil {
				if len(key) > redisscript.MaxKey && i == 0 && strings.HasPrefix(tag, "%sha256:") {
					return
				}
				t.Fatalf("%q: %q: %v", key, text, err)
			}
			decoded = append(decoded, b)
			i += 2
		}
		if string(decoded) != key {
			t.Fatalf("%q: %q reads %q", key, text, decoded)
		}
	})
}

func TestMicro(t *testing.T) {
	for window, want := range map[int64]int64{1_000_000: 1000, 1_000_001: 1001, 1_999_999: 2000, rule.MaxSpan: rule.MaxSpan / 1000} {
		require.Equal(t, []any{"f", "3", fmt.Sprint(want)}, redisscript.Args(redisscript.Micro(rule.Limit{Kind: rule.Fixed, N: 3, Window: window}), redisscript.Periods{}, nil))
		l := redisscript.Micro(rule.Limit{Kind: rule.Bucket, N: 3, Window: window, Burst: 5})
		require.Equal(t, rule.Limit{Kind: rule.Bucket, N: 3, Window: want, Burst: 5}, l)
		require.Equal(t, []any{"b", "3", fmt.Sprint(want), "5"}, redisscript.Args(l, redisscript.Periods{}, nil))
	}
}

func TestNanos(t *testing.T) {
	for micros, want := range map[int64]time.Duration{
		0: 0, 1: time.Microsecond, rule.MaxSpan / 1000: rule.MaxSpan, math.MaxInt64 / 1000: math.MaxInt64 / 1000 * 1000,
		math.MaxInt64/1000 + 1: math.MaxInt64 / 2, math.MaxInt64 / 2: math.MaxInt64 / 2, rule.Never: rule.Never,
	} {
		require.Equal(t, want, redisscript.Nanos(micros))
	}
}

func TestParseTakes(t *testing.T) {
	limits := []rule.Limit{{Kind: rule.Bucket}, {Kind: rule.Fixed}}
	reply := []int64{9, 2, 3, 4, 5, 6, 12, 13, 14, 15, 16, 2, 7, 1, -2}
	takes, err := redisscript.ParseTakes(reply, nil, 2, limits)
	require.NoError(t, err)
	require.EqualValues(t, 9, takes.Now)
	states := make([]rule.State, 2)
	takes.States(0, states)
	require.Equal(t, []rule.State{{T: 2, A: 3, B: 4}, {T: 5, A: 6}}, states)
	takes.States(1, states)
	require.Equal(t, []rule.State{{T: 12, A: 13, B: 14}, {T: 15, A: 16}}, states)
	require.Equal(t, map[int]int64{1: 7, 0: -2}, maps.Collect(takes.Incomplete()))
	for n := range reply {
		takes, err := redisscript.ParseTakes(reply[:n], nil, 2, limits)
		if n == 11 || n == 13 {
			require.NoError(t, err)
			require.Len(t, maps.Collect(takes.Incomplete()), (n-11)/2)
		} else {
			require.ErrorIs(t, err, redisscript.ErrReply, n)
		}
	}
	for _, pair := range [][]int64{{0, 0}, {3, 0}, {-1, 0}, {1, -3}, {math.MinInt64, 0}, {math.MaxInt64, 0}, {1, math.MinInt64}} {
		_, err := redisscript.ParseTakes(append(slices.Clone(reply[:11]), pair...), nil, 2, limits)
		require.ErrorIs(t, err, redisscript.ErrReply, pair)
	}
}

func TestParseAdjust(t *testing.T) {
	states, after := make([]rule.State, 2), make([]rule.State, 2)
	now, err := redisscript.ParseAdjust([]int64{9, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}, states, after)
	require.NoError(t, err)
	require.EqualValues(t, 9, now)
	require.Equal(t, []rule.State{{T: 1, A: 2, B: 3}, {T: 7, A: 8, B: 9}}, states)
	require.Equal(t, []rule.State{{T: 4, A: 5, B: 6}, {T: 10, A: 11, B: 12}}, after)
	for n := range 20 {
		_, err = redisscript.ParseAdjust(make([]int64, n), states, after)
		require.Equal(t, n != 13, errors.Is(err, redisscript.ErrReply), n)
	}
}

func TestJunk(t *testing.T) {
	for text, want := range map[string]int{"JUNK 1": 0, "JUNK 8": 7, "JUNK 0": -1, "JUNK x": -1, "JUNK": -1, "ERR JUNK 1": -1, "": -1} {
		i, ok := redisscript.Junk(errors.New(text))
		require.Equal(t, want >= 0 || text == "JUNK 0", ok, text)
		if ok {
			require.Equal(t, want, i)
		}
	}
}

// TestScriptHeads: each script begins with the files that it is joined with and
// the tests that check it against package rule, and there are such files and tests.
func TestScriptHeads(t *testing.T) {
	scripts, err := filepath.Glob("*.lua")
	require.NoError(t, err)
	var tests strings.Builder
	sources, err := filepath.Glob("*_test.go")
	require.NoError(t, err)
	for _, source := range append(sources, "../../store_redis_random_test.go") {
		text, err := os.ReadFile(source)
		require.NoError(t, err)
		tests.Write(text)
	}
	names := regexp.MustCompile(`\b(Test|Fuzz)[A-Z]\w+`)
	files := regexp.MustCompile(`\b\w+\.lua\b`)
	for _, script := range scripts {
		if strings.HasSuffix(script, "_test.lua") {
			continue
		}
		text, err := os.ReadFile(script)
		require.NoError(t, err)
		head, _, _ := strings.Cut(string(text), "\n\n")
		for _, part := range []string{"KEYS ", "ARGV ", "reply", "Expects "} {
			if !strings.Contains(head, part) {
				t.Errorf("the head of %s does not say what %q are", script, part)
			}
		}
		for _, file := range files.FindAllString(head, -1) {
			require.Contains(t, scripts, file, script)
		}
		named := names.FindAllString(head, -1)
		require.NotEmpty(t, named, script)
		for _, name := range named {
			if !strings.Contains(tests.String(), "\nfunc "+name+"(") {
				t.Errorf("%s names %s, and there is no such test", script, name)
			}
		}
	}
}

// FuzzLog: whatever strings and numbers a reply has, a log that is accepted is in order and
// has the instants that were written.
func FuzzLog(f *testing.F) {
	f.Add([]byte("\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x02"), int64(1))
	f.Add([]byte("\xff\xff\xff\xff\xff\xff\xff"), int64(1))
	f.Add([]byte("\x00"), int64(2))
	f.Add([]byte{}, int64(-1))
	f.Add(make([]byte, 7*(rule.MaxRolling+1)), int64(1))
	f.Fuzz(func(t *testing.T, value []byte, number int64) {
		numbers, logs, err := redisscript.Numbers([]any{int64(9), string(value)})
		if err != nil || numbers[1] != 1 || len(logs) != 1 {
			t.Fatal(numbers, logs, err)
		}
		numbers[1] = number
		takes, err := redisscript.ParseTakes(numbers, logs, 1, []rule.Limit{{Kind: rule.Rolling, N: 1, Window: 1}})
		if (err == nil) != (number == 0 || number == 1) {
			t.Fatalf("log number %d: %v", number, err)
		}
		if err != nil {
			return
		}
		g, ok := takes.Log(0, 0)
		all := g.AppendTo(nil)
		if !ok && g.N != 0 || !slices.IsSorted(all) || ok && number == 1 && len(all)*7 != len(value) || number == 0 && (!ok || g.N != 0) {
			t.Fatalf("%x: %v, %v", value, all, ok)
		}
	})
}

func TestNumbers(t *testing.T) {
	for _, reply := range [][]any{{nil}, {int64(1), 1.5}, {[]any{}}, {[]byte("a")}, {true}} {
		_, _, err := redisscript.Numbers(reply)
		require.ErrorIs(t, err, redisscript.ErrReply)
	}
}
