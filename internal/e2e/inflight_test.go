package e2e_test

import (
	"bufio"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
	"github.com/ratelimit-go/ratelimit/internal/redistest"
)

// These tests are about in-flight limits on real servers: processes that compete for holds,
// the keys in Redis, and values that are no holds. inflight_faults_test.go has what goes wrong.

const (
	contestedHolds     = 5   // of each key that processes compete for
	contestedHoldRate  = 400 // units of a key with a rate limit beside the holds
	contestedHoldKeys  = 3
	contestedHoldTimes = 60 // for each goroutine of each process and key
)

// TestProcessesHoldAtMostTheLimit: several processes, each with many goroutines, acquire and
// release the same keys. At no instant are there more holds of a key than its limit. A rate
// limit beside it admits exactly its units: a hold that is denied takes none.
func TestProcessesHoldAtMostTheLimit(t *testing.T) {
	t.Parallel()
	type setup struct {
		kind  string
		addrs []string
	}
	for name, start := range map[string]func(t *testing.T) setup{
		"server": func(t *testing.T) setup { return setup{"server", []string{redistest.Start(t).Addr}} },
		"cluster": func(t *testing.T) setup {
			return setup{"cluster", redistest.StartCluster(t, redistest.ClusterOptions{}).Addrs()}
		},
		"ring": func(t *testing.T) setup {
			return setup{"ring", []string{redistest.Start(t).Addr, redistest.Start(t).Addr}}
		},
		"sentinel": func(t *testing.T) setup {
			return setup{"sentinel", []string{redistest.StartSentinel(t, redistest.SentinelOptions{}).Sentinels[0].Addr}}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			on := start(t)
			measure := redistest.Start(t)
			env := []string{redisAddrEnv + "=" + strings.Join(on.addrs, ","), clientKindEnv + "=" + on.kind, measureEnv + "=" + measure.Addr}
			var processes []*child
			for range 4 {
				c := startChild(t, "hold", env...)
				require.Equal(t, "ready", c.line(t))
				processes = append(processes, c)
			}
			for _, c := range processes {
				c.proceed(t)
			}
			var most, units int64
			for _, c := range processes {
				var m, n int64
				line := c.line(t)
				_, err := fmt.Sscanf(line, "most %d units %d", &m, &n)
				require.NoError(t, err, line)
				most, units = max(most, m), units+n
			}
			require.EqualValues(t, contestedHolds, most, "of one key at the same time")
			require.EqualValues(t, contestedHoldKeys*contestedHoldRate, units, "under the rate limit")
			client, err := clientOf(on.kind, on.addrs)
			require.NoError(t, err)
			defer client.Close()
			eventually(t, "the processes, which still run, to have no hold", func() bool {
				for i := range contestedHoldKeys {
					for limiter, key := range map[string]string{"api": "plain", "rated": "rated"} {
						if client.Exists(ctx, holdsKey(limiter, fmt.Sprint(key, i))).Val() > 0 {
							return false
						}
					}
				}
				return true
			})
		})
	}
}

const (
	clientKindEnv = "RATELIMIT_E2E_CLIENT"  // server, cluster, ring or sentinel
	measureEnv    = "RATELIMIT_E2E_MEASURE" // the address of a server that counts what runs
)

// clientOf makes a client of a child process.
func clientOf(kind string, addrs []string) (redis.UniversalClient, error) {
	switch kind {
	case "server":
		return redis.NewClient(&redis.Options{Addr: addrs[0]}), nil
	case "cluster":
		return redis.NewClusterClient(&redis.ClusterOptions{Addrs: addrs}), nil
	case "ring":
		o := &redis.RingOptions{Addrs: make(map[string]string)}
		for i, addr := range addrs {
			o.Addrs[fmt.Sprint("shard", i)] = addr
		}
		return redis.NewRing(o), nil
	case "sentinel":
		return redis.NewFailoverClient(&redis.FailoverOptions{MasterName: redistest.MasterName, SentinelAddrs: addrs}), nil
	}
	return nil, fmt.Errorf("no client of kind %q", kind)
}

