package ratelimit_test

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
)

// These tests are about rolling windows at a Redis in this process. Package internal/e2e has
// those with real servers.

// packed returns the value of a rolling window with these instants, as docs/redis.md has it.
func packed(instants ...time.Time) string {
	var b []byte
	for _, at := range instants {
		b = append(b, binary.BigEndian.AppendUint64(nil, uint64(at.UnixMicro()))[1:]...)
	}
	return string(b)
}

// TestRollingKeysAtRedis: the names, the values and the times to live are as docs/redis.md
// says.
func TestRollingKeysAtRedis(t *testing.T) {
	m := newMini(t)
	s := redisStore(t, m.client(t), "rl:")
	hourly, byMinute := Rolling(4, time.Hour), Rolling(3, time.Minute)
	value := func(key string) string {
		v, err := m.Get(key)
		require.NoError(t, err, key)
		return v
	}
	take(t, s, "k", 2, hourly, byMinute)
	first := m.now
	m.advance(30 * time.Second)
	take(t, s, "k", 1, byMinute, hourly)
	second := m.now
	require.Equal(t, packed(first, first, second), value("rl:{k}:rolling-1h"))
	require.Equal(t, packed(first, first, second), value("rl:{k}:rolling-1m"))
	require.Equal(t, time.Hour, m.TTL("rl:{k}:rolling-1h"))
	require.Equal(t, time.Minute, m.TTL("rl:{k}:rolling-1m"))

	// A denial writes nothing, and a take removes what has left.
	_, admitted := take(t, s, "k", 1, hourly, byMinute)
	require.False(t, admitted)
	require.Equal(t, packed(first, first, second), value("rl:{k}:rolling-1h"))
	m.advance(30 * time.Second)
	require.Equal(t, packed(first, first, second), value("rl:{k}:rolling-1m"))
	require.Equal(t, 30*time.Second, m.TTL("rl:{k}:rolling-1m"))
	take(t, s, "k", 1, byMinute)
	require.Equal(t, packed(second, m.now), value("rl:{k}:rolling-1m"))

	// A refund makes the key live shorter, and the last one deletes it.
	_, err := s.Adjust(ctx, "k", -1, Instant(m.now.UnixNano()), []Limit{byMinute})
	require.NoError(t, err)
	require.Equal(t, packed(second), value("rl:{k}:rolling-1m"))
	require.Equal(t, 30*time.Second, m.TTL("rl:{k}:rolling-1m"))
	_, err = s.Adjust(ctx, "k", -1, Instant(first.UnixNano()), []Limit{byMinute})
	require.NoError(t, err)
	require.Equal(t, packed(second), value("rl:{k}:rolling-1m"), "the units of that instant have left")
	_, err = s.Adjust(ctx, "k", -9, Now, []Limit{byMinute})
	require.NoError(t, err)
	require.False(t, m.Exists("rl:{k}:rolling-1m"))
	require.Equal(t, packed(first, first, second), value("rl:{k}:rolling-1h"))

	// A charge of the past is put in order, and the youngest unit decides on the end.
	charged, err := s.Adjust(ctx, "k", 3, Instant(first.Add(time.Second).UnixNano()), []Limit{hourly})
	require.NoError(t, err)
	require.EqualValues(t, 1, charged)
	require.Equal(t, packed(first, first, first.Add(time.Second), second), value("rl:{k}:rolling-1h"))
	require.Equal(t, time.Hour-30*time.Second, m.TTL("rl:{k}:rolling-1h"))

	// A block is before the log, which may have any byte, also one that ends a line.
	blocking := hourly.Block(2*time.Hour, 3*time.Hour)
	results, admitted := take(t, s, "k", 1, blocking)
	require.False(t, admitted)
	require.True(t, results[0].BlockBegan)
	two, three := 2*time.Hour, 3*time.Hour
	block := fmt.Sprintf("!%d %d 1 %d ", m.now.Add(two).UnixMicro(), two.Microseconds(), three.Microseconds())
	require.Equal(t, block+packed(first, first, first.Add(time.Second), second), value("rl:{k}:rolling-1h"))
	require.Equal(t, two+three, m.TTL("rl:{k}:rolling-1h"))
	m.advance(90 * time.Minute) // the units have left, and the block stays
	results, admitted = take(t, s, "k", 1, blocking)
	require.False(t, admitted)
	require.Equal(t, 30*time.Minute, results[0].RetryAfter)
	_, err = s.Adjust(ctx, "k", -9, Now, []Limit{blocking})
	require.NoError(t, err)
	require.Equal(t, block, value("rl:{k}:rolling-1h"), "a block without units")
	m.advance(30 * time.Minute)
	_, admitted = take(t, s, "k", 1, blocking)
	require.True(t, admitted)
	require.Equal(t, block+packed(m.now), value("rl:{k}:rolling-1h"), "the rung is remembered")
	require.NoError(t, s.Reset(ctx, "k", []Limit{blocking}))
	require.False(t, m.Exists("rl:{k}:rolling-1h"))

	// A missing time to live is repaired by a look and by a denial, and the units stay.
	for _, n := range []int64{0, 1} {
		take(t, s, "k", 4, hourly)
		taken := m.now
		m.advance(time.Minute)
		require.NoError(t, m.Set("rl:{k}:rolling-1h", value("rl:{k}:rolling-1h")))
		require.Zero(t, m.TTL("rl:{k}:rolling-1h"))
		take(t, s, "k", n, hourly)
		require.Equal(t, time.Hour-time.Minute, m.TTL("rl:{k}:rolling-1h"))
		require.Equal(t, packed(taken, taken, taken, taken), value("rl:{k}:rolling-1h"))
		require.NoError(t, s.Reset(ctx, "k", []Limit{hourly}))
	}
}

