package breaker_test

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ratelimit-go/ratelimit/internal/breaker"
)

const (
	timeout = 100 * ms
	latency = ms
)

// A backend returns how a call that starts now ends, and how long it takes.
type backend func(now int64) (took int64, how breaker.Outcome)

func dead(int64) (int64, breaker.Outcome) { return timeout, bad }

// stalled returns a backend that answers nothing for a while.
func stalled(from, length int64) backend {
	end := from + length
	return func(now int64) (int64, breaker.Outcome) {
		switch {
		case now+latency <= from || now >= end:
			return latency, ok
		case now+timeout < end+latency:
			return timeout, bad
		}
		return end + latency - now, ok
	}
}

// halfDead returns a backend that does not answer every second call.
func halfDead(timeout int64) backend {
	calls := 0
	return func(int64) (int64, breaker.Outcome) {
		if calls++; calls%2 == 0 {
			return timeout, bad
		}
		return latency, ok
	}
}

// load has callers that make one call after the other, until the breaker opens
// or an instant has come. It returns the instant at which it has ended. The
// callers' first calls are spread over a timeout.
func load(b *breaker.Breaker, callers int, backend backend, until int64) (now int64) {
	type call struct {
		start, end int64
		how        breaker.Outcome
	}
	rnd := rand.New(rand.NewPCG(1, 1))
	calls := make([]call, callers)
	for i := range calls {
		calls[i] = call{end: rnd.Int64N(timeout), how: unclear} // the first real call starts then
	}
	for !b.Open() {
		first := &calls[0]
		for i := range calls {
			if calls[i].end < first.end {
				first = &calls[i]
			}
		}
		if now = first.end; now >= until {
			break
		}
		b.Done(first.start, now, false, first.how)
		took, how := backend(now)
		*first = call{now, now + took, how}
	}
	return now
}

// TestStall: one stall is one failure, however many calls are in flight. Calls
// that start after the first one has timed out may time out as well.
func TestStall(t *testing.T) {
	for _, callers := range []int{1, 20, 64} {
		for _, length := range []int64{150 * ms, 350 * ms} {
			var b breaker.Breaker
			load(&b, callers, stalled(second, length), 2*second)
			require.False(t, b.Open(), "%d callers, %v", callers, time.Duration(length))
		}
		var b breaker.Breaker
		load(&b, callers, stalled(second, 10*timeout), 3*second)
		require.True(t, b.Open(), "%d callers: ten timeouts are an outage", callers)
	}
}

// TestStallAlone: a stall is one failure also if no other call has ended, and it
// counts towards the row.
func TestStallAlone(t *testing.T) {
	var b breaker.Breaker
	for i := range int64(20) {
		require.False(t, b.Done(i, timeout+i, false, bad))
	}
	for i := range int64(3) { // three more failures, one after the other
		require.False(t, b.Done(second+i*timeout, second+(i+1)*timeout, false, bad))
	}
	require.True(t, b.Done(2*second, 2*second+timeout, false, bad))
}

// TestDeadBackend: it opens the breaker within five timeouts, however many
// callers there are.
func TestDeadBackend(t *testing.T) {
	for _, callers := range []int{1, 20, 64, 1000} {
		var b breaker.Breaker
		end := load(&b, callers, dead, second)
		t.Logf("%d callers: %v", callers, time.Duration(end))
		require.True(t, b.Open())
		require.LessOrEqual(t, end, 6*timeout, "%d callers, of which the first starts within a timeout", callers)
	}
}

// TestHalfDeadBackend: it opens the breaker under any concurrency, and however
// long a timeout is.
func TestHalfDeadBackend(t *testing.T) {
	for _, callers := range []int{1, 2, 20, 64, 1000} {
		for _, timeout := range []int64{timeout, second, 5 * second, 30 * second} {
			name := fmt.Sprintf("%d callers, %v", callers, time.Duration(timeout))
			var b breaker.Breaker
			end := load(&b, callers, halfDead(timeout), 60*timeout)
			t.Logf("%s: %v", name, time.Duration(end))
			require.True(t, b.Open(), name)
		}
	}
}
