package snapshot

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
	"strings"
)

// This file keeps other processes out. The files lock_*.go have how a system
// locks a file.
//
// There are two locks, and a process needs both to open a snapshot. The first
// is a file beside it, which exists from the start. The second is the snapshot
// itself: anyone may remove the file beside it, a program that tidies up for
// example, and another process would then make and lock a new one. Each version
// of the snapshot is locked before it gets its name, and the version before it
// is unlocked afterwards, so there is no moment at which it could be opened.
//
// A process checks its locks before it writes, and again right before it
// renames what it has written. If the file beside the snapshot is gone, it is
// made again. Before the first Save there is no snapshot that could be locked,
// so a second process may come in then. The first process finds the new lock
// taken, or a snapshot that is not its own. Its Saves fail, and it does not
// replace what the second one has written.
//
// Windows removes no file that is open, and renames none. There the lock beside
// the snapshot is the only one.

const lockSize = 20 // a number of a process, spaces, and a newline

// ErrInUse is about a file that another process has.
var ErrInUse = errors.New("the file is in use")

var (
	errLocked  = errors.New("locked")
	errReplace = errors.New("it is not the file that this process has read or written, and so is not replaced: " +
		"end the process that writes it, if there is one, and move it away")
)

// acquire takes both locks of f. It returns errLocked if another process has
// one of them.
func (f *File) acquire() error {
	held, err := lockBeside(f.path)
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
	held, err := lockBeside(f.path)
	if err == errLocked {
		return fmt.Errorf("somebody has removed %s, and now %w", f.path+lockSuffix, inUse(f.path))
	}
	if err != nil {
		return err
	}
	f.lock.Close()
	f.lock = held
	return writeOwner(held)
}

// replaceData makes file, which is locked and has just got the name of f, the
// one that keeps other processes out. It may be nil.
func (f *File) replaceData(file *os.File) {
	if f.data != nil {
		f.data.Close()
	}
	f.data = file
}

// lockBeside takes the lock beside a file, for as long as it is open and the
// process lives. It returns errLocked if another process has it. It neither
// follows a link nor writes into a file that is no lock.
func lockBeside(path string) (held *os.File, err error) {
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
	if err := flock(held); err != nil {
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
		return nil, errLocked
	}
	return held, nil
}

// lockData locks the file itself. It returns nil if there is none, and
// errLocked if another process has it.
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
	err = flock(file)
	if err == nil && !isAt(file, path) { // its owner has just replaced it
		err = errLocked
	}
	if err != nil {
		file.Close()
		return nil, err
	}
	return file, nil
}

// writeOwner writes this process into a lock, in one piece, because another
// process may be reading it.
func writeOwner(lock *os.File) error {
	_, err := lock.WriteAt(fmt.Appendf(nil, "%-*d\n", lockSize-1, os.Getpid()), 0)
	return err
}

// inUse is ErrInUse with the process that has the file, as far as its lock says
// so.
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