// TestForeignValueOfARollingKeyFailsAlone: a value that is no log is an error that names the
// key. It stays as it is, and other keys of the same command are decided.
func TestForeignValueOfARollingKeyFailsAlone(t *testing.T) {
	for name, foreign := range map[string]string{
		"text":      "hello",
		"a state":   "1767323045678000 2 0",
		"24 bytes":  "C" + strings.Repeat("\x00", 23),
		"packed":    "C\x19\x1d\x3f\x5e\x00\x00\x00@\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00",
		"six bytes": "\x06\x00\x00\x00\x00\x00",
		"too late":  "\x20\x00\x00\x00\x00\x00\x00",
	} {
		bubble(t, func(t *testing.T, m *miniredis.Miniredis, c *redis.Client) {
			s := redisStore(t, c, "rl:")
			l := Rolling(3, time.Hour)
			require.NoError(t, m.Set("rl:{bad}:rolling-1h", foreign))
			var all sync.WaitGroup
			for i := range 20 {
				for _, key := range []string{"bad", fmt.Sprint("good", i)} {
					all.Go(func() {
						results := make([]Result, 1)
						_, err := s.Take(ctx, key, 1, []Limit{l}, results)
						switch {
						case key != "bad" && err != nil:
							t.Errorf("%s: %s: %v", name, key, err)
						case key == "bad" && (err == nil || !strings.Contains(err.Error(), "rl:{bad}:rolling-1h")):
							t.Errorf("%s: %v", name, err)
						}
					})
				}
			}
			all.Wait()
			_, err := s.Adjust(ctx, "bad", 1, Now, []Limit{l})
			require.ErrorContains(t, err, "rl:{bad}:rolling-1h", name)
			require.ErrorContains(t, s.Block(ctx, "bad", Block{Left: time.Hour}, []Limit{l}), "rl:{bad}:rolling-1h", name)
			value, err := m.Get("rl:{bad}:rolling-1h")
			require.NoError(t, err)
			require.Equal(t, foreign, value, name)
			require.NoError(t, s.Reset(ctx, "bad", []Limit{l}))
			_, admitted := take(t, s, "bad", 3, l)
			require.True(t, admitted, name)
		})
	}
}