// holdAtRedis is one of the processes. It prints how many holds of a key there were at most at the
// same time, of all processes, and how many units it got under the rate limit.
//
// What it measures is shorter than the hold: a counter on another server goes up after the hold
// has begun, and down before it ends.
func holdAtRedis() error {
	client, err := clientOf(os.Getenv(clientKindEnv), strings.Split(os.Getenv(redisAddrEnv), ","))
	if err != nil {
		return err
	}
	running := redis.NewClient(&redis.Options{Addr: os.Getenv(measureEnv)})
	limit := InFlight(contestedHolds, time.Minute)
	plain, err := New("api", redisOptions(client, limit))
	if err != nil {
		return err
	}
	rated, err := New("rated", redisOptions(client, FixedWindow(contestedHoldRate, 1000*time.Hour), limit))
	if err != nil {
		return err
	}
	fmt.Println("ready")
	awaitProceed(bufio.NewReader(os.Stdin))

	var most, units atomic.Int64
	// work reports whether there was a hold.
	work := func(l *Limiter, key string) (Decision, error) {
		release, d, err := l.Acquire(ctx, key)
		if err != nil || !d.Allowed {
			return d, err
		}
		defer release()
		n, err := running.Incr(ctx, key).Result()
		if err != nil {
			return d, err
		}
		for was := most.Load(); n > was && !most.CompareAndSwap(was, n); was = most.Load() {
		}
		return d, running.Decr(ctx, key).Err()
	}
	failed := make(chan error, 1)
	fail := func(err error) {
		select {
		case failed <- err:
		default:
		}
	}
	var all sync.WaitGroup
	for i := range contestedHoldKeys {
		for range 8 {
			all.Go(func() {
				for range contestedHoldTimes {
					if _, err := work(plain, fmt.Sprint("plain", i)); err != nil {
						fail(err)
						return
					}
				}
			})
			all.Go(func() { // until all units are taken
				for {
					d, err := work(rated, fmt.Sprint("rated", i))
					switch {
					case err != nil:
						fail(err)
						return
					case d.Allowed:
						units.Add(1)
					case d.Limit.Algorithm() == "fixed":
						return
					}
				}
			})
		}
	}
	all.Wait()
	select {
	case err := <-failed:
		return err
	default:
	}
	fmt.Println("most", most.Load(), "units", units.Load())
	awaitProceed(bufio.NewReader(os.Stdin)) // until the test has looked at Redis
	return nil
}

// Holds in Redis

// holdsKey returns the key of a limiter's holds.
func holdsKey(limiter, key string) string { return "rl:" + limiter + ":{" + key + "}:inflight" }

// record is what Redis has of the holds of one process and key.
type record struct{ began, ended, until, lasts int64 } // the last two in microseconds

var recordForm = regexp.MustCompile(`^(\d+) (\d+) (\d+) (\d+)$`)

// records returns the records of a key that have not ended. It fails if a record is wrong.
func records(t testing.TB, c redis.UniversalClient, key string) map[string]record {
	t.Helper()
	fields, err := c.HGetAll(ctx, key).Result()
	require.NoError(t, err)
	now, err := c.Time(ctx).Result()
	require.NoError(t, err)
	all := make(map[string]record)
	for process, value := range fields {
		m := recordForm.FindStringSubmatch(value)
		require.NotNil(t, m, value)
		var n [4]int64
		for i := range n {
			n[i], err = strconv.ParseInt(m[i+1], 10, 64)
			require.NoError(t, err)
		}
		require.GreaterOrEqual(t, n[0], n[1], "%s: no count is negative", value)
		if n[2] > now.UnixMicro() {
			all[process] = record{n[0], n[1], n[2], n[3]}
		}
	}
	return all
}

