package ratelimit_test

import (
	"crypto/sha256"
	"fmt"
	"iter"
	"math/rand/v2"
	"runtime"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/stretchr/testify/require"
	"golang.org/x/text/cases"
	"golang.org/x/text/language"
	"golang.org/x/text/unicode/norm"

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
		{"ΣΊΣΥΦΟΣ", "σίσυφος"}, {"ᏣᎳᎩ", "ꮳꮃꭹ"},
	} {
		require.Equal(t, Normalize(same[0]), Normalize(same[1]))
	}
	for _, other := range []string{"", "anne@example.com", "ann+a@example.com", "a.nn@example.com", "änn@example.com"} {
		require.NotEqual(t, "ann@example.com", Normalize(other))
	}
	require.Empty(t, Normalize(" \t\u200b"), "an empty key, which is refused")
}

// blanks are characters that show as a blank although they are in the categories of
// letters, marks and symbols, and not white space or default-ignorable.
const blanks = "\u2800\ufffc\U00013441\U00013442\U00016fe4\U0001d159"

// isDropped is a second definition of what Normalize drops.
func isDropped(r rune) bool {
	return !unicode.In(r, unicode.L, unicode.M, unicode.N, unicode.P, unicode.S) || // so also unassigned code points
		unicode.In(r, unicode.Other_Default_Ignorable_Code_Point, unicode.Variation_Selector) || strings.ContainsRune(blanks, r)
}

// runes yields every code point but surrogates as a string.
func runes() iter.Seq2[rune, string] {
	return func(yield func(rune, string) bool) {
		for r := rune(0); r <= unicode.MaxRune; r++ {
			if utf8.ValidRune(r) && !yield(r, string(r)) {
				return
			}
		}
	}
}

func TestNormalizeDropsExactlyTheCharactersThatShowNothing(t *testing.T) {
	for r, s := range runes() {
		if empty := Normalize(s) == ""; empty != isDropped(r) {
			t.Errorf("%+q: Normalize drops it: %v", s, empty)
		}
		if all := strings.Trim(norm.NFKC.String(s), " \u1160") == ""; all && !isDropped(r) {
			t.Errorf("%+q is kept, but its compatibility form is blank", s)
		}
	}
	for _, invisible := range []string{
		"\x00", "\t", "\x7f", "\u0085", "\u00ad", "\u034f", "\u061c", "\u115f", "\u1160", "\u1680", "\u17b4", "\u17b5", "\u180b", "\u180e", "\u180f",
		"\u2009", "\u200b", "\u200d", "\u2028", "\u202e", "\u2060", "\u2064", "\u206f", "\u2800", "\u3000", "\u3164", "\ue000", "\ufe0f", "\ufeff",
		"\uffa0", "\ufffc", "\U00013430", "\U00013441", "\U00013442", "\U00016fe4", "\U0001bca0", "\U0001d159", "\U0001d173", "\U000e0020", "\U000e0100",
	} {
		require.Equal(t, "bob", Normalize("b"+invisible+"ob"), "%+q", invisible)
	}
	for _, visible := range []string{"\u0301", "\u1039", "\u1361", "\u17d2", "\u2400", "\u303f", "\ufffd"} { // U+1039 and U+17D2 stack letters
		require.Contains(t, Normalize("bob"+visible), visible)
	}
}

func TestNormalizeDropsAnyNumberOfBlanks(t *testing.T) {
	for _, blank := range []string{" ", "\u200b", "\u2800", "\uffa0", "\U000e0100", " \u00a0\u3000"} {
		for n := range 2001 {
			if got := Normalize("ann@example.com" + strings.Repeat(blank, n)); got != "ann@example.com" {
				t.Fatalf("with %d times %+q: %q", n, blank, got)
			}
		}
		many := strings.Repeat(blank, 1<<18)
		require.Equal(t, "ann@example.com", Normalize(many+"ann"+many+"@example.com"))
		require.Empty(t, Normalize(many))
	}
	require.Equal(t, "\u00e9", Normalize("e\u200b\u0301"), "the mark belongs to the letter before the blank")
}

// caseVariants returns s in the cases of package strings and package cases.
func caseVariants(s string) []string {
	return []string{
		strings.ToUpper(s), strings.ToLower(s), strings.ToTitle(s),
		cases.Upper(language.Und).String(s), cases.Lower(language.Und).String(s), cases.Title(language.Und).String(s),
	}
}

