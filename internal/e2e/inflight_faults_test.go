package e2e_test

import (
	"bufio"
	"fmt"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
	"github.com/ratelimit-go/ratelimit/internal/redistest"
)

// These tests are about in-flight limits when processes and servers fail. Most of them compare
// what Redis counts with the requests that run.

// keepHolds is the role of a process with requests that run until it gets a line. Then they
// end, and it begins as many again, and so on. It prints how many it has.
func keepHolds() error {
	client := redis.NewClient(&redis.Options{Addr: os.Getenv(redisAddrEnv)})
	number, duration, _ := strings.Cut(os.Getenv(holdsEnv), "/")
	n, err := strconv.Atoi(number)
	if err != nil {
		return err
	}
	lasts, err := time.ParseDuration(duration)
	if err != nil {
		return err
	}
	o := inFlightOptions(client, FailClosed, InFlight(int64(n), lasts))
	o.Timeout = time.Minute
	l, err := New("api", o)
	if err != nil {
		return err
	}
	in := bufio.NewReader(os.Stdin)
	for {
		var running []*request
		for range n {
			if r, _ := begin(l, "k"); r != nil {
				running = append(running, r)
			}
		}
		fmt.Println("running", len(running))
		awaitProceed(in)
		for _, r := range running {
			close(r.finish)
			if status := <-r.status; status != http.StatusNoContent {
				return fmt.Errorf("status %d", status)
			}
		}
		fmt.Println("ended")
		awaitProceed(in)
	}
}

// holdsEnv is the environment variable with the limit of keepHolds, such as 3/2s.
const holdsEnv = "RATELIMIT_E2E_HOLDS"

// TestKilledProcessFreesItsHoldsWhenTheyEnd kills a process with requests. Its record in Redis
// was renewed while it ran. Its holds are free when the record ends, and not before.
func TestKilledProcessFreesItsHoldsWhenTheyEnd(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	c := server.Client()
	const n, lasts = 3, 6 * time.Second
	l := newLimiter(t, "api", redisOptions(server.Client(), InFlight(n, lasts)))
	child := startChild(t, "keep", redisAddrEnv+"="+server.Addr, fmt.Sprintf("%s=%d/%v", holdsEnv, n, lasts))
	require.Equal(t, fmt.Sprint("running ", n), child.line(t))
	key := holdsKey("api", "k")
	for until := time.Now().Add(lasts + lasts/2); time.Now().Before(until); time.Sleep(10 * time.Millisecond) {
		_, d, err := l.Acquire(ctx, "k")
		require.NoError(t, err)
		require.False(t, d.Allowed, "the process renews its holds")
		require.LessOrEqual(t, d.RetryAfter, lasts)
	}
	child.kill()
	var last record
	for _, r := range records(t, c, key) {
		last = r
	}
	require.EqualValues(t, n, last.began-last.ended)
	now := func() int64 {
		now, err := c.Time(ctx).Result()
		require.NoError(t, err)
		return now.UnixMicro()
	}
	require.LessOrEqual(t, last.until, now()+lasts.Microseconds())
	for before := now(); ; before = now() {
		release, d, err := l.Acquire(ctx, "k")
		require.NoError(t, err)
		if d.Allowed {
			require.GreaterOrEqual(t, now(), last.until, "not before")
			require.EqualValues(t, n-1, d.Remaining)
			release()
			break
		}
		require.Less(t, before, last.until, "not after")
	}
	eventually(t, "no key to be left", func() bool { return c.Exists(ctx, key).Val() == 0 })
}

// TestStoppedProcessLosesItsHolds stops a process for longer than its holds last, several times.
// When it goes on, so do its requests, but without holds: Redis counts exactly the holds that have
// begun in the meantime. Afterwards it can have holds again.
func TestStoppedProcessLosesItsHolds(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	c := server.Client()
	const n, lasts = 3, 6 * time.Second
	o := inFlightOptions(server.Client(), FailClosed, InFlight(n, lasts))
	o.Timeout = time.Minute
	l := newLimiter(t, "api", o)
	child := startChild(t, "keep", redisAddrEnv+"="+server.Addr, fmt.Sprintf("%s=%d/%v", holdsEnv, n, lasts))
	key := holdsKey("api", "k")
	for range 2 {
		require.Equal(t, fmt.Sprint("running ", n), child.line(t))
		require.NoError(t, child.Process.Signal(syscall.SIGSTOP))
		eventually(t, "its holds to be free", func() bool { return heldAt(t, c, key) == 0 })
		own := beginAll(t, l, "k", n)
		require.NoError(t, child.Process.Signal(syscall.SIGCONT))
		require.Never(t, func() bool { // while it finds out
			for _, r := range records(t, c, key) {
				if r.began-r.ended > n {
					return true
				}
			}
			return len(records(t, c, key)) == 0
		}, lasts/2, 5*time.Millisecond)
		eventually(t, "Redis to count what runs with a hold", func() bool { return heldAt(t, c, key) == n })
		child.proceed(t)
		require.Equal(t, "ended", child.line(t))
		require.EqualValues(t, n, heldAt(t, c, key), "the ends of lost holds free nothing")
		_, status := begin(l, "k")
		require.Equal(t, http.StatusTooManyRequests, status)
		endAll(t, own)
		eventually(t, "no key to be left", func() bool { return c.Exists(ctx, key).Val() == 0 })
		child.proceed(t)
	}
	require.Equal(t, fmt.Sprint("running ", n), child.line(t))
	require.EqualValues(t, n, heldAt(t, c, key))
}

