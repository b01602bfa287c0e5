package audit

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/ratelimit-go/ratelimit/internal/filelock"
)

// This file has pseudonyms. The pseudonym of a key is its HMAC-SHA-256 under a secret, cut to
// 128 bits. While the secret exists, the records of a key can be found by anybody who has the
// secret and the key. When it has been deleted, nobody can find out whether a pseudonym is the
// one of a key, even by trying all keys that there can be.
//
// A secret is used for a third of the time that it exists. So the records of a key can be
// found for two thirds of that time at least, and for all of it at most.

// Secrets keeps the secrets of pseudonyms. Its method may be called from any number of
// goroutines.
type Secrets interface {
	// Secrets returns the secrets that exist at a time, the one to use first. It makes one if
	// the latest is older than a third of the time that secrets exist, and deletes the secrets
	// that are older than that time.
	Secrets(ctx context.Context, now time.Time) ([]Secret, error)
}

// Secret is what pseudonyms of one epoch are made with.
type Secret struct {
	Epoch  string    `json:"epoch"` // its name
	Begins time.Time `json:"begins"`
	Bytes  []byte    `json:"secret"` // 32 random bytes
}

// Pseudonym returns the pseudonym of a key, in 22 letters, digits, hyphens and underscores.
func (s *Secret) Pseudonym(key string) string {
	mac := hmac.New(sha256.New, s.Bytes)
	mac.Write([]byte(key))
	return base64.RawURLEncoding.EncodeToString(mac.Sum(nil)[:16])
}

// secretSize is the length of a secret in bytes.
const secretSize = 32

// minKeep is the shortest time that secrets exist.
const minKeep = 3 * time.Hour

// FileSecrets are [Secrets] in a file, or in memory.
type FileSecrets struct {
	file string // empty for memory
	keep time.Duration

	mu  sync.Mutex
	all []Secret // the newest first

	changed bool // the file has other secrets than all
}

// OpenSecrets returns secrets in a file, which only the program's user may read. A person who
// can read the file can find out whose records are in the trail, so it should not be in the backups
// of the trail. Processes that write to files of their own may share the secrets: they take turns
// by a lock on a file beside it, whose name ends in .lock. Each secret is deleted after keep,
// which is at least 3 hours; 90 days is a good value.
//
// Without a file the secrets are in memory: the records of a key can be found until the program
// ends.
func OpenSecrets(file string, keep time.Duration) (*FileSecrets, error) {
	if keep < minKeep {
		return nil, fmt.Errorf("audit: secrets that are kept for %v: want at least %v", keep, minKeep)
	}
	s := &FileSecrets{file: file, keep: keep}
	if file == "" {
		return s, nil
	}
	if target, err := filepath.EvalSymlinks(file); err == nil {
		s.file = target // a new file must take its place, and not the link's
	}
	var err error
	if s.all, err = s.read(); err != nil {
		return nil, err
	}
	return s, s.removeUnfinished()
}

// removeUnfinished removes what a process has left that was killed while it wrote the file. It
// waits while another process is writing.
func (s *FileSecrets) removeUnfinished() error {
	left, err := s.unfinished()
	if err != nil || len(left) == 0 {
		return err
	}
	unlock, err := s.lock(context.Background())
	if err != nil {
		return err
	}
	defer unlock()
	left, err = s.unfinished() // they may have been of a process that was writing
	for _, name := range left {
		if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("audit: %w", err)
		}
	}
	return err
}

// unfinished returns the names of files that are being written, or never will be.
func (s *FileSecrets) unfinished() (names []string, err error) {
	files, err := os.ReadDir(filepath.Dir(s.file))
	if err != nil {
		return nil, fmt.Errorf("audit: %w", err)
	}
	for _, f := range files {
		if number, ok := strings.CutPrefix(f.Name(), filepath.Base(s.file)+unfinished); ok && strings.Trim(number, "0123456789") == "" {
			names = append(names, filepath.Join(filepath.Dir(s.file), f.Name()))
		}
	}
	return names, nil
}

// A process waits for up to lockTimeout until another one has written the file, and looks for
// that every lockPause. To write it takes milliseconds.
const (
	lockTimeout = 5 * time.Second
	lockPause   = 5 * time.Millisecond
)

