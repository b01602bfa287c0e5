package sim

import (
	"cmp"
	"math/rand/v2"
	"slices"

	"github.com/ratelimit-go/ratelimit/internal/breaker"
	"github.com/ratelimit-go/ratelimit/internal/nearcache"
	"github.com/ratelimit-go/ratelimit/internal/remote"
	"github.com/ratelimit-go/ratelimit/internal/rule"
)

// process models a limiter in its own process. Its methods do what the methods of
// internal/remote do, in the same order. If the names differ, the comment says
// which method is modelled.
type process struct {
	run           *run
	source        source
	near          *nearcache.Cache
	breaker       breaker.Breaker
	queue         queue
	waiting       int              // calls in flight or waiting
	settling      int              // batches of owed units that are being sent; also 1 if that is about to begin
	afterSettling map[int][]func() // by key that is being settled: what to do when that has ended
	sweeping      bool
	had           Share
}

func newProcess(r *run, rnd *rand.Rand, rate float64) *process {
	p := &process{run: r, source: newSource(&r.Config, rnd, rate), near: nearcache.NewSeeded(1<<16, 1<<24, r.Seed), afterSettling: make(map[int][]func())}
	p.queue.latest = make(map[int]*call)
	return p
}

// arrive models the arrival of a request.
func (p *process) arrive() {
	p.run.at(p.run.now+p.source.next(), event{do: arrival, process: p})
	key := p.source.key()
	p.had.Requests++
	p.run.report.Requests++
	p.run.slice().Requests++
	if a := p.run.ideal[key].take(p.run.Limit, p.run.Ladder, p.run.now, 1); a.Retry == 0 {
		p.run.report.Ideal++
	}
	p.take(key)
}

// blocked counts a request that a block has denied, if any of the bits is set.
func (r *run) blocked(bits uint8) {
	if bits != 0 {
		r.report.Blocked++
	}
}

// decided counts a decision.
func (p *process) decided(source int, admitted bool, since int64) {
	p.run.report.From[source]++
	p.run.report.waits.add(p.run.now - since)
	if admitted {
		p.had.Admitted++
		p.run.report.Admitted++
		p.run.slice().Admitted++
	}
}

func (p *process) take(key int) {
	r, name, start := p.run, p.run.keys[key], p.run.now
	if r.Mode == Leased {
		_, ok, refill := p.near.TakeLeased(name, 1, start, int64(r.Lease), r.limits, r.answers)
		if refill {
			p.refill(key)
		}
		if ok {
			p.decided(FromLease, true, start)
			return
		}
	}
	if r.Mode != Exact {
		denied, blocked, _ := p.near.Denied(name, 1, start, int64(r.Recheck), r.limits, r.answers)
		if denied && (blocked != 0 || r.Ladder == nil) { // otherwise the denial would start a block
			r.blocked(blocked)
			p.decided(FromCache, false, start)
			return
		}
	}
	if !owes(p.near, name) {
		p.takeMore(key, start)
		return
	}
	p.settleAll()
	if _, telling := p.afterSettling[key]; !telling {
		p.fail(key, start, true)
		return
	}
	p.afterSettling[key] = append(p.afterSettling[key], func() {
		if owes(p.near, name) {
			p.fail(key, start, true)
		} else {
			p.takeMore(key, start)
		}
	})
}

func (p *process) takeMore(key int, start int64) {
	r := p.run
	ask := p.want(key)
	p.consult(key, 1+ask.Units, ask, int64(r.Timeout), func(c *call) {
		switch {
		case c.failed:
			p.fail(key, start, !c.unknown)
		case c.answer.Retry > 0 && ask.Units > 0: // there is less left than was thought
			p.consult(key, 1, nearcache.LeaseRequest{}, start+int64(r.Timeout)-r.now, func(c *call) {
				if c.failed {
					p.fail(key, start, !c.unknown)
				} else {
					p.decided(FromStore, c.answer.Retry == 0, start)
				}
			})
		default:
			p.decided(FromStore, c.answer.Retry == 0, start)
		}
	})
}

func (p *process) want(key int) nearcache.LeaseRequest {
	if p.run.Mode != Leased {
		return nearcache.LeaseRequest{}
	}
	return p.near.WantLease(p.run.keys[key], p.run.now, int64(p.run.Lease), p.run.limits)
}

// refill takes units at the server for a lease that runs low.
func (p *process) refill(key int) {
	if ask := p.want(key); ask.Units > 0 {
		p.consult(key, ask.Units, ask, int64(p.run.Timeout), func(*call) {})
	}
}