// TestRollingAtRedisAnswersLikeMemory makes the same random calls of a limiter at Redis and
// of one in memory. All answers are equal to the microsecond, also the ones that this process
// gives from what it knows.
func TestRollingAtRedisAnswersLikeMemory(t *testing.T) {
	inBubbles(t, 30, 3, rollingLikeMemory)
}

func rollingLikeMemory(t *testing.T, r *rand.Rand) {
	windows := []time.Duration{time.Millisecond, 1234567 * time.Microsecond, time.Minute, 90 * time.Minute, years}
	r.Shuffle(len(windows), func(i, j int) { windows[i], windows[j] = windows[j], windows[i] })
	windows = windows[:1+r.IntN(3)]
	ladders := [][]time.Duration{nil, nil, {time.Millisecond}, {time.Second, time.Minute, time.Hour}}
	limits := func() (all []Limit) { // of the same counters each time
		for i, w := range windows {
			l := Rolling([]int64{1, 2, 3, 7, 40, MaxRolling}[r.IntN(6)], w)
			if ladder := ladders[(i+len(windows))%len(ladders)]; ladder != nil {
				l = l.Block(ladder...)
			}
			all = append(all, l)
		}
		return all
	}
	var opts []RedisOption
	if r.IntN(3) == 0 {
		opts = append(opts, HashKeys([]byte("0123456789abcdef")))
	}
	o := quiet(limits()...)
	o.Timeout, o.OnFailure = time.Minute, FailClosed
	o.DenyRecheck = []time.Duration{0, 1, -1, time.Hour}[r.IntN(4)]
	atRedis := processOf(t, redisStore(t, piped(t, miniredis.NewMiniRedis()), "rl:", opts...), o)
	inMemory := processOf(t, memory(t, ""), o)
	keys := []string{"a", "{b}\x00\n!", strings.Repeat("x", 5000)}
	time.Sleep(time.Until(time.Now().Truncate(time.Microsecond).Add(time.Microsecond)))
	begin, sources := time.Now(), make(map[Source]int)
	for i := range 300 {
		present := atRedis.Limits()
		l := present[r.IntN(len(present))]
		w, key := l.Window(), keys[r.IntN(len(keys))]
		sleep := []time.Duration{0, 0, 0, time.Microsecond, w / 10, w / time.Duration(l.N()+1), w - time.Microsecond, w, time.Duration(r.Int64N(int64(w)))}[r.IntN(9)]
		if time.Since(begin)+sleep < years+years/8 { // a memory store's clock lasts for 73 years
			time.Sleep(sleep.Truncate(time.Microsecond))
		}
		n := []int64{0, 1, 1, 1, 2, l.N(), l.N() / 2, l.N() + 1, 1 + r.Int64N(l.N())}[r.IntN(9)]
		what := fmt.Sprintf("call %d: %d units of %.10q under %v after %v", i, n, key, present, sleep)
		same := func(got, want Decision, err, errWant error) {
			t.Helper()
			require.NoError(t, err, what)
			require.NoError(t, errWant, what)
			sources[got.Source]++
			got.Source, want.Source = 0, 0
			require.Equal(t, want, got, what)
		}
		switch r.IntN(12) {
		case 0:
			next := limits()
			require.NoError(t, atRedis.SetLimits(next...))
			require.NoError(t, inMemory.SetLimits(next...))
		case 1:
			require.NoError(t, atRedis.Refund(ctx, key, n), what)
			require.NoError(t, inMemory.Refund(ctx, key, n), what)
		case 2:
			if r.IntN(4) == 0 {
				require.NoError(t, atRedis.Reset(ctx, key), what)
				require.NoError(t, inMemory.Reset(ctx, key), what)
			}
		case 3:
			got, err := atRedis.LookKey(ctx, key)
			require.NoError(t, err, what)
			want, err := inMemory.LookKey(ctx, key)
			require.NoError(t, err, what)
			require.Equal(t, want, got, what)
		case 4, 5:
			granted, got, err := atRedis.TakeUpTo(ctx, key, max(1, n))
			wanted, want, errWant := inMemory.TakeUpTo(ctx, key, max(1, n))
			same(got, want, err, errWant)
			require.Equal(t, wanted, granted, what)
		case 6:
			plan := limits()[:1+r.IntN(len(windows))]
			what += fmt.Sprintf(", plan %v", plan)
			got, err := atRedis.TakeLimits(ctx, key, n, plan...)
			want, errWant := inMemory.TakeLimits(ctx, key, n, plan...)
			same(got, want, err, errWant)
		default:
			got, err := atRedis.TakeN(ctx, key, n)
			want, errWant := inMemory.TakeN(ctx, key, n)
			same(got, want, err, errWant)
		}
	}
	t.Log(sources)
}

