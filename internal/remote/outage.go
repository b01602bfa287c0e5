package remote

import (
	"math"
	"sync"
	"time"

	"github.com/ratelimit-go/ratelimit/internal/clock"
	"github.com/ratelimit-go/ratelimit/internal/guard"
)

// An outage lasts from when the breaker opens until it closes. It is reported at
// once, unless another outage was reported within outageQuiet. In that case it is
// reported when it has lasted outageLeast, a second. So every outage of at least a
// second is reported. A breaker that opens and closes all the time causes two log
// lines per outageQuiet. The end of an outage is reported at once if its beginning
// was. This file decides when to call the Reporter, which formats the messages.
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
	last    int64 // when an outage was last reported; 0 means never
	down    int64 // when the outage began that was reported last; 0 if its end was reported, too
	cause   error
	changed chan struct{} // receives a value when a field above has changed
}

// breakerChanged notes that the breaker has opened or closed. It takes the lock
// of the outage, and may start a goroutine that reports it.
func (r *Remote) breakerChanged(now int64, err error) {
	o := &r.outage
	o.mu.Lock()
	open := r.breaker.Open() // concurrent calls of breakerChanged may run in either order
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

// isPending reports whether there is an outage, or one whose end has not been reported.
func (o *outage) isPending() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.open || o.down != 0
}

// A report says what must be reported next, and when.
type report struct {
	kind  reportKind
	after time.Duration // for reportLater: how long to wait; for reportBack: how long the outage lasted
	cause error
}

type reportKind uint8

const (
	reportNothing reportKind = iota // there is no outage
	reportLater                     // wait until the outage is due, or changes
	reportDown
	reportBack
)

// next returns what to report, and notes that it is reported. It takes the lock.
func (o *outage) next(now int64) report {
	o.mu.Lock()
	defer o.mu.Unlock()
	switch down := o.down; {
	case down != 0 && (!o.open || o.began != down):
		o.down = 0
		return report{kind: reportBack, after: time.Duration(o.ended - down)}
	case !o.open:
		return report{kind: reportNothing}
	case down != 0:
		return report{kind: reportLater, after: time.Duration(math.MaxInt64)}
	case now < o.due:
		return report{kind: reportLater, after: time.Duration(o.due - now)}
	}
	o.last, o.down = now, o.began
	return report{kind: reportDown, cause: o.cause}
}

// watchOutage makes sure that a goroutine of the owner reports the present outage and its
// end, if there is one. It does not wait.
func (r *Remote) watchOutage() {
	if !r.outage.isPending() {
		return
	}
	r.goOwner(func(owner *Remote) {
		for guard.Alone(&owner.watching, owner.reportOutage) {
			if !owner.outage.isPending() || owner.areLoopsStopped() {
				return
			}
		}
	})
}

// reportOutage reports the present outage and its end. It waits for that on the
// goroutine that watchOutage has started. It returns when there is no outage. It
// also returns when there is another owner, which goes on from there. If the logger panics,
// it goes on: the outage may be over already, or another one may have begun.
func (r *Remote) reportOutage() {
	for {
		next := r.outage.next(clock.Now())
		switch next.kind {
		case reportNothing:
			return
		case reportDown:
			r.recovering(func() { r.opts.Report.StoreDown(r.breaker.Opened(), next.cause) })()
		case reportBack:
			r.recovering(func() { r.opts.Report.StoreBack(r.breaker.Opened(), next.after) })()
		case reportLater:
			timer := time.NewTimer(next.after)
			select {
			case <-timer.C:
			case <-r.outage.changed:
			case <-r.loopsStopped:
				timer.Stop()
				return
			}
			timer.Stop()
		}
	}
}

// areLoopsStopped reports whether r was closed or is no longer the owner.
func (r *Remote) areLoopsStopped() bool {
	select {
	case <-r.loopsStopped:
		return true
	default:
		return false
	}
}
