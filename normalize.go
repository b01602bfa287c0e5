package ratelimit

import (
	"cmp"
	"crypto/sha256"
	"fmt"
	"slices"
	"strings"
	"unicode"

	"golang.org/x/text/cases"
	"golang.org/x/text/unicode/norm"
)

// Normalize makes one key of the many spellings of an e-mail address, a user name
// or the like. Without it, each spelling is a bucket of its own. It:
//   - folds case;
//   - brings characters to their compatibility form (NFKC, Unicode Standard
//     Annex 15), so that full-width letters and ligatures become plain ones;
//   - drops white space and every character that shows as nothing or as a blank,
//     however many there are. This includes characters that Unicode assigns no
//     meaning in the version that Go has, so a newer Go can keep more of them.
//
// Normalizing a result again does not change it. If s is not valid UTF-8, each
// wrong byte counts as U+FFFD.
//
// A result of more than 1,024 bytes would be nobody's name: Normalize returns a
// hash of it instead. If more than 6,144 bytes of s are visible, it returns a hash
// of these bytes, so that the work per byte stays small. No spelling of a name of
// at most 1,024 bytes is that long.
//
// Normalize does not know which addresses a mail provider delivers to one mailbox,
// such as addresses that differ in dots or after a plus sign. The result is for keys:
// it is not an address to send to.
func Normalize(s string) string {
	s = visible(s)
	if len(s) > maxSpelling {
		return hashOf(s)
	}
	// Marks must be in order before the case is folded: folding makes a letter of the
	// mark U+0345, so a mark behind it would belong to this letter. What folding makes
	// of decomposed characters is decomposed, too, and folding it again does not change
	// it. So the result is stable.
	s = folded(decomposed(s))
	// norm puts U+034F into rows of more than 30 marks; nothing else is dropped here.
	s = visible(norm.NFC.String(s))
	if len(s) > maxNormal {
		return hashOf(s)
	}
	return s
}

const (
	maxNormal = 1024 // bytes in normal form

	// maxSpelling bounds the bytes that visible leaves of any spelling of a name of
	// maxNormal bytes. A spelling has at most as many characters as the decomposed
	// name, of at most 4 bytes each. A name has at least two bytes for every three
	// characters of its decomposition: U+01D6 is two bytes, for a letter and two marks.
	maxSpelling = 4 * 3 * maxNormal / 2
)

func hashOf(s string) string {
	return fmt.Sprintf("sha256:%x", sha256.Sum256([]byte(s)))
}

// visible returns s without the characters that show as nothing or as a blank, and
// with U+FFFD in place of each wrong byte. Most of them have one of these properties in
// Unicode: White_Space, Default_Ignorable_Code_Point, or a category of controls,
// separators, private use or nothing assigned.
func visible(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r > ' ' && r < unicode.MaxASCII:
			return r
		case unicode.IsSpace(r), !unicode.IsGraphic(r),
			unicode.In(r, unicode.Other_Default_Ignorable_Code_Point, unicode.Variation_Selector), emptyGlyph(r):
			return -1
		}
		return r
	}, s)
}

// emptyGlyph reports whether r has an empty glyph in the common fonts that have it,
// although Unicode's properties say that it can be seen. Characters that join or
// stack letters are not among them, even where they have no glyph: with other
// letters around them, text looks different without them.
func emptyGlyph(r rune) bool {
	switch r {
	case '\u2800', // braille pattern blank
		'\ufffc',     // object replacement character
		'\U00013441', // Egyptian hieroglyph full blank
		'\U00013442', // Egyptian hieroglyph half blank
		'\U00016fe4', // Khitan small script filler
		'\U0001d159': // musical symbol null notehead
		return true
	}
	return false
}

// decomposed returns the visible part of s in form NFKD. In a row of more than 30
// marks, norm sorts 30 at a time, and puts U+034F between them, which visible drops.
// So decomposed sorts each row as a whole, or the order in which marks are typed
// would make a difference.
func decomposed(s string) string {
	runes := []rune(visible(norm.NFKD.String(s)))
	for i := 0; i < len(runes); i++ {
		first := i
		for i < len(runes) && combiningClass(runes[i]) != 0 {
			i++
		}
		if i > first+1 {
			slices.SortStableFunc(runes[first:i], func(a, b rune) int { return cmp.Compare(combiningClass(a), combiningClass(b)) })
		}
	}
	return string(runes)
}

func combiningClass(r rune) uint8 {
	if r < '\u0300' { // the first mark
		return 0
	}
	return norm.NFKD.PropertiesString(string(r)).CCC()
}

// folded returns s with its case folded. For Cherokee, cases.Fold exchanges capital
// and small letters, so that folding twice gives the text itself. Unicode folds both
// to the capital letter. Here both become small, as capital ones always did: text in
// this script is mostly in capitals, and its keys stay as they are.
func folded(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.Is(unicode.Cherokee, r) {
			return unicode.ToLower(r)
		}
		return r
	}, cases.Fold().String(s))
}
