package ratelimit

import (
	"crypto/sha256"
	"fmt"
	"strings"
	"unicode"

	"golang.org/x/text/cases"
	"golang.org/x/text/unicode/norm"
)

// Normalize makes one key of the many spellings of an e-mail address, a user name
// or the like: it folds case, brings characters to their compatibility form (NFKC,
// Unicode Standard Annex 15), so that full-width letters and ligatures are plain
// ones, and drops white space and characters that cannot be seen. Without it each
// spelling is a bucket of its own.
//
// Text of more than 1,024 bytes is nobody's name: it becomes a hash of itself, as it is.
//
// It does not know what a mail provider takes for the same mailbox, such as dots or
// what follows a plus sign. The result is for keys: it is not an address to send to.
func Normalize(s string) string {
	if len(s) > 1024 { // normal forms can be ten times as long, and cost accordingly
		return fmt.Sprintf("sha256:%x", sha256.Sum256([]byte(s)))
	}
	s = cases.Fold().String(norm.NFKC.String(s))
	s = strings.Map(func(r rune) rune {
		if unicode.IsSpace(r) || !unicode.IsGraphic(r) || unicode.In(r, unicode.Other_Default_Ignorable_Code_Point, unicode.Variation_Selector) {
			return -1
		}
		return r
	}, s)
	return norm.NFKC.String(s) // folding and dropping can bring characters together
}
