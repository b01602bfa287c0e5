package storekit_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ratelimit-go/ratelimit"
	"github.com/ratelimit-go/ratelimit/storekit"
	"github.com/ratelimit-go/ratelimit/storetest"
	"github.com/stretchr/testify/require"
)

// TestStoreOnBackends runs the suite on backends that use what the contract allows.
func TestStoreOnBackends(t *testing.T) {
	for name, set := range map[string]func(*compareAndSwap){
		"compare-and-swap":        func(*compareAndSwap) {},
		"calls f twice":           func(b *compareAndSwap) { b.twice = true },
		"loses a race each time":  func(b *compareAndSwap) { b.loses = true },
		"writes nothing at first": failing(func(try int64) bool { return try%2 == 1 }, storekit.ErrNotApplied),
	} {
		t.Run(name, func(t *testing.T) {
			var b *compareAndSwap // of one case
			of := ""
			storetest.Run(t, func(t *testing.T, prefix string) ratelimit.Store {
				if t.Name() != of {
					b, of = newBackend(), t.Name()
					set(b)
				}
				return storekit.New(prefix, b)
			})
		})
	}
}

// failing makes Update return an error in some of its calls, by their number from 1 on.
func failing(fails func(try int64) bool, err error) func(*compareAndSwap) {
	return func(b *compareAndSwap) {
		var tries atomic.Int64
		b.begin = func() error {
			if fails(tries.Add(1)) {
				return fmt.Errorf("backend: %w", err)
			}
			return nil
		}
	}
}

// TestOneKeyFromManyCallers has 64 callers of one key in each of 4 processes. No call fails,
// exactly the limit is admitted, and callers of one process share updates.
func TestOneKeyFromManyCallers(t *testing.T) {
	for _, l := range []ratelimit.Limit{
		ratelimit.FixedWindow(500, time.Hour), ratelimit.SlidingWindow(500, time.Hour), ratelimit.TokenBucket(500, 100*time.Hour, 500),
		ratelimit.Rolling(500, time.Hour), ratelimit.Daily(500, nil),
	} {
		t.Run(l.Algorithm(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				const processes, callers, calls = 4, 64, 10
				b := newBackend()
				b.latency = 500 * time.Microsecond
				var admitted, decisions atomic.Int64
				var wg sync.WaitGroup
				for range processes {
					s := newStore(t, b)
					for range callers {
						wg.Go(func() {
							for range calls {
								ctx, cancel := context.WithTimeout(context.Background(), time.Second)
								results := make([]ratelimit.Result, 2)
								_, err := s.Take(ctx, "key", 1, []ratelimit.Limit{l, ratelimit.FixedWindow(1000, time.Minute)}, results)
								cancel()
								if err != nil {
									t.Error(err)
								}
								if decisions.Add(1); results[0].RetryAfter == 0 {
									admitted.Add(1)
								}
							}
						})
					}
				}
				wg.Wait()
				require.EqualValues(t, 500, admitted.Load())
				updates, writes := b.written()
				require.Less(t, updates, int(decisions.Load())/8, "callers share updates")
				t.Logf("%d decisions: %.3f updates and %.3f writes for each", decisions.Load(),
					float64(updates)/float64(decisions.Load()), float64(writes)/float64(decisions.Load()))
			})
		})
	}
}

// A backend without a loop of its own says that it has lost the race. Each of 8 processes
// gets its turn.
func TestRaceThatTheBackendGivesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBackend()
		var wg sync.WaitGroup
		var admitted atomic.Int64
		for range 8 {
			s := newStore(t, once{b})
			for range 8 {
				wg.Go(func() {
					for range 5 {
						if got, err := take(s, "key", 1, ratelimit.FixedWindow(200, time.Hour)); err != nil {
							t.Error(err)
						} else if got.RetryAfter == 0 {
							admitted.Add(1)
						}
					}
				})
			}
		}
		wg.Wait()
		require.EqualValues(t, 200, admitted.Load())
	})
}

// once is a backend that tries once.
type once struct{ *compareAndSwap }

func (b once) Update(ctx context.Context, key string, f func([]byte, time.Time) ([]byte, time.Duration)) error {
	b.mu.Lock()
	old := b.records[key]
	b.mu.Unlock()
	record, ttl := f(old.record, time.Now())
	time.Sleep(200 * time.Microsecond)
	if !b.swap(key, old.revision, stored{record, old.revision + 1, time.Now().Add(ttl)}) {
		return fmt.Errorf("another writer was first: %w", storekit.ErrNotApplied)
	}
	return nil
}

