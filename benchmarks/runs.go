package benchmarks

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ratelimit-go/ratelimit"
)

// key returns the i-th key. It has 15 bytes, like the longest IPv4 address.
func key(i int) string { return fmt.Sprintf("user:%010d", i) }

func keys(n int) []string {
	all := make([]string, n)
	for i := range all {
		all[i] = key(i)
	}
	return all
}

// with runs a case with another quota.
func with(q quota, run func(*testing.B, opener)) func(*testing.B, opener) {
	return func(b *testing.B, open opener) { run(b, func(quota) subject { return open(q) }) }
}

func hot(b *testing.B, open opener) {
	s, k := open(plenty), key(0)
	defer s.end()
	b.ReportAllocs()
	for b.Loop() {
		if ok, err := s.take(k); !ok || err != nil {
			b.Fatal(unexpected(ok, err))
		}
	}
	s.audited(b, []string{k}, int64(b.N))
}

// audited fails the row if the library has not counted what it admitted.
func (s subject) audited(b *testing.B, keys []string, admitted int64) {
	if s.audit == nil {
		return
	}
	if err := s.audit(keys, admitted); err != nil {
		b.Fatal(err)
	}
}

// use takes all units of a key, which must be as many as the limit allows.
func (s subject) use(b *testing.B, key string, allowed int64) {
	b.Helper()
	for n := int64(0); ; n++ {
		ok, err := s.take(key)
		if err != nil || ok && n == allowed || !ok && n < allowed {
			b.Fatal(unexpected(ok, err))
		}
		if !ok {
			return
		}
	}
}

func hotDenied(b *testing.B, open opener) {
	s, k := open(single), key(0)
	defer s.end()
	s.use(b, k, single.units)
	b.ReportAllocs()
	for b.Loop() {
		if ok, err := s.take(k); ok || err != nil {
			b.Fatal(unexpected(ok, err))
		}
	}
	s.audited(b, []string{k}, single.units)
}

// thousand has the largest rolling window.
func thousand(window time.Duration, rolling bool) quota {
	return quota{units: ratelimit.MaxRolling, window: window, rolling: rolling}
}

// allowedInTurn takes units of 64 keys in turn. A window of a millisecond has many units of
// each key, and they leave as fast as others come.
func allowedInTurn(rolling bool) func(*testing.B, opener) {
	return func(b *testing.B, open opener) {
		s, all := open(thousand(time.Millisecond, rolling)), keys(64)
		defer s.end()
		i := 0
		take := func() {
			i++
			if ok, err := s.take(all[i%len(all)]); !ok || err != nil {
				b.Fatal(unexpected(ok, err))
			}
		}
		for range 100_000 {
			take()
		}
		b.ReportAllocs()
		for b.Loop() {
			take()
		}
	}
}

// deniedWhenFull denies a key that has used all of its units, each at another instant.
func deniedWhenFull(rolling bool) func(*testing.B, opener) {
	return func(b *testing.B, open opener) {
		s, k := open(thousand(time.Hour, rolling)), key(0)
		defer s.end()
		s.use(b, k, ratelimit.MaxRolling)
		b.ReportAllocs()
		for b.Loop() {
			if ok, err := s.take(k); ok || err != nil {
				b.Fatal(unexpected(ok, err))
			}
		}
	}
}

// order is the order in which keys are used. It is made in advance, so that making it is
// not timed. It has no pointers, so that the garbage collector does not scan it.
type order []uint32

const (
	spread   = 100_000 // keys
	orderLen = 1 << 20 // a power of two, and many times as large as spread
)

func makeOrder(next func(r *rand.Rand) uint64) func() order {
	return sync.OnceValue(func() order {
		r := rand.New(rand.NewPCG(1, 2)) // the same for all libraries and in each run
		o := make(order, orderLen)
		for i := range o {
			o[i] = uint32(next(r))
		}
		return o
	})
}

var (
	spreadKeys = sync.OnceValue(func() []string { return keys(spread) })

	oneKey  = makeOrder(func(*rand.Rand) uint64 { return 0 })
	uniform = makeOrder(func(r *rand.Rand) uint64 { return r.Uint64N(spread) })
	zipf    = sync.OnceValue(func() order {
		var z *rand.Zipf
		return makeOrder(func(r *rand.Rand) uint64 {
			if z == nil {
				// The popularity of clients and pages has an exponent of about 1.1.
				z = rand.NewZipf(r, 1.1, 1, spread-1)
			}
			return z.Uint64()
		})()
	})
)

// parallel takes units of n keys from all cores, after each key has been used once.
func parallel(n int, made func() order) func(*testing.B, opener) {
	return func(b *testing.B, open opener) {
		s, all, order := open(plenty), spreadKeys()[:n], made()
		defer s.end()
		for _, k := range all {
			if ok, err := s.take(k); !ok || err != nil {
				b.Fatal(unexpected(ok, err))
			}
		}
		var goroutines, failed atomic.Int64
		b.ReportAllocs()
		b.ResetTimer()
		b.RunParallel(func(pb *testing.PB) {
			// Goroutines start far apart. Otherwise they would compete for each key.
			at := goroutines.Add(1) * (orderLen / 7)
			for pb.Next() {
				if ok, err := s.take(all[order[at&(orderLen-1)]]); !ok || err != nil {
					failed.Add(1)
				}
				at++
			}
		})
		b.StopTimer() // what follows is not timed
		if n := failed.Load(); n > 0 {
			b.Fatalf("%d of %d decisions were wrong", n, b.N)
		}
		s.audited(b, all, int64(len(all)+b.N))
	}
}

