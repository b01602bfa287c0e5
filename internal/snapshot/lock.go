package snapshot

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"github.com/ratelimit-go/ratelimit/internal/filelock"
)

// This file keeps other processes from using the same snapshot. How each system
// locks a file is in lock_*.go.
//
// There are two locks, and a process needs both to open a snapshot. The first
// is a file beside the snapshot, which exists from the start. The second is the
// snapshot itself. The first is not enough, because anyone may remove that
// file, for example a program that tidies up. Another process would then create
// and lock a new one. Each version of the snapshot is locked before it gets its
// name, and the previous version is unlocked afterwards. So there is no moment
// at which another process could open the snapshot.
//
// A process checks its locks before it writes, and again right before it
// renames the new version. If the file beside the snapshot is gone, it is
// created again. Before the first Save there is no snapshot to lock, so a
// second process may get in then. The first process finds the new lock taken,
// or a snapshot that is not its own. Its Saves then fail, and it never replaces
// the second process's snapshot.
//
// Windows does not let a process remove or rename a file that is open. There
// the lock beside the snapshot is the only one.

const lockSize = 20 // a process id, spaces, and a newline

// ErrInUse is the error for a file that another process has open.
var ErrInUse = errors.New("the file is in use")

var (
	errReplace = errors.New("it is not the file that this process has read or written, and so is not replaced: " +
		"end the process that writes it, if there is one, and move it away")
)

// acquire takes both locks of f. It does not wait: it returns filelock.ErrLocked if
// another process has one of them.
func (f *File) acquire() error {
	held, err := lockCompanion(f.path)
	if err != nil {
		return err
	}
	data, err := lockData(f.path)
	if err == nil {
		err = writeOwner(held)
	}
	f.lock, f.data = held, data
	if err != nil {
		f.Close()
	}
	return err
}

// check returns an error if f may not be written or read: another process may
// have it. If the lock beside it is gone, check takes a new one.
func (f *File) check() error {
	if !locksData {
		return nil
	}
	lockErr := f.checkLock()
	info, err := os.Stat(f.path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		f.owed = f.owed || f.data != nil // somebody has removed it
		return lockErr
	case err != nil:
		return err
	case f.data == nil || !isFile(f.data, info):
		return errReplace
	}
	return nil // no other process can lock it, with or without the lock beside it
}

// checkLock takes the lock beside f again if it is no longer the file of its
// name.
func (f *File) checkLock() error {
	if isAt(f.lock, f.path+lockSuffix) {
		return nil
	}
	held, err := lockCompanion(f.path)
	if err == filelock.ErrLocked {
		return fmt.Errorf("somebody has removed %s, and now %w", f.path+lockSuffix, inUse(f.path))
	}
	if err != nil {
		return err
	}
	f.lock.Close()
	f.lock = held
	return writeOwner(held)
}

// replaceData makes file the lock on the snapshot itself, and closes the
// previous one. file must be locked and must already have the name of f, or be
// nil.
func (f *File) replaceData(file *os.File) {
	if f.data != nil {
		f.data.Close()
	}
	f.data = file
}

// lockCompanion locks the file beside a snapshot until it is closed or the process
// ends. It does not wait: it returns filelock.ErrLocked if another process has the lock.
// It neither follows a link nor writes into a file that is not a lock.
func lockCompanion(path string) (held *os.File, err error) {
	path += lockSuffix
	wrong := func(what string) error {
		return fmt.Errorf("%s is %s, and not the lock that belongs there: remove it, or choose another name or directory", path, what)
	}
	if info, err := os.Lstat(path); err == nil && !info.Mode().IsRegular() {
		return nil, wrong(kindOf(info))
	}
	if held, err = openLock(path); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			held.Close()
		}
	}()
	if err := filelock.Lock(held); err != nil {
		return nil, err
	}
	info, err := held.Stat() // of what was opened
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, wrong(kindOf(info))
	}
	was := make([]byte, lockSize+1)
	n, err := held.ReadAt(was, 0)
	if err != nil && err != io.EOF {
		return nil, err
	}
	if n > lockSize || strings.Trim(string(was[:n]), "0123456789 \n\x00") != "" { // zeros after a power cut
		return nil, wrong("another file")
	}
	if locksData && !isAt(held, path) { // it was removed before it was locked
		return nil, filelock.ErrLocked
	}
	return held, nil
}

// lockData locks the snapshot itself. It does not wait. It returns nil if there
// is no snapshot, and filelock.ErrLocked if another process has it.
func lockData(path string) (*os.File, error) {
	if !locksData {
		return nil, nil
	}
	file, err := os.OpenFile(path, os.O_RDWR, 0) // NFS locks no file that is open for reading only
	if errors.Is(err, fs.ErrPermission) {
		file, err = os.Open(path)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	err = filelock.Lock(file)
	if err == nil && !isAt(file, path) { // its owner has just replaced it
		err = filelock.ErrLocked
	}
	if err != nil {
		file.Close()
		return nil, err
	}
	return file, nil
}

// writeOwner writes the id of this process into a lock, in one write because
// another process may be reading it.
func writeOwner(lock *os.File) error {
	_, err := lock.WriteAt(fmt.Appendf(nil, "%-*d\n", lockSize-1, os.Getpid()), 0)
	return err
}

// inUse returns ErrInUse with the id of the process that has the file, if its
// lock has one.
func inUse(path string) error {
	by := "another process"
	if pid, err := os.ReadFile(path + lockSuffix); err == nil {
		if n, err := strconv.Atoi(strings.TrimSpace(string(pid))); err == nil {
			by = fmt.Sprintf("process %d", n)
		}
	}
	return fmt.Errorf("%w by %s", ErrInUse, by)
}

// isAt reports whether an open file has the name path.
func isAt(file *os.File, path string) bool {
	info, err := os.Lstat(path)
	return err == nil && isFile(file, info)
}

// isFile reports whether an open file is the one that info describes.
func isFile(file *os.File, info fs.FileInfo) bool {
	own, err := file.Stat()
	return err == nil && os.SameFile(own, info)
}
