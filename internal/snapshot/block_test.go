package snapshot

import (
	"encoding/binary"
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ratelimit-go/ratelimit/internal/rule"
	"github.com/ratelimit-go/ratelimit/internal/table"
)

// deny denies a key whose limit has a ladder of an hour and of a day, and returns the wait.
func deny(t *testing.T, k *kept, key string) int64 {
	t.Helper()
	var answers [1]rule.Answer
	k.now++ // an instant without a change is not looked at again
	ladder := &rule.Ladder{Rungs: [rule.MaxRungs]int64{2 * hour, 24 * hour}, N: 2}
	blocking := &table.Blocking{Ladders: &[table.MaxLimits]*rule.Ladder{ladder}}
	k.TakeBlocking(k.Hash(key, table.Owner{}), 5, k.now, false, []rule.Limit{hourly}, answers[:], nil, nil, blocking)
	k.TakeBlocking(k.Hash(key, table.Owner{}), 1, k.now, false, []rule.Limit{hourly}, answers[:], nil, nil, blocking)
	return answers[0].Retry
}

// versionIn returns the version in the header of a file.
func versionIn(file []byte) uint32 { return binary.LittleEndian.Uint32(file[len(magic):]) }

// TestFileWithBlocks: a file has version 1 until the first block, also if changes are
// appended to it. Blocks and their rungs are in the next table, and a reader of version 1
// refuses the file for its version.
func TestFileWithBlocks(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	k := open(t, path)
	k.take(0, 60_000) // more than alwaysWhole, so that changes are appended
	if got := versionIn(saved(t, k)); got != 1 {
		t.Fatalf("version %d without blocks, want 1", got)
	}
	k.take(60_000, 1)
	if got := versionIn(saved(t, k)); got != 1 {
		t.Fatalf("version %d without blocks, with a change appended, want 1", got)
	}
	if got := deny(t, k, "blocked"); got != 2*hour {
		t.Fatalf("blocked for %d", got)
	}
	whole := saved(t, k)
	if got := versionIn(whole); got != 2 {
		t.Fatalf("version %d with a block, want 2", got)
	}
	deny(t, k, "another")
	if appended := saved(t, k); versionIn(appended) != 2 || len(appended) <= len(whole) {
		t.Fatalf("version %d, %d bytes after %d: want version 2, appended", versionIn(appended), len(appended), len(whole))
	}
	k.file.Close()

	next := open(t, path)
	next.now += hour // of which hourly has nothing left
	for _, key := range []string{"blocked", "another"} {
		if got := deny(t, next, key); hour-got > 10 || got > hour { // deny moves the clock
			t.Errorf("%s: %d left of its block after an hour, want an hour", key, got)
		}
	}
	next.now += hour
	if got := deny(t, next, "blocked"); got != 24*hour {
		t.Errorf("the next block lasts %d, want a day", got)
	}
}

// TestBlocksNeedTheirVersion: in a file of version 1, a limit of the kind of blocks is
// damage, and so is one that is not the last.
func TestBlocksNeedTheirVersion(t *testing.T) {
	block := rule.Limit{Kind: rule.Blocked, N: 1, Window: rule.MinSpan}
	for _, row := range []struct {
		name    string
		version uint32
		at      int
		good    bool
	}{
		{"version 2", 2, len(table.Shapes{}) - 1, true},
		{"version 1", 1, len(table.Shapes{}) - 1, false},
		{"another number", 2, len(table.Shapes{}) - 2, false},
	} {
		var c Commit
		c.Shapes[row.at] = block
		_, err := Decode(AppendCommit(Header{table.Secret{1, 2}, 1}.append(nil, row.version), c))
		if (err == nil) != row.good || err != nil && (!errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), "is not one")) {
			t.Errorf("%s: %v", row.name, err)
		}
	}
}