// lock keeps other processes from changing the file, until unlock is called. It waits for them,
// until ctx is done. Some systems have no such locks; see package filelock.
func (s *FileSecrets) lock(ctx context.Context) (unlock func(), err error) {
	if s.file == "" {
		return func() {}, nil
	}
	f, err := os.OpenFile(s.file+".lock", os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("audit: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, lockTimeout)
	defer cancel()
	for err = filelock.Lock(f); err == filelock.ErrLocked && ctx.Err() == nil; err = filelock.Lock(f) {
		time.Sleep(lockPause)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("audit: %s.lock, which protects the secrets of pseudonyms: %w", s.file, err)
	}
	return func() { f.Close() }, nil
}

// unfinished is between the name of the file and a random number, until the file is written.
const unfinished = ".new."

// read returns the secrets in the file.
func (s *FileSecrets) read() (all []Secret, err error) {
	if s.file == "" {
		return nil, nil
	}
	text, err := os.ReadFile(s.file)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("audit: %w", err)
	}
	if err := json.Unmarshal(text, &all); err != nil {
		return nil, fmt.Errorf("audit: %s does not hold secrets of pseudonyms: %w: move it away to begin with new ones", s.file, err)
	}
	for _, secret := range all {
		if len(secret.Bytes) != secretSize {
			return nil, fmt.Errorf("audit: %s has a secret of %d bytes, and not of %d: move it away to begin with new ones", s.file, len(secret.Bytes), secretSize)
		}
	}
	return all, nil
}

// settle lets secrets begin now that were made by a clock that was ahead. Otherwise they would
// stay in use until the clock gets there.
func (s *FileSecrets) settle(now time.Time) {
	const tolerated = time.Hour
	for i := range s.all {
		if s.all[i].Begins.Sub(now) > tolerated {
			s.all[i].Begins, s.changed = now.UTC(), true
		}
	}
}

// join adds the secrets of the file, which another process may have written.
func (s *FileSecrets) join() error {
	others, err := s.read()
	if err != nil {
		return err
	}
	for _, other := range others {
		if !slices.ContainsFunc(s.all, func(own Secret) bool { return own.Epoch == other.Epoch }) {
			s.all = append(s.all, other)
		}
	}
	slices.SortStableFunc(s.all, func(a, b Secret) int { return b.Begins.Compare(a.Begins) })
	return nil
}

// Secrets implements [Secrets]. It waits for the disk, and for other processes, if the file must
// be changed.
func (s *FileSecrets) Secrets(ctx context.Context, now time.Time) ([]Secret, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.settle(now)
	isOver := func(secret Secret) bool { return now.Sub(secret.Begins) >= s.keep }
	isPresent := func() bool { return len(s.all) > 0 && now.Sub(s.all[0].Begins) < s.keep/3 }
	if !s.changed && isPresent() && !slices.ContainsFunc(s.all, isOver) {
		return slices.Clone(s.all), nil
	}
	unlock, err := s.lock(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	before := slices.Clone(s.all)
	if err := s.join(); err != nil {
		return nil, err
	}
	s.settle(now)
	s.all = slices.DeleteFunc(s.all, isOver)
	if !isPresent() {
		made := Secret{Begins: now.UTC(), Bytes: make([]byte, secretSize)}
		rand.Read(made.Bytes) // it never fails
		made.Epoch = made.Begins.Format("20060102") + "-" + made.Pseudonym("epoch")[:8]
		s.all = slices.Insert(s.all, 0, made)
	}
	if err := s.write(s.all); err != nil {
		s.all = before // so that the next call tries again
		return nil, fmt.Errorf("audit: %w", err)
	}
	s.changed = false
	return slices.Clone(s.all), nil
}

// write replaces the file. s.mu must be held.
func (s *FileSecrets) write(all []Secret) (err error) {
	if s.file == "" {
		return nil
	}
	text, err := json.MarshalIndent(all, "", "\t")
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(s.file), filepath.Base(s.file)+unfinished+"*") // only its user may read it
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(f.Name())
		}
	}()
	_, err = f.Write(text)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), s.file); err != nil {
		return err
	}
	return filelock.SyncDir(filepath.Dir(s.file))
}
