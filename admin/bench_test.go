package admin

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"runtime"
	"testing"
	"time"

	"github.com/ratelimit-go/ratelimit"
)

// This file has the benchmarks that docs/admin.md names.

// BenchmarkDenial is what a denial costs more, for a key that is followed, and in a flood of new
// keys.
func BenchmarkDenial(b *testing.B) {
	for name, distinct := range map[string]int{"known": 1, "new": 1 << 20} {
		b.Run(name, func(b *testing.B) {
			w, keys := new(watch), addresses(distinct)
			e := ratelimit.Event{Kind: ratelimit.EventDenied, Limiter: "login", Policy: "login", Time: time.Now()}
			i := 0
			for b.Loop() {
				e.Key = keys[i%distinct]
				i++
				w.observe(context.Background(), e)
			}
		})
	}
}

// BenchmarkThousandLimiters is a sample of 1,000 limiters, and the list of them.
func BenchmarkThousandLimiters(b *testing.B) {
	r := new(ratelimit.Registry)
	for i := range 1000 {
		name := fmt.Sprint("limiter-", i)
		store := ratelimit.Memory(b.Name() + name)
		defer store.Close()
		l, err := r.New(name, ratelimit.Options{
			Store: store, Limits: []ratelimit.Limit{ratelimit.FixedWindow(5, time.Hour)}, Logger: slog.New(slog.DiscardHandler),
		})
		if err != nil {
			b.Fatal(err)
		}
		defer l.Close()
	}
	h := Handler(Options{Registry: r}).(*handler)
	b.Run("sample", func(b *testing.B) {
		for b.Loop() {
			h.watch.sample(r, time.Now())
		}
	})
	b.Run("list", func(b *testing.B) {
		for b.Loop() {
			q := httptest.NewRequest("GET", "http://localhost/", nil)
			q.RemoteAddr = "127.0.0.1:1"
			w := httptest.NewRecorder()
			h.ServeHTTP(w, q)
			if w.Code != http.StatusOK {
				b.Fatal(w.Code)
			}
		}
	})
}

// BenchmarkMemory reports what a limiter takes whose keys are addresses.
func BenchmarkMemory(b *testing.B) {
	const limiters = 100
	keys := addresses(1000)
	for b.Loop() {
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		w := new(watch)
		for i := range limiters {
			t := w.track(fmt.Sprint(i))
			for _, key := range keys {
				t.denied(&ratelimit.Event{Key: key, Time: time.Now()})
			}
			for range maxSamples {
				t.sample(sample{})
			}
		}
		runtime.GC()
		runtime.ReadMemStats(&after)
		b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/limiters, "B/limiter")
		runtime.KeepAlive(w)
	}
}

func addresses(n int) []string {
	keys := make([]string, n)
	for i := range keys {
		keys[i] = fmt.Sprintf("10.%d.%d.%d", i>>16&255, i>>8&255, i&255)
	}
	return keys
}
