package holds_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/ratelimit-go/ratelimit/internal/holds"
	"github.com/ratelimit-go/ratelimit/internal/rule"
)

// modelSeeds is how many histories TestBooksFitTheStore runs.
var modelSeeds = max(400, seedsFromEnvironment())

func seedsFromEnvironment() int {
	n, _ := strconv.Atoi(os.Getenv("RATELIMIT_MODEL_SEEDS"))
	return n
}

// world has a store with the holds of one key, and some processes with books. Calls arrive at
// the store late, in any order, or never, and so do the answers. Time goes on in steps.
type world struct {
	*testing.T
	rng   *rand.Rand
	now   int64
	most  int64
	lasts int64

	holds     rule.Holds // at the store
	processes []*process
	calls     []*message // on their way to the store
	answers   []*message // on their way back
	log       []string
}

type process struct {
	number  int
	book    *holds.Book
	running []*holds.Hold // of requests that run
	dead    bool
	asleep  bool // stands still
	ticked  int64
}

// A message is a call to the store, and then its answer.
type message struct {
	from    *process
	call    holds.Call
	h       rule.Holding
	sent    int64
	granted bool
	dropped bool // the caller has given up: the answer is for nobody
}

func (w *world) logf(format string, args ...any) {
	w.log = append(w.log, fmt.Sprintf("%8d ", w.now/1e6)+fmt.Sprintf(format, args...))
}

func (w *world) fail(format string, args ...any) {
	w.Helper()
	for _, line := range w.log[max(0, len(w.log)-60):] {
		w.Log(line)
	}
	w.Fatalf(format, args...)
}

// faults say what can happen.
type faults struct{ lose, late, fallback, pause, kill, wipe bool }

// step does one thing.
func (w *world) step(f faults) {
	w.now += w.rng.Int64N(w.lasts / 40)
	for _, p := range w.processes {
		w.tick(p)
	}
	for _, all := range [][]*message{w.calls, w.answers} { // no caller waits for longer than this
		for _, m := range slices.Clone(all) {
			if w.now-m.sent > w.lasts/4 && !m.dropped && !m.from.asleep {
				w.giveUp(m)
			}
		}
	}
	p := w.processes[w.rng.IntN(len(w.processes))]
	switch w.rng.IntN(12) {
	case 0, 1, 2:
		if !p.dead && !p.asleep {
			w.ask(p)
		}
	case 3, 4:
		if len(p.running) > 0 && !p.dead && !p.asleep {
			w.end(p, w.rng.IntN(len(p.running)))
		}
	case 5:
		if f.fallback && !p.dead && !p.asleep {
			if h := p.book.TakeHere("k", w.most, w.lasts, 0, w.now); h != nil {
				w.logf("p%d begins a hold here", p.number)
				p.running = append(p.running, h)
			}
		}
	case 6:
		switch {
		case f.kill && !p.dead && w.rng.IntN(20) == 0:
			w.logf("p%d is killed with %d", p.number, len(p.running))
			p.dead, p.running = true, nil
		case f.pause && !p.dead && w.rng.IntN(10) == 0:
			p.asleep = !p.asleep
			w.logf("p%d stands still: %t", p.number, p.asleep)
		case f.wipe && w.rng.IntN(20) == 0:
			w.logf("the store forgets %v", w.holds)
			w.holds = nil
		}
	case 7:
		if f.lose && len(w.calls)+len(w.answers) > 0 {
			w.lose()
		}
	default:
		w.deliver(f)
	}
}

// tick does what a process does by itself: it shows that it runs, and reports to the store.
func (w *world) tick(p *process) {
	if p.dead || p.asleep {
		return
	}
	if period := p.book.Period(); period > 0 && w.now-p.ticked >= period {
		p.ticked = w.now
		p.book.Tick(w.now)
	}
	for range 2 {
		if _, call, h, ok := p.book.Next(w.now); ok {
			w.calls = append(w.calls, &message{from: p, call: call, h: h, sent: w.now})
		}
	}
}

func (w *world) ask(p *process) {
	call, h := p.book.Begin(rule.HoldAction(w.rng.IntN(4)%2), "k", w.most, w.lasts, w.now)
	w.calls = append(w.calls, &message{from: p, call: call, h: h, sent: w.now})
}

func (w *world) end(p *process, i int) {
	w.logf("p%d ends a hold", p.number)
	p.running[i].End()
	p.running = slices.Delete(p.running, i, i+1)
}

// lose makes a caller give up, whose call may still arrive, or whose answer does not.
func (w *world) lose() {
	from := &w.calls
	if len(w.calls) == 0 || len(w.answers) > 0 && w.rng.IntN(2) == 0 {
		from = &w.answers
	}
	i := w.rng.IntN(len(*from))
	m := (*from)[i]
	if m.dropped || m.from.dead || m.from.asleep {
		return
	}
	w.giveUp(m)
	if from == &w.calls && w.rng.IntN(2) == 0 { // otherwise it arrives, some time
		w.calls = slices.Delete(w.calls, i, i+1)
	}
}

