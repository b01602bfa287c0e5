package postgres

import (
	"cmp"
	"math"
	"slices"
	"sync/atomic"
	"time"

	"github.com/ratelimit-go/ratelimit"
	"github.com/ratelimit-go/ratelimit/internal/counting"
	"github.com/ratelimit-go/ratelimit/internal/rule"
)

// A limitSet has the limits of a call in the form that statements need. It is made once and
// never changes, except for what it caches. Calls can share a statement only if they have
// the same set.
type limitSet struct {
	limits   []ratelimit.Limit
	counting []*counting.Limit
	rules    []rule.Limit // of a calendar, without its period: see at
	blocks   bool         // one of the limits has a ladder

	// A set that a function take_* counts has a function. columns has which column the
	// limits have, and shape which limits the columns have.
	function  string
	columns   []int
	shape     []string // names of counters, as in table ratelimit.shape
	calendars bool
	present   atomic.Pointer[period]
}

// A period is the limits' arithmetic for as long as no period of a calendar ends.
type period struct {
	begin, end int64 // nanoseconds since 1970
	rules      []rule.Limit
}

// newLimitSet returns the set of some limits, or an error if one of them is not valid.
func newLimitSet(limits []ratelimit.Limit) (*limitSet, error) {
	set := &limitSet{limits: slices.Clone(limits)}
	name := make([]byte, len(limits)) // the kinds by their letters; 0 for a kind that has no columns
	for i, l := range limits {
		how, err := counting.New(l)
		if err != nil {
			return nil, err
		}
		switch how.Rule.Kind {
		case rule.Bucket:
			name[i] = 'b'
		case rule.Fixed:
			name[i] = 'f'
		case rule.Sliding:
			name[i] = 's'
		case rule.Calendar:
			name[i], set.calendars = 'c', true
		}
		set.blocks = set.blocks || how.Ladder != nil
		set.counting, set.rules = append(set.counting, how), append(set.rules, how.Rule)
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
		return cmp.Compare(set.counting[a].Name, set.counting[b].Name)
	})
	set.columns = make([]int, len(limits))
	for column, i := range order {
		set.function += string(name[i])
		set.shape = append(set.shape, set.counting[i].Name)
		set.columns[i] = column
	}
	return set, nil
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
				*r = set.counting[i].At(time.Unix(0, now))
				p.begin, p.end = max(p.begin, r.Burst-r.Window), min(p.end, r.Burst)
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
