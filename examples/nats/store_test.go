package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/stretchr/testify/require"

	"github.com/ratelimit-go/ratelimit"
	"github.com/ratelimit-go/ratelimit/ratelimittest"
	"github.com/ratelimit-go/ratelimit/storekit"
	"github.com/ratelimit-go/ratelimit/storetest"
)

func openBackend(url, bucket string) (*backend, *nats.Conn, error) {
	nc, err := connect(url)
	if err != nil {
		return nil, nil, err
	}
	b, err := newBackend(nc, bucket)
	return b, nc, err
}

// open returns a backend with a connection of its own, until the test ends.
func open(t testing.TB, url, bucket string) (*backend, *nats.Conn) {
	b, nc, err := openBackend(url, bucket)
	require.NoError(t, err)
	t.Cleanup(nc.Close)
	require.Eventually(t, nc.IsConnected, 20*time.Second, time.Millisecond)
	_, _, err = b.get(t.Context(), "$KV."+bucket+".connect")
	require.NoError(t, err)
	return b, nc
}

// TestStore runs the contract of stores. With shorter windows it fails on a busy machine: a case
// notices one call that is too slow, and not that several calls together are.
func TestStore(t *testing.T) {
	s := startNATS(t)
	name, buckets := "", 0 // a bucket for each case
	storetest.Run(t, func(t *testing.T, prefix string) ratelimit.Store {
		if t.Name() != name {
			name = t.Name()
			buckets++
		}
		b, _ := open(t, s.url(), fmt.Sprint("bucket", buckets))
		return storekit.New(prefix, b)
	}, storetest.RealTime(1500*time.Millisecond, 150*time.Millisecond))
}

const (
	keys      = 8
	processes = 4
	workers   = 64 // goroutines of a process
	calls     = 50 // of a goroutine
)

func keyName(i int) string { return fmt.Sprint("key", i) }

// TestExact counts in four processes of 64 goroutines each, first on one key, then on eight
// keys that each goroutine takes in another order, under two limits. Half of the calls fit,
// exactly these are admitted, and none fails.
func TestExact(t *testing.T) {
	if testing.Short() {
		t.Skip("makes 25,000 calls")
	}
	for _, n := range []int{1, keys} {
		s := startNATS(t)
		var all []*child
		for range processes {
			all = append(all, startChild(t, "compete", s.url()))
		}
		for _, c := range all {
			require.Equal(t, "ready", c.line())
		}
		began := time.Now()
		for _, c := range all {
			fmt.Fprintln(c.in, n)
		}
		admitted, updates, lost, slowest := make([]int, n), 0, 0, 0
		for _, c := range all {
			for i := range n {
				admitted[i] += c.number()
			}
			updates += c.number()
			lost += c.number()
			slowest = max(slowest, c.number())
		}
		const total = processes * workers * calls
		for i := range n {
			require.Equal(t, total/2/n, admitted[i], "%s of %d", keyName(i), n)
		}
		t.Logf("%d keys: %.0f decisions per second, the slowest took %d ms; %.3f updates per decision, %.0f %% of them lost a race",
			n, total/time.Since(began).Seconds(), slowest, float64(updates)/total, 100*float64(lost)/float64(updates))
		require.Less(t, updates, total)
	}
}

// counting counts the calls of Update, and how many of them have lost a race.
type counting struct {
	storekit.Backend
	updates, lost atomic.Int64
}

func (b *counting) Update(ctx context.Context, key string, f func([]byte, time.Time) ([]byte, time.Duration)) error {
	b.updates.Add(1)
	err := b.Backend.Update(ctx, key, f)
	if errors.Is(err, storekit.ErrNotApplied) {
		b.lost.Add(1)
	}
	return err
}

