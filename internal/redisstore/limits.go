package redisstore

import (
	"fmt"
	"math"
	"slices"
	"sync/atomic"
	"time"

	"github.com/ratelimit-go/ratelimit/internal/calendar"
	"github.com/ratelimit-go/ratelimit/internal/clock"
	"github.com/ratelimit-go/ratelimit/internal/recent"
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
	args     []any        // the arguments of the scripts; of calendars without their periods
	rolling  bool         // some of the limits are rolling windows

	calendars []calendarArgs
	present   atomic.Pointer[presentArgs] // nil without calendars, and before the first call
}

// presentArgs are the arguments of the scripts while the periods of calendars last.
type presentArgs struct {
	args        []any
	begin, ends int64 // in nanoseconds since 1970 UTC
}

// calendarArgs says where in the arguments the periods of a calendar are.
type calendarArgs struct {
	*calendar.Calendar
	first int
}

// argsNow returns the arguments of the scripts for a server whose clock shows about the same
// as the clock of this process.
func (set *limitSet) argsNow() []any {
	if set.calendars == nil {
		return set.args
	}
	unix := time.Now().UnixNano()
	now := set.present.Load()
	if now == nil || unix < now.begin || unix >= now.ends {
		now = set.argsAt(unix)
		set.present.Store(now)
	}
	return now.args
}

// argsAt returns the arguments for a server whose clock shows about a time, in nanoseconds
// since 1970 UTC.
func (set *limitSet) argsAt(unix int64) *presentArgs {
	args := slices.Clone(set.args)
	now := &presentArgs{args: args, ends: math.MaxInt64}
	for _, c := range set.calendars {
		present := c.At(unix)
		now.begin, now.ends = max(now.begin, present.Begin), min(now.ends, present.End)
		for i, at := range [...]int64{c.Before(present).Begin, present.Begin, present.End, c.At(present.End).End} {
			args[c.first+i] = at / 1000
		}
	}
	return now
}

type ladders = [rule.MaxLimits]*rule.Ladder

func newLimitSet(rules []rule.Limit, of *ladders) *limitSet {
	set := &limitSet{rules: slices.Clone(rules), ladders: of}
	for i, l := range rules {
		micro := redisscript.Micro(l)
		set.micros = append(set.micros, micro)
		set.rolling = set.rolling || l.Kind == rule.Rolling
		var ladder *rule.Ladder
		if of != nil {
			ladder = of[i]
		}
		if l.Kind == rule.Calendar {
			c := calendar.Of(l.Number)
			set.calendars = append(set.calendars, calendarArgs{c, len(set.args) + 2})
			set.suffixes = append(set.suffixes, c.String())
		} else {
			set.suffixes = append(set.suffixes, l.Kind.String()+"-"+rule.FormatSpan(l.Window))
		}
		set.args = append(set.args, redisscript.Args(micro, redisscript.Periods{}, ladder)...)
	}
	return set
}

// has reports whether the set has these limits and ladders.
func (set *limitSet) has(rules []rule.Limit, of *ladders) bool {
	if !slices.EqualFunc(set.rules, rules, sameArgs) || (set.ladders == nil) != (of == nil) {
		return false
	}
	if set.ladders == of {
		return true
	}
	return slices.EqualFunc(set.ladders[:], of[:], func(a, b *rule.Ladder) bool {
		return a == b || a != nil && b != nil && *a == *b
	})
}

// sameArgs reports whether two limits are the same, whatever the present periods of
// calendars are.
func sameArgs(a, b rule.Limit) bool {
	return a == b || a.Kind == rule.Calendar && a.SameCounter(&b) && a.N == b.N
}

// limitSets caches the sets that a store has made: one for its limiter's own
// limits, and one for each of its plans, with and without blocks.
type limitSets struct{ recent.Cache[*limitSet] }

// maxLimitSets bounds the cache of a limiter whose limits keep changing.
const maxLimitSets = 4096

// of returns the set of these limits, and of the ladders by which they start blocks,
// which must not change any more. It takes a lock if the set is not cached.
func (s *limitSets) of(rules []rule.Limit, of *ladders) *limitSet {
	var hash recent.Hash
	for i := range rules {
		hash = hash.AddLimit(&rules[i])
		if of != nil {
			hash = hash.AddLadder(of[i])
		}
	}
	same := func(set *limitSet) bool { return set.has(rules, of) }
	if set, ok := s.Find(uint64(hash), same); ok {
		return set
	}
	set, _ := s.Put(uint64(hash), newLimitSet(rules, of), clock.Now(), same, func(*limitSet) {})
	return set
}

// validate checks the limits, because a script would fail or miscount with
// invalid ones.
func validate(rules []rule.Limit, most int) error {
	if len(rules) == 0 || len(rules) > most {
		return fmt.Errorf("%d limits: want 1 to %d", len(rules), most)
	}
	for _, l := range rules {
		if l.N < 1 || l.Window < rule.MinSpan || l.Kind == rule.Rolling && l.N > rule.MaxRolling {
			return fmt.Errorf("limit %v is not valid: want one that a constructor or ParseLimit has made", l)
		}
		if l.Kind == rule.Calendar && calendar.Of(l.Number) == nil {
			return fmt.Errorf("limit %v is of calendar %d, which this process does not know: want one that a constructor or ParseLimit has made", l, l.Number)
		}
	}
	return nil
}
