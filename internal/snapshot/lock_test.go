package snapshot

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// removeLock removes the lock file of a file, as a program does that tidies up.
func removeLock(t *testing.T, path string) {
	t.Helper()
	if err := os.Remove(path + lockSuffix); err != nil {
		t.Skipf("the lock cannot be removed here: %v", err)
	}
}

// inUseBy fails unless err is ErrInUse and says by whom.
func inUseBy(t *testing.T, err error, owner string) {
	t.Helper()
	if !errors.Is(err, ErrInUse) || !strings.HasSuffix(err.Error(), "in use by "+owner) {
		t.Errorf("%v, want: in use by %s", err, owner)
	}
}

func self() string { return fmt.Sprint("process ", os.Getpid()) }

func contents(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestLockIsRemoved: the file itself keeps other processes out, and the next
// Save makes the lock again, whether or not anything has changed.
func TestLockIsRemoved(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	k := open(t, path)
	for i, changes := range []int{0, 0, 1, 1, 0} { // there is a file from the third Save on
		removeLock(t, path)
		if i >= 3 {
			_, err := Open(path, 0)
			inUseBy(t, err, "another process")
		}
		k.take(0, changes)
		if err := k.save(); err != nil {
			t.Fatal(err)
		}
		_, err := Open(path, 0)
		inUseBy(t, err, self())
	}
	k.file.Close()
	if left := open(t, path).left(0); left != 3 {
		t.Errorf("%d left, want 3", left)
	}
}

// TestLockAndFileAreRemoved: a file that is gone is written again, and locked.
func TestLockAndFileAreRemoved(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	k := open(t, path)
	k.take(0, 3)
	first := saved(t, k)
	removeLock(t, path)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if second := saved(t, k); len(second) != len(first) {
		t.Errorf("%d bytes, want %d", len(second), len(first))
	}
	removeLock(t, path)
	_, err := Open(path, 0)
	inUseBy(t, err, "another process")
}

// TestLockBeforeFirstSave: if a second process has come in, because the lock
// was removed before there was a file, the first one does not write: not over
// the second one's file, and not in its place.
func TestLockBeforeFirstSave(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	first := open(t, path)
	removeLock(t, path)
	second := open(t, path)
	first.take(0, 2)
	inUseBy(t, first.save(), self())
	if _, err := os.Stat(path); err == nil {
		t.Error("it has written where another process has the lock")
	}
	second.take(0, 1)
	content := saved(t, second)
	for range 2 {
		if err := first.save(); err != errReplace {
			t.Error(err)
		}
		second.file.Close() // and it does not write afterwards either
	}
	if !bytes.Equal(content, contents(t, path)) {
		t.Error("it has written over another process's file")
	}
	if err := os.Rename(path, path+".old"); err != nil {
		t.Fatal(err)
	}
	saved(t, first)
	first.file.Close()
	if left := open(t, path).left(0); left != 4 {
		t.Errorf("%d left, want 4: that of the first process", left)
	}
}

// TestLockAndFileOfTheFirst: a second process that came in before there was a
// file does not read or replace the one that the first process has just made.
func TestLockAndFileOfTheFirst(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	first := open(t, path+"2")
	second := open(t, path)
	removeLock(t, path)
	first.take(0, 1)
	content := saved(t, first)
	if err := os.Rename(path+"2", path); err != nil { // as if it had checked just before
		t.Fatal(err)
	}
	if c, err := second.file.Read(); c != nil || err != errReplace {
		t.Error(c, err)
	}
	second.take(0, 1)
	if err := second.save(); err != errReplace {
		t.Error(err)
	}
	if _, err := second.file.SetAside(); err != errReplace {
		t.Error(err)
	}
	if !bytes.Equal(content, contents(t, path)) {
		t.Error("it has written over another process's file")
	}
}

// TestLockHasNoGap: at no moment of many Saves does a process get in that
// removes the lock and opens the file.
func TestLockHasNoGap(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	k := open(t, path)
	k.take(0, 1)
	saved(t, k)
	removeLock(t, path)
	done := make(chan struct{})
	var others sync.WaitGroup
	for range 2 {
		others.Go(func() {
			for {
				os.Remove(path + lockSuffix)
				f, err := Open(path, 0)
				if err == nil {
					f.Close()
					t.Error("another process got in")
				} else if !errors.Is(err, ErrInUse) {
					t.Error(err)
				}
				select {
				case <-done:
					return
				default:
				}
			}
		})
	}
	for i := range 1000 {
		k.take(i, 1) // so few that the file is replaced each time
		if err := k.save(); err != nil {
			t.Error(err)
		}
	}
	close(done)
	others.Wait()
}

// TestLockAfterSetAside: a file that was set aside belongs to nobody. Until
// there is a new one, its lock file is the only lock.
func TestLockAfterSetAside(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	k := open(t, path)
	k.take(0, 1)
	saved(t, k)
	damagedPath, err := k.file.SetAside()
	if err != nil {
		t.Fatal(err)
	}
	f, err := Open(damagedPath, 0)
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	_, err = Open(path, 0)
	inUseBy(t, err, self())
	removeLock(t, path)
	second := open(t, path)
	k.take(0, 1)
	inUseBy(t, k.save(), self())
	second.file.Close()
	saved(t, k)
	removeLock(t, path)
	_, err = Open(path, 0)
	inUseBy(t, err, "another process")
}