// compete reads a number of keys, and takes from them. It prints how often each of them was
// admitted, the numbers of updates and of lost races, and the longest time in milliseconds
// that a call took.
func compete(url string) error {
	b, nc, err := openBackend(url, "test")
	if err != nil {
		return err
	}
	for !nc.IsConnected() {
		time.Sleep(time.Millisecond)
	}
	counted := &counting{Backend: b}
	fmt.Println("ready")
	n := 0
	if _, err := fmt.Fscanln(os.Stdin, &n); err != nil {
		return err
	}
	half := int64(processes * workers * calls / 2 / n)
	limits := []ratelimit.Limit{ratelimit.FixedWindow(half, time.Hour), ratelimit.TokenBucket(2*half, time.Hour, 2*half)}
	store := storekit.New("test", counted)
	var mu sync.Mutex
	var failed error
	admitted, slowest := make([]int, n), time.Duration(0)
	var all sync.WaitGroup
	for worker := range workers {
		all.Go(func() {
			results := make([]ratelimit.Result, len(limits))
			for call := range calls {
				i := (worker + call) % n
				if worker%2 == 0 { // half of the goroutines take the keys backwards
					i = n - 1 - i
				}
				began := time.Now()
				_, err := store.Take(context.Background(), keyName(i), 1, limits, results)
				mu.Lock()
				if err == nil && results[0].RetryAfter == 0 && results[1].RetryAfter == 0 {
					admitted[i]++
				}
				failed, slowest = errors.Join(failed, err), max(slowest, time.Since(began))
				mu.Unlock()
			}
		})
	}
	all.Wait()
	for _, number := range append(admitted, int(counted.updates.Load()), int(counted.lost.Load()), int(slowest.Milliseconds())) {
		fmt.Println(number)
	}
	return failed
}

// used returns how many units of all keys are counted.
func used(t *testing.T, url string) (units int) {
	b, _ := open(t, url, "test")
	results := make([]ratelimit.Result, 1)
	for i := range keys {
		_, err := storekit.New("test", b).Take(t.Context(), keyName(i), 0, []ratelimit.Limit{huge}, results)
		require.NoError(t, err)
		units += int(huge.N() - results[0].Remaining)
	}
	return units
}

var huge = ratelimit.FixedWindow(1<<20, time.Hour)

// count takes from all keys at once until it is killed. It prints a line for each admission,
// and for each call of which it does not know whether it was counted.
func count(url string) error {
	b, _, err := openBackend(url, "test")
	if err != nil {
		return err
	}
	store := storekit.New("test", b)
	for i := range keys {
		go func() {
			for results := make([]ratelimit.Result, 1); ; {
				ctx, cancel := context.WithTimeout(context.Background(), 500*time.Millisecond)
				_, err := store.Take(ctx, keyName(i), 1, []ratelimit.Limit{huge}, results)
				cancel()
				switch {
				case err == nil:
					fmt.Println("admitted")
				case store.Fault(err) == ratelimit.FaultUnknown:
					fmt.Println("unknown")
				default:
					time.Sleep(10 * time.Millisecond)
				}
			}
		}()
	}
	select {}
}

// tally are the lines of processes that count.
type tally map[string]int

func (l tally) read(c *child, n int) {
	for range n {
		l[c.line()]++
	}
}

func (l tally) kill(c *child) {
	for _, line := range c.kill() {
		l[line]++
	}
}

// check checks that what was admitted is counted, and no more than the calls of unknown
// outcome beside it.
func (l tally) check(t *testing.T, url string, killed int) {
	t.Helper()
	counted := used(t, url)
	t.Logf("%d admitted, %d of unknown outcome, %d counted", l["admitted"], l["unknown"], counted)
	require.GreaterOrEqual(t, counted, l["admitted"])
	require.LessOrEqual(t, counted, l["admitted"]+l["unknown"]+killed*keys)
}

// TestKilled kills processes while they count. Others go on.
func TestKilled(t *testing.T) {
	if testing.Short() {
		t.Skip("starts processes")
	}
	s, lines := startNATS(t), tally{}
	other := startChild(t, "count", s.url())
	for range 5 {
		c := startChild(t, "count", s.url())
		lines.read(c, 100)
		lines.kill(c)
		lines.read(other, 1)
	}
	lines.kill(other)
	lines.check(t, s.url(), 6)
}

