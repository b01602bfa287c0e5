// Package guard runs functions of the user's beside the requests: stores, hooks of clients,
// loggers, sinks of audit trails and observers. On a goroutine that the library has started,
// nothing else recovers from a panic, and it would end the process.
//
// A call that ends its goroutine with [runtime.Goexit] still ends it.
package guard

import (
	"fmt"
	"sync/atomic"
)

// A Panic is the error of a function that has panicked.
type Panic struct {
	With any
}

func (p Panic) Error() string { return fmt.Sprintf("panic: %v", p.With) }

// Run calls f. If f panics, Run calls report, and returns. If report panics, too, nothing
// reports that: the logger is probably what has panicked. report may be nil.
func Run(f func(), report func(Panic)) {
	defer func() {
		if with := recover(); with != nil && report != nil {
			Run(func() { report(Panic{with}) }, nil)
		}
	}()
	f()
}

// Error calls f and returns its error. If f panics, the error is a [Panic].
func Error(f func() error) (err error) {
	Run(func() { err = f() }, func(p Panic) { err = p })
	return err
}

// Alone runs f, unless running says that a goroutine runs it already. It reports whether f has
// run. Afterwards running is false, also if f panics: otherwise no goroutine would ever run it
// again.
func Alone(running *atomic.Bool, f func()) bool {
	if !running.CompareAndSwap(false, true) {
		return false
	}
	defer running.Store(false)
	f()
	return true
}