// What changes nothing is not written: looks, denials, and a refund to a key that is not
// there.
func TestNothingToWrite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBackend()
		s := newStore(t, b)
		ctx := context.Background()
		l := ratelimit.FixedWindow(1, time.Hour)
		_, err := take(s, "key", 0, l)
		require.NoError(t, err)
		_, err = s.Adjust(ctx, "key", -1, ratelimit.Now, []ratelimit.Limit{l})
		require.NoError(t, err)
		require.NoError(t, s.Reset(ctx, "key", []ratelimit.Limit{l}))
		require.Empty(t, b.records)

		_, err = take(s, "key", 1, l)
		require.NoError(t, err)
		record := b.get("test/key")
		for range 5 {
			got, err := take(s, "key", 1, l)
			require.NoError(t, err)
			require.Equal(t, time.Hour, got.RetryAfter)
		}
		_, writes := b.written()
		require.Equal(t, 1, writes)
		require.Equal(t, record, b.get("test/key"))

		require.NoError(t, s.Reset(ctx, "key", []ratelimit.Limit{l}))
		require.Empty(t, b.get("test/key"), "a record without counters is deleted")
	})
}

// A record that this version cannot read is kept as it is, with its time to live.
func TestRecordsOfOthers(t *testing.T) {
	l := ratelimit.FixedWindow(5, time.Hour)
	newer := append([]byte{2, 0x30, 0, 0, 0, 0, 0, 0, 0}, "what version 2 has"...) // it ends in 2079
	for _, tc := range []struct {
		name    string
		record  []byte
		says    string
		deletes bool // Reset does
	}{
		{"newer version", newer, "version 2", false},
		{"another program's value", []byte("42"), "not a record", true},
		{"no version", make([]byte, 40), "not a record", true},
		{"cut off", record(t, l)[:12], "not a record", true},
		{"more bytes", append(record(t, l), 0), "not a record", true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBackend()
				s := newStore(t, b)
				ctx := context.Background()
				b.put("test/key", tc.record)
				limits, results := []ratelimit.Limit{l}, make([]ratelimit.Result, 1)
				_, err := s.Take(ctx, "key", 1, limits, results)
				_, adjusting := s.Adjust(ctx, "key", 1, ratelimit.Now, limits)
				blocking := s.Block(ctx, "key", ratelimit.Block{Left: time.Hour}, limits)
				_, holding := s.Hold(ctx, ratelimit.HoldRequest{Action: ratelimit.HoldAdd, Key: "key", Most: 1, Lasts: time.Hour, Process: "p"}, results)
				for _, err := range []error{err, adjusting, blocking, holding} {
					require.ErrorContains(t, err, tc.says)
					require.ErrorContains(t, err, `"test/key"`)
					require.Equal(t, ratelimit.FaultKey, s.Fault(err))
				}
				require.Equal(t, tc.record, b.get("test/key"))
				require.Zero(t, b.writes)

				if err = s.Reset(ctx, "key", limits); tc.deletes {
					require.NoError(t, err)
					require.Empty(t, b.records)
				} else {
					require.ErrorContains(t, err, tc.says)
					require.Equal(t, tc.record, b.get("test/key"))
				}
			})
		})
	}
}

// A record of a newer version that has ended is none: the backend may have deleted it already.
func TestNewerRecordThatHasEnded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBackend()
		s := newStore(t, b)
		b.put("test/key", append([]byte{2, 0, 0, 0, 0, 0, 0, 0, 9}, "what version 2 has"...))
		got, err := take(s, "key", 0, ratelimit.FixedWindow(5, time.Hour))
		require.NoError(t, err)
		require.EqualValues(t, 5, got.Remaining)
		require.Zero(t, b.writes)
		got, err = take(s, "key", 1, ratelimit.FixedWindow(5, time.Hour))
		require.NoError(t, err)
		require.EqualValues(t, 4, got.Remaining)
	})
}

// record returns the record of a key with one unit.
func record(t *testing.T, l ratelimit.Limit) []byte {
	t.Helper()
	r := new(storekit.Record)
	now := time.Now()
	_, err := r.Take(now, ratelimit.SharedRequest{Units: 1, Limits: []ratelimit.Limit{l}}, make([]ratelimit.Result, 1))
	require.NoError(t, err)
	b, _ := r.Append(nil, now)
	return b
}

// A backend may write what it was given. So f also says how long that lasts.
func TestTimeToLiveOfWhatStays(t *testing.T) {
	now := time.Unix(2_000_000_000, 0)
	newer := []byte{7, 0x1b, 0xc1, 0x6d, 0x67, 0x4e, 0xc8, 0, 0, 'x'} // ends in Unix second 2,000,000,000
	ttls := map[string]time.Duration{}
	for name, record := range map[string][]byte{"newer": newer, "junk": []byte("junk"), "nothing": nil} {
		s := newStore(t, updateFunc(func(f func([]byte, time.Time) ([]byte, time.Duration)) error {
			got, ttl := f(record, now.Add(-time.Minute))
			require.Equal(t, record, got)
			ttls[name] = ttl
			return nil
		}))
		_, _ = take(s, "key", 0, ratelimit.FixedWindow(1, time.Hour))
	}
	require.Equal(t, map[string]time.Duration{"newer": time.Minute, "junk": 24 * time.Hour, "nothing": 0}, ttls)
}

