//go:build unix && !solaris && !aix

package filelock

import (
	"os"
	"syscall"
)

// Lock locks a file until it is closed or the process ends. It does not wait. A locked file
// can be removed and renamed. On systems without such locks it does nothing.
func Lock(f *os.File) error {
	for {
		switch err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err {
		case nil:
			return nil
		case syscall.EINTR:
		case syscall.EWOULDBLOCK:
			return ErrLocked
		default:
			return &os.PathError{Op: "flock", Path: f.Name(), Err: err}
		}
	}
}
