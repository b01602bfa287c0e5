//go:build !linux

package redistest

import (
	"syscall"
	"time"
)

// dieWithParent does nothing here: a server outlives a test binary that is
// killed.
func dieWithParent() *syscall.SysProcAttr { return nil }

// isStopped waits 50 ms for the signal to arrive, because there is no cheap way
// to check.
func isStopped(int) bool {
	time.Sleep(50 * time.Millisecond)
	return true
}
