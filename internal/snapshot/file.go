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

	"github.com/ratelimit-go/ratelimit/internal/filelock"
	"github.com/ratelimit-go/ratelimit/internal/table"
)

// File is a snapshot file that is owned by this process. It is not safe for
// concurrent use, except for Close. This file has how a snapshot is opened, read
// and saved. Locks between processes are in lock.go, and the bytes of the file
// are in format.go.
type File struct {
	path string
	lock *os.File // beside the file, locked
	data *os.File // the file itself, locked; nil if there is none yet, or if locksData is false
	buf  []byte

	size    int64     // of the file
	whole   int64     // how much of it the last rewrite wrote; 0 if the file may differ from what the last Save left
	version uint32    // of the file as it was written whole
	owed    bool      // the file is missing or the last Save failed, so the next one writes all of it
	closing sync.Once // of data
}

const (
	lockSuffix  = ".lock"    // the lock beside the file
	asideSuffix = ".tmp"     // the next version, while it is written
	badSuffix   = ".damaged" // a file that SetAside has renamed
)

// Open locks a snapshot file until Close or the end of the process. The file
// need not exist yet. If another process has the file, Open polls for up to
// wait, and then returns ErrInUse.
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
		if err != filelock.ErrLocked {
			return nil, err
		}
		if time.Since(start) >= wait {
			return nil, inUse(path)
		}
	}
}

// Companion says what other is if it is one of the files that a snapshot at path has
// beside it, such as its lock. Otherwise it returns "".
func Companion(path, other string) string {
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

// regular reports whether there is a file. It returns an error if the file is not a regular
// one, because opening a pipe may block forever.
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

// kindOf names the type of a file that is not a regular one.
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

// Close unlocks the file. Changes that were not saved are lost. Close may be called
// more than once, and from any goroutine.
func (f *File) Close() error {
	f.closing.Do(func() { f.replaceData(nil) }) // first, so that a process that gets the lock beside it gets both
	return f.lock.Close()
}

// Read returns the contents of the file, or nil if there is no file. The error is
// ErrDamaged if the contents are unusable.
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
	head := make([]byte, headerSize) // enough to refuse another program's file before reading all of it
	n, err := io.ReadFull(file, head)
	if err != nil && err != io.EOF && err != io.ErrUnexpectedEOF {
		return nil, err
	}
	if _, _, err := readHeader(head[:n]); err != nil {
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

// alwaysWhole is the size in bytes up to which Save always rewrites the whole file.
// That costs almost nothing, and the file stays in one piece.
const alwaysWhole = 1 << 20

// Save writes the changes of a mirrored table and syncs the file. all has the
// same meaning as in [table.Mirror.Update]. While the changes are few, Save
// appends them to the file. When they have become as large as the file was
// without them, it writes a new file. So the amount written is proportional to
// the changes, not to the counters. It also writes a new file if the table holds its
// first block or rolling window, because that needs another version of the format. If nothing has changed
// and the file exists, Save writes nothing. The error is ErrInUse if somebody has removed the lock
// and another process has the file.
func (f *File) Save(header Header, t *table.Table, m *table.Mirror, all bool, now func() Stamp) error {
	if err := f.check(); err != nil {
		return err
	}
	most := int64(0) // more bytes of changes than this are not appended
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
	if n := int64(len(f.buf)); n < most && f.size-f.whole+n < f.whole && versionOf(&commit.Shapes, m) == f.version {
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
	f.size, f.whole, f.owed, f.version = size, size, false, versionOf(&commit.Shapes, m)
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

// rewrite writes a new file under another name and renames it, so that there is
// always a complete file. It locks the new file before the rename.
func (f *File) rewrite(header Header, m *table.Mirror, commit Commit) (size int64, err error) {
	aside := f.path + asideSuffix
	os.Remove(aside) // a process may have ended while it wrote
	file, err := os.OpenFile(aside, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return 0, err
	}
	if err = filelock.Lock(file); err == nil {
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
	return size, filelock.SyncDir(filepath.Dir(f.path))
}

// writeAll writes everything to an empty file, and syncs it.
func (f *File) writeAll(file *os.File, header Header, m *table.Mirror, commit Commit) (size int64, err error) {
	w := bufio.NewWriterSize(file, 1<<18)
	f.buf = header.append(f.buf[:0], versionOf(&commit.Shapes, m))
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
