package benchmarks

import (
	"flag"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// Benchmark prints each row as case/library. The libraries of a case run one after
// the other, so that a ratio between two of them comes from the same few seconds.
func Benchmark(b *testing.B) { all(b, false) }

// BenchmarkLong runs the cases that take seconds each. One run is enough, because
// they repeat their own measurements. With -short they are a hundred times smaller.
func BenchmarkLong(b *testing.B) { all(b, true) }

func all(b *testing.B, long bool) {
	for _, c := range Cases {
		for _, l := range Libraries {
			if c.Long == long && c.Has(l) {
				b.Run(c.Name+"/"+l.Name, func(b *testing.B) { c.run(b, c.open(l)) })
			}
		}
	}
}

func TestMain(m *testing.M) {
	flag.Parse()
	if testing.Short() || flag.Lookup("test.bench").Value.String() == "" {
		smaller = 100
	}
	os.Exit(m.Run())
}

// TestLong runs small versions of the long cases and of the server's. It checks the
// results that do not depend on the machine.
func TestLong(t *testing.T) {
	for _, c := range Cases {
		if !c.Long && c.Name != "server" {
			continue
		}
		got := testing.Benchmark(func(b *testing.B) { c.run(b, c.open(Libraries[0])) }).Extra
		for _, m := range c.Measures {
			v, ok := got[m.Unit]
			if !ok {
				t.Errorf("%s: no %s in %v", c.Name, m.Unit, got)
			}
			switch m.Unit {
			case "denied":
				if v != 1000 {
					t.Errorf("%v of 1000 keys are still denied", v)
				}
			case "evicted-denied":
				if v != 0 {
					t.Errorf("%v keys were evicted while being denied", v)
				}
			case "MB/after":
				if before := got["MB/before"]; v > before+0.5 {
					t.Errorf("%v MB after the flood, %v before", v, before)
				}
			}
		}
	}
}

// TestExact checks that each library admits exactly the limit. A rival that fails is
// named in the log and in the report. It is timed nevertheless.
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

// entries returns the ways to ask l for a unit. Each way has its own limit.
func entries(t *testing.T, l Library, limit int64) map[string]func(*writer, *http.Request) bool {
	all := make(map[string]func(*writer, *http.Request) bool)
	open := func(fields bool) subject {
		s := l.open(quota{units: limit, window: time.Hour, refill: time.Hour}, fields)
		t.Cleanup(s.end)
		return s
	}
	take := open(true).take
	if take == nil { // this library does not count
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

// count has goroutines ask concurrently, each of them times times. It returns how
// many units they got together.
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
