package snapshot

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ratelimit-go/ratelimit/internal/rule"
	"github.com/ratelimit-go/ratelimit/internal/table"
)

var rollingHour = rule.Limit{Kind: rule.Rolling, N: 4, Window: hour}

// roll takes n units of a key under a rolling window, a moment later.
func roll(k *kept, key string, n int64) rule.Answer {
	var answers [1]rule.Answer
	k.now++
	k.Take(key, n, []rule.Limit{rollingHour}, answers[:], nil)
	return answers[0]
}

// TestFileWithRollingWindows: a file has version 3 from the first rolling window on. Its
// units are in the next table, with their instants, and they leave when they would have.
func TestFileWithRollingWindows(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	k := open(t, path)
	k.take(0, 60_000) // more than alwaysWhole, so that changes are appended
	deny(t, k, "blocked")
	if got := versionIn(saved(t, k)); got != 2 {
		t.Fatalf("version %d without rolling windows, want 2", got)
	}
	roll(k, "one", 1)
	whole := saved(t, k)
	if got := versionIn(whole); got != 3 {
		t.Fatalf("version %d with a rolling window, want 3", got)
	}
	roll(k, "several", 1)
	k.now += 10 * hour / 60
	roll(k, "several", 2)
	k.now += 10 * hour / 60
	roll(k, "several", 1)
	appended := saved(t, k)
	if versionIn(appended) != 3 || len(appended) <= len(whole) {
		t.Fatalf("version %d, %d bytes after %d: want version 3, appended", versionIn(appended), len(appended), len(whole))
	}
	want := map[string]rule.Answer{}
	for _, key := range []string{"one", "several"} {
		want[key] = roll(k, key, 0)
	}
	k.file.Close()

	next := open(t, path) // no time has passed
	for _, key := range []string{"one", "several"} {
		if got := roll(next, key, 0); got != want[key] {
			t.Errorf("%s: %+v, want %+v", key, got, want[key])
		}
	}
	if got := roll(next, "several", 1); got.Retry != 40*hour/60-5 { // five moments have passed
		t.Errorf("denied for %d, want until the first unit leaves", got.Retry)
	}
	next.now += 40 * hour / 60
	if got := roll(next, "several", 1); got.Retry != 0 || got.Remaining != 0 {
		t.Errorf("when the first unit has left: %+v", got)
	}
	if got := versionIn(saved(t, next)); got != 3 {
		t.Errorf("version %d after a restart, want 3", got)
	}
}

// TestLogsOfLimitsWithoutANumber: a table that has seen more limits than it has numbers
// keeps the logs of all of them, in a file of version 3.
func TestLogsOfLimitsWithoutANumber(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	k := open(t, path)
	limits := make([]rule.Limit, 80)
	var answers [1]rule.Answer
	for i := range limits {
		limits[i] = rule.Limit{Kind: rule.Fixed, N: 2, Window: hour + int64(i)}
		if i >= 70 {
			limits[i].Kind = rule.Rolling
		}
		for range 2 {
			k.now++
			k.Take("k", 1, limits[i:i+1], answers[:], nil)
		}
	}
	if got := versionIn(saved(t, k)); got != 3 {
		t.Fatalf("version %d, want 3", got)
	}
	k.file.Close()
	next := open(t, path) // no time has passed
	for _, l := range limits {
		var got, want [1]rule.Answer
		next.Take("k", 1, []rule.Limit{l}, got[:], nil)
		k.Take("k", 1, []rule.Limit{l}, want[:], nil)
		if got != want || got[0].Retry == 0 {
			t.Errorf("%+v: %+v, want %+v", l, got, want)
		}
	}
}

// TestRollingWindowsNeedTheirVersion: in a file of an earlier version, a limit of the kind
// is damage.
func TestRollingWindowsNeedTheirVersion(t *testing.T) {
	for v, good := range map[uint32]bool{1: false, 2: false, 3: true} {
		var c Commit
		c.Shapes[20] = rollingHour
		_, err := Decode(AppendCommit(Header{table.Secret{1, 2}, 1}.append(nil, v), c))
		if (err == nil) != good || err != nil && (!errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), "is not one")) {
			t.Errorf("version %d: %v", v, err)
		}
	}
}

