package snapshot

import (
	"os"
	"syscall"

	"github.com/ratelimit-go/ratelimit/internal/filelock"
)

// locksData means that the snapshot itself is locked, too. It is not needed
// here, because nobody can remove the open lock beside it. It is not possible
// either, because an open file cannot be renamed.
const locksData = false

// openLock opens a lock, or creates it. If path is a link, it opens the link
// itself. Other processes can only read the file until it is closed or the
// process ends. openLock returns [filelock.ErrLocked] if another process has it.
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
		return nil, filelock.ErrLocked
	}
	return nil, &os.PathError{Op: "open", Path: path, Err: err}
}
