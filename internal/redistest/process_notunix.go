//go:build !unix

package redistest

import "syscall"

// These signals do not exist here, so Hang and Continue fail.
const (
	sigStop     = syscall.Signal(-1)
	sigContinue = syscall.Signal(-1)
)
