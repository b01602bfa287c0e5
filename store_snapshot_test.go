package ratelimit_test

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
)

// TestSnapshotFileIsOneByAnyPath uses links, before the file exists and after.
func TestSnapshotFileIsOneByAnyPath(t *testing.T) {
	opts := inFile(t)
	dir := filepath.Dir(opts.SnapshotFile)
	if err := os.Symlink(dir, dir+"/dir"); err != nil {
		t.Skipf("no links here: %v", err)
	}
	require.NoError(t, os.Symlink(opts.SnapshotFile, dir+"/link"))
	other := MemoryOptions{SnapshotFile: dir + "/dir/counters.snapshot"}
	s := memStore(t, other)
	memTake(t, s, "k", 1, hour)
	require.Equal(t, s, memStore(t, opts))
	require.NoError(t, s.Close())
	require.FileExists(t, opts.SnapshotFile)
	for range 2 {
		s = memStore(t, MemoryOptions{SnapshotFile: dir + "/link"})
		require.Equal(t, 1, s.Stats().Counters)
		memTake(t, s, "k", 1, hour)
		require.NoError(t, s.Close())
	}
	info, err := os.Lstat(dir + "/link")
	require.NoError(t, err)
	require.NotZero(t, info.Mode()&os.ModeSymlink)
	require.EqualValues(t, 2, memTake(t, memStore(t, opts), "k", 0, hour)[0].Remaining)
}

// TestSnapshotRestoresCountersExactly closes a store and makes it again.
// Counters are exact to the nanosecond, and the time in between has passed for
// them. The log reports each time what the store found.
func TestSnapshotRestoresCountersExactly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		opts := inFile(t)
		for _, want := range []string{"state=created counters=0", "state=restored counters=3"} {
			s := memStore(t, opts)
			for i, row := range memWaits {
				key := fmt.Sprint("key", i)
				if want == "state=created counters=0" {
					memTake(t, s, key, 3, row.l)
					continue
				}
				wait := row.more - 10*time.Minute
				require.Equal(t, wait, memTake(t, s, key, 1, row.l)[0].RetryAfter, row.l)
			}
			require.NoError(t, s.Close())
			time.Sleep(10 * time.Minute)
		}
		time.Sleep(10 * time.Hour)
		s := memStore(t, opts)
		_, log := counted(t, s, "k", hour)
		require.Contains(t, log, "state=restored counters=0")
		require.Contains(t, log, "file="+opts.SnapshotFile)
		_, log = counted(t, s, "k", hour)
		require.Contains(t, log, "state=reused counters=1")
	})
}

func TestSnapshotLogSaysWhatWasFound(t *testing.T) {
	opts := inFile(t)
	for _, want := range []string{"state=created counters=0", "state=restored counters=1", "state=restored counters=2"} {
		s := memStore(t, opts)
		_, log := counted(t, s, want, hour)
		require.Contains(t, log, want)
		require.NoError(t, s.Close())
	}
}

// TestSnapshotIsWrittenAtItsInterval checks that it is not written while
// nothing changes, and that its goroutine ends with the store.
func TestSnapshotIsWrittenAtItsInterval(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		opts := inFile(t)
		opts.SnapshotEvery = time.Minute
		s := memStore(t, opts)
		written := func() os.FileInfo {
			time.Sleep(time.Minute)
			synctest.Wait()
			info, err := os.Stat(opts.SnapshotFile)
			if err != nil {
				require.ErrorIs(t, err, os.ErrNotExist)
				return nil
			}
			return info
		}
		require.Nil(t, written(), "nothing has been counted")
		memTake(t, s, "k", 1, hour)
		first := written()
		require.NotNil(t, first)
		require.Zero(t, first.Mode().Perm()&0o077, "others may read it")
		for range 3 {
			require.True(t, os.SameFile(first, written()), "nothing has changed")
		}
		memTake(t, s, "k", 1, hour)
		require.False(t, os.SameFile(first, written()))
		require.Equal(t, Memory(t.Name()), s)
		second, err := NewMemoryStore(t.Name(), opts)
		require.NoError(t, err)
		require.Equal(t, s, second)
	}) // the bubble ends only because the goroutine has ended
}

