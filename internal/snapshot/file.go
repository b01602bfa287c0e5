package snapshot

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/ratelimit-go/ratelimit/internal/table"
)

// File is a snapshot file that belongs to this process. It is for one goroutine.
type File struct {
	path string
	lock *os.File
	buf  []byte

	size  int64 // of the file
	whole int64 // of that, what was written in one go; 0 if the file is not known to be as the last Save left it
	owed  bool  // the last Save failed
}

const (
	lockSuffix  = ".lock"    // beside the file, which is renamed and so cannot be locked itself
	asideSuffix = ".tmp"     // what is being written
	badSuffix   = ".damaged" // what was set aside

	lockSize = 20 // a number of a process, spaces, and a newline
)

// ErrInUse is about a file that another process has.
var ErrInUse = errors.New("the file is in use")

var errLocked = errors.New("locked")

// Open takes hold of a file, which need not be there yet, for as long as the process
// lives or until Close. It waits for another process to let go of it.
func Open(path string, wait time.Duration) (*File, error) {
	if dir := filepath.Dir(path); !isDir(dir) {
		return nil, fmt.Errorf("its directory %s does not exist: make it", dir)
	}
	if _, err := regular(path); err != nil {
		return nil, err
	}
	const poll = 20 * time.Millisecond
	for start := time.Now(); ; time.Sleep(poll) {
		held, err := lockBeside(path)
		if err == nil {
			return &File{path: path, lock: held}, nil
		}
		if err != errLocked {
			return nil, err
		}
		if time.Since(start) >= wait {
			by := "another process"
			if pid, _ := os.ReadFile(path + lockSuffix); len(pid) > 0 {
				if n, err := strconv.Atoi(strings.TrimSpace(string(pid))); err == nil {
					by = fmt.Sprintf("process %d", n)
				}
			}
			return nil, fmt.Errorf("%w by %s", ErrInUse, by)
		}
	}
}

// lockBeside takes the lock of a file and writes this process into it. It returns errLocked
// if another has it. It neither follows a link nor writes into what is not a lock.
func lockBeside(path string) (held *os.File, err error) {
	path += lockSuffix
	wrong := func(what string) error {
		return fmt.Errorf("%s is %s, and not the lock that belongs there: remove it, or choose another name or directory", path, what)
	}
	if info, err := os.Lstat(path); err == nil && !info.Mode().IsRegular() {
		return nil, wrong(kindOf(info))
	}
	if held, err = lock(path); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			held.Close()
		}
	}()
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
	// In one piece, for somebody may be reading it.
	if _, err = fmt.Fprintf(held, "%-*d\n", lockSize-1, os.Getpid()); err != nil {
		return nil, err
	}
	return held, nil
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

// Close lets go of the file. What was not saved is lost.
func (f *File) Close() error { return f.lock.Close() }

// Read returns what is in the file, or nil if it is not there. The error is ErrDamaged
// where its contents are to blame.
func (f *File) Read() (*Contents, error) {
	if there, err := regular(f.path); !there {
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
	return f.path + badSuffix, os.Rename(f.path, f.path+badSuffix)
}

// alwaysWhole is a size up to which a file is written anew each time: it is then one
// piece, and costs next to nothing.
const alwaysWhole = 1 << 20

// Save writes what has changed in a mirrored table; all has the same meaning as in
// [table.Mirror.Update]. It appends to the file while the changes are few, and writes
// it anew when they have come to as much as it was: so the disk is written to in
// proportion to the changes, not to the counters. If nothing has changed, nothing is
// written.
func (f *File) Save(header Header, t *table.Table, m *table.Mirror, all bool, now func() Stamp) error {
	most := 0 // bytes of changes that there is use for
	if f.whole > alwaysWhole {
		most = int(f.whole / 4)
	}
	f.buf = f.buf[:0]
	changed := f.owed
	m.Update(all, func(changes table.Changes) {
		changed = true
		if len(f.buf) < most {
			f.buf = AppendChanges(f.buf, changes)
		}
	})
	if !changed {
		return nil
	}
	commit := Commit{now(), t.Shapes()}
	if n := int64(len(f.buf)); n < int64(most) && f.size-f.whole+n < f.whole {
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

// rewrite writes a file aside and gives it the name, so that there is always one.
func (f *File) rewrite(header Header, m *table.Mirror, commit Commit) (size int64, err error) {
	aside := f.path + asideSuffix
	os.Remove(aside) // a process may have ended while it wrote
	file, err := os.OpenFile(aside, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return 0, err
	}
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
	err = w.Flush()
	if err == nil {
		err = file.Sync()
	}
	if e := file.Close(); err == nil {
		err = e
	}
	if err == nil {
		err = os.Rename(aside, f.path)
	}
	if err == nil {
		err = syncDir(filepath.Dir(f.path))
	}
	return size, err
}
