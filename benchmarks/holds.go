package benchmarks

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/ratelimit-go/ratelimit"
	"github.com/ratelimit-go/ratelimit/internal/redistest"
)

// This file has the cases of in-flight limits. A hold is begun and released, and the same is
// timed under a fixed window, which has no release.

// beside times do. Then it times both in turn, and reports the median of the ratios.
func beside(b *testing.B, do, plain func() bool, turn int, unit string) {
	timed := func(f func() bool, n int) time.Duration {
		begin := time.Now()
		for range n {
			if !f() {
				b.Fatal("denied")
			}
		}
		return time.Since(begin)
	}
	timed(do, 1)
	timed(plain, 1)
	var ratios []float64
	b.ReportAllocs()
	for b.Loop() {
		if !do() {
			b.Fatal("denied")
		}
	}
	for range 20 {
		one, other := timed(do, turn), timed(plain, turn)
		ratios = append(ratios, float64(one)/float64(other))
	}
	b.ReportMetric(Median(ratios), unit)
}

func besideTake(b *testing.B, open opener) {
	s, plain, k := open(plenty.holding()), open(plenty), key(0)
	defer s.end()
	defer plain.end()
	take := func(s subject) func() bool {
		return func() bool { ok, err := s.take(k); return ok && err == nil }
	}
	beside(b, take(s), take(plain), 1000, "x/take")
}

func besideRequest(b *testing.B, open opener) {
	s, plain := open(plenty.holding()), open(plenty)
	defer s.end()
	defer plain.end()
	w, r := newWriter(), newRequest()
	serve := func(s subject) func() bool {
		h := s.middleware(noContent)
		return func() bool { return w.serve(h, r) == http.StatusNoContent }
	}
	beside(b, serve(s), serve(plain), 1000, "x/request")
}

// holdSerially times Acquire and release in turn with a Take.
func holdSerially(b *testing.B, on *servers, l ServerLibrary) {
	e := on.enter(b, l, onServer(on.server), plenty.holding(), 1)
	inTurn(b, e, on.enter(b, l, onServer(on.server), plenty, 1), "x/take")
	e.counting(1, true)
	e.report()
}

const (
	renewedHolds = 10_000
	renewedLasts = 3 * time.Second // they are renewed after a third of it
	renewedTime  = 3 * time.Second
)

// renew keeps 10,000 requests of n keys in flight, and looks at the rounds in which their holds
// are renewed. Meanwhile, and once before, a caller of another limiter takes units one by one.
func renew(n int) func(*testing.B, *servers, ServerLibrary) {
	return func(b *testing.B, on *servers, l ServerLibrary) {
		plain := on.enter(b, l, onServer(on.server), plenty, 1000)
		for b.Loop() {
			alone, cpuAlone := plain.latency()
			client := onServer(on.server).goRedis(func(o *redis.UniversalOptions) { o.ContextTimeoutEnabled = true })
			var rounds roundTimes
			client.AddHook(&rounds)
			limiter := must(new(ratelimit.Registry).New("renewed", ratelimit.Options{
				Limits:  []ratelimit.Limit{ratelimit.InFlight(renewedHolds, renewedLasts)},
				Redis:   client,
				Key:     ratelimit.HeaderKey("Key"),
				Timeout: 3 * time.Second,
				Logger:  slog.New(slog.DiscardHandler),
			}))
			running, finish := context.WithCancel(background)
			var all sync.WaitGroup
			for i := range 64 {
				all.Go(func() {
					for j := i; j < renewedHolds; j += 64 {
						r := httptest.NewRequestWithContext(running, "GET", "/", nil)
						r.Header.Set("Key", key(j%n))
						if !limiter.Check(httptest.NewRecorder(), r) {
							b.Error("denied")
						}
					}
				})
			}
			all.Wait()
			time.Sleep(renewedLasts / 2)
			rounds.reset()
			beside, cpu := plain.latency()
			commands, took := rounds.sum()
			number := max(1, commands/float64(n)) // of rounds
			failed := failures(limiter)
			finish()
			limiter.Close()
			client.Close()
			if err := errors.Join(failed, plain.check()); err != nil {
				b.Fatal(err)
			}
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(took.Seconds()*1e3/number, "ms/round")
			if plain.serversKnown() {
				b.ReportMetric(max(0, (cpu-cpuAlone).Seconds())*1e3/number, "ms-cpu/round")
			}
			b.ReportMetric(beside.quantile(0.5), "us/p50")
			b.ReportMetric(alone.quantile(0.5), "us/p50-without")
			b.ReportMetric(beside.quantile(0.99), "us/p99")
			b.ReportMetric(alone.quantile(0.99), "us/p99-without")
		}
	}
}

// latency takes units, one every 500 µs, and returns how long each took, sorted, and the
// server's processor time.
func (e *entrant) latency() (waits latencies, cpu time.Duration) {
	before := e.serverCPU()
	for begin := time.Now(); time.Since(begin) < renewedTime; time.Sleep(500 * time.Microsecond) {
		var t turn
		at := time.Now()
		ok, err := e.take(e.keys[len(waits)%len(e.keys)])
		waits = append(waits, uint32(time.Since(at)))
		t.note(ok, err, true)
		e.all.add(t)
	}
	cpu = e.serverCPU() - before
	slices.Sort(waits)
	return waits, cpu
}

// roundTimes is a hook that notes when commands were sent and answered.
type roundTimes struct {
	redistest.Hook // dials as without it
	mu             sync.Mutex
	calls          []sentCall
}

type sentCall struct {
	begin, end time.Time
	commands   int
}

func (r *roundTimes) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		defer r.add(time.Now(), 1)
		return next(ctx, cmd)
	}
}

func (r *roundTimes) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		defer r.add(time.Now(), len(cmds))
		return next(ctx, cmds)
	}
}

func (r *roundTimes) add(begin time.Time, commands int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.calls = append(r.calls, sentCall{begin, time.Now(), commands})
}

func (r *roundTimes) reset() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.calls = nil
}

// sum returns how many commands there were, and how long at least one was under way.
func (r *roundTimes) sum() (commands float64, took time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	slices.SortFunc(r.calls, func(a, b sentCall) int { return a.begin.Compare(b.begin) })
	var last time.Time
	for _, c := range r.calls {
		commands += float64(c.commands)
		if c.begin.After(last) {
			last = c.begin
		}
		if c.end.After(last) {
			took += c.end.Sub(last)
			last = c.end
		}
	}
	return commands, took
}
