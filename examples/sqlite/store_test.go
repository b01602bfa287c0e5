package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ratelimit-go/ratelimit"
	"github.com/ratelimit-go/ratelimit/ratelimittest"
	"github.com/ratelimit-go/ratelimit/storekit"
	"github.com/ratelimit-go/ratelimit/storetest"
)

// open returns the backend of a file, until the test ends.
func open(t testing.TB, file string) *backend {
	b, err := openBackend(t.Context(), file)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, b.Close()) })
	return b
}

func newFile(t testing.TB) string { return filepath.Join(t.TempDir(), "limits.db") }

// TestStore runs the contract of stores in bubbles: the backend takes its time from package
// time, so nothing waits for real.
func TestStore(t *testing.T) {
	var b *backend // of one case
	name := ""
	storetest.Run(t, func(t *testing.T, prefix string) ratelimit.Store {
		if t.Name() != name {
			b, name = open(t, newFile(t)), t.Name()
		}
		return storekit.New(prefix, b)
	})
}

const (
	keys      = 8
	processes = 4
	workers   = 64  // goroutines of a process
	calls     = 100 // of a goroutine
)

func keyName(i int) string { return fmt.Sprint("key", i) }

// TestExact counts in four processes of 64 goroutines each, first on one key, then on eight
// keys that each goroutine takes in another order, under two limits. Half of the calls fit,
// and exactly these are admitted.
func TestExact(t *testing.T) {
	if testing.Short() {
		t.Skip("makes 50,000 calls")
	}
	for _, n := range []int{1, keys} {
		file := newFile(t)
		var all []*child
		for range processes { // which open a new file at the same time
			all = append(all, startChild(t, "compete", file))
		}
		for _, c := range all {
			require.Equal(t, "ready", c.line())
		}
		began := time.Now()
		for _, c := range all {
			fmt.Fprintln(c.in, n)
		}
		admitted, refused, slowest := make([]int, n), 0, 0
		for _, c := range all {
			for i := range n {
				admitted[i] += c.number()
			}
			refused += c.number()
			slowest = max(slowest, c.number())
		}
		for i := range n {
			require.Equal(t, processes*workers*calls/2/n, admitted[i], "%s of %d", keyName(i), n)
		}
		t.Logf("%d keys: %.0f decisions per second, the slowest took %d ms; %d calls found the file locked for too long",
			n, processes*workers*calls/time.Since(began).Seconds(), slowest, refused)
	}
}

// compete reads a number of keys, and takes from them. It prints how often each of them was
// admitted, how many calls were refused because of a lock and made again, and the longest
// time in milliseconds that a call took.
func compete(file string) error {
	b, err := openBackend(context.Background(), file)
	if err != nil {
		return err
	}
	fmt.Println("ready")
	n := 0
	if _, err := fmt.Fscanln(os.Stdin, &n); err != nil {
		return err
	}
	half := int64(processes * workers * calls / 2 / n)
	limits := []ratelimit.Limit{ratelimit.FixedWindow(half, time.Hour), ratelimit.TokenBucket(2*half, time.Hour, 2*half)}
	store := storekit.New("test", b)
	var mu sync.Mutex
	var failed error
	admitted, refused, slowest := make([]int, n), 0, time.Duration(0)
	var all sync.WaitGroup
	for worker := range workers {
		all.Go(func() {
			results := make([]ratelimit.Result, len(limits))
			for call := range calls {
				i := (worker + call) % n
				if worker%2 == 0 { // half of the goroutines take the keys backwards
					i = n - 1 - i
				}
				began, again := time.Now(), 0
				_, err := store.Take(context.Background(), keyName(i), 1, limits, results)
				for ; errors.Is(err, storekit.ErrNotApplied); again++ {
					_, err = store.Take(context.Background(), keyName(i), 1, limits, results)
				}
				mu.Lock()
				if results[0].RetryAfter == 0 && results[1].RetryAfter == 0 {
					admitted[i]++
				}
				failed, refused, slowest = errors.Join(failed, err), refused+again, max(slowest, time.Since(began))
				mu.Unlock()
			}
		})
	}
	all.Wait()
	for _, number := range append(admitted, refused, int(slowest.Milliseconds())) {
		fmt.Println(number)
	}
	return failed
}

// options are for limiters that neither give up nor decide on their own.
func options(b *backend, limit ratelimit.Limit) ratelimit.Options {
	return ratelimit.Options{
		Limits: []ratelimit.Limit{limit}, Store: storekit.New("test", b), OnFailure: ratelimit.FailClosed, Timeout: 30 * time.Second,
		Logger: slog.New(slog.DiscardHandler), // errors are returned
	}
}

// TestKilled kills processes while they count. The file stays usable, for another process
// that goes on counting, too. What a process has admitted is counted, and no more than its
// calls in flight beside it.
func TestKilled(t *testing.T) {
	if testing.Short() {
		t.Skip("starts processes")
	}
	const kills = 5
	file := newFile(t)
	var acknowledged int
	other := startChild(t, "count", file)
	for range kills {
		c := startChild(t, "count", file)
		for range 100 {
			c.line()
		}
		acknowledged += 100 + c.kill()
		other.line() // it still counts
		acknowledged++
	}
	acknowledged += other.kill()

	b := open(t, file)
	limiter := ratelimittest.New(t, options(b, ratelimit.FixedWindow(1<<20, time.Hour)))
	counted := 0
	for i := range keys {
		d, err := limiter.TakeN(t.Context(), keyName(i), 0)
		require.NoError(t, err)
		counted += 1<<20 - int(d.Remaining)
	}
	t.Logf("%d admitted, %d counted", acknowledged, counted)
	require.GreaterOrEqual(t, counted, acknowledged)
	require.LessOrEqual(t, counted, acknowledged+(kills+1)*keys)
	var check string
	require.NoError(t, b.read.QueryRow("PRAGMA integrity_check").Scan(&check))
	require.Equal(t, "ok", check)
}