// TestRollingOutage: in an outage, a process goes on from the log that it knows, so it
// answers like a limiter in memory. After that Redis has all its units: no unit counts for
// less than a window, and none for more than a 64th of the window longer.
func TestRollingOutage(t *testing.T) {
	inBubbles(t, 40, 4, rollingOutage)
}

func rollingOutage(t *testing.T, r *rand.Rand) {
	m := miniredis.NewMiniRedis()
	client := piped(t, m)
	limits := []Limit{Rolling([]int64{1, 3, 20, 100, MaxRolling}[r.IntN(5)], time.Hour)}
	if r.IntN(2) == 0 {
		limits = append(limits, Rolling(1+r.Int64N(MaxRolling), 3*time.Hour))
	}
	o := quiet(limits...)
	o.Count = func(_ *http.Request, status int) bool { return status < 300 }
	atRedis := processOf(t, redisStore(t, client, "rl:"), o)
	inMemory := processOf(t, memory(t, ""), o)
	observer := redisStore(t, client, "rl:")
	time.Sleep(time.Until(time.Now().Truncate(time.Second).Add(time.Second)))

	// What is given back by Refund may be older at Redis than here, and count for longer there.
	// In an outage, 16 refunds of one unit each are kept apart. If more of them are joined, only
	// those are sent to Redis of which all units still count.
	refunds := r.IntN(2) == 0

	// A request takes a unit when it comes, is charged or not counted when it ends.
	var requests sync.WaitGroup
	request := func(lasts time.Duration, cost int64, status int) {
		for _, l := range []*Limiter{atRedis, inMemory} {
			requests.Go(func() {
				l.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					time.Sleep(lasts)
					if err := l.AddCost(r.Context(), cost); err != nil {
						t.Error(err)
					}
					w.WriteHeader(status)
				})).ServeHTTP(httptest.NewRecorder(), httpRequest("GET"))
			})
		}
	}
	refunded := 0
	calls := func(from Source, span time.Duration) {
		for range 150 {
			time.Sleep(time.Duration(r.Int64N(int64(span/75))) / time.Millisecond * time.Millisecond)
			n := 1 + r.Int64N(1+limits[0].N()/10)
			action := r.IntN(8)
			if action == 0 && (!refunds || from == SourceFallback && refunded == 16) {
				action = 1
			}
			switch action {
			case 0:
				if n = 1 + r.Int64N(n); from == SourceFallback {
					n = 1
					refunded++
				}
				require.NoError(t, atRedis.Refund(ctx, httpKey, n))
				require.NoError(t, inMemory.Refund(ctx, httpKey, n))
			case 1, 2:
				// Requests must not end at the same time, because their order is not known then.
				lasts := time.Duration(r.Int64N(int64(span/10)))/time.Millisecond*time.Millisecond + time.Duration(1+r.IntN(999_999))*time.Nanosecond
				request(lasts/1000*1000, r.Int64N(3), []int{200, 200, 400}[r.IntN(3)])
			default:
				got, want := decide(t, atRedis, httpKey, n), decide(t, inMemory, httpKey, n)
				if from != SourceStore {
					require.NotEqual(t, SourceStore, got.Source)
				}
				got.Source, want.Source = 0, 0
				require.Equal(t, want, got)
			}
			synctest.Wait()
		}
	}
	known := r.IntN(4) > 0
	if known {
		calls(SourceStore, time.Duration(1+r.Int64N(int64(2*time.Hour))))
	} else {
		decide(t, atRedis, "another", 1)
	}
	requests.Wait()
	m.SetError("LOADING Redis is loading the dataset in memory")
	for i := range 5 {
		decide(t, atRedis, fmt.Sprint("breaks down ", i), 1)
	}
	require.True(t, atRedis.Stats().Remote.BreakerOpen)
	calls(SourceFallback, time.Duration(1+r.Int64N(int64(2*time.Hour))))
	requests.Wait()
	m.SetError("")
	settled(t, atRedis)
	require.Zero(t, atRedis.Stats().Remote.Forgotten)

	for i, l := range limits[:1] { // the other one is wider
		const steps = 200
		part := l.Window() / 64
		var used [steps]int64 // in memory
		for step := range used {
			standing, err := inMemory.LookKey(ctx, httpKey)
			require.NoError(t, err)
			used[step] = l.N() - standing[i].Remaining
			results, _ := take(t, observer, httpKey, 0, l)
			atStore := l.N() - results[0].Remaining
			require.GreaterOrEqual(t, atStore, used[step], "%v: step %d, %d in memory", l, step, used[step])
			if step > 0 && !refunds {
				require.LessOrEqual(t, atStore, used[step-1], "%v: step %d", l, step)
			}
			time.Sleep(part)
		}
		require.Zero(t, used[steps-1])
	}
	decide(t, inMemory, httpKey, 1)
	require.True(t, decide(t, atRedis, httpKey, 1).Allowed)
}

