package redisstore

import (
	"fmt"
	"slices"
	"sync/atomic"

	"github.com/ratelimit-go/ratelimit/internal/redisscript"
	"github.com/ratelimit-go/ratelimit/internal/rule"
)

// A limitSet is what the limits of a call look like in commands. It is made once
// and used by all calls with the same limits; it never changes. Calls can share a
// command only if they have the same set.
type limitSet struct {
	rules    []rule.Limit // as the caller gave them
	micros   []rule.Limit // in microseconds, as the scripts count
	suffixes []string     // of the names of the counters' keys
	args     []any        // of the scripts
}

func newLimitSet(rules []rule.Limit) *limitSet {
	set := &limitSet{rules: slices.Clone(rules)}
	for _, l := range rules {
		micro := redisscript.Micro(l)
		set.micros = append(set.micros, micro)
		set.args = append(set.args, redisscript.Args(micro)...)
		set.suffixes = append(set.suffixes, l.Kind.String()+"-"+rule.FormatSpan(l.Window))
	}
	return set
}

// limitSets remembers the sets that a store has made: for its limiter's own
// limits, and for those of its plans. Its zero value is ready to use.
type limitSets struct {
	known atomic.Pointer[[]*limitSet]
}

// maxLimitSets bounds what a limiter with ever new limits piles up. The newest
// stay.
const maxLimitSets = 32

// of returns the set of these limits. If two goroutines make one at the same
// time, the second is used once and not remembered.
func (s *limitSets) of(rules []rule.Limit) *limitSet {
	known := s.known.Load()
	if known != nil {
		for _, set := range *known {
			if slices.Equal(set.rules, rules) {
				return set
			}
		}
	}
	set := newLimitSet(rules)
	sets := []*limitSet{set}
	if known != nil {
		sets = append(sets, (*known)[:min(len(*known), maxLimitSets-1)]...)
	}
	s.known.CompareAndSwap(known, &sets)
	return set
}

// validate checks what a script would stumble over.
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
