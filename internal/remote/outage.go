package remote

import (
	"math"
	"sync"
	"time"

	"github.com/ratelimit-go/ratelimit/internal/clock"
)

// An outage lasts from when the breaker opens until it closes. It is reported at
// once, unless another one was reported shortly before: then it is reported when it
// has lasted a second. So every outage of a second is reported, and a breaker that
// opens and closes all the time makes two lines in outageQuiet. The end of an outage
// that was reported is reported at once.
const (
	outageQuiet = int64(10 * time.Second)
	outageLeast = int64(time.Second)
)

// outage is the present outage, or the last one.
type outage struct {
	mu      sync.Mutex
	open    bool
	began   int64
	ended   int64
	due     int64 // when the present outage is reported
	last    int64 // when one was reported; 0 is never
	cause   error
	changed chan struct{} // gets an element when one of the above has changed
}

// breakerChanged notes that the breaker has opened or closed.
func (r *Remote) breakerChanged(now int64, err error) {
	o := &r.outage
	o.mu.Lock()
	open := r.breaker.Open() // two calls of this may overtake each other
	if open != o.open {
		o.open = open
		if open {
			o.began, o.due, o.cause = now, now, err
			if o.last != 0 && now-o.last < outageQuiet {
				o.due = now + outageLeast
			}
		} else {
			o.ended = now
		}
	}
	o.mu.Unlock()
	select {
	case o.changed <- struct{}{}:
	default:
	}
	r.watchOutage()
}

func (o *outage) isOpen() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.open
}

// A report is what has to be reported next.
type report struct {
	kind  reportKind
	began int64         // of the outage that is down
	after time.Duration // until reportDown, or how long the outage lasted that is over
	cause error
}

type reportKind uint8

const (
	reportNothing reportKind = iota // there is no outage
	reportLater                     // wait until the outage is due, or changes
	reportDown
	reportBack
)

// next returns what to report, if since is when the outage began that was reported
// last, or 0 if its end was reported, too.
func (o *outage) next(since, now int64) report {
	o.mu.Lock()
	defer o.mu.Unlock()
	switch {
	case since != 0 && (!o.open || o.began != since):
		return report{kind: reportBack, after: time.Duration(o.ended - since)}
	case !o.open:
		return report{kind: reportNothing}
	case since != 0:
		return report{kind: reportLater, after: time.Duration(math.MaxInt64)}
	case now < o.due:
		return report{kind: reportLater, after: time.Duration(o.due - now)}
	}
	o.last = now
	return report{kind: reportDown, began: o.began, cause: o.cause}
}

// watchOutage makes sure that a goroutine of the owner reports the present outage,
// if there is one.
func (r *Remote) watchOutage() {
	if !r.outage.isOpen() {
		return
	}
	r.beside(func(owner *Remote) {
		for owner.watching.CompareAndSwap(false, true) {
			owner.reportOutage()
			owner.watching.Store(false)
			if !owner.outage.isOpen() || owner.isReplaced() {
				return
			}
		}
	})
}

// reportOutage reports the present outage and its end. It returns when there is no
// outage, or when there is another owner, which reports the outage again.
func (r *Remote) reportOutage() {
	since := int64(0)
	for {
		next := r.outage.next(since, clock.Now())
		switch next.kind {
		case reportNothing:
			return
		case reportDown:
			r.opts.Report.StoreDown(r.breaker.Opened(), next.cause)
			since = next.began
		case reportBack:
			r.opts.Report.StoreBack(r.breaker.Opened(), next.after)
			since = 0
		case reportLater:
			timer := time.NewTimer(next.after)
			select {
			case <-timer.C:
			case <-r.outage.changed:
			case <-r.replaced:
				timer.Stop()
				return
			}
			timer.Stop()
		}
	}
}

// isReplaced reports whether this is no longer the owner, or closed.
func (r *Remote) isReplaced() bool {
	select {
	case <-r.replaced:
		return true
	default:
		return false
	}
}
