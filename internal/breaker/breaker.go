// Package breaker keeps callers from waiting for something that is known to fail.
package breaker

import (
	"sync"
	"sync/atomic"
	"time"
)

// A Breaker allows calls while they succeed. When too many have failed it
// opens. An open breaker allows one call at a time, a probe, after pauses that
// grow; the first probe that succeeds closes it. The zero Breaker is closed.
// Instants are nanoseconds of a clock that does not run backwards. Methods may
// be called from any number of goroutines.
//
// Calls that are in flight at the same time fail for the same reason: one stall
// of the backend ends all of them. So failures that overlap in time are one
// failure. A backend that is gone still opens the breaker within a few
// timeouts, however many callers it has: the first failure of each timeout
// counts.
type Breaker struct {
	mu sync.Mutex // guards everything but open and opened

	open   atomic.Bool   // written with mu held
	opened atomic.Uint64 // how often the breaker has opened

	// The failures without a success in between. counted is the instant at
	// which the last of them ended: a failed call that started before it
	// overlaps it.
	row     int
	counted int64

	// The calls of the present span, which began at since. failed is how many of
	// them failed, distinct how many failed without overlapping an earlier
	// failure, and longest is how long the longest failed call took.
	since    int64
	calls    int
	failed   int
	distinct int
	longest  int64

	// An open breaker allows a probe at next, if none is in flight (probing).
	// If the probe fails, the pause after it is twice as long as the last one.
	probing bool
	pause   int64
	next    int64
}

// The breaker opens after inRow failures in a row. It notices within as many
// timeouts that a backend is gone; a lost connection or a short stall is one
// failure.
const inRow = 5

// It also opens if half of the calls of a span fail, of at least minCalls. A
// single stall may fail that many, so inRow of the failures must be distinct.
const (
	minCalls = 20
	span     = int64(5 * time.Second)
)

// Pauses between probes. A recovery is noticed after maxPause at the latest.
const (
	minPause = int64(100 * time.Millisecond)
	maxPause = int64(time.Second)
)

// Outcome is how a call has ended.
type Outcome uint8

const (
	Succeeded Outcome = iota
	Failed
	Unclear // its caller left before there was an answer
)

// Allow reports whether a call may be made. If so, its end must be reported to
// Done, with the same probe.
func (b *Breaker) Allow(now int64) (ok, probe bool) {
	if !b.Open() {
		return true, false
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.open.Load() {
		return true, false
	}
	if b.probing || now < b.next {
		return false, false
	}
	b.probing = true
	return true, true
}

// Ready reports whether Allow would allow a call. Nothing changes by it.
func (b *Breaker) Ready(now int64) bool {
	if !b.Open() {
		return true
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return !b.open.Load() || !b.probing && now >= b.next
}

// Done records how a call that started at an instant has ended now. It reports
// whether the breaker has opened or closed because of it. Calls that were
// allowed before the breaker opened do not count while it is open.
func (b *Breaker) Done(start, now int64, probe bool, how Outcome) (changed bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case probe:
		b.probing = false
		switch how {
		case Succeeded:
			b.open.Store(false)
			b.row = 0
			b.beginSpan(now)
			return true
		case Failed:
			b.pause = min(2*b.pause, maxPause)
			b.next = now + b.pause
		}
		return false
	case b.open.Load() || how == Unclear:
		return false
	}
	if b.spanIsOver(now) {
		b.beginSpan(now)
	}
	b.calls++
	if how == Succeeded {
		b.row = 0
		return false
	}
	b.failed++
	b.longest = max(b.longest, now-start)
	if start >= b.counted { // otherwise it is the same failure as the last one
		b.counted = now
		b.row++
		b.distinct++
	}
	half := b.calls >= minCalls && 2*b.failed >= b.calls && b.distinct >= inRow
	if b.row < inRow && !half {
		return false
	}
	b.open.Store(true)
	b.pause, b.next = minPause, now+minPause
	b.opened.Add(1)
	return true
}

func (b *Breaker) beginSpan(now int64) {
	b.since = now
	b.calls, b.failed, b.distinct, b.longest = 0, 0, 0, 0
}

// spanIsOver reports whether the present span has ended. Failures that do not
// overlap take a timeout each, and a span may be too short for inRow of them.
// So while half of the calls fail, it is at least as long as minCalls of them
// would take one after the other.
func (b *Breaker) spanIsOver(now int64) bool {
	length := span
	if 2*b.failed >= b.calls {
		length = max(span, minCalls*b.longest)
	}
	return now-b.since > length
}

// Open reports whether the breaker is open. It takes no lock.
func (b *Breaker) Open() bool { return b.open.Load() }

// Failing reports whether no call has succeeded since the last failure. An open breaker is
// failing.
func (b *Breaker) Failing() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.row > 0 || b.open.Load()
}

// Opened returns how often the breaker has opened.
func (b *Breaker) Opened() uint64 { return b.opened.Load() }
