package ratelimit

import (
	"sync/atomic"
	"time"

	"github.com/ratelimit-go/ratelimit/internal/clock"
)

// outages are a remote's, as far as the log knows of them.
type outages struct {
	telling atomic.Bool           // somebody sees to it that the log's last word is true
	down    atomic.Bool           // that word
	cause   atomic.Pointer[error] // of the last outage
	next    int64                 // when another may be told of; of who is telling
}

// outageEvery is how often outages are told of: a breaker that flaps makes two lines in that time.
const outageEvery = 10 * time.Second

// noteOutage tells of an outage and of its end, now that the breaker has opened or closed. The
// log's last word has to be true: what is not told at once is looked at again.
func (r *remote) noteOutage(err error) {
	o := &r.outages
	if err != nil && r.breaker.Open() {
		o.cause.Store(&err)
	}
	if !o.telling.CompareAndSwap(false, true) {
		return
	}
	r.beside(func() {
		for more := true; more; {
			r.tellOutage()
			o.telling.Store(false)
			more = r.closing.Err() == nil && r.breaker.Open() != o.down.Load() && o.telling.CompareAndSwap(false, true)
		}
	})
}

func (r *remote) tellOutage() {
	o := &r.outages
	if !o.down.Load() {
		select {
		case <-time.After(time.Duration(o.next - clock.Now())):
		case <-r.closing.Done():
			return
		}
	}
	down := r.breaker.Open()
	if o.down.Swap(down) == down {
		return
	}
	if !down {
		r.l.report.log(warnStoreBack, "outages", r.breaker.Opened())
		return
	}
	o.next = clock.Now() + int64(outageEvery)
	cause := errBreakerOpen
	if c := o.cause.Load(); c != nil {
		cause = *c
	}
	r.l.report.log(warnStoreDown, "outages", r.breaker.Opened(), "on_failure", r.l.opts.OnFailure, "error", cause)
}
