package sim

import "github.com/ratelimit-go/ratelimit/internal/rule"

// server models a Redis server, which carries out one command at a time, in the
// order of arrival.
type server struct {
	run    *run
	states []rule.State // by key
	free   int64        // when it has carried out all commands that have arrived
	worked int64
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
	l, state := &s.run.limits[0], &s.states[c.key]
	c.answeredAt = s.free
	if c.op == adjust {
		*state = l.Adjust(*state, s.free, c.n, max(0, s.free-c.at))
		return
	}
	*state, c.answer = l.Take(*state, s.free, c.n)
	c.state = *state
}