// TestServerKilled kills the server while a process counts. No admitted unit is lost.
func TestServerKilled(t *testing.T) {
	if testing.Short() {
		t.Skip("starts processes")
	}
	s, lines := startNATS(t), tally{}
	c := startChild(t, "count", s.url())
	for range 3 {
		lines.read(c, 200)
		s.kill()
		s.start(t)
	}
	lines.read(c, 200)
	lines.kill(c)
	lines.check(t, s.url(), 1)
}

// TestServerDown checks what a limiter does without the server, from the first request on.
// Each answer arrives within the timeout. When the server is back, it decides again, and
// knows what was admitted in the meantime.
func TestServerDown(t *testing.T) {
	for _, test := range []struct {
		policy ratelimit.FailurePolicy
		half   int // how many of three more calls for a key with 2 of 3 units left are admitted
		failed int // how many of them fail
		after  int // what is left of the key then
	}{
		{ratelimit.FallbackLocal, 2, 0, 0},
		{ratelimit.FailClosed, 0, 3, 2},
	} {
		t.Run(test.policy.String(), func(t *testing.T) {
			s := startNATS(t)
			b, nc := open(t, s.url(), "test")
			limiter := ratelimittest.New(t, ratelimit.Options{
				Limits: []ratelimit.Limit{ratelimit.FixedWindow(3, time.Hour)}, Store: storekit.New("test", b),
				OnFailure: test.policy, Timeout: 5 * time.Second, Logger: slog.New(slog.DiscardHandler),
			})
			take := func(key string, calls int) (admitted, failed int) {
				for range calls {
					began := time.Now()
					d, err := limiter.Take(t.Context(), key)
					require.Less(t, time.Since(began), 8*time.Second) // this machine may be busy
					if err != nil {
						failed++
					} else if d.Allowed {
						admitted++
					}
				}
				return admitted, failed
			}
			admitted, _ := take("used", 4)
			require.Equal(t, 3, admitted)
			admitted, _ = take("half", 1)
			require.Equal(t, 1, admitted)

			s.kill()
			require.Eventually(t, func() bool { return !nc.IsConnected() }, 20*time.Second, time.Millisecond)
			admitted, failed := take("used", 5)
			require.Zero(t, admitted+failed, "a used-up key stays denied")
			admitted, failed = take("half", 3)
			require.Equal(t, test.half, admitted)
			require.Equal(t, test.failed, failed)

			s.start(t)
			other, _ := open(t, s.url(), "test") // what another process finds
			require.Eventually(t, func() bool {
				d, err := limiter.TakeN(t.Context(), "new", 0)
				if err != nil {
					return false
				}
				results := make([]ratelimit.Result, 1)
				_, err = storekit.New("test", other).Take(t.Context(), "half", 0, limiter.Limits(), results)
				require.NoError(t, err)
				return d.Source == ratelimit.SourceStore && results[0].Remaining == int64(test.after)
			}, 20*time.Second, 10*time.Millisecond)
		})
	}
}

// TestStartWithoutServer makes a store before the server runs.
func TestStartWithoutServer(t *testing.T) {
	s := startNATS(t)
	s.kill()
	b, _, err := openBackend(s.url(), "test")
	require.NoError(t, err)
	store, results := storekit.New("test", b), make([]ratelimit.Result, 1)
	take := func() error {
		_, err := store.Take(t.Context(), "key", 1, []ratelimit.Limit{huge}, results)
		return err
	}
	began := time.Now()
	require.Equal(t, ratelimit.FaultRefused, store.Fault(take()))
	require.Less(t, time.Since(began), 10*time.Second)
	s.start(t)
	require.Eventually(t, func() bool { return take() == nil }, 20*time.Second, 10*time.Millisecond)
	require.Equal(t, huge.N()-1, results[0].Remaining)
}