// updateFunc is a backend that is only updated.
type updateFunc func(f func([]byte, time.Time) ([]byte, time.Duration)) error

func (u updateFunc) Update(_ context.Context, _ string, f func([]byte, time.Time) ([]byte, time.Duration)) error {
	return u(f)
}

func (u updateFunc) Delete(context.Context, string) error { return errors.New("not to be called") }

// TestFaults checks what each failure of a backend means.
func TestFaults(t *testing.T) {
	type update = func(f func([]byte, time.Time) ([]byte, time.Duration)) error
	down := errors.New("connection reset")
	for _, tc := range []struct {
		name   string
		update update
		fault  ratelimit.Fault
		says   string
		calls  int // of Update, at least
	}{
		{"unknown", func(f func([]byte, time.Time) ([]byte, time.Duration)) error {
			f(nil, time.Now())
			return down
		}, ratelimit.FaultUnknown, "connection reset", 1},
		{"not applied", func(func([]byte, time.Time) ([]byte, time.Duration)) error {
			return fmt.Errorf("%w: %w", storekit.ErrNotApplied, down)
		}, ratelimit.FaultRefused, "connection reset", 3},
		{"forgets f", func(func([]byte, time.Time) ([]byte, time.Duration)) error { return nil }, ratelimit.FaultUnknown, "has not called f", 1},
		{"panics", func(func([]byte, time.Time) ([]byte, time.Duration)) error { panic("oops") }, ratelimit.FaultUnknown, "panicked: oops", 1},
		{"no clock", func(f func([]byte, time.Time) ([]byte, time.Duration)) error {
			f(nil, time.Time{})
			return nil
		}, ratelimit.FaultRefused, "clock", 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				calls := 0
				s := newStore(t, updateFunc(func(f func([]byte, time.Time) ([]byte, time.Duration)) error {
					calls++
					return tc.update(f)
				}))
				ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
				defer cancel()
				_, err := s.Take(ctx, "key", 1, []ratelimit.Limit{ratelimit.FixedWindow(1, time.Hour)}, make([]ratelimit.Result, 1))
				require.ErrorContains(t, err, tc.says)
				require.ErrorContains(t, err, `store "test"`)
				require.Equal(t, tc.fault, s.Fault(err))
				if tc.calls == 1 {
					require.Equal(t, 1, calls, "a call of unknown effect is not repeated")
				} else {
					require.GreaterOrEqual(t, calls, tc.calls)
				}
				time.Sleep(time.Minute) // so that what is under way ends
			})
		})
	}
}

// Arguments that no limiter hands to a store are errors, and change nothing.
func TestBadCalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBackend()
		s := newStore(t, b)
		ctx := context.Background()
		ok := ratelimit.FixedWindow(5, time.Hour)
		one := make([]ratelimit.Result, 1)
		calls := map[string]error{}
		for name, l := range map[string]ratelimit.Limit{
			"zero limit": {}, "no units": ratelimit.FixedWindow(0, time.Hour), "short window": ratelimit.FixedWindow(5, 60),
			"too many for a log": ratelimit.Rolling(1001, time.Hour), "bucket too slow": ratelimit.TokenBucket(1, 49*365*24*time.Hour, 3),
			"unnamed zone": ratelimit.Daily(5, time.FixedZone("here", 3600)), "in flight": ratelimit.InFlight(5, time.Minute), "deny": ratelimit.Deny,
			"rung": ok.Block(time.Hour, time.Minute),
		} {
			_, calls[name] = take(s, "key", 1, l)
		}
		_, calls["negative"] = take(s, "key", -1, ok)
		_, calls["results"] = s.Take(ctx, "key", 1, []ratelimit.Limit{ok}, nil)
		_, calls["empty key"] = take(s, "", 1, ok)
		_, calls["9 limits"] = s.Take(ctx, "key", 1, make([]ratelimit.Limit, 9), make([]ratelimit.Result, 9))
		_, calls["up to none"] = s.TakeShared(ctx, ratelimit.SharedRequest{Key: "key", UpTo: true, Limits: []ratelimit.Limit{ok}}, one)
		calls["block"] = s.Block(ctx, "key", ratelimit.Block{Rung: 5}, []ratelimit.Limit{ok})
		_, calls["hold"] = s.Hold(ctx, ratelimit.HoldRequest{Action: ratelimit.HoldAdd, Key: "key"}, one)
		for name, err := range calls {
			require.Error(t, err, name)
			require.Equal(t, ratelimit.FaultKey, s.Fault(err), name)
		}
		require.Empty(t, b.records)
	})
}
