// Package breaker keeps callers from waiting for something that is known to fail.
package breaker

import (
	"sync"
	"sync/atomic"
	"time"
)

// A Breaker lets calls through while they succeed. When too many have failed it opens,
// and lets none through but one at a time, as a probe, after pauses that grow; the
// first to succeed closes it. The zero Breaker is closed. Instants are nanoseconds of a clock
// that does not run backwards. Methods may be called from any number of goroutines.
type Breaker struct {
	mu      sync.Mutex
	open    atomic.Bool // set with mu held
	probing bool
	row     int   // failures since the last success
	since   int64 // when the present count of calls began
	calls   int
	failed  int
	pause   int64
	next    int64 // when to probe
	opened  atomic.Uint64
}

// It opens after so many failures in a row: a backend that is gone is noticed
// within as many timeouts, and one lost connection does not look like that.
const inRow = 5

// It also opens where half of the calls fail, of at least so many in a span.
const (
	minCalls = 20
	span     = int64(5 * time.Second)
)

// Pauses between probes. The longest is what a recovery may go unnoticed for.
const (
	minPause = int64(100 * time.Millisecond)
	maxPause = int64(time.Second)
)

// Outcome is how a call has ended.
type Outcome uint8

const (
	Succeeded Outcome = iota
	Failed
	Unclear // it was given up before there was an answer
)

// Allow reports whether a call may be made. If so it is to be reported to Done, with
// probe as given here.
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

// Ready reports whether Allow would allow a call.
func (b *Breaker) Ready(now int64) bool {
	if !b.Open() {
		return true
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return !b.open.Load() || !b.probing && now >= b.next
}

// Done takes note of how a call has ended. It reports whether the breaker has opened
// or closed by that. Calls that were let through before it opened do not count after it has.
func (b *Breaker) Done(now int64, probe bool, how Outcome) (changed bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case probe:
		b.probing = false
		switch how {
		case Succeeded:
			b.open.Store(false)
			b.row = 0
			b.since, b.calls, b.failed = now, 0, 0
			return true
		case Failed:
			b.pause = min(2*b.pause, maxPause)
			b.next = now + b.pause
		}
		return false
	case b.open.Load() || how == Unclear:
		return false
	}
	if now-b.since > span {
		b.since, b.calls, b.failed = now, 0, 0
	}
	b.calls++
	if how == Succeeded {
		b.row = 0
		return false
	}
	b.row++
	b.failed++
	if b.row < inRow && (b.calls < minCalls || 2*b.failed < b.calls) {
		return false
	}
	b.open.Store(true)
	b.pause, b.next = minPause, now+minPause
	b.opened.Add(1)
	return true
}

// Open reports whether the breaker is open.
func (b *Breaker) Open() bool { return b.open.Load() }

// Opened is how often it has opened.
func (b *Breaker) Opened() uint64 { return b.opened.Load() }