// outages are the faults that end with a server that has its holds.
var outages = map[string]func(t *testing.T) (addr string, strike, mend func()){
	"replies lost": func(t *testing.T) (string, func(), func()) {
		p := redistest.NewProxy(t, redistest.Start(t).Addr)
		return p.Addr, func() { p.LoseReplies(true) }, func() { p.LoseReplies(false) }
	},
	"everything swallowed": func(t *testing.T) (string, func(), func()) {
		p := redistest.NewProxy(t, redistest.Start(t).Addr)
		return p.Addr, func() { p.Blackhole(true) }, func() { p.Blackhole(false) }
	},
	"connections reset": func(t *testing.T) (string, func(), func()) {
		p := redistest.NewProxy(t, redistest.Start(t).Addr)
		return p.Addr, func() { p.ResetRate(0.5) }, func() { p.ResetRate(0) }
	},
	"hung": func(t *testing.T) (string, func(), func()) {
		server := redistest.Start(t)
		return server.Addr, server.Hang, server.Continue
	},
	"killed, and started again empty": func(t *testing.T) (string, func(), func()) {
		server := redistest.Start(t)
		return server.Addr, server.Kill, server.Restart
	},
}

// TestHoldsAreCountedRightAfterOutages has callers acquire and release holds through outages, under
// each policy, in two limiters that know nothing of each other. Some requests run all the time,
// so that no record ends by itself. When Redis is back, it counts exactly what runs.
func TestHoldsAreCountedRightAfterOutages(t *testing.T) {
	t.Parallel()
	for name, start := range outages {
		for _, on := range []FailurePolicy{FallbackLocal, FailOpen, FailClosed} {
			t.Run(name+"/"+on.String(), func(t *testing.T) {
				t.Parallel()
				addr, strike, mend := start(t)
				const n, lasts, keep = 6, 9 * time.Second, 2
				var limiters []*Limiter
				var kept [][]*request
				for range 2 {
					l := newLimiter(t, "api", inFlightOptions(redistest.Client(t, addr), on, InFlight(n, lasts)))
					limiters, kept = append(limiters, l), append(kept, beginHeld(t, l, "k", keep))
				}
				var over atomic.Bool
				var callers sync.WaitGroup
				for _, l := range limiters {
					for range 8 {
						callers.Go(func() {
							for !over.Load() {
								release, _, _ := l.Acquire(ctx, "k")
								time.Sleep(time.Millisecond)
								release()
								if r, _ := begin(l, "k"); r != nil {
									close(r.finish)
								}
							}
						})
					}
				}
				for range 3 {
					time.Sleep(100 * time.Millisecond)
					strike()
					time.Sleep(300 * time.Millisecond)
					mend()
				}
				over.Store(true)
				callers.Wait()
				c := redistest.Client(t, addr)
				key := holdsKey("api", "k")
				held := func(want int64) func() bool {
					return func() bool { return c.Ping(ctx).Err() == nil && heldAt(t, c, key) == want }
				}
				eventually(t, "Redis to count what runs", held(2*keep))
				for _, l := range limiters {
					eventually(t, "the other requests to end", func() bool { return l.Stats().InFlight == keep })
				}
				eventually(t, "Redis to decide", func() bool {
					release, d, err := limiters[0].Acquire(ctx, "k")
					release()
					return err == nil && d.Source == SourceStore
				})
				eventually(t, "Redis to count what runs", held(2*keep))
				for _, r := range kept {
					endAll(t, r)
				}
				eventually(t, "no key to be left", func() bool { return c.Exists(ctx, key).Val() == 0 })
				eventually(t, "Redis to have no hold that has ended", func() bool {
					// A call that a limiter has given up on may arrive now. Until the limiter's next call, Redis
					// has holds that have ended.
					for _, l := range limiters {
						release, _, _ := l.Acquire(ctx, "k")
						release()
					}
					return heldAt(t, c, key) == 0
				})
				whole := beginHeld(t, limiters[0], "k", n)
				eventually(t, "Redis to count all of them", func() bool { return heldAt(t, c, key) == n })
				endAll(t, whole)
			})
		}
	}
}

