package snapshot

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/ratelimit-go/ratelimit/internal/table"
)

// File is a snapshot file that belongs to this process. It is for one goroutine.
type File struct {
	path string
	lock *os.File // beside the file, locked
	data *os.File // the file itself, locked; nil if it was never there, and where locksData is false
	buf  []byte

	size    int64     // of the file
	whole   int64     // how much of it was written in one go; 0 if the file may not be as the last Save left it
	owed    bool      // the file is not there, or the last Save failed: the next one writes all of it
	closing sync.Once // of data
}

const (
	lockSuffix  = ".lock"    // the lock beside the file
	asideSuffix = ".tmp"     // what is being written
	badSuffix   = ".damaged" // what was set aside
)

// Open takes hold of a file, which need not be there yet, for as long as the
// process lives or until Close. It waits for another process to let go of it.
// If that takes too long, the error is ErrInUse.
func Open(path string, wait time.Duration) (*File, error) {
	if dir := filepath.Dir(path); !isDir(dir) {
		return nil, fmt.Errorf("its directory %s does not exist: make it", dir)
	}
	if _, err := regular(path); err != nil {
		return nil, err
	}
	f := &File{path: path}
	const poll = 20 * time.Millisecond
	for start := time.Now(); ; time.Sleep(poll) {
		err := f.acquire()
		if err == nil {
			return f, nil
		}
		if err != errLocked {
			return nil, err
		}
		if time.Since(start) >= wait {
			return nil, inUse(path)
		}
	}
}

// Beside returns what a file has in its directory that other has the path of: its
// lock, say. It returns "" if other is none of these.
func Beside(path, other string) string {
	switch other {
	case path + lockSuffix:
		return "lock"
	case path + asideSuffix:
		return "next version"
	case path + badSuffix:
		return "damaged version"
	}
	return ""
}

// regular reports whether there is a file, and returns an error if it is not a regular one:
// to open a pipe may take forever.
func regular(path string) (bool, error) {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("it is %s, and not a regular file: name a regular file, or one that is not there yet", kindOf(info))
	}
	return err == nil, err
}

// kindOf tells what a file is that is not a regular one.
func kindOf(info fs.FileInfo) string {
	switch mode := info.Mode(); {
	case mode.IsDir():
		return "a directory"
	case mode&fs.ModeSymlink != 0:
		return "a symbolic link"
	case mode&fs.ModeNamedPipe != 0:
		return "a named pipe"
	case mode&fs.ModeSocket != 0:
		return "a socket"
	case mode&fs.ModeDevice != 0:
		return "a device"
	}
	return "a special file"
}

func isDir(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}

// Close lets go of the file. What was not saved is lost. It may be called again, also
// by another goroutine.
func (f *File) Close() error {
	f.closing.Do(func() { f.replaceData(nil) }) // first, so that a process that gets the lock beside it gets both
	return f.lock.Close()
}

// Read returns what is in the file, or nil if it is not there. The error is ErrDamaged
// where its contents are to blame.
func (f *File) Read() (*Contents, error) {
	if there, err := regular(f.path); !there {
		return nil, err
	}
	if err := f.check(); err != nil {
		return nil, err
	}
	file, err := os.Open(f.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer file.Close()
	head := make([]byte, headerSize) // by which a file that is another program's is refused unread
	n, err := io.ReadFull(file, head)
	if err != nil && err != io.EOF && err != io.ErrUnexpectedEOF {
		return nil, err
	}
	if _, err := readHeader(head[:n]); err != nil {
		return nil, err
	}
	all, err := os.ReadFile(f.path)
	if err != nil {
		return nil, err
	}
	return Decode(all)
}

// SetAside renames the file, and returns its new name.
func (f *File) SetAside() (string, error) {
	err := f.check()
	if err == nil {
		err = os.Rename(f.path, f.path+badSuffix)
	}
	if err == nil {
		f.replaceData(nil)
	}
	return f.path + badSuffix, err
}

// alwaysWhole is a size up to which a file is written anew each time: it is then one
// piece, and costs next to nothing.
const alwaysWhole = 1 << 20

// Save writes what has changed in a mirrored table; all has the same meaning as
// in [table.Mirror.Update]. It appends to the file while the changes are few.
// When they are as large as the file was without them, it writes a new file. So
// the disk is written to in proportion to the changes, not to the counters. If
// nothing has changed and the file is there, nothing is written. The error is
// ErrInUse if somebody has removed the lock, and another process has the file.
func (f *File) Save(header Header, t *table.Table, m *table.Mirror, all bool, now func() Stamp) error {
	if err := f.check(); err != nil {
		return err
	}
	most := int64(0) // bytes of changes that there is use for
	if f.whole > alwaysWhole {
		most = f.whole / 4
	}
	f.buf = f.buf[:0]
	changed := f.owed
	m.Update(all, func(changes table.Changes) {
		changed = true
		if int64(len(f.buf)) < most {
			f.buf = AppendChanges(f.buf, changes)
		}
	})
	if !changed {
		return nil
	}
	commit := Commit{now(), t.Shapes()}
	if n := int64(len(f.buf)); n < most && f.size-f.whole+n < f.whole {
		if f.append(commit) == nil {
			return nil
		}
	}
	f.size, f.whole, f.owed = 0, 0, true
	size, err := f.rewrite(header, m, commit)
	if err != nil {
		os.Remove(f.path + asideSuffix)
		return err
	}
	f.size, f.whole, f.owed = size, size, false
	return nil
}

func (f *File) append(commit Commit) error {
	f.buf = AppendCommit(f.buf, commit)
	if there, err := regular(f.path); !there {
		return errors.Join(err, errors.New("somebody else has removed the file"))
	}
	file, err := os.OpenFile(f.path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer file.Close()
	if info, err := file.Stat(); err != nil || info.Size() != f.size {
		return errors.Join(err, errors.New("somebody else has changed the file"))
	}
	if _, err := file.WriteAt(f.buf, f.size); err != nil {
		return err
	}
	if err := file.Sync(); err != nil {
		return err
	}
	f.size += int64(len(f.buf))
	return nil
}

// rewrite writes a file aside and gives it the name, so that there is always
// one. It is locked before it has the name.
func (f *File) rewrite(header Header, m *table.Mirror, commit Commit) (size int64, err error) {
	aside := f.path + asideSuffix
	os.Remove(aside) // a process may have ended while it wrote
	file, err := os.OpenFile(aside, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return 0, err
	}
	if err = flock(file); err == nil {
		size, err = f.writeAll(file, header, m, commit)
	}
	if !locksData {
		if e := file.Close(); err == nil {
			err = e
		}
	}
	if err == nil {
		err = f.check() // writing may have taken long
	}
	if err == nil {
		err = os.Rename(aside, f.path)
	}
	if err != nil {
		file.Close()
		return 0, err
	}
	if locksData {
		f.replaceData(file)
	}
	return size, syncDir(filepath.Dir(f.path))
}

// writeAll writes everything to an empty file, and syncs it.
func (f *File) writeAll(file *os.File, header Header, m *table.Mirror, commit Commit) (size int64, err error) {
	w := bufio.NewWriterSize(file, 1<<18)
	f.buf = header.append(f.buf[:0])
	write := func() {
		w.Write(f.buf) // Flush returns the error
		size += int64(len(f.buf))
	}
	write()
	m.All(func(changes table.Changes) {
		f.buf = AppendChanges(f.buf[:0], changes)
		write()
	})
	f.buf = AppendCommit(f.buf[:0], commit)
	write()
	if err := w.Flush(); err != nil {
		return 0, err
	}
	return size, file.Sync()
}
