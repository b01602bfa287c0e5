package ratelimit_test

import (
	"fmt"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
)

func TestNormalizeMapsSpellingsToOneKey(t *testing.T) {
	for _, spelling := range []string{
		"ann@example.com", "Ann@Example.COM", " ann@example.com\r\n", "a n n@example.com", "ann@example.com\u200b",
		"\ufeffann@example.com", "ａｎｎ＠ｅｘａｍｐｌｅ．ｃｏｍ", "ann\u00ad@example.com", "ann\u00a0@example.com", "𝐚nn@example.com",
	} {
		require.Equal(t, "ann@example.com", Normalize(spelling), "%+q", spelling)
	}
	for _, same := range [][2]string{
		{"JOSÉ@example.com", "jose\u0301@example.com"}, {"straße@example.com", "STRASSE@example.com"}, {"ﬁn@example.com", "fin@example.com"},
		{"ΣΊΣΥΦΟΣ", "σίσυφος"},
	} {
		require.Equal(t, Normalize(same[0]), Normalize(same[1]))
	}
	for _, other := range []string{"", "anne@example.com", "ann+a@example.com", "a.nn@example.com", "änn@example.com"} {
		require.NotEqual(t, "ann@example.com", Normalize(other))
	}
	require.Empty(t, Normalize(" \t\u200b"), "an empty key, which is refused")
}

func TestNormalizedKeyHasABoundedLength(t *testing.T) {
	long := Normalize(strings.Repeat("\ufdfa", 1<<20))
	require.Less(t, len(long), 100)
	require.NotEqual(t, long, Normalize(strings.Repeat("\ufdfa", 1<<20)+"a"))
	for _, invisible := range []string{"\u034f", "\ufe0f", "\u180b", "\u115f", "\u3164", "\u17b4", "\U000e0100"} {
		require.Equal(t, "bob", Normalize("b"+invisible+"ob"), fmt.Sprintf("%+q", invisible))
	}
}

func FuzzNormalize(f *testing.F) {
	f.Add("Ann@Example.com")
	f.Add("\xff\u0345\u0301 ϔ")
	f.Fuzz(func(t *testing.T, s string) {
		once := Normalize(s)
		if twice := Normalize(once); utf8.ValidString(s) && twice != once {
			t.Errorf("%+q becomes %+q and then %+q", s, once, twice)
		}
	})
}
