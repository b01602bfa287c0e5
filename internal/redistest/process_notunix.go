//go:build !unix

package redistest

import "syscall"

// No process takes these here: Hang and Continue fail.
const (
	sigStop     = syscall.Signal(-1)
	sigContinue = syscall.Signal(-1)
)
