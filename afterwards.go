package ratelimit

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/felixge/httpsnoop"
)

// tab is what one request has taken of its key, and may give back or add to
// after it was admitted.
type tab struct {
	mu    sync.Mutex
	units int64
	at    Instant // when they were taken
}

// AddCost changes what the request whose context this is has cost, once its handler
// knows: a query's complexity, an upload's size, the tokens of an answer. n > 0
// charges the key that was admitted, even above what is left, but never above
// the limit; n < 0 gives units back, at most as many as the request has taken, and
// as far as those taken when it was admitted still count. It does not change the
// response's header fields.
//
// It is an error if the request was not admitted and counted by l. AddCost may be
// called any number of times, also after the client has left.
func (l *Limiter) AddCost(ctx context.Context, n int64) error {
	for p := passageOf(ctx); p != nil; p = p.parent {
		if p.limiter == l && (p.allowed() || l.opts.Shadow) {
			return p.addCost(n)
		}
	}
	return fmt.Errorf("ratelimit: limiter %q: AddCost: %w", l.name, errNotAdmitted)
}

var errNotAdmitted = errors.New("this context is not of a request that the limiter has counted; use TakeN or Refund with a key")

func (p *passage) addCost(n int64) error {
	p.tab.mu.Lock()
	defer p.tab.mu.Unlock()
	n = min(max(n, -p.tab.units), math.MaxInt64-p.tab.units)
	if n == 0 {
		return nil
	}
	at := p.tab.at
	if n > 0 {
		at = Now
	}
	// The client may be gone; its units are to be right all the same.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(p.Context), adjustTimeout)
	defer cancel()
	charged, err := p.limiter.adjust(ctx, p.key, n, at, p.limits())
	if err != nil {
		return err
	}
	if n > 0 { // what there was no room for was not taken, and is not to be given back
		n = max(0, min(n, charged))
	}
	p.tab.units += n
	return nil
}

// adjustTimeout is how long a store may take to put units right when nobody waits
// for an answer: long for a store, and short for a goroutine to be kept.
const adjustTimeout = 5 * time.Second

// limits are those that the request was admitted under, with the numbers that are in
// force by now: to fill a bucket at the rate of before a SetLimits would be to go on with it.
func (p *passage) limits() []Limit {
	now := p.limiter.policy.Load()
	if now == p.policy || p.policy.plan {
		return p.policy.limits
	}
	limits := slices.Clone(p.policy.limits)
	for i := range limits {
		for _, l := range now.limits {
			if l.sameCounter(limits[i]) {
				limits[i] = l
			}
		}
	}
	return limits
}

// giveBack returns all that the request has taken of this limiter. It does
// nothing the second time.
func (p *passage) giveBack() {
	if err := p.addCost(math.MinInt64); err != nil {
		p.limiter.report.warn(warnStoreFailed, "error", err)
	}
}

// giveBackOuter is for a request that was denied here: the limiters around this one
// get their units back, so that a client which is refused by one limiter does not
// drain the others. Those of a request that this one was only made by keep theirs.
func (p *passage) giveBackOuter() {
	for outer := p.parent; outer != nil; outer = outer.parent {
		if sameRequest(outer.header, p.header) {
			outer.giveBack()
		}
	}
}

// count serves r and gives its units back if Options.Count says that it does not
// count: on return, on a panic and on a hijacked connection alike.
func (p *passage) count(next http.Handler, w http.ResponseWriter, r *http.Request) {
	status := 0
	sent := func(code int) {
		if status == 0 {
			status = code
		}
	}
	wrapped := httpsnoop.Wrap(w, httpsnoop.Hooks{
		WriteHeader: func(next httpsnoop.WriteHeaderFunc) httpsnoop.WriteHeaderFunc {
			return func(code int) {
				next(code)
				if code >= 200 || code == http.StatusSwitchingProtocols { // others are followed by the real one
					sent(code)
				}
			}
		},
		Write: func(next httpsnoop.WriteFunc) httpsnoop.WriteFunc {
			return func(b []byte) (int, error) { sent(http.StatusOK); return next(b) }
		},
		ReadFrom: func(next httpsnoop.ReadFromFunc) httpsnoop.ReadFromFunc {
			return func(src io.Reader) (int64, error) { sent(http.StatusOK); return next(src) }
		},
		Flush: func(next httpsnoop.FlushFunc) httpsnoop.FlushFunc {
			return func() { sent(http.StatusOK); next() }
		},
		Hijack: func(next httpsnoop.HijackFunc) httpsnoop.HijackFunc {
			return func() (net.Conn, *bufio.ReadWriter, error) {
				conn, rw, err := next()
				if err == nil {
					sent(http.StatusSwitchingProtocols)
				}
				return conn, rw, err
			}
		},
	})
	returned := false
	defer func() {
		if returned {
			sent(http.StatusOK)
		} else {
			sent(http.StatusInternalServerError)
		}
		if !p.limiter.opts.Count(r, status) {
			p.giveBack()
		}
	}()
	next.ServeHTTP(wrapped, r)
	returned = true
}
