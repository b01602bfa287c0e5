package postgres

import (
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/ratelimit-go/ratelimit"
	"github.com/ratelimit-go/ratelimit/internal/rule"
)

// This file calls the functions take_* and works out the answer of each caller. schema_take.go
// has the functions.

// What a function says of a key in place of a number of callers. 0 may also mean that a call
// fits: it has read an older row than its look, or its arithmetic leaves the case to count.
const (
	isMissing = -1 // there is no row, and it was not the time to insert one
	isOther   = -2 // the row has another shape, or a block
)

// A taken key is what a function says of one.
type takenKey struct {
	admitted int32 // callers, or one of the constants above
	states   [maxColumns]rule.State
}

// takeFast carries out groups of takes under the same limits in one statement. It returns
// the groups that it could not decide, without the calls that it could.
func (t *trip) takeFast(set *limitSet, groups []*group) (undecided []*group) {
	sortByKey(groups)
	now := t.serverNow()
	for attempt := range 2 {
		missing, outside, err := t.takeOnce(set, groups, &now, &undecided)
		if err != nil {
			for _, g := range groups {
				t.failAll(g.jobs, err)
			}
			return undecided
		}
		if groups = missing; outside && attempt == 0 {
			continue // nothing was changed; now is the server's time
		}
		if len(groups) == 0 {
			break
		}
	}
	return append(undecided, groups...)
}

// takeOnce sends one statement. It returns the groups whose rows are missing. outside means
// that the period of a calendar was not the server's: then nothing was changed, and missing
// are all groups.
func (t *trip) takeOnce(set *limitSet, groups []*group, now *int64, undecided *[]*group) (missing []*group, outside bool, err error) {
	p := set.at(*now)
	shape, err := t.open.shapeOf(t, set.shape)
	if err != nil {
		return nil, false, err
	}
	keys := make([]string, len(groups))
	var costs []int64
	var callers []int32
	cost := groups[0].cost()
	for i, g := range groups {
		keys[i] = g.key
		if n := g.cost(); n != cost && costs == nil {
			costs = slices.Repeat([]int64{cost}, len(groups))
			costs[i] = n
		} else if costs != nil {
			costs[i] = n
		}
		if n := g.callers(); n != 1 && callers == nil {
			callers = slices.Repeat([]int32{1}, len(groups))
			callers[i] = n
		} else if callers != nil {
			callers[i] = n
		}
	}
	args := []any{shape, keys, cost, costs, callers, !t.durable, p.begin, p.end}
	limits := make([]int, len(set.columns)) // by column
	for i, column := range set.columns {
		limits[column] = i
	}
	for _, i := range limits {
		l := &p.rules[i]
		lasts := l.Lasts()
		if l.Kind == rule.Calendar {
			lasts = l.End()
		}
		args = append(args, l.N, l.Window, l.Burst, lasts)
	}
	var index, admitted []int32
	columns := make([][]int64, 3*len(limits))
	into := []any{now, &index, &admitted}
	for column := range limits {
		into = append(into, &columns[3*column], &columns[3*column+1])
		if kindOf(set.function[column]).hasB {
			into = append(into, &columns[3*column+2])
		}
	}
	if err := t.conn.QueryRow(t.ctx, takeStatement(set.function), args...).Scan(into...); err != nil {
		return nil, false, t.failed(err, false)
	}
	t.learnTime(*now)
	if len(index) == 0 {
		return groups, true, nil
	}
	keysTaken := make([]takenKey, len(groups))
	for i := range keysTaken {
		keysTaken[i].admitted = isMissing
	}
	for i, o := range index {
		if o < 1 || int(o) > len(groups) || i >= len(admitted) {
			return nil, false, t.fail(ratelimit.FaultUnknown, errReply, migrateHint)
		}
		key := takenKey{admitted: admitted[i]}
		for column := range columns {
			if n := columns[column]; n != nil {
				if i >= len(n) {
					return nil, false, t.fail(ratelimit.FaultUnknown, errReply, migrateHint)
				}
				s := &key.states[column/3]
				*[...]*int64{&s.T, &s.A, &s.B}[column%3] = n[i]
			}
		}
		keysTaken[o-1] = key
	}
	for i, g := range groups {
		if keysTaken[i].admitted == isMissing && g.needsRow(p.rules) {
			missing = append(missing, g)
		} else if left := t.answer(g, p.rules, &keysTaken[i], *now); len(left) > 0 {
			*undecided = append(*undecided, &group{key: g.key, jobs: left})
		}
	}
	return missing, false, nil
}