// heldAt returns how many holds of a key Redis counts.
func heldAt(t testing.TB, c redis.UniversalClient, key string) (n int64) {
	t.Helper()
	for _, r := range records(t, c, key) {
		n += r.began - r.ended
	}
	return n
}

// Requests

// request is a request whose handler runs until the test finishes it.
type request struct {
	finish chan struct{}
	status chan int
}

// begin sends a request through a limiter with HeaderKey("Key"). It returns nil and the status
// if the request is denied. Otherwise the handler runs when begin returns.
func begin(l *Limiter, key string) (*request, int) {
	r := &request{make(chan struct{}), make(chan int, 1)}
	running := make(chan struct{})
	h := l.Middleware(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		close(running)
		<-r.finish
		w.WriteHeader(http.StatusNoContent)
	}))
	go func() {
		w, req := httptest.NewRecorder(), httptest.NewRequest("GET", "/", nil)
		req.Header.Set("Key", key)
		h.ServeHTTP(w, req)
		r.status <- w.Code
	}()
	select {
	case <-running:
		return r, 0
	case status := <-r.status:
		return nil, status
	}
}

// beginAll sends n requests, which must be admitted.
func beginAll(t testing.TB, l *Limiter, key string, n int) (all []*request) {
	t.Helper()
	for range n {
		r, status := begin(l, key)
		require.NotNil(t, r, status)
		all = append(all, r)
	}
	return all
}

// beginHeld sends requests until n of them have a hold of the store. A call that the store has
// not answered in time is made again.
func beginHeld(t testing.TB, l *Limiter, key string, n int) (all []*request) {
	t.Helper()
	eventually(t, "requests to get holds", func() bool {
		for len(all) < n {
			before := l.Stats().InFlight
			r, _ := begin(l, key)
			if r == nil {
				return false
			}
			if l.Stats().InFlight == before { // FailOpen has let it through without one
				endAll(t, []*request{r})
				return false
			}
			all = append(all, r)
		}
		return true
	})
	return all
}

// endAll finishes requests, and waits for their responses.
func endAll(t testing.TB, all []*request) {
	t.Helper()
	for _, r := range all {
		close(r.finish)
		require.Equal(t, http.StatusNoContent, <-r.status)
	}
}

// inFlightOptions returns options for requests under an in-flight limit.
func inFlightOptions(client redis.UniversalClient, on FailurePolicy, limits ...Limit) Options {
	o := quiet(limits...)
	o.Redis, o.OnFailure, o.Timeout, o.Key = client, on, faultTimeout, HeaderKey("Key")
	return o
}

// hold makes one call of a store about holds. An error ends the test.
func hold(t testing.TB, s HoldStore, r HoldRequest) ([]Result, HoldReply) {
	t.Helper()
	results := make([]Result, len(r.Limits)+1)
	reply, err := s.Hold(ctx, r, results)
	require.NoError(t, err)
	return results, reply
}

// holdCalls are all kinds of calls about holds, by a process that has had two of which one
// has ended, and is denied a third.
func holdCalls(key, process string, lasts time.Duration, limits ...Limit) map[string]HoldRequest {
	of := func(action HoldAction, most, began, ended, units int64) HoldRequest {
		r := HoldRequest{Action: action, Key: key, Most: most, Lasts: lasts, Process: process, Began: began, Ended: ended, Units: units}
		if action != HoldRenew {
			r.Limits = limits
		}
		return r
	}
	return map[string]HoldRequest{
		"begins":          of(HoldAdd, 1000, 2, 1, 1),
		"denied":          of(HoldAdd, 1, 2, 1, 1),
		"looks":           of(HoldLook, 1000, 2, 1, 0),
		"renews":          of(HoldRenew, 1000, 2, 1, 0),
		"ends":            of(HoldRenew, 1000, 2, 2, 0),
		"denied and ends": of(HoldAdd, 0, 2, 2, 1),
	}
}

