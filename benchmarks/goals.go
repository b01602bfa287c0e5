package benchmarks

import (
	"fmt"
	"strconv"
	"strings"
)

// Goal is what this library aims at in one measure: all of its bounds.
type Goal []Bound

// Bound is one of them.
type Bound struct {
	Of Of
	At float64
}

// Of tells what a Bound is of.
type Of int

const (
	ByRival    Of = iota // at most so many times the best rival's value
	AtMost               // the value
	AtLeast              // the value
	Allocs               // at most so many allocations
	TimesRival           // at least so many times the best rival's value
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