// TestRollingServerClockSetBack fails over to a server whose clock is behind: what was used up
// stays used up, and no key is denied for longer than a window and the difference.
func TestRollingServerClockSetBack(t *testing.T) {
	for _, setBack := range []time.Duration{time.Microsecond, time.Millisecond, 59 * time.Minute, time.Hour, 61 * time.Minute, 1000 * time.Hour} {
		for key, left := range map[string]int64{"old": 0, "full": 0, "half": 1} {
			m := newMini(t)
			s := redisStore(t, m.client(t), "rl:")
			l := Rolling(3, time.Hour)
			what := fmt.Sprintf("%s, %v back", key, setBack)
			if key == "old" {
				take(t, s, key, 1, l)
			}
			m.advance(30 * time.Minute)
			_, admitted := take(t, s, key, 2, l)
			require.True(t, admitted)
			if key == "full" {
				take(t, s, key, 1, l)
			}
			m.now = m.now.Add(-setBack)
			m.SetTime(m.now)
			_, admitted = take(t, s, key, left+1, l)
			require.False(t, admitted, what)
			_, admitted = take(t, s, key, left, l)
			require.True(t, admitted, what)
			results, admitted := take(t, s, key, 3, l)
			require.False(t, admitted, what)
			require.LessOrEqual(t, results[0].RetryAfter, time.Hour+min(setBack, time.Hour), what)
			results, admitted = take(t, s, key, 1, l)
			require.False(t, admitted, what)
			require.LessOrEqual(t, results[0].RetryAfter, time.Hour+min(setBack, time.Hour), what)
			require.LessOrEqual(t, m.TTL("rl:{"+key+"}:rolling-1h"), time.Hour+min(setBack, time.Hour)+time.Millisecond, what)
			m.advance(results[0].RetryAfter)
			_, admitted = take(t, s, key, 1, l)
			require.True(t, admitted, what)
		}
	}
}