// TestSnapshotHoldsNoKeys looks for addresses and API keys in the file.
func TestSnapshotHoldsNoKeys(t *testing.T) {
	opts := inFile(t)
	s := memStore(t, opts)
	keys := []string{"203.0.113.7", "2001:db8:1:2::/64", "sk_live_0123456789abcdef", "eightbyt"}
	for _, key := range keys {
		memTake(t, s, key, 1, hour, FixedWindow(9, time.Minute))
	}
	require.NoError(t, s.Close())
	file, err := os.ReadFile(opts.SnapshotFile)
	require.NoError(t, err)
	for _, key := range keys {
		require.NotContains(t, string(file), key)
		require.NotContains(t, string(file), key[:8])
	}
}

// TestSnapshotErrorsNameTheOption checks that each error has the option, its
// value and what to do, and that the name and the file stay free.
func TestSnapshotErrorsNameTheOption(t *testing.T) {
	dir := t.TempDir()
	file := func(name, content string) string {
		path := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(path, []byte(content), 0o600))
		return path
	}
	good := filepath.Join(dir, "good")
	for _, row := range []struct {
		opts MemoryOptions
		want []string
	}{
		{MemoryOptions{SnapshotFile: good, SnapshotEvery: time.Millisecond}, []string{"SnapshotEvery is 1ms: want at least 10ms"}},
		{MemoryOptions{SnapshotFile: good, SnapshotEvery: -1}, []string{"SnapshotEvery is -1ns"}},
		{MemoryOptions{SnapshotFile: good, SnapshotWait: -1}, []string{"SnapshotWait is -1ns"}},
		{MemoryOptions{SnapshotEvery: time.Second}, []string{"SnapshotFile is empty"}},
		{MemoryOptions{SnapshotWait: time.Second}, []string{"SnapshotFile is empty"}},
		{MemoryOptions{SnapshotSetAside: true}, []string{"SnapshotFile is empty"}},
		{MemoryOptions{SnapshotFile: filepath.Join(dir, "none", "x")}, []string{"SnapshotFile " + dir, "none does not exist: make it"}},
		{MemoryOptions{SnapshotFile: dir}, []string{"SnapshotFile " + dir + ": it is a directory", "name a regular file"}},
		{MemoryOptions{SnapshotFile: file("empty", "")}, []string{"empty: the file cannot be used: it ends after 0 bytes", "SnapshotSetAside"}},
		{MemoryOptions{SnapshotFile: file("foreign", "#!/bin/sh\necho hello\n")}, []string{"it was not written by a MemoryStore", "remove it"}},
		{MemoryOptions{SnapshotFile: file("newer", "RLSNAP\r\n\x04\x00\x00\x00")}, []string{"version 4", "versions 1 to 3"}},
		{MemoryOptions{SnapshotFile: file("torn", "RLSNAP\r\n\x01\x00\x00\x00ab")}, []string{"it ends after 14 bytes"}},
	} {
		for range 2 {
			s, err := NewMemoryStore(t.Name(), row.opts)
			require.Nil(t, s, row.opts)
			memErrorNames(t, err, append(row.want, t.Name(), "MemoryOptions.")...)
		}
	}
	s := memStore(t, MemoryOptions{SnapshotFile: good})
	_, err := NewMemoryStore(t.Name()+"/other", MemoryOptions{SnapshotFile: good})
	memErrorNames(t, err, "SnapshotFile", good, `belongs to the MemoryStore "`+t.Name()+`"`)
	require.NoFileExists(t, dir+".lock")
	require.NoError(t, s.Close())
	require.NoError(t, memStore(t, MemoryOptions{SnapshotFile: good + "2"}).Close())
}