// caseless returns equal results for texts that are a compatibility caseless match
// (definition D146 of the Unicode Standard), apart from blanks: they are dropped
// here, because a mark that follows a blank moves to the letter before it.
func caseless(s string) string {
	fold := func(s string) string {
		return strings.Map(func(r rune) rune {
			if unicode.Is(unicode.Cherokee, r) { // cases.Fold exchanges capital and small letters
				return unicode.ToUpper(r)
			}
			return r
		}, cases.Fold().String(s))
	}
	s = strings.Map(func(r rune) rune {
		if isDropped(r) {
			return -1
		}
		return r
	}, norm.NFKD.String(s))
	return norm.NFKD.String(fold(norm.NFKD.String(fold(norm.NFD.String(s)))))
}

// checkNormalized fails the test unless Normalize returns one result for s, for this
// result, for all normal forms of s, and for s in another case.
func checkNormalized(t *testing.T, s string) {
	t.Helper()
	want := Normalize(s)
	if got := Normalize(want); got != want {
		t.Errorf("%+q becomes %+q and then %+q", s, want, got)
	}
	if strings.ContainsFunc(want, isDropped) {
		t.Errorf("%+q becomes %+q, which has a character that does not show", s, want)
	}
	for form := norm.NFC; form <= norm.NFKD; form++ {
		if got := Normalize(form.String(s)); got != want {
			t.Errorf("%+q becomes %+q, and in form %d it becomes %+q", s, want, form, got)
		}
	}
	match := caseless(s)
	for i, variant := range caseVariants(s) {
		if got := Normalize(variant); got != want && caseless(variant) == match {
			t.Errorf("%+q becomes %+q, and in case %d it becomes %+q", s, want, i, got)
		}
	}
}

func TestNormalizeHasOneResultForAllFormsOfACharacter(t *testing.T) {
	for r, s := range runes() {
		if unicode.Is(unicode.Han, r) && norm.NFKD.IsNormalString(s) || isDropped(r) {
			continue // no case, no other form
		}
		checkNormalized(t, s)
		for other := unicode.SimpleFold(r); other != r; other = unicode.SimpleFold(other) {
			if Normalize(string(other)) != Normalize(s) {
				t.Errorf("%+q and %+q fold to one character, but are two keys", s, string(other))
			}
		}
	}
}

func TestNormalizeHasOneResultForAllFormsOfAText(t *testing.T) {
	// Characters that a normal form or case folding changes, or that join others.
	var special []rune
	for r, s := range runes() {
		if !isDropped(r) && !unicode.Is(unicode.Hangul, r) &&
			(Normalize(s) != s || !norm.NFKC.PropertiesString(s).BoundaryBefore() || unicode.Is(unicode.M, r)) {
			special = append(special, r)
		}
	}
	random := rand.New(rand.NewPCG(1, 2))
	among := func(rs ...rune) rune { return rs[random.IntN(len(rs))] }
	character := func(kind int) rune {
		switch kind {
		case 0:
			return among(special...)
		case 1:
			return 0x300 + random.Int32N(0x70) // a mark
		case 2: // a part of a Hangul syllable, or a syllable
			return among(0x1100+random.Int32N(0x100), 0xac00+random.Int32N(11172), 0x3131+random.Int32N(94), 0xffa1+random.Int32N(60))
		default: // a letter, or a character that is or contains a blank
			return among('a', 'S', 'ß', 'ı', 'İ', 'ς', 'α', 'Ꭰ', 'ꭰ', 0x345, ' ', 0x34f, 0xa8, 0x37a, 0xfdfa, 0x2800, 0xff9e, 0x3099, 0x378)
		}
	}
	for i := range 30_000 {
		s := make([]rune, 1+i%4)
		for j := range s {
			s[j] = character(random.IntN(4))
		}
		checkNormalized(t, string(s))
	}
	// Form normalizes at most 30 marks in a row together.
	for range 500 {
		s := []rune{character(0)}
		for range 20 + random.IntN(60) {
			s = append(s, among(character(1), character(1), 0x345, 0x3099, 0xff9e, 0xa8))
		}
		checkNormalized(t, string(s))
		random.Shuffle(10, func(i, j int) { s[1+i], s[1+j] = s[1+j], s[1+i] })
	}
	require.Equal(t, Normalize("a"+strings.Repeat("\u0301\u0316", 20)), Normalize("a"+strings.Repeat("\u0316", 20)+strings.Repeat("\u0301", 20)))
}

