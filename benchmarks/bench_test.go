package benchmarks

import (
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// Benchmark prints each row as case/library. The libraries of one case follow
// each other, so that a ratio between two of them is of the same few seconds.
func Benchmark(b *testing.B) {
	for _, c := range Cases {
		for _, l := range Libraries {
			if c.Has(l) {
				b.Run(c.Name+"/"+l.Name, func(b *testing.B) { c.run(b, c.open(l)) })
			}
		}
	}
}

// TestExact checks that exactly the limit is admitted. A rival that fails is
// named in the log, and in the report, and timed all the same.
func TestExact(t *testing.T) {
	const limit, asked = 1000, 2560
	for _, l := range Libraries {
		for _, goroutines := range []int{1, 64} {
			for entry, ask := range entries(t, l, limit) {
				admitted := count(goroutines, asked/goroutines, ask)
				switch {
				case admitted == limit:
				case l.Kind == Rival:
					t.Logf("not exact: %s admitted %d of %d (%s, goroutines: %d)", l.Name, admitted, limit, entry, goroutines)
				default:
					t.Errorf("%s admitted %d of %d (%s, goroutines: %d)", l.Name, admitted, limit, entry, goroutines)
				}
			}
		}
	}
}

// entries are the ways to ask l for a unit of a limit of its own.
func entries(t *testing.T, l Library, limit int64) map[string]func(*writer, *http.Request) bool {
	all := make(map[string]func(*writer, *http.Request) bool)
	open := func(fields bool) subject {
		s := l.open(quota{units: limit, refill: time.Hour}, fields)
		t.Cleanup(s.end)
		return s
	}
	take := open(true).take
	if take == nil { // it does not count
		return nil
	}
	all["take"] = func(*writer, *http.Request) bool { return take(key(0)) }
	for name, fields := range map[string]bool{"middleware": true, "middleware without fields": false} {
		if s := open(fields); s.middleware != nil {
			h := s.middleware(noContent)
			all[name] = func(w *writer, r *http.Request) bool { return w.serve(h, r) == http.StatusNoContent }
		}
	}
	return all
}

// count returns how much all goroutines got that each ask so many times at once.
func count(goroutines, times int, ask func(*writer, *http.Request) bool) int64 {
	var wg sync.WaitGroup
	var got atomic.Int64
	start := make(chan struct{})
	for range goroutines {
		wg.Go(func() {
			w, r := newWriter(), newRequest()
			<-start
			for range times {
				if ask(w, r) {
					got.Add(1)
				}
			}
		})
	}
	close(start)
	wg.Wait()
	return got.Load()
}