func TestSnapshotErrorNamesTheOptionsThatDiffer(t *testing.T) {
	opts := inFile(t)
	file := opts.SnapshotFile
	memStore(t, opts)
	for _, row := range []struct {
		opts MemoryOptions
		want string
	}{
		{MemoryOptions{SnapshotFile: file + "2"}, fmt.Sprintf("SnapshotFile %q, not %q", file, file+"2")},
		{MemoryOptions{}, fmt.Sprintf(`SnapshotFile %q, not ""`, file)},
		{MemoryOptions{MaxKeys: 7, SnapshotFile: file, SnapshotEvery: time.Minute}, "MaxKeys 1048576, not 7, and SnapshotEvery 1s, not 1m0s"},
		{MemoryOptions{SnapshotFile: file, SnapshotWait: time.Minute}, "SnapshotWait 0s, not 1m0s"},
		{MemoryOptions{SnapshotFile: file, SnapshotSetAside: true}, "SnapshotSetAside false, not true"},
	} {
		s, err := NewMemoryStore(t.Name(), row.opts)
		require.Nil(t, s)
		require.EqualError(t, err, fmt.Sprintf("ratelimit: MemoryStore %q: is open with MemoryOptions.%s: "+
			"give the same options each time, or use another name", t.Name(), row.want))
	}
	other := Memory(t.Name() + "/other")
	defer other.Close()
	_, err := NewMemoryStore(other.Name(), MemoryOptions{SnapshotFile: file + "2"})
	memErrorNames(t, err, fmt.Sprintf(`is open with MemoryOptions.SnapshotFile "", not %q: `, file+"2"))
}

// TestSnapshotFilesOfTwoStoresDiffer names files that another store keeps
// beside its own, in both orders.
func TestSnapshotFilesOfTwoStoresDiffer(t *testing.T) {
	for _, suffix := range []string{".lock", ".tmp", ".damaged"} {
		for _, swap := range []bool{false, true} {
			opts := inFile(t)
			first, second := opts.SnapshotFile, opts.SnapshotFile+suffix
			if swap {
				first, second = second, first
			}
			s := memStore(t, MemoryOptions{SnapshotFile: first})
			other, err := NewMemoryStore(t.Name()+"/other", MemoryOptions{SnapshotFile: second, SnapshotSetAside: true})
			require.Nil(t, other)
			memErrorNames(t, err, "MemoryOptions.SnapshotFile "+second, first, fmt.Sprintf("the MemoryStore %q", t.Name()), "choose another name")
			memTake(t, s, "k", 1, hour)
			require.NoError(t, s.Close())
			require.EqualValues(t, 3, memTake(t, memStore(t, MemoryOptions{SnapshotFile: first}), "k", 1, hour)[0].Remaining)
			require.NoError(t, Memory(t.Name()).Close())
		}
	}
}

// TestSnapshotKeepsForeignFiles has other files and folders under the name of the lock.
func TestSnapshotKeepsForeignFiles(t *testing.T) {
	const content = "something else, and more than a line of it\n"
	for _, row := range []struct {
		name string
		make func(victim, lock string) error
		want string
	}{
		{"a link", os.Symlink, "a symbolic link"},
		{"a link to nothing", func(victim, lock string) error { return os.Symlink(victim+"2", lock) }, "a symbolic link"},
		{"a directory", func(_, lock string) error { return os.Mkdir(lock, 0o700) }, "a directory"},
		{"another file", os.Link, "another file"},
	} {
		t.Run(row.name, func(t *testing.T) {
			opts := inFile(t)
			lock := opts.SnapshotFile + ".lock"
			victim := filepath.Join(filepath.Dir(lock), "victim")
			require.NoError(t, os.WriteFile(victim, []byte(content), 0o600))
			if err := row.make(victim, lock); err != nil {
				t.Skipf("not here: %v", err)
			}
			opts.SnapshotSetAside = true
			s, err := NewMemoryStore(t.Name(), opts)
			require.Nil(t, s)
			memErrorNames(t, err, opts.SnapshotFile, lock+" is "+row.want, "remove it")
			got, err := os.ReadFile(victim)
			require.NoError(t, err)
			require.Equal(t, content, string(got))
			require.NoFileExists(t, victim+"2")
			require.NoError(t, os.Remove(lock))
			memStore(t, opts)
		})
	}
	opts := inFile(t) // a power cut may leave such a file
	require.NoError(t, os.WriteFile(opts.SnapshotFile+".lock", make([]byte, 20), 0o600))
	memStore(t, opts)
}

