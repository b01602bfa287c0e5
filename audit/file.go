package audit

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/ratelimit-go/ratelimit/internal/filelock"
)

// File is a [Sink] of JSON lines: one record per line, appended to a file. It is a [Reader] of
// that file, too.
//
// One process writes to a file. To rotate it, rename it: File notices that before the next
// write, and begins a new file under the name. A line that was not written as a whole, because
// the disk was full or the machine has crashed, is removed before the next one is written.
type File struct {
	name string

	mu     sync.Mutex
	f      *os.File // nil after Close
	length int64    // of what is written as a whole
}

// OpenFile opens a file, and makes it if there is none. Only the program's user may read a
// new file.
func OpenFile(name string) (*File, error) {
	s := &File{name: name}
	if err := s.open(); err != nil {
		return nil, fmt.Errorf("audit: %w", err)
	}
	return s, nil
}

// open opens the file and removes what is behind its last whole line.
func (s *File) open() error {
	f, err := os.OpenFile(s.name, os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	if err := filelock.Lock(f); err != nil {
		if err == filelock.ErrLocked {
			err = fmt.Errorf("%s is in use: give each process a file of its own", s.name)
		}
		return errors.Join(err, f.Close())
	}
	length, err := wholeLines(f)
	if err == nil {
		err = f.Truncate(length)
	}
	if err == nil && length == 0 { // it may be new
		err = filelock.SyncDir(filepath.Dir(s.name))
	}
	if err != nil {
		return errors.Join(err, f.Close())
	}
	s.f, s.length = f, length
	return nil
}

// wholeLines returns the length of a file up to the end of its last whole line.
func wholeLines(f *os.File) (int64, error) {
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	buf := make([]byte, 64<<10)
	for end := info.Size(); end > 0; {
		from := max(0, end-int64(len(buf)))
		part := buf[:end-from]
		if _, err := f.ReadAt(part, from); err != nil && err != io.EOF {
			return 0, err
		}
		if i := bytes.LastIndexByte(part, '\n'); i >= 0 {
			return from + int64(i) + 1, nil
		}
		end = from
	}
	return 0, nil
}

// Write implements [Sink].
func (s *File) Write(_ context.Context, records []Record, durable bool) error {
	var lines bytes.Buffer
	encoder := json.NewEncoder(&lines) // it ends each with a newline
	encoder.SetEscapeHTML(false)
	for i := range records {
		if err := encoder.Encode(&records[i]); err != nil {
			return fmt.Errorf("audit: %w", err)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.write(lines.Bytes(), durable); err != nil {
		return fmt.Errorf("audit: %s: %w", s.name, err)
	}
	return nil
}

// write appends lines. s.mu must be held.
func (s *File) write(lines []byte, durable bool) error {
	if s.f == nil {
		return os.ErrClosed
	}
	if err := s.follow(); err != nil {
		return err
	}
	n, err := s.f.Write(lines)
	if err == nil && durable {
		err = s.f.Sync()
	}
	if err != nil {
		if n > 0 {
			err = errors.Join(err, s.f.Truncate(s.length))
		}
		return err
	}
	s.length += int64(n)
	return nil
}

// follow begins a new file if the present one has another name now. s.mu must be held.
func (s *File) follow() error {
	own, err := s.f.Stat()
	if err != nil {
		return err
	}
	if named, err := os.Stat(s.name); err == nil && os.SameFile(own, named) {
		return nil
	}
	before := s.f
	if err := s.open(); err != nil {
		return err
	}
	return errors.Join(before.Sync(), before.Close())
}

// Read implements [Reader]. It reads all of the present file, and no files that were renamed.
func (s *File) Read(ctx context.Context, q Query) (found []Record, err error) {
	f, err := os.Open(s.name)
	if err != nil {
		return nil, fmt.Errorf("audit: %w", err)
	}
	defer f.Close()
	lines := bufio.NewReader(f)
	for n := 0; ; n++ {
		line, err := lines.ReadBytes('\n')
		if err == io.EOF {
			break // without a newline, it is being written
		}
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return nil, fmt.Errorf("audit: %s: %w", s.name, err)
		}
		var r Record
		if err := json.Unmarshal(line, &r); err != nil {
			return nil, fmt.Errorf("audit: %s, line %d: %w", s.name, n+1, err)
		}
		if q.Matches(&r) {
			found = append(found, r)
		}
		if len(found) > 2*q.most() {
			found = slices.Delete(found, 0, q.most())
		}
	}
	slices.Reverse(found)
	return found[:min(len(found), q.most())], nil
}

// Close writes the file to the disk and closes it. Close the trail first.
func (s *File) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.f == nil {
		return nil
	}
	err := errors.Join(s.f.Sync(), s.f.Close())
	s.f = nil
	if err != nil {
		return fmt.Errorf("audit: %s: %w", s.name, err)
	}
	return nil
}
