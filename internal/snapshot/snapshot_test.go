package snapshot

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ratelimit-go/ratelimit/internal/rule"
	"github.com/ratelimit-go/ratelimit/internal/table"
)

const hour = int64(time.Hour)

var hourly = rule.Limit{Kind: rule.Fixed, N: 5, Window: hour}

// kept is a table, the file that it is saved to, and its clock.
type kept struct {
	*table.Table
	file   *File
	header Header
	mirror *table.Mirror
	now    int64
}

// open opens the file and makes a table from its contents.
func open(t testing.TB, path string) *kept {
	t.Helper()
	f, err := Open(path, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	k := &kept{file: f, now: 100 * hour}
	c, err := f.Read()
	if err != nil {
		t.Fatal(err)
	}
	if c == nil {
		c = &Contents{Header: Header{Secret: table.Secret{1, 2}, Shards: table.MaxShards}}
	}
	k.Table = table.NewKept(1<<20, func() int64 { return k.now }, c.Secret, c.Shards)
	if err := c.Restore(k.Table, k.stamp()); err != nil {
		t.Fatal(err)
	}
	k.header = Header{c.Secret, k.Shards()}
	k.mirror = k.Mirror()
	return k
}

func (k *kept) stamp() Stamp { return Stamp{Process: [16]byte{1}, Store: k.now} }

func (k *kept) save() error { return k.file.Save(k.header, k.Table, k.mirror, false, k.stamp) }

// take takes a unit of each of the keys from first on, and returns how many are left of the
// last key.
func (k *kept) take(first, n int) (left int64) {
	for i := range n {
		left = take(k.Table, fmt.Sprint("key", first+i), 1)
	}
	return left
}

func (k *kept) left(key int) int64 { return take(k.Table, fmt.Sprint("key", key), 0) }

func take(t *table.Table, key string, n int64) (left int64) {
	var answers [1]rule.Answer
	t.Take(key, n, []rule.Limit{hourly}, answers[:], nil)
	return answers[0].Remaining
}

func saved(t testing.TB, k *kept) []byte {
	t.Helper()
	if err := k.save(); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(k.file.path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestEveryByte: a file that was cut off, that has a single changed bit, or that
// has other bytes after its end is refused, whichever byte it is.
func TestEveryByte(t *testing.T) {
	k := open(t, filepath.Join(t.TempDir(), "file"))
	k.take(0, 3)
	whole := saved(t, k)
	if _, err := Decode(whole); err != nil {
		t.Fatal(err)
	}
	for n := range whole {
		if _, err := Decode(whole[:n]); !errors.Is(err, ErrDamaged) {
			t.Errorf("%d of %d bytes: %v", n, len(whole), err)
		}
		for bit := range 8 {
			flipped := []byte(string(whole))
			flipped[n] ^= 1 << bit
			if _, err := Decode(flipped); !errors.Is(err, ErrDamaged) {
				t.Errorf("byte %d, bit %d: %v", n, bit, err)
			}
		}
	}
	for _, b := range []string{"", "hello", strings.Repeat("hello ", 100), "\x7fELF", string(whole[:headerSize]), string(whole) + string(whole),
		string(make([]byte, 1000)), magic, magic + "\x02\x00\x00\x00", string(whole[1:])} {
		if _, err := Decode([]byte(b)); !errors.Is(err, ErrDamaged) {
			t.Errorf("%.20q: %v", b, err)
		}
	}
	newer := binary.LittleEndian.AppendUint32([]byte(magic), 4)
	if _, err := Decode(append(newer, whole[len(newer):]...)); err == nil || !strings.Contains(err.Error(), "version 4 of the format, and this program knows versions 1 to 3") {
		t.Errorf("a newer version: %v", err)
	}
}

// TestEveryByteAppended: an appended part that is incomplete was being written
// when the process ended, and is ignored. A changed bit is damage in an appended
// part, too.
func TestEveryByteAppended(t *testing.T) {
	k := open(t, filepath.Join(t.TempDir(), "file"))
	k.take(0, 3)
	ends := []int{len(saved(t, k))}
	k.file.whole = 1 << 40 // as if the file were large and had few changes
	for range 3 {
		k.now++
		k.take(0, 2)
		ends = append(ends, len(saved(t, k)))
	}
	all := saved(t, k)
	for n := range all {
		c, err := Decode(all[:n])
		if n < ends[0] {
			continue // as in TestEveryByte
		}
		if err != nil {
			t.Fatalf("%d bytes: %v", n, err)
		}
		next := &kept{now: k.now}
		next.Table = table.NewKept(100, func() int64 { return k.now }, c.Secret, 1)
		if err := c.Restore(next.Table, k.stamp()); err != nil {
			t.Fatal(err)
		}
		for i, end := range ends {
			if n >= end && (i == len(ends)-1 || n < ends[i+1]) && next.left(0) != int64(4-i) {
				t.Errorf("%d bytes: %d left, want %d", n, next.left(0), 4-i)
			}
		}
		flipped := []byte(string(all))
		flipped[n] ^= 0x10
		if _, err := Decode(flipped); !errors.Is(err, ErrDamaged) {
			t.Errorf("byte %d: %v", n, err)
		}
	}
	k.file.Close()
	if err := os.WriteFile(k.file.path, all[:len(all)-3], 0o600); err != nil {
		t.Fatal(err)
	}
	next := open(t, k.file.path) // goes on from where the last one ended in the middle of a write
	next.take(7, 1)
	if whole := saved(t, next); len(whole) >= len(all) {
		t.Error("a file that another process has left was appended to")
	}
}

// TestZeros: zeros up to the end, wherever they begin after a commit, are data that was not
// written. The last commit before them counts. If anything else follows them, the file is
// refused.
func TestZeros(t *testing.T) {
	k := open(t, filepath.Join(t.TempDir(), "file"))
	k.take(0, 3)
	ends := []int{len(saved(t, k))}
	k.file.whole = 1 << 40 // as in TestEveryByteAppended
	for range 3 {
		k.now++
		k.take(0, 2)
		ends = append(ends, len(saved(t, k)))
	}
	all := saved(t, k)
	accepted := 0
	for n := range all {
		zeroed := append([]byte(string(all[:n])), make([]byte, len(all)-n+4096)...)
		c, err := Decode(zeroed)
		if err != nil {
			if !errors.Is(err, ErrDamaged) {
				t.Errorf("zeros from byte %d: %v", n, err)
			}
			for _, end := range ends {
				if n == end {
					t.Errorf("zeros after a commit: %v", err)
				}
			}
			continue // in the middle of a checksum, where it looks like damage
		}
		if n < ends[0]-4 {
			t.Fatalf("zeros from byte %d, before the first commit's end: no error", n)
		}
		accepted++
		want := ends[0]
		for _, end := range ends {
			if end <= n || bytes.Equal(all[n:end], make([]byte, max(0, end-n))) {
				want = max(want, end)
			}
		}
		if c.size != want {
			t.Errorf("zeros from byte %d: %d bytes are believed, want %d", n, c.size, want)
		}
		for _, i := range []int{n, n + 11, n + 12, n + 100, len(zeroed) - 1} {
			zeroed[i] = 1
			if c, err := Decode(zeroed); err == nil && c.size > want || err != nil && !errors.Is(err, ErrDamaged) {
				t.Errorf("zeros from byte %d but for byte %d: %v, want at most %d bytes believed", n, i, err, want)
			}
			zeroed[i] = 0
		}
	}
	if accepted < (len(all)-ends[0])*9/10 {
		t.Errorf("zeros were the end from %d bytes on only", accepted)
	}
	for name, b := range map[string][]byte{
		"more after them":        append(append([]byte(string(all)), make([]byte, 4096)...), 1),
		"a whole part after":     append(append([]byte(string(all[:ends[0]])), make([]byte, ends[1]-ends[0])...), all[ends[1]:]...),
		"instead of all changes": append(append([]byte(nil), all[:headerSize]...), make([]byte, 4096)...),
	} {
		if _, err := Decode(b); !errors.Is(err, ErrDamaged) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestSaveWritesWhatChanged: Save writes nothing if nothing has changed, and little
// if little has changed in a big table. When the changes have become as large as
// the file, it writes all of it again.
func TestSaveWritesWhatChanged(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	k := open(t, path)
	info := func() os.FileInfo {
		t.Helper()
		saved(t, k)
		i, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		return i
	}
	const keys = 60_000
	k.take(0, keys)
	first := info()
	if second := info(); !os.SameFile(first, second) || !second.ModTime().Equal(first.ModTime()) {
		t.Error("it was written though nothing had changed")
	}
	rewritten, appended, last := 0, 0, first
	for i := range 40 {
		k.now++
		k.take(i*1000, 2000)
		next := info()
		if os.SameFile(last, next) {
			appended++
			if grown := next.Size() - last.Size(); grown > 80_000 {
				t.Errorf("%d bytes for 2000 changes", grown)
			}
		} else {
			rewritten++
		}
		if next.Size() > 2*first.Size() {
			t.Errorf("%d bytes, at first it was %d", next.Size(), first.Size())
		}
		last = next
	}
	if rewritten != 1 || appended != 39 {
		t.Errorf("appended %d times, and written anew %d times", appended, rewritten)
	}
	k.file.Close()
	next := open(t, path)
	for i := range keys {
		if got, want := next.left(i), k.left(i); got != want {
			t.Fatalf("key %d: %d left, want %d", i, got, want)
		}
	}
}

// TestSaveAfterFailure: changes that could not be written are written when that is
// possible again, even if nothing else has changed. The contents that were written before
// stay.
func TestSaveAfterFailure(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "dir")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	k := open(t, filepath.Join(dir, "file"))
	k.take(0, 60_000)
	saved(t, k)
	if err := os.Rename(dir, dir+"2"); err != nil {
		t.Skipf("the directory cannot be moved here: %v", err)
	}
	k.now++
	k.take(0, 1)
	for range 2 {
		if err := k.save(); err == nil {
			t.Error("no error without a directory")
		}
	}
	if err := os.Rename(dir+"2", dir); err != nil {
		t.Fatal(err)
	}
	c, err := Decode(saved(t, k))
	if err != nil {
		t.Fatal(err)
	}
	next := &kept{Table: table.NewKept(1<<20, func() int64 { return k.now }, c.Secret, 256)}
	if err := c.Restore(next.Table, k.stamp()); err != nil || next.left(0) != 3 {
		t.Errorf("%d left, %v; want 3", next.left(0), err)
	}
	if names, _ := os.ReadDir(dir); len(names) != 2 {
		t.Errorf("left behind: %v", names)
	}
	if info, err := os.Stat(k.file.path); err != nil || info.Mode().Perm()&0o077 != 0 {
		t.Errorf("%v, %v: others may read it", info.Mode(), err)
	}
}

// TestAppendToAnothersFile: a file that was replaced or cut is not appended to.
func TestAppendToAnothersFile(t *testing.T) {
	for name, damage := range map[string]func(path string) error{
		"removed": os.Remove,
		"cut":     func(path string) error { return os.Truncate(path, 1000) },
	} {
		k := open(t, filepath.Join(t.TempDir(), "file"))
		k.take(0, 60_000)
		saved(t, k)
		if err := damage(k.file.path); err != nil {
			t.Fatal(err)
		}
		k.now++
		k.take(0, 1)
		if _, err := Decode(saved(t, k)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestOpenWaits: a file has one owner. A second process gets an error that names
// the owner, at once or after it has waited. It gets the file when the file is
// free.
func TestOpenWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "file")
		k := open(t, path)
		for _, wait := range []time.Duration{0, time.Second} {
			start := time.Now()
			f, err := Open(path, wait)
			if f != nil || !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), fmt.Sprint("process ", os.Getpid())) {
				t.Errorf("%v, %v", f, err)
			}
			if took := time.Since(start); took < wait || took > wait+time.Second/10 {
				t.Errorf("waited for %v, want %v", took, wait)
			}
		}
		go func() {
			time.Sleep(time.Minute)
			k.file.Close()
		}()
		f, err := Open(path, 2*time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		f.Close()
	})
	if _, err := Open(filepath.Join(t.TempDir(), "no", "file"), 0); err == nil || !strings.Contains(err.Error(), "does not exist: make it") {
		t.Error(err)
	}
}

// TestSince: the time between two processes is measured by a clock that is
// never set, if there is one.
func TestSince(t *testing.T) {
	type id = [16]byte
	for _, row := range []struct {
		name     string
		was, now Stamp
		want     int64
	}{
		{"one process", Stamp{id{1}, id{2}, 10, 20, 30}, Stamp{id{1}, id{2}, 11, 22, 33}, 3},
		{"one boot, wall clock forwards", Stamp{id{1}, id{2}, 10, 20, 30}, Stamp{id{9}, id{2}, 15, 1 << 60, 33}, 5},
		{"one boot, wall clock backwards", Stamp{id{1}, id{2}, 10, 20, 30}, Stamp{id{9}, id{2}, 15, -1 << 60, 33}, 5},
		{"two boots", Stamp{id{1}, id{2}, 10, 20, 30}, Stamp{id{9}, id{3}, 5, 120, 33}, 100},
		{"no boots", Stamp{id{1}, id{}, 0, 20, 30}, Stamp{id{9}, id{}, 0, 120, 33}, 100},
		{"backwards", Stamp{id{1}, id{}, 0, 20, 30}, Stamp{id{9}, id{}, 0, 19, 33}, 0},
		{"far forwards", Stamp{id{1}, id{}, 0, math.MinInt64, 30}, Stamp{id{9}, id{}, 0, math.MaxInt64, 33}, rule.MaxSpan},
		{"far backwards", Stamp{id{1}, id{}, 0, math.MaxInt64, 30}, Stamp{id{9}, id{}, 0, math.MinInt64, 33}, 0},
	} {
		if got := row.now.Since(row.was); got != row.want {
			t.Errorf("%s: %d, want %d", row.name, got, row.want)
		}
	}
	a := StampOf(5)
	b := StampOf(7)
	if b.Since(a) != 2 || a.Boot != b.Boot || b.Booted < a.Booted || b.Wall < a.Wall {
		t.Errorf("%+v, then %+v", a, b)
	}
}

// TestClockSteps: two processes have only the wall clock in common, and it is set. No
// client is admitted before the window is over by that clock, or denied for longer than
// the window.
func TestClockSteps(t *testing.T) {
	const minute = int64(time.Minute)
	for _, row := range []struct{ away, wait int64 }{
		{0, hour}, {20 * minute, 40 * minute}, {hour - 1, 1}, {hour, 0}, {1 << 60, 0},
		{-1, hour}, {-20 * minute, hour}, {-1 << 60, hour},
	} {
		k := open(t, filepath.Join(t.TempDir(), "file"))
		for range hourly.N {
			take(k.Table, "key", 1)
		}
		wall := int64(1) << 60
		if err := k.file.Save(k.header, k.Table, k.mirror, false, func() Stamp {
			return Stamp{Process: [16]byte{1}, Wall: wall, Store: k.now}
		}); err != nil {
			t.Fatal(err)
		}
		c, err := k.file.Read()
		if err != nil {
			t.Fatal(err)
		}
		now := 300_000 * hour // the clock of the next process begins at another instant
		next := table.NewKept(100, func() int64 { return now }, c.Secret, c.Shards)
		if err := c.Restore(next, Stamp{Process: [16]byte{2}, Wall: wall + row.away, Store: now}); err != nil {
			t.Fatal(err)
		}
		var answers [1]rule.Answer
		if next.Take("key", 1, []rule.Limit{hourly}, answers[:], nil); answers[0].Retry != row.wait {
			t.Errorf("%v later by the wall clock: denied for %v, want %v",
				time.Duration(row.away), time.Duration(answers[0].Retry), time.Duration(row.wait))
		}
	}
}

// FuzzDecode: the reader neither panics nor allocates memory out of proportion
// to the input.
func FuzzDecode(f *testing.F) {
	k := open(f, filepath.Join(f.TempDir(), "file"))
	k.take(0, 3)
	f.Add(saved(f, k))
	f.Add(append(saved(f, k), make([]byte, 64)...))
	f.Add([]byte(magic))
	f.Fuzz(func(t *testing.T, b []byte) {
		if c, err := Decode(b); (c == nil) != (err != nil) || err != nil && !errors.Is(err, ErrDamaged) {
			t.Error(c, err)
		}
	})
}

// FuzzRestore: the same if all checksums match. What the reader accepts does no
// harm in a table.
func FuzzRestore(f *testing.F) {
	changes := AppendChanges(nil, table.Changes{Shard: 0, Removed: []uint64{64}, Set: []table.Counter{{ID: 1<<20 | 1, When: 1 << 61, What: 5, Rest: 6}}})
	commit := AppendCommit(nil, Commit{Stamp{Wall: 5}, table.Shapes{{N: 1}, hourly}})
	f.Add(changes[12:len(changes)-4], commit[12:len(commit)-4], uint8(1))
	noLimit := AppendCommit(nil, Commit{Stamp{Wall: 5}, table.Shapes{{N: 1}, {}}})
	f.Add(changes[12:len(changes)-4], noLimit[12:len(noLimit)-4], uint8(1))
	f.Fuzz(func(t *testing.T, changes, commit []byte, shards uint8) {
		b := Header{table.Secret{1, 2}, int(shards)}.append(nil, version)
		b = appendPart(b, kindChanges, func(b []byte) []byte { return append(b, changes...) })
		b = appendPart(b, kindCommit, func(b []byte) []byte { return append(b, commit...) })
		c, err := Decode(b)
		if err != nil {
			return
		}
		now := 40 * 365 * 24 * hour
		tab := table.NewKept(100, func() int64 { return now }, c.Secret, c.Shards)
		if c.Restore(tab, Stamp{Process: [16]byte{9}, Store: now, Wall: now}) != nil {
			return
		}
		for i := range 100 {
			now += hour / 10
			take(tab, fmt.Sprint(i), 1)
		}
	})
}