func TestSnapshotIgnoresZerosAtItsEnd(t *testing.T) {
	opts := inFile(t)
	for left := int64(4); left > 1; left-- {
		s := memStore(t, opts)
		require.Equal(t, left, memTake(t, s, "k", 1, hour)[0].Remaining)
		require.NoError(t, s.Close())
		info, err := os.Stat(opts.SnapshotFile)
		require.NoError(t, err)
		require.NoError(t, os.Truncate(opts.SnapshotFile, info.Size()+4096))
	}
}

// TestSnapshotIsSetAsideWhole damages a file. The log reports it once.
func TestSnapshotIsSetAsideWhole(t *testing.T) {
	opts := inFile(t)
	s := memStore(t, opts)
	memTake(t, s, "k", 5, hour)
	require.NoError(t, s.Close())
	content, err := os.ReadFile(opts.SnapshotFile)
	require.NoError(t, err)
	content[len(content)/2] ^= 1
	require.NoError(t, os.WriteFile(opts.SnapshotFile, content, 0o600))

	_, err = NewMemoryStore(t.Name(), opts)
	memErrorNames(t, err, opts.SnapshotFile, "checksum")
	opts.SnapshotSetAside = true
	s = memStore(t, opts)
	d, log := counted(t, s, "k", hour)
	require.True(t, d.Allowed)
	require.Contains(t, log, "state=created counters=0")
	require.Contains(t, log, "level=ERROR")
	require.Contains(t, log, CodeSnapshotSetAside)
	require.Contains(t, log, opts.SnapshotFile+".damaged")
	_, log = counted(t, s, "k", hour)
	require.NotContains(t, log, CodeSnapshotSetAside)
	aside, err := os.ReadFile(opts.SnapshotFile + ".damaged")
	require.NoError(t, err)
	require.Equal(t, content, aside)
	require.NoError(t, s.Close())
	opts.SnapshotSetAside = false
	require.Equal(t, 1, memStore(t, opts).Stats().Counters)
}

// TestSnapshotFailsWithoutStoppingDecisions makes the file's folder unusable
// for a while. The failure is counted, and logged at most once a minute.
// Nothing is lost when the folder is back.
func TestSnapshotFailsWithoutStoppingDecisions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		opts := inFile(t)
		opts.SnapshotFile = filepath.Join(filepath.Dir(opts.SnapshotFile), "dir", "counters")
		dir := filepath.Dir(opts.SnapshotFile)
		require.NoError(t, os.Mkdir(dir, 0o700))
		s := memStore(t, opts)
		var log syncBuffer
		var reg Registry
		defer reg.Close()
		o := with(s)
		o.Logger = slog.New(slog.NewTextHandler(&log, nil))
		l := Must(reg.New(t.Name(), o))
		if err := os.Rename(dir, dir+"2"); err != nil {
			t.Skipf("the directory cannot be moved here: %v", err)
		}
		_, err := l.Take(ctx, "k")
		require.NoError(t, err)
		time.Sleep(30 * time.Second)
		synctest.Wait()
		require.Equal(t, 1, strings.Count(log.String(), string(CodeSnapshotFailed)), log.String())
		require.Contains(t, log.String(), "level=ERROR")
		require.Greater(t, s.Stats().SnapshotsFailed, uint64(25))
		time.Sleep(60 * time.Second)
		synctest.Wait()
		require.Equal(t, 2, strings.Count(log.String(), string(CodeSnapshotFailed)))

		require.NoError(t, os.Rename(dir+"2", dir))
		time.Sleep(time.Second)
		synctest.Wait()
		failed := s.Stats().SnapshotsFailed
		time.Sleep(10 * time.Second)
		synctest.Wait()
		require.Equal(t, failed, s.Stats().SnapshotsFailed)
		require.FileExists(t, opts.SnapshotFile)

		memTake(t, s, "k", 1, hour)
		require.NoError(t, os.Rename(dir, dir+"2"))
		err = s.Close()
		memErrorNames(t, err, opts.SnapshotFile, t.Name())
		require.NoError(t, s.Close(), "the second time there is nothing to do")
	})
}