// TestBadLogs: a list of logs that does not fit its counters is damage, and so is a log
// that no table has written.
func TestBadLogs(t *testing.T) {
	now := 10 * hour
	counter := table.Counter{ID: 1<<20 | 20, When: 1<<61 | uint64(3), What: 3, Log: []int64{1, 2, 3}}
	for _, row := range []struct {
		name   string
		change func(c *table.Counter, body []byte) []byte
		good   bool
	}{
		{"as written", func(*table.Counter, []byte) []byte { return nil }, true},
		{"not in order", func(c *table.Counter, _ []byte) []byte { c.Log = []int64{2, 1, 3}; return nil }, false},
		{"another youngest unit", func(c *table.Counter, _ []byte) []byte { c.Log = []int64{1, 2, 4}; return nil }, false},
		{"before the clock began", func(c *table.Counter, _ []byte) []byte { c.Log = []int64{-1, 2, 3}; return nil }, false},
		{"fewer units", func(c *table.Counter, _ []byte) []byte { c.Log = []int64{2, 3}; return nil }, false},
		{"not split", func(c *table.Counter, _ []byte) []byte { c.When = 3; return nil }, false},
		{"no log", func(c *table.Counter, _ []byte) []byte { c.Log = nil; return nil }, false},
		{"too many units", func(c *table.Counter, _ []byte) []byte { c.When, c.What, c.Log = 3, rule.MaxRolling+1, nil; return nil }, false},
		{"the most units", func(c *table.Counter, _ []byte) []byte { c.When, c.What, c.Log = 3, rule.MaxRolling, nil; return nil }, true},
		{"a short list", func(_ *table.Counter, b []byte) []byte { return b[:len(b)-8] }, false},
		{"a short head", func(_ *table.Counter, b []byte) []byte { return append(b, 1, 2, 3) }, false},
		{"a log of no counter", func(_ *table.Counter, b []byte) []byte { b[len(b)-32] = 1; return b }, false},
		{"a second log of a counter", func(_ *table.Counter, b []byte) []byte { return append(b, b[len(b)-32:]...) }, false},
		{"an empty log", func(_ *table.Counter, b []byte) []byte { return append(b, make([]byte, 8)...) }, false},
	} {
		t.Run(row.name, func(t *testing.T) {
			c := counter
			changes := AppendChanges(nil, table.Changes{Set: []table.Counter{c}})
			if body := row.change(&c, changes[12:len(changes)-4]); body != nil {
				changes = appendPart(nil, kindChanges, func(b []byte) []byte { return append(b, body...) })
			} else {
				changes = AppendChanges(nil, table.Changes{Set: []table.Counter{c}})
			}
			commit := Commit{Stamp: Stamp{Process: [16]byte{1}, Store: now}}
			commit.Shapes[20] = rule.Limit{Kind: rule.Rolling, N: 5, Window: 10 * hour}
			file := AppendCommit(append(Header{table.Secret{1, 2}, 1}.append(nil, withNewKinds), changes...), commit)
			contents, err := Decode(file)
			if err == nil {
				tab := table.NewKept(1000, func() int64 { return now }, table.Secret{1, 2}, 1)
				err = contents.Restore(tab, commit.Stamp)
				if err == nil && tab.Stats().Counters != 1 {
					t.Errorf("%+v", tab.Stats())
				}
			}
			if (err == nil) != row.good || err != nil && !errors.Is(err, ErrDamaged) {
				t.Error(err)
			}
		})
	}
}

// TestEveryByteOfALog: a file with logs that was cut off, or that has a single changed
// bit, is refused, whichever byte it is.
func TestEveryByteOfALog(t *testing.T) {
	k := open(t, filepath.Join(t.TempDir(), "file"))
	for i := range 4 {
		roll(k, fmt.Sprint(i%2), 1)
	}
	whole := saved(t, k)
	for n := range whole {
		flipped := []byte(string(whole))
		flipped[n] ^= 1
		_, cut := Decode(whole[:n])
		if _, err := Decode(flipped); !errors.Is(err, ErrDamaged) || !errors.Is(cut, ErrDamaged) {
			t.Errorf("byte %d: %v, and cut off: %v", n, err, cut)
		}
	}
}

// FuzzLogs: whatever a part with logs holds, reading it neither panics nor allocates more
// than the part is long.
func FuzzLogs(f *testing.F) {
	f.Add([]byte{0, 0, 0, 0, 1, 0, 0, 0, 9, 9, 9, 9, 9, 9, 9, 9})
	f.Fuzz(func(t *testing.T, logs []byte) {
		set := []table.Counter{{ID: 1 << 20, When: 1 << 61, What: 2}, {ID: 2 << 20, When: 1<<61 | 5, What: 1}}
		head := AppendChanges(nil, table.Changes{Set: set})
		body := append(head[12:len(head)-4:len(head)-4], logs...)
		var changes table.Changes
		if err := readChanges(body, withNewKinds, 1, &changes); err != nil {
			return
		}
		again := AppendChanges(nil, changes)
		if sum := binary.LittleEndian.Uint32(again[len(again)-4:]); sum != crc32.Checksum(body, castagnoli) {
			t.Errorf("%x is read as %+v", logs, changes)
		}
	})
}
