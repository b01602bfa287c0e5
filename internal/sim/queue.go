package sim

import (
	"github.com/ratelimit-go/ratelimit/internal/redisstore"
	"github.com/ratelimit-go/ratelimit/internal/rule"
)

// settings are the settings of a RedisStore's round trips.
var settings = redisstore.Batching

type op uint8

const (
	take op = iota
	adjust
	block
)

// call is a call of a process to the server.
type call struct {
	op    op
	key   int
	n     int64
	at    int64 // of an adjust: when the units were taken
	then  func(*call)
	start int64

	startsBlocks bool       // of a take: a denial starts a block
	block        rule.Block // of a take: after the call; of a block: what to join, with the time that is left as its end

	probe bool // of the breaker

	deadline int64
	version  uint64
	trip     *trip
	over     bool // its caller no longer waits for it

	failed     bool
	unknown    bool // it may have been carried out, although it has failed
	answer     rule.Answer
	state      rule.State // after the call
	answeredAt int64
}

// trip has the calls that share a round trip.
type trip struct {
	calls   []*call
	shared  []bool // for each call: it shares the command of an earlier call
	refused bool
	stalled bool // callers have given up on it
}

// queue models internal/batch, by which a process's calls get to the server. A call
// starts a round trip if few enough are in flight. The calls that wait share the
// next one.
type queue struct {
	waiting           []*call
	timed             []*call // all calls that have no answer yet, by deadline
	armed             bool    // an expiry is scheduled
	inFlight, stalled int
	set               int64         // when the last round trip has started
	latest            map[int]*call // by key, within share
}

// send queues a call. When it has ended, done calls c.then with its result.
func (p *process) send(c *call, timeout int64) {
	c.version = p.near.Version(p.run.keys[c.key])
	c.deadline = p.run.now + timeout
	p.queue.waiting = append(p.queue.waiting, c)
	p.queue.timed = append(p.queue.timed, c)
	p.arm()
	p.start(p.run.now-p.queue.set >= int64(settings.MinInterval))
}

func (p *process) start(more bool) {
	q := &p.queue
	for len(q.waiting) > 0 && (q.inFlight < settings.MaxInFlight || more && q.inFlight < settings.MaxInFlight+settings.Extra) {
		q.set, more = p.run.now, false
		f := new(trip)
		for len(q.waiting) > 0 && len(f.calls) < settings.MaxCalls {
			if c := q.waiting[0]; !c.over {
				c.trip = f
				f.calls = append(f.calls, c)
			}
			q.waiting = q.waiting[1:]
		}
		if len(f.calls) == 0 {
			return
		}
		p.share(f)
		q.inFlight++
		p.run.at(p.run.now+p.halfway(), event{do: departure, process: p, trip: f})
	}
}

// share finds the calls that can share the command of an earlier call: takes of the same number of
// units of one key, with no other call for that key between them.
func (p *process) share(f *trip) {
	f.shared = make([]bool, len(f.calls))
	if len(f.calls) == 1 {
		return
	}
	clear(p.queue.latest)
	for i, c := range f.calls {
		if first := p.queue.latest[c.key]; first != nil && first.op == take && c.op == take && first.n == c.n {
			f.shared[i] = true
		} else {
			p.queue.latest[c.key] = c
		}
	}
}

// finish models the end of a round trip.
func (p *process) finish(f *trip) {
	if f.stalled {
		p.queue.stalled--
	} else {
		p.queue.inFlight--
	}
	for _, c := range f.calls {
		if !c.over {
			c.over, c.failed = true, f.refused
			p.done(c)
		}
	}
	p.start(false)
}

// expire ends the wait of calls whose deadline has passed.
func (p *process) expire() {
	q := &p.queue
	q.armed = false
	for len(q.timed) > 0 && (q.timed[0].over || q.timed[0].deadline <= p.run.now) {
		c := q.timed[0]
		q.timed = q.timed[1:]
		if c.over {
			continue
		}
		c.over, c.failed, c.unknown = true, true, c.trip != nil
		if f := c.trip; f != nil && !f.stalled && q.stalled < settings.MaxStalled {
			f.stalled = true // so that other calls do not wait for it, too
			q.inFlight--
			q.stalled++
		}
		p.done(c)
	}
	p.arm()
	p.start(false)
}

func (p *process) arm() {
	if q := &p.queue; !q.armed && len(q.timed) > 0 {
		q.armed = true
		p.run.at(max(p.run.now, q.timed[0].deadline), event{do: expiry, process: p})
	}
}

// halfway returns the latency of one direction, in nanoseconds.
func (p *process) halfway() int64 {
	way := int64(p.run.RTT) / 2
	if p.run.Jitter > 0 {
		way += int64(p.source.ExpFloat64() * float64(p.run.Jitter) / 2)
	}
	return way
}
