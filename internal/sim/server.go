package sim

import "github.com/ratelimit-go/ratelimit/internal/rule"

// server models a Redis server, which carries out one command at a time, in the
// order of arrival.
type server struct {
	run      *run
	counters []counter // by key
	free     int64     // when it has carried out all commands that have arrived
	worked   int64
}

// counter is a key's counter, with its block.
type counter struct {
	state rule.State
	block rule.Block
}

// take takes n units. With a ladder, a denial starts a block.
func (c *counter) take(l rule.Limit, ladder *rule.Ladder, now, n int64) (a rule.Answer) {
	if left := c.block.Left(now); left > 0 {
		_, a = l.Take(c.state, now, n)
		if a.Retry == 0 {
			_, a = l.Take(c.state, now, 0) // nothing is taken
		}
		return a.Over(left, n)
	}
	if c.state, a = l.Take(c.state, now, n); a.Retry == 0 || a.Retry == rule.Never || ladder == nil {
		return a
	}
	c.block = c.block.Start(ladder, l.Window, a.Retry, now)
	return a.Over(c.block.Left(now), n)
}

// serve carries out the commands of a trip and schedules its replies.
func (s *server) serve(p *process, f *trip) {
	if f.refused = s.run.down(); f.refused {
		s.run.at(s.run.now+p.halfway(), event{do: reply, process: p, trip: f})
		return
	}
	s.free = max(s.free, s.run.now)
	for i, c := range f.calls {
		if i == 0 || !f.shared[i] {
			s.free += int64(s.run.Service)
			s.worked += int64(s.run.Service)
			s.run.report.Commands++
			s.run.slice().Commands++
		}
		s.carryOut(c)
	}
	s.run.at(s.free+p.halfway(), event{do: reply, process: p, trip: f})
}

// carryOut models the scripts.
func (s *server) carryOut(c *call) {
	l, counter := &s.run.limits[0], &s.counters[c.key]
	c.answeredAt = s.free
	switch c.op {
	case adjust:
		counter.state = l.Adjust(counter.state, s.free, c.n, max(0, s.free-c.at))
	case block:
		b := c.block
		b.Until = rule.Lasting(b.Until, s.free)
		counter.block = counter.block.Join(b, s.free)
	case take:
		var ladder *rule.Ladder
		if c.startsBlocks {
			ladder = s.run.Ladder
		}
		c.answer = counter.take(*l, ladder, s.free, c.n)
		c.state, c.block = counter.state, counter.block
	}
}