// TestRollingServerClockThatJumpsAheadFreesNobody: a key that this process knows to be denied
// stays denied in it, for as long as it would have been.
func TestRollingServerClockThatJumpsAheadFreesNobody(t *testing.T) {
	needMiniredis(t)
	for _, jump := range []time.Duration{10 * time.Second, 40 * time.Minute, 2 * time.Hour, 1000 * time.Hour} {
		synctest.Test(t, func(t *testing.T) {
			m := miniredis.NewMiniRedis()
			o := quiet(Rolling(5, time.Hour))
			o.DenyRecheck = time.Nanosecond
			l := processOf(t, redisStore(t, piped(t, m), "rl:"), o)
			m.SetTime(time.Now())
			took(t, l, "key", 2)
			time.Sleep(30 * time.Minute)
			m.SetTime(time.Now())
			took(t, l, "key", 3)
			time.Sleep(time.Second)
			require.False(t, decide(t, l, "key", 1).Allowed)
			for minute := range 29 {
				m.SetTime(time.Now().Add(jump))
				require.False(t, decide(t, l, "key", 1).Allowed, "after %d minutes, %v ahead", minute, jump)
				synctest.Wait()
				time.Sleep(time.Minute)
			}
			time.Sleep(2 * time.Minute)
			m.SetTime(time.Now().Add(jump))
			require.True(t, decide(t, l, "key", 2).Allowed, "%v ahead", jump)
			time.Sleep(2 * time.Hour)
			m.SetTime(time.Now().Add(jump))
			require.True(t, decide(t, l, "key", 5).Allowed, "%v ahead", jump)
		})
	}
}

// TestRollingClockChangesInAnOutage: the server that comes back has another clock. What is owed
// arrives, and it counts for a window, as far as this process's clock goes.
func TestRollingClockChangesInAnOutage(t *testing.T) {
	needMiniredis(t)
	for _, shift := range []time.Duration{0, time.Second, -time.Second, 10 * time.Minute, -10 * time.Minute, 3 * time.Hour, -3 * time.Hour} {
		synctest.Test(t, func(t *testing.T) {
			m := miniredis.NewMiniRedis()
			limit := Rolling(10, time.Hour)
			client := piped(t, m)
			l := processOf(t, redisStore(t, client, "rl:"), quiet(limit))
			m.SetTime(time.Now())
			decide(t, l, "another", 1)
			m.SetError("LOADING Redis is loading the dataset in memory")
			for i := range 5 {
				decide(t, l, fmt.Sprint("breaks down ", i), 1)
			}
			for range 10 { // in 10 minutes
				require.Equal(t, SourceFallback, decide(t, l, "key", 1).Source)
				time.Sleep(time.Minute)
			}
			m.SetError("")
			m.SetTime(time.Now().Add(shift))
			time.Sleep(2 * time.Second)
			for range 2 {
				m.SetTime(time.Now().Add(shift))
				decide(t, l, "another", 0)
				time.Sleep(200 * time.Millisecond)
			}
			require.Zero(t, l.Stats().Remote.Owed, shift)
			m.SetTime(time.Now().Add(shift))
			observer := redisStore(t, client, "rl:")
			results, _ := take(t, observer, "key", 0, limit)
			require.Zero(t, results[0].Remaining, shift)
			require.InDelta(t, time.Hour-10*time.Minute, results[0].MoreAfter, float64(time.Hour/64+3*time.Second), "%v", shift)
			require.InDelta(t, time.Hour-time.Minute, results[0].ResetAfter, float64(time.Hour/64+3*time.Second), "%v", shift)
		})
	}
}

// TestRollingDenialHoldsForItsCost: with a store that reports no logs, a denial that is
// answered here is right for the cost that is asked for, and other costs are asked about.
func TestRollingDenialHoldsForItsCost(t *testing.T) {
	limit := Rolling(10, 10*time.Second)
	remotely(t, Options{Limits: []Limit{limit}, DenyRecheck: -1}, func(t *testing.T, backend *remoteBackend, l *Limiter) {
		control := limiter(t, limit)
		r := rand.New(rand.NewPCG(8, 9))
		for i := range 2000 {
			n := []int64{0, 1, 1, 2, 3, 3, 3, 9, 10, 11}[r.IntN(10)]
			got, want := decide(t, l, "key", n), decide(t, control, "key", n)
			require.Equal(t, []any{want.Allowed, want.Remaining, want.RetryAfter}, []any{got.Allowed, got.Remaining, got.RetryAfter}, "%d: %d units, %v", i, n, got)
			require.LessOrEqual(t, got.ResetAfter, 10*time.Second)
			time.Sleep(time.Duration(r.IntN(1200)) * time.Millisecond)
		}
		require.Greater(t, l.Stats().Remote.Cached, uint64(50))
	})
}