// TestSnapshotHasOneOwnerAtATime makes and closes stores of one file at the
// same time. Each store finds the counters of the one before.
func TestSnapshotHasOneOwnerAtATime(t *testing.T) {
	opts := inFile(t)
	limit := FixedWindow(1_000_000, time.Hour)
	memTogether(func(g int) {
		for range 3 {
			s, err := NewMemoryStore(t.Name(), opts)
			if err != nil {
				t.Error(err)
				continue
			}
			var results [1]Result
			if _, err := s.Take(ctx, "k", 1, []Limit{limit}, results[:]); err != nil && !errors.Is(err, ErrStoreClosed) {
				t.Error(err)
			}
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		}
	})
	s := memStore(t, opts)
	used := 1_000_000 - memTake(t, s, "k", 0, limit)[0].Remaining
	if used == 0 || used > 3*64 {
		t.Errorf("%d units counted", used)
	}
}

// TestSnapshotTakeAllocatesNothing checks that decisions of a store with a file allocate
// nothing.
func TestSnapshotTakeAllocatesNothing(t *testing.T) {
	s, results := memStore(t, inFile(t)), make([]Result, 1)
	memTake(t, s, "k", 1, hour)
	limits := []Limit{hour}
	got := testing.AllocsPerRun(100, func() { s.Take(ctx, "k", 1, limits, results) })
	require.Zero(t, got)
}

// TestLoggerThatPanicsEndsNoSnapshots: the file cannot be written for a while, and the logger
// panics when it gets that. The file is written when that works again.
func TestLoggerThatPanicsEndsNoSnapshots(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		opts := inFile(t)
		opts.SnapshotFile = filepath.Join(filepath.Dir(opts.SnapshotFile), "dir", "counters")
		dir := filepath.Dir(opts.SnapshotFile)
		require.NoError(t, os.Mkdir(dir, 0o700))
		s, log := memStore(t, opts), &logged{panics: panicAt(CodeSnapshotFailed)}
		o := with(s)
		o.Logger = log.logger()
		l := Must(new(Registry).New(t.Name(), o))
		defer l.Close()
		if err := os.Rename(dir, dir+"2"); err != nil {
			t.Skipf("the directory cannot be moved here: %v", err)
		}
		decide(t, l, "k", 1)
		time.Sleep(30 * time.Second)
		synctest.Wait()
		require.Equal(t, []Code{CodeSnapshotFailed}, log.codes())
		require.NoError(t, os.Rename(dir+"2", dir))
		time.Sleep(10 * time.Second)
		synctest.Wait()
		failed := s.Stats().SnapshotsFailed
		require.Greater(t, failed, uint64(25))
		decide(t, l, "k", 1)
		time.Sleep(10 * time.Second)
		synctest.Wait()
		require.Equal(t, failed, s.Stats().SnapshotsFailed)
		require.FileExists(t, opts.SnapshotFile)
	})
}
