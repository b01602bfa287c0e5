package benchmarks

import (
	"fmt"
	"log/slog"
	"net/http"
	"runtime"
	"strconv"
	"testing"
	"time"

	"github.com/ratelimit-go/ratelimit"
)

// This file has the cases about what grows with the number of limits, plans, limiters and
// remembered keys. Other libraries do not have them.

// severalLimits times decisions under 1, 2, 4 and 8 limits in turn.
func severalLimits(b *testing.B, open opener) {
	counts := []int{1, 2, 4, 8}
	const turn = 2000
	var subjects []subject
	for _, n := range counts {
		q := plenty
		q.further = n - 1
		s := open(q)
		defer s.end()
		subjects = append(subjects, s)
	}
	k := key(0)
	times := make([][]float64, len(counts))
	var further []float64
	for b.Loop() {
		var last []float64
		for _, s := range subjects {
			begin := time.Now()
			for range turn {
				if ok, err := s.take(k); !ok || err != nil {
					b.Fatal(unexpected(ok, err))
				}
			}
			last = append(last, float64(time.Since(begin).Nanoseconds())/turn)
		}
		for i, ns := range last {
			times[i] = append(times[i], ns)
		}
		further = append(further, (last[len(last)-1]-last[0])/float64(counts[len(counts)-1]-counts[0]))
	}
	for _, s := range subjects {
		s.audited(b, []string{k}, int64(b.N*turn))
	}
	b.ReportMetric(0, "ns/op")
	for i, n := range counts {
		b.ReportMetric(Median(times[i]), "ns/"+strconv.Itoa(n))
	}
	b.ReportMetric(Median(further), "ns/further")
}

// plans serves requests under one of 1,000 plans, in turn with requests under one plan.
func plans(b *testing.B, _ opener) {
	const turn = 1000
	under := func(n int) func() bool {
		all := make([][]ratelimit.Limit, n)
		for i := range all {
			all[i] = []ratelimit.Limit{ratelimit.FixedWindow(plenty.units+int64(i), plenty.window)}
		}
		store := must(ratelimit.NewMemoryStore("p"+strconv.FormatInt(opened.Add(1), 10), ratelimit.MemoryOptions{}))
		at := 0
		l := plenty.limiter(fixedWindow, func(o *ratelimit.Options) {
			o.Store = store
			o.LimitsFor = func(*http.Request) []ratelimit.Limit {
				at++
				return all[at%n]
			}
		})
		b.Cleanup(func() { l.Close(); store.Close() })
		h, w, r := l.Middleware(noContent), newWriter(), newRequest()
		return func() bool { return w.serve(h, r) == http.StatusNoContent }
	}
	beside(b, under(1000), under(1), turn, "x/one-plan")
}

// manyLimiters measures the memory of limiters that nobody uses yet, and how long it takes to
// replace and to close them.
func manyLimiters(b *testing.B, _ opener) {
	var heap, closing, reloading, closeRatio, reloadRatio, lookup []float64
	for b.Loop() {
		few, many := limiters(1_000/smaller), limiters(10_000/smaller)
		heap = append(heap, many.heap)
		closing, reloading = append(closing, many.closing), append(reloading, many.reloading)
		lookup = append(lookup, many.lookup)
		closeRatio = append(closeRatio, many.closing/few.closing)
		reloadRatio = append(reloadRatio, many.reloading/few.reloading)
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(Median(heap), "B/limiter")
	b.ReportMetric(Median(closing), "us/close")
	b.ReportMetric(Median(closeRatio), "x/close")
	b.ReportMetric(Median(reloading), "us/reload")
	b.ReportMetric(Median(reloadRatio), "x/reload")
	b.ReportMetric(Median(lookup), "ms/lookup")
}

// grown is what each of many limiters costs: bytes, and microseconds. lookup is the longest
// Lookup while all were reloaded, in milliseconds.
type grown struct{ heap, closing, reloading, lookup float64 }

// limiters makes n limiters in memory, reloads them and closes them one by one.
func limiters(n int) (g grown) {
	before, _ := collected()
	stores := make([]*ratelimit.MemoryStore, n)
	names := make([]string, n)
	for i := range stores {
		names[i] = "l" + strconv.FormatInt(opened.Add(1), 10)
		stores[i] = must(ratelimit.NewMemoryStore(names[i], ratelimit.MemoryOptions{}))
	}
	build := func(r *ratelimit.Registry) error {
		for i, store := range stores {
			_, err := r.New(names[i], ratelimit.Options{
				Limits: []ratelimit.Limit{fixedWindow(plenty)}, Store: store, Logger: slog.New(slog.DiscardHandler),
			})
			if err != nil {
				return err
			}
		}
		return nil
	}
	each := func(d time.Duration) float64 { return d.Seconds() * 1e6 / float64(n) }
	registry := new(ratelimit.Registry)
	if err := registry.Reload(build); err != nil {
		panic(fmt.Errorf("reload: %w", err))
	}
	after, _ := collected()
	g.heap = (float64(after) - float64(before)) / float64(n)
	reloaded, slowest := make(chan struct{}), make(chan time.Duration)
	go func() { slowest <- slowestLookup(registry, names[0], reloaded) }()
	begin := time.Now()
	if err := registry.Reload(build); err != nil {
		panic(fmt.Errorf("reload: %w", err))
	}
	g.reloading = each(time.Since(begin))
	close(reloaded)
	g.lookup = (<-slowest).Seconds() * 1e3
	var all []*ratelimit.Limiter
	for _, l := range registry.All() {
		all = append(all, l)
	}
	begin = time.Now()
	for _, l := range all {
		l.Close()
	}
	g.closing = each(time.Since(begin))
	for _, s := range stores {
		s.Close()
	}
	return g
}

// slowestLookup looks a limiter up, once in 100 µs, until end is closed. It returns the longest time
// that this took.
func slowestLookup(r *ratelimit.Registry, name string, end <-chan struct{}) (slowest time.Duration) {
	tick := time.NewTicker(100 * time.Microsecond)
	defer tick.Stop()
	for {
		begin := time.Now()
		if _, ok := r.Lookup(name); !ok {
			panic("no limiter " + name)
		}
		slowest = max(slowest, time.Since(begin))
		select {
		case <-end:
			return slowest
		case <-tick.C:
		}
	}
}

// nearKeys measures what this process remembers of the keys that it has decided on.
func nearKeys(b *testing.B, on *servers, l ServerLibrary) {
	const n = 50_000
	all := keys(n)
	for b.Loop() {
		e := on.enter(b, l, onServer(on.server), single, 1)
		e.keys = all
		e.ask("connects")
		e.all = turn{}
		before, _ := collected()
		e.use()
		after, _ := collected()
		b.ReportMetric((float64(after)-float64(before))/n, "B/key")
		if err := e.check(); err != nil {
			b.Fatal(err)
		}
		e.end()
		on.server.Do("FLUSHALL")
	}
	runtime.KeepAlive(all)
	b.ReportMetric(0, "ns/op")
}