// TestBucket checks that each record has a time to live, also after an update, that the
// server deletes it when that is over and not before, and that a denied request writes nothing.
func TestBucket(t *testing.T) {
	s := startNATS(t)
	b, _ := open(t, s.url(), "test")
	store, results := storekit.New("test", b), make([]ratelimit.Result, 1)
	take := func(window time.Duration) {
		t.Helper()
		_, err := store.Take(t.Context(), "key", 1, []ratelimit.Limit{ratelimit.FixedWindow(2, window)}, results)
		require.NoError(t, err)
	}
	messages := func() (n, last uint64) {
		t.Helper()
		stream, err := b.open(t.Context())
		require.NoError(t, err)
		info, err := stream.Info(t.Context())
		require.NoError(t, err)
		return info.State.Msgs, info.State.LastSeq
	}
	const window = 1800 * time.Millisecond
	began := time.Now()
	take(window)
	take(window)
	_, last := messages()
	for time.Since(began) < window {
		take(window)
		n, now := messages()
		if time.Since(began) > window { // it may have ended before the call
			break
		}
		require.Positive(t, results[0].RetryAfter, "after %v", time.Since(began))
		require.EqualValues(t, 1, n)
		require.Equal(t, last, now)
		time.Sleep(10 * time.Millisecond)
	}
	ends := func([]byte, time.Time) ([]byte, time.Duration) { return []byte("record"), time.Second }
	require.NoError(t, b.Update(t.Context(), "test/key", ends)) // the store keeps a record for a minute longer
	require.Eventually(t, func() bool { n, _ := messages(); return n == 0 }, 20*time.Second, 50*time.Millisecond)

	take(time.Hour)
	require.NoError(t, b.Delete(t.Context(), "test/key"))
	take(time.Hour) // on the marker of the record that was deleted
	require.EqualValues(t, 1, results[0].Remaining)
	require.NoError(t, b.Delete(t.Context(), "test/key"))
	require.Eventually(t, func() bool { n, _ := messages(); return n == 0 }, 20*time.Second, 50*time.Millisecond)
}

// TestErrors checks which errors say that nothing was written.
func TestErrors(t *testing.T) {
	s := startNATS(t)
	b, nc := open(t, s.url(), "test")
	other, _ := open(t, s.url(), "test")
	write := func([]byte, time.Time) ([]byte, time.Duration) { return []byte("record"), time.Hour }
	err := b.Update(t.Context(), "key", func(old []byte, now time.Time) ([]byte, time.Duration) {
		if err := other.Update(t.Context(), "key", write); err != nil {
			t.Error(err)
		}
		return []byte("another"), time.Hour
	})
	require.ErrorIs(t, err, storekit.ErrNotApplied, "it has lost a race")
	record, _, err := b.get(t.Context(), "$KV.test.key")
	require.NoError(t, err)
	require.Equal(t, "record", string(record))

	err = b.Update(t.Context(), "other", func([]byte, time.Time) ([]byte, time.Duration) {
		nc.Close()
		return []byte("record"), time.Hour
	})
	require.ErrorIs(t, err, storekit.ErrNotApplied, "it was not sent")

	ctx, cancel := context.WithCancel(t.Context())
	err = other.Update(ctx, "other", func([]byte, time.Time) ([]byte, time.Duration) {
		cancel()
		return []byte("record"), time.Hour
	})
	require.Error(t, err)
	require.NotErrorIs(t, err, storekit.ErrNotApplied, "it may have been sent")
}

// BenchmarkTake makes decisions from 64 goroutines. Calls for one key share updates.
func BenchmarkTake(b *testing.B) {
	s := startNATS(b)
	for _, bench := range []struct {
		name        string
		keys, limit int64
	}{
		{"one-key", 1, 1 << 40}, {"1000-keys", 1000, 1 << 40}, {"1000-keys-denied", 1000, 1},
	} {
		b.Run(bench.name, func(b *testing.B) {
			backend, _ := open(b, s.url(), bench.name)
			store, limits := storekit.New("test", backend), []ratelimit.Limit{ratelimit.FixedWindow(bench.limit, time.Hour)}
			var calls atomic.Int64
			b.SetParallelism(workers / runtime.GOMAXPROCS(0))
			b.RunParallel(func(p *testing.PB) {
				for results := make([]ratelimit.Result, 1); p.Next(); {
					if _, err := store.Take(b.Context(), keyName(int(calls.Add(1)%bench.keys)), 1, limits, results); err != nil {
						b.Error(err)
					}
				}
			})
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "decisions/s")
		})
	}
}
