package postgres

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync/atomic"
	"time"

	"github.com/ratelimit-go/ratelimit"
	"github.com/ratelimit-go/ratelimit/internal/rule"
)

// A limitSet has the limits of a call in the form that statements need. It is made once and
// never changes, except for what it caches. Calls can share a statement only if they have
// the same set.
type limitSet struct {
	limits  []ratelimit.Limit
	rules   []rule.Limit // of a calendar, without its period: see at
	names   []string     // of the counters, as in table ratelimit.shape
	ladders []*rule.Ladder
	blocks  bool // one of the limits has a ladder

	// A set that a function take_* counts has a function. columns has which column the
	// limits have, and shape which limits the columns have.
	function  string
	columns   []int
	shape     []string
	calendars bool
	present   atomic.Pointer[period]
}

// A period is the limits' arithmetic for as long as no period of a calendar ends.
type period struct {
	begin, end int64 // nanoseconds since 1970
	rules      []rule.Limit
}

var kindsOf = map[string]rule.Kind{
	"fixed": rule.Fixed, "sliding": rule.Sliding, "bucket": rule.Bucket, "rolling": rule.Rolling, "calendar": rule.Calendar,
}

// newLimitSet returns the set of some limits, or an error if one of them is not valid.
func newLimitSet(limits []ratelimit.Limit) (*limitSet, error) {
	set := &limitSet{limits: slices.Clone(limits)}
	name := make([]byte, len(limits)) // the kinds by their letters; 0 for a kind that has no columns
	for i, l := range limits {
		r := rule.Limit{Kind: kindsOf[l.Algorithm()], N: l.N(), Window: int64(l.Window())}
		counter := l.Algorithm() + "-" + rule.FormatSpan(r.Window)
		switch r.Kind {
		case rule.Bucket:
			r.Burst = l.Burst()
			name[i] = 'b'
		case rule.Fixed:
			name[i] = 'f'
		case rule.Sliding:
			name[i] = 's'
		case rule.Calendar:
			if counter = l.Calendar(); counter == "" {
				return nil, fmt.Errorf("limit %v has no calendar: want a time zone of the tz database and a first day that exists", l)
			}
			name[i], set.calendars = 'c', true
		}
		if err := validate(&r); err != nil {
			return nil, fmt.Errorf("limit %v is not valid: %w: want one that a constructor or ParseLimit has made", l, err)
		}
		ladder, err := ladderOf(l)
		if err != nil {
			return nil, fmt.Errorf("limit %v: %w", l, err)
		}
		set.blocks = set.blocks || ladder != nil
		set.rules, set.names, set.ladders = append(set.rules, r), append(set.names, counter), append(set.ladders, ladder)
	}
	if len(limits) > maxColumns || slices.Contains(name, 0) {
		return set, nil
	}
	order := make([]int, len(limits)) // of the limits in the columns
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(a, b int) int {
		if name[a] != name[b] {
			return orderOf(name[a]) - orderOf(name[b])
		}
		return cmp.Compare(set.names[a], set.names[b])
	})
	set.columns = make([]int, len(limits))
	for column, i := range order {
		set.function += string(name[i])
		set.shape = append(set.shape, set.names[i])
		set.columns[i] = column
	}
	return set, nil
}

// validate returns an error for a limit with which the arithmetic would go wrong.
func validate(l *rule.Limit) error {
	switch {
	case l.Kind == 0:
		return errors.New("it counts nothing, or holds")
	case l.N < 1 || l.N > rule.MaxUnits || l.Kind == rule.Rolling && l.N > rule.MaxRolling:
		return fmt.Errorf("it allows %d units", l.N)
	case l.Window < rule.MinSpan || l.Window > rule.MaxSpan:
		return fmt.Errorf("its window is %v", time.Duration(l.Window))
	case l.Kind == rule.Bucket && (l.Burst < 1 || l.Burst > rule.MaxUnits || l.Refill() > rule.MaxSpan):
		return fmt.Errorf("its burst is %d units", l.Burst)
	}
	return nil
}

// ladderOf returns the ladder of a limit, or nil if it has none.
func ladderOf(l ratelimit.Limit) (*rule.Ladder, error) {
	given := l.Ladder()
	if given == nil {
		return nil, nil
	}
	ladder := &rule.Ladder{N: len(given)}
	if len(given) < 1 || len(given) > rule.MaxRungs {
		return nil, fmt.Errorf("its block has %d durations: want 1 to %d", len(given), rule.MaxRungs)
	}
	for i, d := range given {
		if d < rule.MinSpan || d > rule.MaxSpan || i > 0 && d < given[i-1] {
			return nil, fmt.Errorf("its block has a duration of %v: want 1ms to 50 years, and none shorter than the one before", d)
		}
		ladder.Rungs[i] = int64(d)
	}
	return ladder, nil
}

// at returns the counting rules at an instant of the server's clock.
func (set *limitSet) at(now int64) *period {
	if p := set.present.Load(); p != nil && now >= p.begin && now < p.end {
		return p
	}
	p := &period{end: math.MaxInt64, rules: set.rules}
	if set.calendars {
		p.rules = slices.Clone(set.rules)
		for i := range p.rules {
			if r := &p.rules[i]; r.Kind == rule.Calendar {
				begin, end, _ := set.limits[i].Period(time.Unix(0, now))
				r.Window, r.Burst = int64(end.Sub(begin)), end.UnixNano()
				p.begin, p.end = max(p.begin, begin.UnixNano()), min(p.end, r.Burst)
			}
		}
	}
	set.present.Store(p)
	return p
}

// has reports whether the set has these limits. Names of limits make no difference.
func (set *limitSet) has(limits []ratelimit.Limit) bool {
	return slices.EqualFunc(set.limits, limits, func(a, b ratelimit.Limit) bool { return a.Named("") == b.Named("") })
}

// limitSets caches the sets that a store has made: one for its limiter's own limits, and one
// for each of its plans. Its zero value is ready to use. It takes no lock.
type limitSets struct {
	known atomic.Pointer[[]*limitSet]
}

// maxLimitSets bounds the cache of a limiter whose limits keep changing.
const maxLimitSets = 32

// of returns the set of these limits. If two goroutines make a set at the same time, the
// second one is not cached.
func (s *limitSets) of(limits []ratelimit.Limit) (*limitSet, error) {
	known := s.known.Load()
	if known != nil {
		for _, set := range *known {
			if set.has(limits) {
				return set, nil
			}
		}
	}
	set, err := newLimitSet(limits)
	if err != nil {
		return nil, err
	}
	sets := []*limitSet{set}
	if known != nil {
		sets = append(sets, (*known)[:min(len(*known), maxLimitSets-1)]...)
	}
	s.known.CompareAndSwap(known, &sets)
	return set, nil
}
