//go:build !linux

package redistest

import (
	"syscall"
	"time"
)

// dieWithParent is nothing here: a server outlives a test binary that is killed.
func dieWithParent() *syscall.SysProcAttr { return nil }

// isStopped gives the signal time to arrive: there is no cheap way to see it.
func isStopped(int) bool {
	time.Sleep(50 * time.Millisecond)
	return true
}