// TestHoldsHaveATTLAfterEveryCall makes every pair of calls of two processes. The hash lives
// until the last record ends, rounded up to a millisecond, and not longer. A key without holds
// does not exist.
func TestHoldsHaveATTLAfterEveryCall(t *testing.T) {
	c := redistest.Start(t).Client()
	s := redisStore(t, c, "rl:ttl:")
	name := "rl:ttl:{k}:inflight"
	lives := func(what string) {
		t.Helper()
		var latest int64
		for _, r := range records(t, c, name) {
			latest = max(latest, r.until)
		}
		if latest == 0 {
			require.Zero(t, c.Exists(ctx, name).Val(), what)
			return
		}
		require.EqualValues(t, (latest+999)/1000, c.PExpireTime(ctx, name).Val().Milliseconds(), what)
	}
	for _, limits := range [][]Limit{nil, {FixedWindow(1000, time.Hour)}, algorithms(1000)} {
		for first, one := range holdCalls("k", "first", time.Minute, limits...) {
			for second, other := range holdCalls("k", "second", time.Hour, limits...) {
				for third, again := range holdCalls("k", "first", 2*time.Minute, limits...) {
					require.NoError(t, c.FlushDB(ctx).Err())
					what := first + ", then " + second + ", then " + third
					for _, call := range []HoldRequest{one, other, again} {
						hold(t, s, call)
						lives(what)
						requireTTL(t, c, s, "k", limits...)
					}
				}
			}
		}
	}
}

// TestMissingTTLOfHoldsIsRepaired removes the time to live of the hash. The next call that
// begins, renews or ends a hold sets it again.
func TestMissingTTLOfHoldsIsRepaired(t *testing.T) {
	c := redistest.Start(t).Client()
	s := redisStore(t, c, "rl:ttl:")
	name := "rl:ttl:{k}:inflight"
	for what, call := range holdCalls("k", "first", time.Minute) {
		if call.Action == HoldLook || what == "denied" { // they change nothing, and the holders do
			continue
		}
		require.NoError(t, c.FlushDB(ctx).Err())
		hold(t, s, holdCalls("k", "second", time.Hour)["renews"])
		hold(t, s, holdCalls("k", "first", time.Minute)["renews"])
		require.True(t, c.Persist(ctx, name).Val())
		hold(t, s, call)
		require.InDelta(t, time.Hour.Seconds(), c.PTTL(ctx, name).Val().Seconds(), slack.Seconds(), what)
	}
}