// TestLostRepliesLeaveNoHold loses the replies to calls that begin holds, and to calls that end
// them. Redis has more holds than run, or fewer ends. The next calls put it right.
func TestLostRepliesLeaveNoHold(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	proxy := redistest.NewProxy(t, server.Addr)
	client := redistest.Client(t, proxy.Addr)
	// While replies are lost, no new connection comes about. With several idle ones, calls
	// reach Redis although the reply to an earlier call is lost, too.
	lose := func() {
		connect(t, client, []*redistest.Proxy{proxy})
		proxy.LoseReplies(true)
	}
	c := server.Client()
	const lasts = 9 * time.Second
	l := newLimiter(t, "api", inFlightOptions(client, FailClosed, InFlight(10, lasts)))
	key := holdsKey("api", "k")
	kept := beginHeld(t, l, "k", 1) // its record does not end by itself
	ends := beginHeld(t, l, "k", 3)
	eventually(t, "Redis to count what runs", func() bool { return heldAt(t, c, key) == 4 })
	began := func() (n int64) {
		for _, r := range records(t, c, key) {
			n = r.began
		}
		return n
	}
	before := began()

	lose()
	eventually(t, "a hold to begin that nobody has", func() bool {
		_, _, err := l.Acquire(ctx, "k")
		require.Error(t, err)
		return began() > before // this never falls, also if Redis knows of the end by now
	})
	proxy.LoseReplies(false)
	eventually(t, "Redis to count what runs", func() bool { return heldAt(t, c, key) == 4 })

	eventually(t, "Redis to decide", func() bool {
		release, d, err := l.Acquire(ctx, "k")
		release()
		return err == nil && d.Source == SourceStore
	})
	eventually(t, "Redis to count what runs", func() bool { return heldAt(t, c, key) == 4 })
	lose()
	endAll(t, ends[:1])
	eventually(t, "Redis to learn of the end, though no reply says so", func() bool { return heldAt(t, c, key) == 3 })
	endAll(t, ends[1:])
	time.Sleep(faultTimeout)
	proxy.LoseReplies(false)
	eventually(t, "Redis to count what runs", func() bool { return heldAt(t, c, key) == 1 })
	require.EqualValues(t, 1, l.Stats().InFlight)
	endAll(t, kept)
	eventually(t, "no key to be left", func() bool { return c.Exists(ctx, key).Val() == 0 })
}

// TestHoldsAreToldAgainToAnEmptyServer empties Redis while requests run. The process stores its
// holds again with its next renewal, which is due after a third of the time that they last.
func TestHoldsAreToldAgainToAnEmptyServer(t *testing.T) {
	t.Parallel()
	for name, empty := range map[string]func(s *redistest.Server){
		"FLUSHALL": func(s *redistest.Server) { s.Do("FLUSHALL") },
		"restart":  func(s *redistest.Server) { s.Restart() },
		"deleted":  func(s *redistest.Server) { s.Do("DEL", holdsKey("api", "k")) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := redistest.Start(t)
			c := server.Client()
			const n, lasts = 4, 9 * time.Second
			l := newLimiter(t, "api", inFlightOptions(server.Client(), FallbackLocal, InFlight(n, lasts)))
			other := newLimiter(t, "api", inFlightOptions(server.Client(), FallbackLocal, InFlight(n, lasts)))
			key := holdsKey("api", "k")
			running := beginHeld(t, l, "k", 3)
			acquired, d, err := l.Acquire(ctx, "k")
			require.NoError(t, err)
			require.True(t, d.Allowed)
			for range 2 {
				empty(server)
				began := time.Now()
				eventually(t, "Redis to have the holds again", func() bool { return c.Ping(ctx).Err() == nil && heldAt(t, c, key) >= 3 })
				require.Less(t, time.Since(began), lasts)
			}
			acquired()
			eventually(t, "the other limiter to be told", func() bool {
				release, d, err := other.Acquire(ctx, "k")
				release()
				return err == nil && d.Source == SourceStore
			})
			eventually(t, "the end of a hold", func() bool { return heldAt(t, c, key) == 3 })
			last, status := begin(other, "k")
			require.NotNil(t, last, status)
			_, status = begin(other, "k")
			require.Equal(t, http.StatusTooManyRequests, status)
			endAll(t, append(running, last))
			eventually(t, "no key to be left", func() bool { return c.Exists(ctx, key).Val() == 0 })
		})
	}
}

