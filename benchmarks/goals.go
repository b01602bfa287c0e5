package benchmarks

import (
	"fmt"
	"strconv"
	"strings"
)

// Goal is what this library should reach in one measure: all of these bounds.
type Goal []Bound

// Bound is one bound of a goal.
type Bound struct {
	Of Of
	At float64
}

// An Of is the quantity that a Bound applies to.
type Of int

const (
	ByRival    Of = iota // the value is at most At times the best rival's
	AtMost               // the value is at most At
	AtLeast              // the value is at least At
	Allocs               // at most At allocations
	TimesRival           // the value is at least At times the best rival's
)

func (g Goal) String() string {
	if len(g) == 0 {
		return "—"
	}
	var all []string
	for _, b := range g {
		all = append(all, b.String())
	}
	return strings.Join(all, ", ")
}

func (b Bound) String() string {
	at := strconv.FormatFloat(b.At, 'f', -1, 64)
	switch {
	case b.Of == ByRival:
		return "≤ " + at + " ×"
	case b.Of == TimesRival:
		return "≥ " + at + " ×"
	case b.Of == AtLeast:
		return "≥ " + at
	case b.Of == Allocs && b.At == 0:
		return "0 allocations"
	case b.Of == Allocs:
		return "≤ " + at + " allocations"
	case b.At == 0:
		return "0"
	}
	return fmt.Sprintf("≤ %s", at)
}
