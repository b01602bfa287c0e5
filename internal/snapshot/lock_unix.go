//go:build unix && !solaris && !aix

package snapshot

import (
	"os"
	"syscall"
)

// locksData means that the snapshot itself is locked, too: on this system a
// locked file can be removed and renamed.
const locksData = true

// openLock opens a lock, or creates it. It fails if path is a symbolic link.
func openLock(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW, 0o600)
}

// flock locks a file until it is closed or the process ends. It does not wait:
// it returns errLocked if the file is locked by another process or through
// another open file.
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

// syncDir makes a rename in a directory durable.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