// count takes from all keys at once until it is killed. It prints a line for each admission.
func count(file string) error {
	b, err := openBackend(context.Background(), file)
	if err != nil {
		return err
	}
	store, failed := storekit.New("test", b), make(chan error)
	for i := range keys {
		go func() {
			for results := make([]ratelimit.Result, 1); ; {
				_, err := store.Take(context.Background(), keyName(i), 1, []ratelimit.Limit{ratelimit.FixedWindow(1<<20, time.Hour)}, results)
				switch {
				case err == nil && results[0].RetryAfter == 0:
					fmt.Println(keyName(i))
				case !errors.Is(err, storekit.ErrNotApplied): // another process has had the lock for long
					failed <- fmt.Errorf("%v, %w", results, err)
					return
				}
			}
		}()
	}
	return <-failed
}

// TestLocked lets somebody lock the file, as a shell with an open transaction does. Each
// answer arrives within the timeout. When the lock is gone, the store decides again, and
// knows what was admitted in the meantime.
func TestLocked(t *testing.T) {
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
			file := newFile(t)
			o := options(open(t, file), ratelimit.FixedWindow(3, time.Hour))
			o.OnFailure, o.Timeout = test.policy, 5*time.Second
			limiter := ratelimittest.New(t, o)
			take := func(key string, calls int) (admitted, failed int) {
				for range calls {
					began := time.Now()
					d, err := limiter.Take(t.Context(), key)
					require.Less(t, time.Since(began), o.Timeout+3*time.Second) // this machine may be busy
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

			lock, err := open(t, file).write.BeginTx(t.Context(), nil)
			require.NoError(t, err)
			admitted, failed := take("used", 5)
			require.Zero(t, admitted+failed, "a used-up key stays denied")
			admitted, failed = take("half", 3)
			require.Equal(t, test.half, admitted)
			require.Equal(t, test.failed, failed)

			require.NoError(t, lock.Rollback())
			results := make([]ratelimit.Result, 1)
			other := storekit.New("test", open(t, file)) // what another process finds
			require.Eventually(t, func() bool {
				d, err := limiter.TakeN(t.Context(), "new", 0)
				if err != nil {
					return false
				}
				_, err = other.Take(t.Context(), "half", 0, limiter.Limits(), results)
				require.NoError(t, err)
				return d.Source == ratelimit.SourceStore && results[0].Remaining == int64(test.after)
			}, 20*time.Second, 10*time.Millisecond)
		})
	}
}

// TestNotApplied checks what the errors of a locked file mean for the limiter.
func TestNotApplied(t *testing.T) {
	file := newFile(t)
	b := open(t, file)
	lock, err := open(t, file).write.BeginTx(t.Context(), nil)
	require.NoError(t, err)
	defer lock.Rollback()
	began := time.Now()
	err = b.Update(t.Context(), "key", func([]byte, time.Time) ([]byte, time.Duration) { return []byte("record"), time.Hour })
	require.ErrorIs(t, err, storekit.ErrNotApplied)
	require.ErrorContains(t, err, "SQLITE_BUSY")
	require.Less(t, time.Since(began), 5*time.Second)

	store := storekit.New("test", b)
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	_, err = store.Take(ctx, "key", 1, []ratelimit.Limit{ratelimit.FixedWindow(3, time.Hour)}, make([]ratelimit.Result, 1))
	require.Error(t, err)
	require.NotEqual(t, ratelimit.FaultKey, store.Fault(err))
}

// TestTable checks that each record has an end, that records which have ended are deleted,
// and that a denied request writes nothing.
func TestTable(t *testing.T) {
	b := open(t, newFile(t))
	store, results := storekit.New("test", b), make([]ratelimit.Result, 1)
	take := func(key string, window time.Duration) {
		t.Helper()
		_, err := store.Take(t.Context(), key, 1, []ratelimit.Limit{ratelimit.FixedWindow(1, window)}, results)
		require.NoError(t, err)
	}
	number := func(query string) (n int) {
		t.Helper()
		require.NoError(t, b.read.QueryRow(query).Scan(&n))
		return n
	}
	take("key", time.Hour)
	require.InDelta(t, time.Now().Add(time.Hour+time.Minute).UnixNano(), number("SELECT max(ends) FROM records"), float64(time.Minute))

	// SQLite counts the commits of other connections that have changed the file.
	version := number("PRAGMA data_version")
	for range 10 {
		take("key", time.Hour)
		require.Positive(t, results[0].RetryAfter)
	}
	require.Equal(t, version, number("PRAGMA data_version"))

	ends := func([]byte, time.Time) ([]byte, time.Duration) { return []byte("record"), time.Millisecond }
	for i := range 1000 { // the store keeps a record for a minute longer
		require.NoError(t, b.Update(t.Context(), keyName(i), ends))
	}
	rows := number("SELECT count(*) FROM records")
	t.Logf("%d rows are left of 1,001", rows)
	require.Less(t, rows, 500)
}

// BenchmarkTake makes decisions from 64 goroutines. Calls for one key share updates.
func BenchmarkTake(b *testing.B) {
	for _, bench := range []struct {
		name        string
		keys, limit int64
	}{
		{"one-key", 1, 1 << 40}, {"1000-keys", 1000, 1 << 40}, {"1000-keys-denied", 1000, 1},
	} {
		b.Run(bench.name, func(b *testing.B) {
			store, limits := storekit.New("test", open(b, newFile(b))), []ratelimit.Limit{ratelimit.FixedWindow(bench.limit, time.Hour)}
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