// TestRollingOutages: a store fails again and again, one that reports logs and one that does
// not. No interval as long as the window has more than n units, and no request is denied for
// longer than a window and a 64th of it.
func TestRollingOutages(t *testing.T) {
	needMiniredis(t)
	for seed := range uint64(30) {
		o := quiet(Rolling(12, time.Minute))
		o.DenyRecheck = []time.Duration{0, -1, time.Nanosecond}[seed%3]
		synctest.Test(t, func(t *testing.T) {
			m := miniredis.NewMiniRedis()
			l := processOf(t, redisStore(t, piped(t, m), "rl:"), o)
			rollingOutages(t, rand.New(rand.NewPCG(seed, 5)), l, func(down bool) {
				m.SetError("")
				if down {
					m.SetError("LOADING Redis is loading the dataset in memory")
				}
			})
		})
		remotely(t, o, func(t *testing.T, backend *remoteBackend, l *Limiter) {
			rollingOutages(t, rand.New(rand.NewPCG(seed, 5)), l, func(down bool) {
				backend.set(up)
				if down {
					backend.set(refused)
				}
			})
		})
	}
}

func rollingOutages(t *testing.T, r *rand.Rand, l *Limiter, fail func(down bool)) {
	began := time.Now()
	var units []time.Duration
	decide(t, l, "another", 1)
	every := 1 + r.IntN(60)
	for range 1500 {
		if r.IntN(every) == 0 {
			fail(r.IntN(2) == 0)
		}
		n, start := 1+r.Int64N(3), time.Now()
		d := decide(t, l, "key", n)
		// A call without a reply may have counted its units, so the store is not owed them. The
		// client dials again after an error, and that can take longer than Timeout.
		known := time.Since(start) < DefaultTimeout
		for range n {
			if d.Allowed && known {
				units = append(units, time.Since(began))
			}
		}
		require.LessOrEqual(t, d.RetryAfter, time.Minute+time.Minute/64)
		time.Sleep(time.Duration(r.IntN(3_000_000)) * time.Microsecond)
		synctest.Wait()
	}
	for first, at := range units {
		end, _ := slices.BinarySearch(units, at+time.Minute)
		require.LessOrEqual(t, end-first, 12, "from %v", at)
	}
	require.Greater(t, len(units), 300)
	fail(false)
	time.Sleep(time.Minute + time.Minute/64)
	decide(t, l, "another", 0)
	time.Sleep(time.Second)
	require.True(t, decide(t, l, "key", 12).Allowed)
	require.Zero(t, l.Stats().Remote.Forgotten)
}

// TestRollingWindowOfPartsOfAMicrosecond: Redis counts whole microseconds. Its window is the
// next longer one, so a unit never counts for less than its window.
func TestRollingWindowOfPartsOfAMicrosecond(t *testing.T) {
	bubble(t, func(t *testing.T, _ *miniredis.Miniredis, c *redis.Client) {
		const window = 1_234_567_891 * time.Nanosecond
		o := quiet(Rolling(3, window))
		o.DenyRecheck = -1
		l := processOf(t, redisStore(t, c, "rl:"), o)
		time.Sleep(time.Until(time.Now().Truncate(time.Microsecond).Add(time.Microsecond)))
		for range 20 {
			took(t, l, "k", 1)
			at := time.Now()
			time.Sleep(100 * time.Microsecond)
			require.True(t, decide(t, l, "k", 2).Allowed)
			d := decide(t, l, "k", 1)
			require.False(t, d.Allowed)
			require.GreaterOrEqual(t, time.Since(at)+d.RetryAfter, window)
			require.Less(t, time.Since(at)+d.RetryAfter, window+time.Microsecond)
			time.Sleep(d.RetryAfter - time.Microsecond)
			require.False(t, decide(t, l, "k", 1).Allowed)
			time.Sleep(time.Microsecond)
			require.True(t, decide(t, l, "k", 1).Allowed)
			time.Sleep(2 * window)
			require.Equal(t, Decision{Allowed: true, Limit: l.Limits()[0], Remaining: 3, Source: SourceStore, Policy: "l"}, decide(t, l, "k", 0))
			time.Sleep(time.Until(time.Now().Truncate(time.Microsecond).Add(time.Microsecond)))
		}
	})
}

