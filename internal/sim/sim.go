// Package sim simulates any number of processes that share limits on one Redis server, in virtual
// time. It runs the code that a limiter runs: the server counts with internal/rule, and each
// process uses internal/nearcache and internal/breaker for what it knows, leases, denies and owes.
// Only the parts in between are models: how calls share round trips (internal/batch, whose callers
// are goroutines), the latency of the network, and the time that the server needs.
//
// The same Config gives the same Report.
package sim

import (
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/ratelimit-go/ratelimit/internal/remote"
	"github.com/ratelimit-go/ratelimit/internal/rule"
)

// Mode is what a process does before it asks the server.
type Mode uint8

const (
	Exact  Mode = iota // nothing: the server makes each decision
	Cached             // it remembers denials, as a limiter does by default
	Leased             // and takes units of busy keys in advance, as with Options.Lease
)

func (m Mode) String() string { return [...]string{"exact", "deny-cached", "leased"}[m] }

// Config describes a simulation. Limit, Processes, Rate and Span are required.
type Config struct {
	Seed      uint64
	Mode      Mode
	Limit     rule.Limit   // of each key
	Ladder    *rule.Ladder // of the limit's blocks; nil: it has none
	Processes int
	Rate      float64 // requests a second, of all processes together
	Share     float64 // the fraction of them that the first process gets; 0: as many as each other process
	Regular   bool    // requests arrive evenly spaced, not at random
	Keys      Keys
	Span      time.Duration

	Lease   time.Duration // like Recheck and Timeout as in Options; 0: 250 ms
	Recheck time.Duration // 0: a second
	Timeout time.Duration // 0: 100 ms

	RTT     time.Duration // the shortest round trip; 0: 200 µs
	Jitter  time.Duration // what is added to RTT on average, exponentially distributed
	Service time.Duration // the server's time for a command; 0: 7 µs
	Outages []Outage
}

// Outage is a time in which the server cannot be reached. The server keeps its
// counters.
type Outage struct{ From, To time.Duration }

func (c Config) withDefaults() Config {
	for _, d := range []struct {
		field *time.Duration
		is    time.Duration
	}{
		{&c.Lease, 250 * time.Millisecond}, {&c.Recheck, remote.DefaultRecheck}, {&c.Timeout, remote.DefaultTimeout},
		{&c.RTT, 200 * time.Microsecond}, {&c.Service, 7 * time.Microsecond},
	} {
		if *d.field == 0 {
			*d.field = d.is
		}
	}
	c.Keys.Count = max(1, c.Keys.Count)
	return c
}

// Report is the result of a simulation.
type Report struct {
	Requests int64
	Admitted int64
	Ideal    int64               // what one counter beside all processes would have admitted of the same requests
	Blocked  int64               // requests that were denied by a block, except by the denial that has started it
	Commands int64               // the commands that the server has carried out
	Busy     float64             // the fraction of the time in which the server was busy
	From     [len(sources)]int64 // decisions by their source

	Processes []Share
	Slices    []Slice // of time
	waits     histogram
}

// Share has the counts of one process.
type Share struct{ Requests, Admitted int64 }

// SliceSpan is how long a [Slice] is.
const SliceSpan = 100 * time.Millisecond

// Slice has the counts of one part of the time.
type Slice struct{ Requests, Admitted, Commands int64 }

// The sources of decisions, as in Decision.Source.
const (
	FromStore = iota
	FromCache
	FromLease
	FromFallback
)

var sources = [...]string{"store", "cache", "lease", "fallback"}

// PerDecision returns the number of commands per request.
func (r *Report) PerDecision() float64 { return float64(r.Commands) / float64(max(1, r.Requests)) }

// OfIdeal returns which fraction of the requests that the limit allows was
// admitted.
func (r *Report) OfIdeal() float64 { return float64(r.Admitted) / float64(max(1, r.Ideal)) }

// Jain returns Jain's index of fairness (Jain, Chiu, Hawe 1984) for the fraction of its
// requests that each process has admitted. It is 1 if the fractions are equal, and 1/n if
// one of n processes has admitted all.
func (r *Report) Jain() float64 {
	var sum, squares, n float64
	for _, p := range r.Processes {
		if p.Requests > 0 {
			x := float64(p.Admitted) / float64(p.Requests)
			sum, squares, n = sum+x, squares+x*x, n+1
		}
	}
	if squares == 0 {
		return 1
	}
	return sum * sum / (n * squares)
}

// Wait returns the longest time that this fraction of the decisions took, to
// within a tenth.
func (r *Report) Wait(part float64) time.Duration { return r.waits.quantile(part) }

// run is a simulation that is running.
type run struct {
	Config
	report    Report
	events    events
	now       int64
	server    server
	processes []*process
	keys      []string
	index     map[string]int
	ideal     []counter
	limits    []rule.Limit
	ladders   *[rule.MaxLimits]*rule.Ladder // nil without a ladder
	answers   []rule.Answer                 // of one decision
}

// begin is the instant at which the simulation begins. It is not 0, because
// instants before it must exist.
const begin = int64(time.Hour)

// Run runs a simulation and returns its report. It needs no goroutine and does
// not wait in real time.
func Run(c Config) *Report {
	if c.Limit.Kind == rule.Calendar { // a period that begins with the simulation, and goes on if that is longer
		c.Limit.Window = max(c.Limit.Window, int64(c.Span)+int64(time.Minute))
		c.Limit.Burst = begin + c.Limit.Window
	}
	r := &run{Config: c.withDefaults(), now: begin, limits: []rule.Limit{c.Limit}, answers: make([]rule.Answer, 1), index: make(map[string]int)}
	for i := range r.Keys.Count {
		r.keys = append(r.keys, fmt.Sprintf("key-%d", i))
		r.index[r.keys[i]] = i
	}
	if c.Ladder != nil {
		r.ladders = &[rule.MaxLimits]*rule.Ladder{c.Ladder}
	}
	r.ideal = make([]counter, r.Keys.Count)
	r.server = server{run: r, counters: make([]counter, r.Keys.Count), free: begin}
	r.report.Slices = make([]Slice, 1+r.Span/SliceSpan)
	for i := range r.Processes {
		share := 1 / float64(r.Processes)
		if r.Share > 0 && r.Processes > 1 {
			share = r.Share
			if i > 0 {
				share = (1 - r.Share) / float64(r.Processes-1)
			}
		}
		p := newProcess(r, rand.New(rand.NewPCG(c.Seed, uint64(i))), share*r.Rate)
		r.processes = append(r.processes, p)
		r.at(r.now+p.source.first(), event{do: arrival, process: p})
	}
	end := begin + int64(r.Span)
	for len(r.events.heap) > 0 {
		e := r.events.pop()
		if r.now = e.at; r.now >= end {
			break
		}
		e.run()
	}
	for _, p := range r.processes {
		r.report.Processes = append(r.report.Processes, p.had)
	}
	r.report.Busy = float64(r.server.worked) / float64(r.Span)
	return &r.report
}

func (r *run) slice() *Slice { return &r.report.Slices[(r.now-begin)/int64(SliceSpan)] }

// down reports whether the server cannot be reached now.
func (r *run) down() bool {
	for _, o := range r.Outages {
		if since := time.Duration(r.now - begin); o.From <= since && since < o.To {
			return true
		}
	}
	return false
}