var errReply = errors.New("the functions of the schema do not count as this library does")

// takeStatement calls the function for some kinds.
func takeStatement(name string) string {
	const args = "($1, $2, $3, $4, $5, $6, $7, $8"
	return [...]string{
		"SELECT * FROM ratelimit.take_" + name + args + ", $9, $10, $11, $12)",
		"SELECT * FROM ratelimit.take_" + name + args + ", $9, $10, $11, $12, $13, $14, $15, $16)",
		"SELECT * FROM ratelimit.take_" + name + args + ", $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20)",
	}[len(name)-1]
}

// cost and callers are the units per caller and the number of callers that a function gets.
// If a caller wants as many units as fit, it gets that many callers of one unit each.
func (g *group) cost() int64 { return g.jobs[0].Value.asked() }

func (g *group) callers() int32 {
	if f := &g.jobs[0].Value; f.upTo {
		return int32(f.units)
	}
	return int32(len(g.jobs))
}

// needsRow reports whether a take of a key without a row must write one.
func (g *group) needsRow(rules []rule.Limit) bool {
	cost := g.cost()
	for i := range rules {
		if cost > rules[i].Cap() {
			return false
		}
	}
	return cost > 0
}

// answer works out the answers of a group, as if its callers had come one after the other. It
// returns the calls that are not decided.
func (t *trip) answer(g *group, rules []rule.Limit, key *takenKey, now int64) (undecided []*job) {
	if key.admitted == isOther {
		return g.jobs
	}
	n, cost := int64(max(0, key.admitted)), g.cost()
	decided := now
	for i := range rules {
		column := g.jobs[0].Value.set.columns[i]
		s := &key.states[column]
		if s.A -= n * cost; s.A < 0 || s.B < 0 {
			t.failAll(g.jobs, t.fail(ratelimit.FaultUnknown, fmt.Errorf("%w: the key %q has %d units", errReply, g.jobs[0].Value.key, s.A), migrateHint))
			return nil
		}
		if rules[i].Kind != rule.Calendar && n > 0 {
			decided = max(decided, s.T)
		}
	}
	for k, j := range g.jobs {
		c := &j.Value
		counted, asked, admitted := cost*min(int64(k), n), cost, int64(k) < n || cost == 0
		c.taken = 0
		if admitted {
			c.taken = c.units
		}
		if c.upTo && admitted {
			c.taken, counted, asked = n, n, 0
		}
		denied, never, repaired := false, false, false
		for i := range rules {
			s := key.states[c.set.columns[i]]
			s.A += counted
			after, a := rules[i].Take(s, now, asked)
			repaired = repaired || a.Retry > 0 && after != s
			denied, never = denied || a.Retry > 0, never || a.Retry == math.MaxInt64
			if !admitted && a.Retry == 0 {
				after, a = rules[i].Take(s, now, 0)
				repaired = repaired || after != s
			}
			c.results[i] = resultOf(a)
		}
		switch {
		case denied && admitted:
			c.err = t.fail(ratelimit.FaultUnknown, fmt.Errorf("%w: it has admitted %d units of the key %q", errReply, c.units, c.key), migrateHint)
		case denied == admitted, denied && c.set.blocks && !never, denied && repaired:
			// It fits after all, or may start a block. Or the row is of a clock that was more
			// than a window ahead, so it must be written even though nothing fits.
			undecided = append(undecided, j)
		default:
			c.decided, c.err = decided, nil
		}
	}
	return undecided
}
