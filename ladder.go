package ratelimit

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unique"

	"github.com/ratelimit-go/ratelimit/internal/rule"
)

// ladder has the durations that were given to Limit.Block, whether they are valid or
// not. A Limit holds it through a handle: two equal ladders have equal handles.
type ladder struct {
	first [rule.MaxRungs]time.Duration // of the durations given
	given int
}

type ladderHandle = unique.Handle[ladder]

func newLadder(d []time.Duration) ladderHandle {
	l := ladder{given: len(d)}
	copy(l.first[:], d)
	return unique.Make(l)
}

// list returns the durations, without any that are too many.
func (l ladder) list() []time.Duration {
	return slices.Clone(l.first[:min(l.given, len(l.first))])
}

// validate holds every rule for a ladder.
func (l ladder) validate() error {
	if l.given < 1 || l.given > rule.MaxRungs {
		return fmt.Errorf("its block has %d durations: want 1 to %d", l.given, rule.MaxRungs)
	}
	for i, d := range l.list() {
		if err := validateBlock(d); err != nil {
			return fmt.Errorf("its block has %w", err)
		}
		if i > 0 && d < l.first[i-1] {
			return fmt.Errorf("its block has %v after %v: want no duration shorter than the one before", d, l.first[i-1])
		}
	}
	return nil
}

// validateBlock returns an error for a duration that no block can have.
func validateBlock(d time.Duration) error {
	if d < rule.MinSpan || d > rule.MaxSpan {
		return fmt.Errorf("a duration of %v: want 1ms to 50 years%s", d, nanoseconds(d))
	}
	return nil
}

// String returns the durations with commas between them, as parseLadder reads them.
func (l ladder) String() string {
	var b strings.Builder
	for i, d := range l.list() {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(rule.FormatSpan(int64(d)))
	}
	if l.given > len(l.first) {
		b.WriteString(",…")
	}
	return b.String()
}

func parseLadder(s string) (ladderHandle, error) {
	if s == "" {
		return ladderHandle{}, errors.New("option block: it is empty; give 1 to 4 durations, such as block=1m,1h,24h")
	}
	var all []time.Duration
	for text := range strings.SplitSeq(s, ",") {
		d, err := time.ParseDuration(text)
		if err != nil {
			return ladderHandle{}, fmt.Errorf("option block: %q in %q: want durations such as 1m or 24h with commas, and no spaces, between them", text, s)
		}
		all = append(all, d)
	}
	return newLadder(all), nil
}

// rule returns a valid ladder as the counting rules take it.
func (l ladder) rule() *rule.Ladder {
	r := &rule.Ladder{N: l.given}
	for i, d := range l.first {
		r.Rungs[i] = int64(d)
	}
	return r
}

// nanoseconds is what the error of a duration below a millisecond says in addition: the
// caller may have meant seconds.
func nanoseconds(d time.Duration) string {
	if d <= 0 || d >= rule.MinSpan {
		return ""
	}
	return fmt.Sprintf("; a number is of nanoseconds, so write %d*time.Second for %[1]d seconds", int64(d))
}