// consult asks the server, learns the answer, and adds the granted units to the
// lease.
func (p *process) consult(key int, n int64, ask nearcache.LeaseRequest, timeout int64, then func(*call)) {
	r := p.run
	p.ask(&call{op: take, key: key, n: n, startsBlocks: n == 1 && ask.Units == 0, then: func(c *call) {
		if !c.failed {
			learnt := nearcache.Reply{
				N: n, Limits: r.limits, Answers: []rule.Answer{c.answer}, States: []rule.State{c.state},
				At: c.answeredAt, Now: r.now, Recheck: int64(r.Recheck), Version: c.version,
			}
			if r.Ladder != nil {
				learnt.Blocks = []rule.Block{c.block}
			}
			p.near.Learn(r.keys[key], learnt)
		}
		if ask.Units > 0 {
			if c.failed || c.answer.Retry > 0 {
				ask.Units = 0
			}
			held, ended, ok := p.near.AddLease(ask, r.keys[key], c.answeredAt, r.now, int64(r.Lease), r.limits, []rule.Answer{c.answer})
			if ok {
				p.giveBack(key, ended)
			}
			if held > 0 && !p.sweeping {
				p.sweeping = true
				r.at(r.now+int64(r.Lease)/2, event{do: sweep, process: p})
			}
		}
		then(c)
	}}, timeout)
}

func (p *process) sweep() {
	r := p.run
	ended := p.near.EndLeases(r.now, false)
	slices.SortFunc(ended, func(a, b nearcache.EndedLease) int { return cmp.Compare(a.Key, b.Key) }) // their order is random
	for _, l := range ended {
		p.giveBack(r.index[l.Key], l)
	}
	if p.sweeping = p.near.HasLeases(); p.sweeping {
		r.at(r.now+int64(r.Lease)/2, event{do: sweep, process: p})
	}
}

func (p *process) giveBack(key int, l nearcache.EndedLease) {
	p.ask(&call{op: adjust, key: key, n: -l.Units, at: l.At.Store, then: func(*call) {}}, int64(remote.SideTimeout))
}

// ask makes a call, unless the breaker is open or too many calls wait.
func (p *process) ask(c *call, timeout int64) {
	ok, probe := p.breaker.Allow(p.run.now)
	c.start, c.probe = p.run.now, probe
	if !ok || p.waiting == remote.MaxWaiting {
		if ok {
			p.breaker.Done(c.start, p.run.now, probe, breaker.Unclear)
		}
		c.failed = true
		c.then(c)
		return
	}
	p.waiting++
	p.send(c, timeout)
}

// done models the end of a call.
func (p *process) done(c *call) {
	p.waiting--
	outcome := breaker.Succeeded
	if c.failed {
		outcome = breaker.Failed
	}
	p.breaker.Done(c.start, p.run.now, c.probe, outcome)
	if !c.failed && p.near.Owing() > 0 {
		p.settleAll()
	}
	c.then(c)
}

// fail decides without the server, as FallbackLocal does.
func (p *process) fail(key int, since int64, unchanged bool) {
	taking := nearcache.Taking{Units: 1, Limits: p.run.limits, Ladders: p.run.ladders}
	taken, _, marks := p.near.Take(p.run.keys[key], taking, p.run.now, p.run.answers, unchanged)
	p.run.blocked(marks.Blocked &^ marks.Began)
	p.decided(FromFallback, taken > 0, since)
}

// settleAll schedules a settlement, which sends the server everything that it
// is owed.
func (p *process) settleAll() {
	if p.settling == 0 && p.breaker.Ready(p.run.now) {
		p.settling = 1
		p.run.at(p.run.now, event{do: settlement, process: p})
	}
}

func (p *process) settle() {
	p.settling = 0
	owing := p.near.OwingKeys(p.run.now)
	slices.Sort(owing) // their order is random
	for _, name := range owing {
		key, batch := p.run.index[name], p.near.BeginSending(name, p.run.now)
		if batch == nil {
			continue
		}
		p.settling++
		p.afterSettling[key] = nil
		p.settleOne(key, batch, 0)
	}
}

// settleOne sends the rest of a batch, from its element i on.
func (p *process) settleOne(key int, b *nearcache.Batch, i int) {
	end := func(sent int) {
		p.settling--
		p.near.EndSending(b, sent, p.run.now)
		waiting := p.afterSettling[key]
		delete(p.afterSettling, key)
		for _, then := range waiting {
			then()
		}
	}
	if i == len(b.Owed) {
		end(i)
		return
	}
	o := &b.Owed[i]
	at, known := p.near.SendAt(o)
	if !known {
		at = p.run.now
	}
	send := call{op: adjust, key: key, n: o.Units, at: at}
	if o.Units == 0 {
		send.op, send.block = block, o.Block
		send.block.Until -= p.run.now
	}
	send.then = func(c *call) {
		switch {
		case !c.failed:
			p.settleOne(key, b, i+1)
		case c.unknown && c.op == adjust: // the server knows of the units, or may know
			end(i + 1)
		default:
			end(i)
		}
	}
	p.ask(&send, int64(remote.SideTimeout))
}

func owes(c *nearcache.Cache, key string) bool {
	is, _ := c.Owes(key)
	return is
}
