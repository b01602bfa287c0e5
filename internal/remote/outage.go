package remote

import (
	"sync/atomic"
	"time"

	"github.com/ratelimit-go/ratelimit/internal/clock"
)

// outages is what has been reported of a store's outages.
type outages struct {
	reporting atomic.Bool           // a goroutine makes sure that the last report is true
	down      atomic.Bool           // what the last report says
	cause     atomic.Pointer[error] // of the last outage
	next      int64                 // when another outage may be reported; of that goroutine
}

// outageEvery is how often outages are reported: a breaker that opens and closes
// all the time makes two lines in each such span.
const outageEvery = 10 * time.Second

// breakerChanged reports that an outage has begun or ended. The last report has to
// be true, so what is not reported at once is looked at again by a goroutine.
func (r *Remote) breakerChanged(err error) {
	o := &r.outages
	if err != nil && r.breaker.Open() {
		o.cause.Store(&err)
	}
	if !o.reporting.CompareAndSwap(false, true) {
		return
	}
	r.beside(func() {
		for more := true; more; {
			r.reportOutage()
			o.reporting.Store(false)
			more = r.closing.Err() == nil && r.breaker.Open() != o.down.Load() && o.reporting.CompareAndSwap(false, true)
		}
	})
}

// reportOutage waits until an outage may be reported, and then reports whether
// there is one, if the last report said otherwise.
func (r *Remote) reportOutage() {
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
		r.opts.Report.StoreBack(r.breaker.Opened())
		return
	}
	o.next = clock.Now() + int64(outageEvery)
	cause := errBreakerOpen
	if c := o.cause.Load(); c != nil {
		cause = *c
	}
	r.opts.Report.StoreDown(r.breaker.Opened(), cause)
}