// TestForeignValuesInThePlaceOfHolds puts other values under the key. They cause an error that
// names the key, nothing changes, and no unit is taken. The limiter decides about the key by
// itself, and Redis about all others.
func TestForeignValuesInThePlaceOfHolds(t *testing.T) {
	server := redistest.Start(t)
	c := server.Client()
	s := redisStore(t, c, "rl:api:")
	key := holdsKey("api", "k")
	foreign := map[string]func() error{
		"string": func() error { return c.Set(ctx, key, "1 0 1 1", 0).Err() },
		"list":   func() error { return c.RPush(ctx, key, "x").Err() },
		"set":    func() error { return c.SAdd(ctx, key, "x").Err() },
		"zset":   func() error { return c.ZAdd(ctx, key, redis.Z{Member: "x"}).Err() },
		"stream": func() error { return c.XAdd(ctx, &redis.XAddArgs{Stream: key, Values: []string{"f", "v"}}).Err() },
	}
	for _, junk := range []string{"", "junk", "1", "1 0", "1 0 1", "1 0 1 1 1", "-1 0 1 1", "1 -1 1 1", "1.5 0 1 1", "1e3 0 1 1", " 1 0 1 1", "1 0 1 1\n",
		"1  0 1 1", "0x1 0 1 1", "nan 0 1 1", "１ 0 1 1", "1234567890123456 0 1 1", "1 0 12345678901234567 1", "1 0 1 12345678901234567"} {
		foreign[strconv.Quote(junk)] = func() error { return c.HSet(ctx, key, "other", junk).Err() }
	}
	for name, put := range foreign {
		t.Run(name, func(t *testing.T) {
			for _, limits := range [][]Limit{nil, {FixedWindow(1000, time.Hour)}} {
				require.NoError(t, c.FlushDB(ctx).Err())
				require.NoError(t, put())
				before := c.Dump(ctx, key).Val()
				for what, call := range holdCalls("k", "first", time.Minute, limits...) {
					_, err := s.Hold(ctx, call, make([]Result, len(call.Limits)+1))
					var redisErr *RedisError
					require.ErrorAs(t, err, &redisErr, what)
					require.ErrorContains(t, err, strconv.Quote(key), what)
					require.True(t, redisErr.Unsent, what)
					require.Equal(t, before, c.Dump(ctx, key).Val(), what)
					require.EqualValues(t, 1, c.DBSize(ctx).Val(), "and nothing else was written: "+what)
				}
				options := func(on FailurePolicy) Options {
					o := inFlightOptions(c, on, append(limits, InFlight(2, time.Minute))...)
					o.Timeout = time.Minute
					return o
				}
				l := newLimiter(t, "api", options(FallbackLocal))
				requests := beginAll(t, l, "k", 2)
				_, status := begin(l, "k")
				require.Equal(t, http.StatusTooManyRequests, status)
				release, d, err := l.Acquire(ctx, "another")
				require.NoError(t, err)
				require.Equal(t, SourceStore, d.Source)
				release()
				endAll(t, requests)
				endAll(t, beginAll(t, l, "k", 2))
				require.Zero(t, l.Stats().Remote.BreakerOpened)
				require.Equal(t, before, c.Dump(ctx, key).Val())
				require.NoError(t, l.Close())

				closed := newLimiter(t, "api", options(FailClosed))
				_, _, err = closed.Acquire(ctx, "k")
				require.ErrorContains(t, err, strconv.Quote(key))
				require.NoError(t, c.Del(ctx, key).Err())
				release, d, err = closed.Acquire(ctx, "k")
				require.NoError(t, err)
				require.True(t, d.Allowed, "the key counts again")
				release()
				eventually(t, "the hold to have ended", func() bool { return c.Exists(ctx, key).Val() == 0 })
				require.NoError(t, closed.Close())
			}
		})
	}
}

// TestRightsForHoldsAreNeeded: without one of the commands for in-flight limits, Redis refuses
// a hold, and the error says what to allow. Other limits need none of them.
func TestRightsForHoldsAreNeeded(t *testing.T) {
	server := redistest.Start(t)
	admin := server.Client()
	for _, right := range []string{"hgetall", "hset", "hdel", "pexpireat"} {
		require.NoError(t, admin.FlushDB(ctx).Err())
		setUser(append(documentedUser(t, "limiter"), "-"+right), server)
		client := server.Client(func(o *redis.Options) { o.Username, o.Password = "limiter", documentedPassword })
		s := redisStore(t, client, "rl:api:")
		var err error
		for _, what := range []string{"begins", "ends"} {
			call := holdCalls("k", "first", time.Minute, hour)[what]
			if what == "ends" {
				call.Began, call.Ended, call.Alone = 3, 3, true
			}
			_, e := s.Hold(ctx, call, make([]Result, len(call.Limits)+1))
			err = errors.Join(err, e)
		}
		require.ErrorContains(t, err, "HGETALL, HSET, HDEL and PEXPIREAT", right)
		if right == "hgetall" {
			require.Zero(t, admin.DBSize(ctx).Val())
		}
		_, admitted := take(t, s, "other", 1, hour)
		require.True(t, admitted)
		require.NoError(t, client.Close())
	}
}
