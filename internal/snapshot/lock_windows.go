package snapshot

import (
	"os"
	"syscall"
)

// locksData: the snapshot itself is not locked, because nobody can remove the
// lock beside it, and a file that is open cannot be renamed.
const locksData = false

// openLock opens or makes a lock, or opens a link itself, in a way that lets
// other processes only read it for as long as it is open and the process lives.
// It returns errLocked if another process has it.
func openLock(path string) (*os.File, error) {
	name, err := syscall.UTF16PtrFromString(path)
	if err != nil {
		return nil, err
	}
	h, err := syscall.CreateFile(name, syscall.GENERIC_READ|syscall.GENERIC_WRITE, syscall.FILE_SHARE_READ,
		nil, syscall.OPEN_ALWAYS, syscall.FILE_ATTRIBUTE_NORMAL|syscall.FILE_FLAG_OPEN_REPARSE_POINT, 0)
	const sharingViolation = syscall.Errno(32)
	switch err {
	case nil:
		return os.NewFile(uintptr(h), path), nil
	case sharingViolation:
		return nil, errLocked
	}
	return nil, &os.PathError{Op: "open", Path: path, Err: err}
}

// flock has nothing to do after openLock.
func flock(*os.File) error { return nil }

// syncDir has nothing to do: a rename lasts here when it returns.
func syncDir(string) error { return nil }
