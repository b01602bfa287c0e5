package postgres

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/ratelimit-go/ratelimit/internal/rule"
)

// This file has the contents of a row, and how they are written. A row is a record of all counters
// of a key, by name. Counters of the row's shape have columns. All others, and everything
// that is no rule.State, are in the column more.

// A row is what the function look returns of one.
type row struct {
	version int64 // 0 if there is no row
	shape   int32
	ends    int64
	states  []int64 // three for each column
	more    *string
}

// A record has the counters and the holds of a key.
type record struct {
	counters map[string]*counter
	holds    rule.Holds
}

// A counter is what is kept under one limit. It may have a block without having units.
type counter struct {
	state rule.State
	log   rule.Log // of a rolling window, which has no state
	block rule.Block
	ends  int64 // from when on it counts no longer
}

// counter returns a counter of the record, which it makes if there is none.
func (r *record) counter(name string) *counter {
	c := r.counters[name]
	if c == nil {
		c = new(counter)
		r.counters[name] = c
	}
	return c
}

// more is the column of that name.
type more struct {
	Counters map[string]*moreCounter `json:"counters,omitempty"`
	Holds    map[string][4]int64     `json:"holds,omitempty"` // began, ended, until, lasts; by process
}

type moreCounter struct {
	T     int64     `json:"t,omitempty"`
	A     int64     `json:"a,omitempty"`
	B     int64     `json:"b,omitempty"`
	Log   []int64   `json:"log,omitempty"`   // the first instant, and from each instant to the next
	Block *[3]int64 `json:"block,omitempty"` // until, rung, forget
	Ends  int64     `json:"ends,omitempty"`
}

// read returns the record of a row. shape has the names of the row's columns.
func (r *row) read(shape []string) (*record, error) {
	rec := &record{counters: make(map[string]*counter)}
	for i, name := range shape {
		s := rule.State{T: r.states[3*i], A: r.states[3*i+1], B: r.states[3*i+2]}
		if s.A < 0 || s.B < 0 {
			return nil, fmt.Errorf("its counter %s has %d and %d units", name, s.A, s.B)
		}
		rec.counters[name] = &counter{state: s, ends: r.ends}
	}
	if r.more == nil {
		return rec, nil
	}
	var m more
	if err := json.Unmarshal([]byte(*r.more), &m); err != nil {
		return nil, fmt.Errorf("its column more: %w", err)
	}
	for name, from := range m.Counters {
		if from == nil || from.A < 0 || from.B < 0 || len(from.Log) > rule.MaxRolling {
			return nil, fmt.Errorf("its counter %s is none", name)
		}
		c := rec.counter(name)
		if !slices.Contains(shape, name) {
			c.state, c.ends = rule.State{T: from.T, A: from.A, B: from.B}, from.Ends
		}
		for i := 1; i < len(from.Log); i++ {
			if from.Log[i] < 0 {
				return nil, fmt.Errorf("the units of its counter %s are not in order", name)
			}
			from.Log[i] += from.Log[i-1]
		}
		c.log = rule.LogOf(from.Log)
		if b := from.Block; b != nil {
			if b[1] < 0 || b[1] > rule.MaxRungs || b[2] < 0 {
				return nil, fmt.Errorf("the block of its counter %s is none", name)
			}
			c.block = rule.Block{Until: b[0], Rung: uint8(b[1]), Forget: b[2]}
		}
	}
	for _, process := range slices.Sorted(maps.Keys(m.Holds)) {
		h := m.Holds[process]
		rec.holds = append(rec.holds, rule.HoldRecord{Process: process, Began: h[0], Ended: h[1], Until: h[2], Lasts: h[3]})
	}
	return rec, nil
}

// A written row is what the functions write and add take.
type written struct {
	shape  int32
	ends   int64
	until  *int64
	states [3 * maxColumns]*int64
	more   *string
}

// kept is how much longer a counter is kept than it counts, and a row before the function
// sweep deletes it: if the clock is set back by less, nothing has been forgotten.
const kept = int64(time.Minute)

// write returns the row of a record at an instant. It leaves out what counts no longer.
func (rec *record) write(shape []string, id int32, now int64) written {
	w := written{shape: id, ends: now}
	for i, name := range shape {
		c := rec.counter(name)
		for j, n := range [...]int64{c.state.T, c.state.A, c.state.B} {
			w.states[3*i+j] = &n
		}
		if !c.state.Fresh() {
			w.ends = max(w.ends, c.ends)
		}
	}
	var m more
	until := int64(0)
	for name, c := range rec.counters {
		has, to := false, &moreCounter{}
		if !slices.Contains(shape, name) && c.ends+kept > now && (!c.state.Fresh() || c.log.N > 0) {
			has, to.T, to.A, to.B, to.Ends = true, c.state.T, c.state.A, c.state.B, c.ends
			to.Log = c.log.AppendTo(nil)
			for i := len(to.Log) - 1; i > 0; i-- {
				to.Log[i] -= to.Log[i-1]
			}
			w.ends = max(w.ends, c.ends)
		}
		if c.block != (rule.Block{}) && c.block.Forgotten()+kept > now {
			has, to.Block = true, &[3]int64{c.block.Until, int64(c.block.Rung), c.block.Forget}
			until, w.ends = max(until, c.block.Until), max(w.ends, c.block.Forgotten())
		}
		if has {
			if m.Counters == nil {
				m.Counters = make(map[string]*moreCounter)
			}
			m.Counters[name] = to
		}
	}
	if until > 0 {
		w.until = &until
	}
	for _, h := range rec.holds {
		if m.Holds == nil {
			m.Holds = make(map[string][4]int64)
		}
		m.Holds[h.Process] = [4]int64{h.Began, h.Ended, h.Until, h.Lasts}
		w.ends = max(w.ends, h.Until)
	}
	if m.Counters != nil || m.Holds != nil {
		text, _ := json.Marshal(m) // numbers and names only
		s := string(text)
		w.more = &s
	}
	return w
}