// TestHoldsInAnOutage: without Redis, each process admits what it does not know to be held by
// others, and at most the limit. What has begun then counts when Redis is back, also if that
// makes more than the limit, and nothing begins until there is room.
func TestHoldsInAnOutage(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	c := server.Client()
	const n, lasts = 4, 12 * time.Second
	key := holdsKey("api", "k")
	var limiters []*Limiter
	for range 3 {
		o := inFlightOptions(server.Client(refusing), FallbackLocal, InFlight(n, lasts))
		o.Timeout = time.Minute
		limiters = append(limiters, newLimiter(t, "api", o))
	}
	first := beginAll(t, limiters[0], "k", 1)
	first = append(first, beginAll(t, limiters[1], "k", 2)...) // it knows of the one before
	server.Kill()
	var running []*request
	most := []int{n - 1 - 0, 1, n} // the first limiter does not know of the second, and the third knows of none
	for i, l := range limiters {
		admitted := 0
		for range 3 * n {
			if r, status := begin(l, "k"); r != nil {
				admitted++
				running = append(running, r)
			} else {
				require.Equal(t, http.StatusTooManyRequests, status)
			}
		}
		require.Equal(t, most[i], admitted, "limiter %d", i)
	}
	server.Restart()
	eventually(t, "Redis to count what runs", func() bool {
		return c.Ping(ctx).Err() == nil && heldAt(t, c, key) == int64(len(first)+len(running))
	})
	eventually(t, "Redis to decide", func() bool {
		_, d, err := limiters[2].Acquire(ctx, "k")
		require.False(t, d.Allowed)
		return err == nil && d.Source == SourceStore
	})
	endAll(t, append(first, running[:len(running)-n+1]...))
	running = running[len(running)-n+1:]
	eventually(t, "Redis to count what runs", func() bool { return heldAt(t, c, key) == n-1 })
	running = append(running, beginAll(t, limiters[0], "k", 1)...)
	_, status := begin(limiters[1], "k")
	require.Equal(t, http.StatusTooManyRequests, status)
	endAll(t, running)
	eventually(t, "no key to be left", func() bool { return c.Exists(ctx, key).Val() == 0 })
}

// TestPoliciesInAnOutageWithHolds: with FailOpen, requests get through without a hold. With
// FailClosed, they get 503. Neither leaves a hold.
func TestPoliciesInAnOutageWithHolds(t *testing.T) {
	t.Parallel()
	for _, on := range []FailurePolicy{FailOpen, FailClosed} {
		t.Run(on.String(), func(t *testing.T) {
			t.Parallel()
			server := redistest.Start(t)
			c := server.Client()
			const n, lasts = 2, 9 * time.Second
			key := holdsKey("api", "k")
			o := inFlightOptions(server.Client(refusing), on, InFlight(n, lasts))
			o.Timeout = time.Minute
			l := newLimiter(t, "api", o)
			kept := beginAll(t, l, "k", 1)
			server.Kill()
			var through []*request
			for range 3 * n {
				r, status := begin(l, "k")
				if on == FailOpen {
					require.NotNil(t, r, status)
					through = append(through, r)
				} else {
					require.Nil(t, r)
					require.Equal(t, http.StatusServiceUnavailable, status)
				}
			}
			release, d, err := l.Acquire(ctx, "k")
			require.Equal(t, on == FailOpen, d.Allowed)
			require.Equal(t, on == FailClosed, err != nil)
			release()
			require.EqualValues(t, 1, l.Stats().InFlight)
			server.Restart()
			eventually(t, "Redis to count what has a hold", func() bool { return c.Ping(ctx).Err() == nil && heldAt(t, c, key) == 1 })
			eventually(t, "Redis to decide", func() bool {
				release, d, err := l.Acquire(ctx, "k")
				release()
				return err == nil && d.Source == SourceStore
			})
			endAll(t, through)
			eventually(t, "Redis to count what has a hold", func() bool { return heldAt(t, c, key) == 1 })
			endAll(t, kept)
			eventually(t, "no key to be left", func() bool { return c.Exists(ctx, key).Val() == 0 })
		})
	}
}

// TestHoldsAfterAFailover replaces the master while requests run, after a write that the
// replica does not have. The new master counts what runs.
func TestHoldsAfterAFailover(t *testing.T) {
	t.Parallel()
	sentinel := redistest.StartSentinel(t, redistest.SentinelOptions{})
	client := sentinel.Client()
	const n, lasts = 4, 9 * time.Second
	key := holdsKey("api", "k")
	l := newLimiter(t, "api", inFlightOptions(client, FallbackLocal, InFlight(n, lasts)))
	running := beginHeld(t, l, "k", 3)
	sentinel.Failover()
	ended := beginAll(t, l, "k", 1)
	endAll(t, ended)
	c := sentinel.Replica.Client()
	eventually(t, "the new master to count what runs", func() bool { return heldAt(t, c, key) == 3 })
	eventually(t, "the new master to decide", func() bool {
		release, d, err := l.Acquire(ctx, "k")
		release()
		return err == nil && d.Source == SourceStore
	})
	endAll(t, running)
	eventually(t, "no key to be left", func() bool { return c.Exists(ctx, key).Val() == 0 })
}
