package redisstore

import (
	"fmt"
	"slices"
	"sync/atomic"

	"github.com/ratelimit-go/ratelimit/internal/redisscript"
	"github.com/ratelimit-go/ratelimit/internal/rule"
)

// A limitSet has the limits of a call in the form that commands need. It is made
// once, never changes, and is used by all calls with the same limits. Calls can
// share a command only if they have the same set.
type limitSet struct {
	rules    []rule.Limit // as the caller gave them
	ladders  *ladders     // of the limits that start blocks; nil if none does
	micros   []rule.Limit // in microseconds, as the scripts count
	suffixes []string     // the ends of the names of the counters' keys
	args     []any        // the arguments of the scripts
}

type ladders = [rule.MaxLimits]*rule.Ladder

func newLimitSet(rules []rule.Limit, of *ladders) *limitSet {
	set := &limitSet{rules: slices.Clone(rules), ladders: of}
	for i, l := range rules {
		micro := redisscript.Micro(l)
		set.micros = append(set.micros, micro)
		var ladder *rule.Ladder
		if of != nil {
			ladder = of[i]
		}
		set.args = append(set.args, redisscript.Args(micro, ladder)...)
		set.suffixes = append(set.suffixes, l.Kind.String()+"-"+rule.FormatSpan(l.Window))
	}
	return set
}

// has reports whether the set has these limits and ladders.
func (set *limitSet) has(rules []rule.Limit, of *ladders) bool {
	if !slices.Equal(set.rules, rules) || (set.ladders == nil) != (of == nil) {
		return false
	}
	if set.ladders == of {
		return true
	}
	return slices.EqualFunc(set.ladders[:], of[:], func(a, b *rule.Ladder) bool {
		return a == b || a != nil && b != nil && *a == *b
	})
}

// limitSets caches the sets that a store has made: one for its limiter's own
// limits, and one for each of its plans, with and without blocks. Its zero value is
// ready to use. It takes no lock.
type limitSets struct {
	known atomic.Pointer[[]*limitSet]
}

// maxLimitSets bounds the cache of a limiter whose limits keep changing. The
// newest sets stay.
const maxLimitSets = 32

// of returns the set of these limits, and of the ladders by which they start blocks,
// which must not change any more. If two goroutines make a set at the same time, the
// second set is not cached.
func (s *limitSets) of(rules []rule.Limit, of *ladders) *limitSet {
	known := s.known.Load()
	if known != nil {
		for _, set := range *known {
			if set.has(rules, of) {
				return set
			}
		}
	}
	set := newLimitSet(rules, of)
	sets := []*limitSet{set}
	if known != nil {
		sets = append(sets, (*known)[:min(len(*known), maxLimitSets-1)]...)
	}
	s.known.CompareAndSwap(known, &sets)
	return set
}

// validate checks the limits, because a script would fail or miscount with
// invalid ones.
func validate(rules []rule.Limit, most int) error {
	if len(rules) == 0 || len(rules) > most {
		return fmt.Errorf("%d limits: want 1 to %d", len(rules), most)
	}
	for _, l := range rules {
		if l.N < 1 || l.Window < rule.MinSpan {
			return fmt.Errorf("limit %v is not valid: want one that a constructor or ParseLimit has made", l)
		}
	}
	return nil
}
