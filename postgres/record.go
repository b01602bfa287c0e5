package postgres

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/ratelimit-go/ratelimit/internal/rule"
	"github.com/ratelimit-go/ratelimit/storekit"
)

// This file has the contents of a row, which is a storekit.Record, and how they are written.
// Counters of the row's shape have columns. All others, and everything that has no column, are
// in the column more.

// A row is what the function look returns of one.
type row struct {
	version int64 // 0 if there is no row
	shape   int32
	ends    int64
	states  []int64 // three for each column
	more    *string
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
func (r *row) read(shape []string) (*storekit.Record, error) {
	rec := new(storekit.Record)
	var m more
	if r.more != nil {
		if err := json.Unmarshal([]byte(*r.more), &m); err != nil {
			return nil, fmt.Errorf("its column more: %w", err)
		}
	}
	for i, name := range shape {
		// The functions add up to 100 years to the server's time.
		c := storekit.Counter{Name: name, End: min(r.ends, rule.MaxUntil), T: r.states[3*i], A: r.states[3*i+1], B: r.states[3*i+2]}
		if from := m.Counters[name]; from != nil { // the block of a counter with columns
			from.readBlock(&c)
		}
		rec.Counters = append(rec.Counters, c)
	}
	for _, name := range slices.Sorted(maps.Keys(m.Counters)) {
		if from := m.Counters[name]; from != nil && !slices.Contains(shape, name) {
			c := storekit.Counter{Name: name, End: from.Ends, T: from.T, A: from.A, B: from.B}
			for i, instant := range from.Log {
				if i > 0 {
					instant += c.Log[i-1]
				}
				c.Log = append(c.Log, instant)
			}
			from.readBlock(&c)
			rec.Counters = append(rec.Counters, c)
		}
	}
	for _, process := range slices.Sorted(maps.Keys(m.Holds)) {
		h := m.Holds[process]
		rec.Holds = append(rec.Holds, storekit.Hold{Process: process, Began: h[0], Ended: h[1], Until: h[2], Lasts: time.Duration(h[3])})
	}
	return rec, rec.Validate()
}

func (m *moreCounter) readBlock(c *storekit.Counter) {
	if m.Block != nil {
		c.Until, c.Rung, c.Forget = m.Block[0], int(m.Block[1]), time.Duration(m.Block[2])
	}
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
func write(rec *storekit.Record, shape []string, id int32, now int64) written {
	w := written{shape: id, ends: now}
	for i := range 3 * len(shape) {
		w.states[i] = new(int64)
	}
	m := more{Counters: make(map[string]*moreCounter), Holds: make(map[string][4]int64)}
	until := int64(0)
	for i := range rec.Counters {
		c, column := &rec.Counters[i], slices.Index(shape, rec.Counters[i].Name)
		if column < 0 && c.End+kept <= now {
			continue
		}
		w.ends, until = max(w.ends, c.End), max(until, c.Until)
		to := &moreCounter{}
		if column >= 0 {
			*w.states[3*column], *w.states[3*column+1], *w.states[3*column+2] = c.T, c.A, c.B
		} else {
			to.T, to.A, to.B, to.Ends = c.T, c.A, c.B, c.End
			for i, instant := range c.Log {
				if i > 0 {
					instant -= c.Log[i-1]
				}
				to.Log = append(to.Log, instant)
			}
			m.Counters[c.Name] = to
		}
		if c.Until != 0 || c.Forget != 0 {
			to.Block = &[3]int64{c.Until, int64(c.Rung), int64(c.Forget)}
			m.Counters[c.Name] = to
		}
	}
	for _, h := range rec.Holds {
		if h.Until+kept > now {
			m.Holds[h.Process] = [4]int64{h.Began, h.Ended, h.Until, int64(h.Lasts)}
			w.ends = max(w.ends, h.Until)
		}
	}
	if until > 0 {
		w.until = &until
	}
	if len(m.Counters)+len(m.Holds) > 0 {
		text, _ := json.Marshal(m) // numbers and names only
		s := string(text)
		w.more = &s
	}
	return w
}