// giveUp ends a call without its answer. It may still arrive.
func (w *world) giveUp(m *message) {
	m.dropped = true
	w.logf("p%d gives up %+v", m.from.number, m.h)
	if !m.from.dead {
		m.from.book.Failed(m.call, false)
	}
	w.answers = slices.DeleteFunc(w.answers, func(a *message) bool { return a == m })
}

// deliver lets a call or an answer arrive.
func (w *world) deliver(f faults) {
	pick := func(n int) int {
		if f.late {
			return w.rng.IntN(n)
		}
		return 0
	}
	if len(w.calls) > 0 && (len(w.answers) == 0 || w.rng.IntN(2) == 0) {
		i := pick(len(w.calls))
		m := w.calls[i]
		w.calls = slices.Delete(w.calls, i, i+1)
		begun := int64(0)
		if m.granted = m.h.Action == rule.AddHold && w.holds.Room(&m.h, w.now) > 0; m.granted {
			begun = 1
		}
		w.holds = w.holds.Apply(&m.h, w.now, begun)
		w.logf("the store gets %+v of p%d: %v", m.h, m.from.number, w.holds)
		if !m.dropped {
			w.answers = append(w.answers, m)
		}
		return
	}
	if len(w.answers) == 0 {
		return
	}
	i := pick(len(w.answers))
	m := w.answers[i]
	if m.from.asleep {
		return
	}
	w.answers = slices.Delete(w.answers, i, i+1)
	if m.from.dead {
		return
	}
	if h := m.from.book.Answered(m.call, &m.h, m.granted, 0, w.now); h != nil {
		w.logf("p%d begins a hold", m.from.number)
		m.from.running = append(m.from.running, h)
	}
}

// held returns how many holds the store counts now, of all processes and of one.
func (w *world) held(p *process) (all, own int64) {
	look := rule.Holding{Most: w.most, Process: p.book.Process()}
	w.holds.Apply(&look, w.now, 0)
	own = look.Held.Began - look.Held.Ended
	return own + look.Held.Others, own
}

// TestBooksFitTheStore runs random histories. Without faults that let more run, no more run
// than may. When the faults are over, the store counts exactly what runs.
func TestBooksFitTheStore(t *testing.T) {
	for name, f := range map[string]faults{
		"no faults":       {late: true},
		"lost calls":      {lose: true, late: true},
		"kills":           {lose: true, late: true, kill: true},
		"outages":         {lose: true, late: true, fallback: true},
		"pauses":          {lose: true, late: true, pause: true},
		"data loss":       {lose: true, late: true, wipe: true},
		"all that can be": {lose: true, late: true, fallback: true, pause: true, kill: true, wipe: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for seed := range modelSeeds {
				w := &world{T: t, rng: rand.New(rand.NewPCG(uint64(seed), uint64(len(name)))), now: 1e15, most: 1 + int64(seed%4), lasts: int64(10 * time.Second)}
				for i := range 3 {
					w.processes = append(w.processes, &process{number: i, book: holds.NewBook(func() {}), ticked: w.now})
				}
				w.log = append(w.log, fmt.Sprintf("seed %d: at most %d", seed, w.most))
				for range 300 {
					w.step(f)
					w.check(f)
				}
				w.settle()
			}
		})
	}
}

// check checks what holds at every instant.
func (w *world) check(f faults) {
	running := int64(0)
	for _, p := range w.processes {
		running += int64(len(p.running))
		if int64(len(p.running)) > w.most && !f.pause {
			w.fail("p%d runs %d of %d", p.number, len(p.running), w.most)
		}
	}
	if running > w.most && !f.fallback && !f.pause && !f.wipe {
		w.fail("%d run, of %d", running, w.most)
	}
}

// settle ends all faults, and compares the store with what runs.
func (w *world) settle() {
	w.logf("the faults are over")
	for _, p := range w.processes {
		if p.asleep { // it may have lost its holds, of which the book knows and the test does not
			p.asleep = false
		}
	}
	over := w.now + 2*w.lasts
	for w.now < over || len(w.calls)+len(w.answers) > 0 {
		w.now += w.lasts / 100
		for _, p := range w.processes {
			w.tick(p)
		}
		for len(w.calls)+len(w.answers) > 0 {
			w.deliver(faults{})
		}
	}
	for _, p := range w.processes {
		if p.dead {
			continue
		}
		_, own := w.held(p)
		if left, _ := p.book.Left("k", 1000, w.lasts, w.now); left < 1000-w.others(p)-own || own != p.book.Held() {
			w.fail("the store has %d of p%d, which has %d in its book", own, p.number, p.book.Held())
		}
		for len(p.running) > 0 {
			w.end(p, 0)
		}
	}
	for range 300 {
		w.now += w.lasts / 100
		for _, p := range w.processes {
			w.tick(p)
		}
		for len(w.calls)+len(w.answers) > 0 {
			w.deliver(faults{})
		}
	}
	for _, p := range w.processes {
		if all, _ := w.held(p); all != 0 {
			w.fail("nothing runs, and the store has %v", w.holds)
		}
		if p.book.Period() != 0 && !p.dead {
			w.fail("nothing runs, and the book of p%d is not empty", p.number)
		}
	}
}

func (w *world) others(p *process) int64 {
	all, own := w.held(p)
	return all - own
}