// million inserts a million keys. Then it measures their cost in bytes, including what the
// library keeps of the keys themselves, and in garbage collection time.
func million(b *testing.B, open opener) {
	const n = 1_000_000
	// No bucket is whole again before the end, however slow the machine is.
	q := quota{units: 1000, window: time.Hour, refill: time.Hour}
	var insert, collect time.Duration
	var bytes float64
	for b.Loop() {
		heapBefore, gcBefore := collected()
		s, all := open(q), keys(n)
		start := time.Now()
		for _, k := range all {
			if ok, err := s.take(k); !ok || err != nil {
				b.Fatal(unexpected(ok, err))
			}
		}
		insert += time.Since(start)
		clear(all)
		all = nil
		heapAfter, gcAfter := collected()
		bytes += float64(heapAfter) - float64(heapBefore)
		collect += gcAfter - gcBefore
		s.take(key(0)) // keeps the library alive until here
		s.end()
		s = subject{}
		if heap, _ := collected(); heapBefore > heap+1e6 {
			b.Fatalf("%.0f MB were freed meanwhile that were there before", (float64(heapBefore)-float64(heap))/1e6)
		}
	}
	runs := float64(b.N)
	b.ReportMetric(0, "ns/op") // removes the time of the whole run, which includes making the keys
	b.ReportMetric(float64(insert.Nanoseconds())/n/runs, "ns/key")
	b.ReportMetric(bytes/n/runs, "B/key")
	b.ReportMetric(collect.Seconds()*1000/runs, "ms/GC")
}

// collected returns the live heap and the time of a full collection: the fastest of five,
// as other work of the machine can only add to it. The first collections also free objects
// that wait for a finalizer, and the pauses let the finalizers run on a busy machine.
func collected() (heap uint64, took time.Duration) {
	took = time.Hour
	for range 5 {
		start := time.Now()
		runtime.GC()
		took = min(took, time.Since(start))
		time.Sleep(5 * time.Millisecond)
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc, took
}

// writer is a ResponseWriter that uses the same header map for each response.
type writer struct {
	header http.Header
	status int
}

func (w *writer) Header() http.Header         { return w.header }
func (w *writer) Write(p []byte) (int, error) { return len(p), nil }
func (w *writer) WriteHeader(status int)      { w.status = status }

// serve has h answer r in w and returns the status.
func (w *writer) serve(h http.Handler, r *http.Request) int {
	clear(w.header)
	w.status = 0
	h.ServeHTTP(w, r)
	return w.status
}

func newWriter() *writer { return &writer{header: make(http.Header)} }

func newRequest() *http.Request {
	r := httptest.NewRequest(http.MethodGet, "/items/42", nil)
	r.RemoteAddr = "203.0.113.7:41234"
	return r
}

var noContent = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) })

func allowed(b *testing.B, open opener) { allowedUnder(plenty)(b, open) }
func denied(b *testing.B, open opener)  { serve(b, open(single), http.StatusTooManyRequests) }

func allowedUnder(q quota) func(*testing.B, opener) {
	return func(b *testing.B, open opener) { serve(b, open(q), http.StatusNoContent) }
}

func serve(b *testing.B, s subject, want int) {
	w, r := newWriter(), newRequest()
	defer s.end()
	h := s.middleware(noContent)
	// Takes the only unit, so that all later requests are denied. A floor denies this one, too.
	if got := w.serve(h, r); got != http.StatusNoContent && got != want {
		b.Fatalf("status %d, want %d", got, http.StatusNoContent)
	}
	heap := megabytes()
	b.ReportAllocs()
	for b.Loop() {
		if got := w.serve(h, r); got != want {
			b.Fatalf("status %d, want %d", got, want)
		}
	}
	b.ReportMetric(heap, "MB/heap")
}

// onAllCores serves requests from all cores. Each core has requests of one address.
func onAllCores(b *testing.B, open opener) {
	s := open(plenty)
	defer s.end()
	h := s.middleware(noContent)
	heap := megabytes()
	var goroutines, failed atomic.Int64
	b.ReportAllocs()
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		w, r := newWriter(), newRequest()
		r.RemoteAddr = fmt.Sprintf("203.0.113.%d:41234", goroutines.Add(1))
		for pb.Next() {
			if w.serve(h, r) != http.StatusNoContent {
				failed.Add(1)
			}
		}
	})
	b.StopTimer()
	if n := failed.Load(); n > 0 {
		b.Fatalf("%d of %d requests were not allowed", n, b.N)
	}
	b.ReportMetric(heap, "MB/heap")
}

// besideBallast runs a case with a live heap of 64 MB more, as a server with other work has.
// The garbage collector then runs less often.
func besideBallast(run func(*testing.B, opener)) func(*testing.B, opener) {
	return func(b *testing.B, open opener) {
		ballast := make([]byte, 64_000_000)
		run(b, open)
		runtime.KeepAlive(ballast)
	}
}

// megabytes returns the live heap in MB.
func megabytes() float64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC() // frees what waited for a finalizer
	runtime.ReadMemStats(&m)
	return float64(m.HeapAlloc) / 1e6
}
