//go:build unix && !solaris && !aix

package snapshot

import (
	"os"
	"syscall"
)

// locksData: the snapshot is locked, too. A file that is locked can be removed
// and renamed.
const locksData = true

// openLock opens or makes a lock, but not through a link.
func openLock(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW, 0o600)
}

// flock locks a file for as long as it is open and the process lives. It
// returns errLocked if it has been locked, by another process or through
// another open file. It does not wait.
func flock(f *os.File) error {
	for {
		switch err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err {
		case nil:
			return nil
		case syscall.EINTR:
		case syscall.EWOULDBLOCK:
			return errLocked
		default:
			return &os.PathError{Op: "flock", Path: f.Name(), Err: err}
		}
	}
}

// syncDir makes a rename in a directory last.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
