package addr

import "iter"

// Hops yields what a format's walk visits.
func Hops(f Format, lines []string) iter.Seq[string] {
	return func(yield func(string) bool) { f.walk(lines, yield) }
}