// TestRollingProcesses: goroutines of several processes use a key at Redis, each process with
// what it knows of denials. No interval as long as the window has more than n units, and n are
// reached, alone and beside each other kind of limit.
func TestRollingProcesses(t *testing.T) {
	const n, window = 40, time.Second
	others := append(algorithms(1_000_000, time.Hour), Daily(1_000_000, nil), Rolling(1000, time.Minute))
	for i := range len(others) + 1 {
		bubble(t, func(t *testing.T, _ *miniredis.Miniredis, c *redis.Client) {
			limits := []Limit{Rolling(n, window)}
			if i < len(others) {
				limits = append(limits, others[i])
			}
			var mu sync.Mutex
			var units []time.Duration
			var all sync.WaitGroup
			began := time.Now()
			for p := range 3 {
				l := processOf(t, redisStore(t, c, "rl:"), quiet(limits...))
				for g := range 8 {
					all.Go(func() {
						r := rand.New(rand.NewPCG(uint64(g), uint64(p)))
						for range 60 {
							time.Sleep(time.Duration(r.IntN(60_000)) * time.Microsecond)
							want := 1 + r.Int64N(3)
							granted, d, err := want, Decision{}, error(nil)
							if r.IntN(3) == 0 {
								granted, d, err = l.TakeUpTo(ctx, "k", want)
							} else if d, err = l.TakeN(ctx, "k", want); !d.Allowed {
								granted = 0
							}
							if err != nil || d.RetryAfter > window {
								t.Error(d, err)
							}
							mu.Lock()
							for range granted {
								units = append(units, time.Since(began)) // the clock does not move during a call
							}
							mu.Unlock()
						}
					})
				}
			}
			all.Wait()
			slices.Sort(units)
			most := 0
			for first, at := range units {
				end, _ := slices.BinarySearch(units, at+window)
				most = max(most, end-first)
			}
			require.Equal(t, n, most, limits)
		})
	}
}

// TestRollingRequestsAtRedis: requests that do not count give back their units, so that only
// failures lead to a block. Every answer is as a limiter in memory gives it.
func TestRollingRequestsAtRedis(t *testing.T) {
	needMiniredis(t)
	for seed := range uint64(20) {
		synctest.Test(t, func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 6))
			o := quiet(Rolling(6, time.Minute).Block(2*time.Minute, time.Hour), Rolling(20, time.Hour))
			o.Count = func(_ *http.Request, status int) bool { return status >= 400 }
			time.Sleep(time.Until(time.Now().Truncate(time.Second).Add(time.Second)))
			limiters := []*Limiter{
				processOf(t, redisStore(t, piped(t, miniredis.NewMiniRedis()), "rl:"), o), processOf(t, memory(t, fmt.Sprint(seed)), o),
			}
			var codes [2][400]int
			var retries [2][400]string
			var all sync.WaitGroup
			for i := range 400 {
				lasts, cost, status := time.Duration(r.Int64N(int64(20*time.Second)))/1000*1000, r.Int64N(2), []int{200, 200, 403}[r.IntN(3)]
				for side, l := range limiters {
					all.Go(func() {
						w := httptest.NewRecorder()
						l.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
							time.Sleep(lasts)
							if err := l.AddCost(r.Context(), cost); err != nil {
								t.Error(err)
							}
							w.WriteHeader(status)
						})).ServeHTTP(w, httpRequest("GET"))
						codes[side][i], retries[side][i] = w.Code, w.Header().Get("Retry-After")
					})
				}
				time.Sleep(time.Duration(r.Int64N(int64(8*time.Second)))/1000*1000 + time.Microsecond)
			}
			all.Wait()
			require.Equal(t, codes[1], codes[0], "seed %d", seed)
			require.Equal(t, retries[1], retries[0], "seed %d", seed)
			require.Contains(t, codes[0], http.StatusTooManyRequests)
			require.Contains(t, codes[0], http.StatusOK)
		})
	}
}