// sha returns the key of a text that is too long to be a name.
func sha(s string) string { return fmt.Sprintf("sha256:%x", sha256.Sum256([]byte(s))) }

func TestNormalizeHashesTextThatIsTooLong(t *testing.T) {
	a := func(n int) string { return strings.Repeat("a", n) }
	for _, tc := range []struct{ text, want string }{
		{a(1024), a(1024)},
		{a(1025), sha(a(1025))},
		{strings.Repeat("A ", 1025), sha(a(1025))}, // the hash is of the normal form
		{strings.Repeat("A ", 6144), sha(a(6144))},
		{strings.Repeat("a ", 6145), sha(a(6145))},
		{strings.Repeat("A ", 6145), sha(strings.Repeat("A", 6145))}, // so long that it is hashed as it is, without blanks
		{strings.Repeat("\ufdfa", 1<<20), sha(strings.Repeat("\ufdfa", 1<<20))},
		{strings.Repeat("\U0001d41a", 1024), a(1024)},                                  // 4,096 bytes
		{strings.Repeat("\U0001d414\u00a8\uffe3", 512), strings.Repeat("\u01d6", 512)}, // 4,608 bytes
	} {
		require.Equal(t, tc.want, Normalize(tc.text), "%.30q, of %d bytes", tc.text, len(tc.text))
	}
	require.Equal(t, Normalize(strings.Repeat("\ufdfa", 300)), Normalize(strings.Repeat(norm.NFKD.String("\ufdfa"), 300)), "few bytes with a long normal form")
}

// Each name is repeated as often as fits into a key that is not a hash. It is spelled with
// the largest possible number of bytes.
func TestNormalizeHashesNoSpellingOfANameThatIsShortEnough(t *testing.T) {
	widest := map[string]string{} // by each character's normal form
	for _, s := range runes() {
		if key := Normalize(s); len(s) > len(widest[key]) {
			widest[key] = s
		}
	}
	for _, s := range runes() {
		if Normalize(s) != s || s == "" {
			continue
		}
		decomposed := norm.NFKD.String(s)
		if n := utf8.RuneCountInString(decomposed); 2*n > 3*len(s) {
			t.Errorf("%+q has %d characters in %d bytes", s, n, len(s))
		}
		var spelling string
		for _, r := range decomposed {
			spelling += widest[string(r)]
		}
		if len(spelling) > 3*len(s) {
			n := 1024 / len(s)
			if got, want := Normalize(strings.Repeat(spelling, n)), strings.Repeat(s, n); got != want {
				t.Errorf("%d times %+q, as %+q: %.60q", n, s, spelling, got)
			}
		}
	}
}

func TestNormalizeOfAMegabyteNeedsLittleMemory(t *testing.T) {
	for _, unit := range []string{"a", " ", "\u0301\u0316", "\ufdfa", "\u1100\u1161", "\xff"} {
		s := strings.Repeat(unit, 1<<20/len(unit))
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		key := Normalize(s)
		runtime.ReadMemStats(&after)
		require.Less(t, len(key), 100)
		require.Less(t, after.TotalAlloc-before.TotalAlloc, uint64(20<<20), "%+q", unit) // each \xff becomes three bytes
	}
}

func FuzzNormalize(f *testing.F) {
	f.Add("Ann@Example.com")
	f.Add("\xff\u0345\u0301 ϔ")
	f.Add("Ꭰꭰ\u2800\u037a\u0301")
	f.Add(strings.Repeat("\u0301\u0316\u3099", 20))
	f.Fuzz(func(t *testing.T, s string) {
		if !utf8.ValidString(s) {
			s = strings.ToValidUTF8(s, "\ufffd")
		}
		checkNormalized(t, s)
		spaced := strings.Join(strings.Split(s, ""), "\u2800")
		if got, want := Normalize(spaced), Normalize(s); got != want {
			t.Errorf("%+q becomes %+q, and with blanks in between %+q", s, want, got)
		}
	})
}
