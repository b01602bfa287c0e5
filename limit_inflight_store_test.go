package ratelimit_test

import (
	"fmt"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
)

// This file has what a store keeps of holds.

// TestHashOfHoldsAtRedis reads the hash of a key as the page about Redis shows it: a field for
// each process, and a time to live that is the last record's. It is gone with the last hold.
func TestHashOfHoldsAtRedis(t *testing.T) {
	m := newMini(t)
	client := m.client(t)
	one := processOf(t, redisStore(t, client, "rl:export:"), Options{Limits: []Limit{InFlight(5, 30*time.Second)}, Timeout: time.Minute})
	two := processOf(t, redisStore(t, m.client(t), "rl:export:"), Options{Limits: []Limit{InFlight(5, time.Minute)}, Timeout: time.Minute})
	release, _ := acquire(t, one, "alice", true)
	second, _ := acquire(t, one, "alice", true)
	third, _ := acquire(t, two, "alice", true)
	const key = "rl:export:{alice}:inflight"
	fields, err := client.HGetAll(ctx, key).Result()
	require.NoError(t, err)
	require.Len(t, fields, 2)
	var totals []string
	for process, value := range fields {
		require.Regexp(t, `^[A-Za-z0-9_-]{16}$`, process)
		require.Regexp(t, `^\d+ 0 \d{16} \d{8}$`, value)
		part := strings.Fields(value)
		totals = append(totals, part[0]+" lasts "+part[3])
	}
	require.ElementsMatch(t, []string{"2 lasts 30000000", "1 lasts 60000000"}, totals)
	ttl := client.PTTL(ctx, key).Val()
	require.Greater(t, ttl, 59*time.Second)
	require.LessOrEqual(t, ttl, time.Minute+time.Millisecond)
	release()
	require.Eventually(t, func() bool {
		for _, value := range client.HGetAll(ctx, key).Val() {
			if strings.HasPrefix(value, "2 1 ") {
				return true
			}
		}
		return false
	}, time.Minute, time.Millisecond)
	second()
	third()
	require.Eventually(t, func() bool { return client.Exists(ctx, key).Val() == 0 }, time.Minute, time.Millisecond)
}

// TestInFlightDenialIsNotCached: a hold that ends in one process makes room in another one at
// once, although that has just been denied.
func TestInFlightDenialIsNotCached(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := memory(t, "store")
		one := processOf(t, &remoteBackend{Store: server}, quiet(InFlight(1, time.Minute)))
		two := processOf(t, &remoteBackend{Store: server}, quiet(InFlight(1, time.Minute)))
		release, _ := acquire(t, one, "k", true)
		for range 10 {
			acquire(t, two, "k", false)
		}
		release()
		synctest.Wait()
		acquire(t, two, "k", true)
		require.Zero(t, two.Stats().Remote.Cached)
	})
}

// TestFloodEvictsNoHold fills a small store with other keys.
func TestFloodEvictsNoHold(t *testing.T) {
	store, err := NewMemoryStore(t.Name(), MemoryOptions{MaxKeys: 100})
	require.NoError(t, err)
	t.Cleanup(func() { store.Close() })
	l := processOf(t, store, quiet(InFlight(1, time.Hour), hour))
	release, _ := acquire(t, l, "k", true)
	for i := range 2000 {
		acquire(t, l, fmt.Sprint("other ", i), true)
	}
	require.NotZero(t, store.Stats().Evicted)
	require.Equal(t, 2001, l.Stats().InFlight)
	acquire(t, l, "k", false)
	acquire(t, l, "other 0", false)
	release()
	acquire(t, l, "k", true)
}

// TestSnapshotHasNoHolds: they are of requests that end with the process.
func TestSnapshotHasNoHolds(t *testing.T) {
	opts := MemoryOptions{SnapshotFile: t.TempDir() + "/counters", SnapshotEvery: time.Hour}
	open := func() *MemoryStore {
		store, err := NewMemoryStore(t.Name(), opts)
		require.NoError(t, err)
		return store
	}
	request := HoldRequest{Action: HoldAdd, Key: "k", Most: 5, Lasts: time.Hour, Process: "p", Units: 1, Limits: []Limit{hour}}
	store := open()
	_, err := store.Hold(ctx, request, make([]Result, 2))
	require.NoError(t, err)
	require.NoError(t, store.Close())
	store = open()
	defer store.Close()
	results := make([]Result, 2)
	request.Action, request.Units = HoldLook, 0
	reply, err := store.Hold(ctx, request, results)
	require.NoError(t, err)
	require.Zero(t, reply.Began+reply.Others)
	require.EqualValues(t, 4, results[0].Remaining)
	require.EqualValues(t, 5, results[1].Remaining)
}

// TestBytesPerHold checks the memory that docs/limits.md says of holds from Acquire.
func TestBytesPerHold(t *testing.T) {
	const keys = 20_000
	l := limiter(t, InFlight(3, time.Hour))
	names := make([]string, keys)
	for i := range names {
		names[i] = fmt.Sprintf("client-%09d", i)
	}
	heap := func() int64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.GC()
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	releases := make([]func(), 0, 3*keys)
	before := heap()
	for round, most := range []int64{850, 550, 550} {
		was := heap()
		for _, name := range names {
			release, _ := acquire(t, l, name, true)
			releases = append(releases, release)
		}
		per := (heap() - was) / keys
		t.Logf("hold %d of a key: %d bytes", round+1, per)
		require.LessOrEqual(t, per, most)
	}
	for i, release := range releases {
		release()
		releases[i] = nil
	}
	per := (heap() - before) / keys
	t.Logf("after the last one: %d bytes", per)
	require.LessOrEqual(t, per, int64(300), "maps keep their size")
	runtime.KeepAlive(names)
}
