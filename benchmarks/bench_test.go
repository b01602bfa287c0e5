package benchmarks

import (
	"flag"
	"fmt"
	"net/http"
	"os"
	"strings"
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

const (
	exactLimit = 1000
	exactAsked = 2560
)

// TestExact checks that each library admits exactly the limit, in each way to ask it. The
// report reads what it logs: the rows of a library that was not exact are void.
func TestExact(t *testing.T) {
	for _, l := range Libraries {
		var wrong []string
		for _, goroutines := range []int{1, 64} {
			for entry, ask := range entries(t, l) {
				wrong = append(wrong, inexact(goroutines, entry, ask)...)
			}
		}
		logExact(t, l, wrong)
	}
}

// inexact asks for more units than the limit allows, and returns what is wrong with the answers.
func inexact(goroutines int, how string, ask func(*writer, *http.Request) (bool, error)) (wrong []string) {
	admitted, err := count(goroutines, exactAsked/goroutines, ask)
	if admitted != exactLimit || err != nil {
		text := fmt.Sprintf("admitted %d of %d (%s, goroutines: %d)", admitted, exactLimit, how, goroutines)
		if err != nil {
			text += ": " + strings.ReplaceAll(err.Error(), "\n", " ")
		}
		wrong = append(wrong, text)
	}
	return wrong
}

// logExact logs whether a library was exact. This library must be.
func logExact(t *testing.T, l Library, wrong []string) {
	t.Helper()
	for _, text := range wrong {
		t.Logf("not exact: %s %s", l.Name, text)
		if l.Kind != Rival {
			t.Fail()
		}
	}
	if len(wrong) == 0 {
		t.Logf("exact: %s", l.Name)
	}
}

// entries returns the ways to ask l for a unit. Each way has its own limit.
func entries(t *testing.T, l Library) map[string]func(*writer, *http.Request) (bool, error) {
	all := make(map[string]func(*writer, *http.Request) (bool, error))
	open := func(fields bool) subject {
		s := l.open(quota{units: exactLimit, window: time.Hour, refill: time.Hour}, fields)
		t.Cleanup(s.end)
		return s
	}
	take := open(true).take
	if take == nil { // this library does not count
		return nil
	}
	all["take"] = func(*writer, *http.Request) (bool, error) { return take(key(0)) }
	for name, fields := range map[string]bool{"middleware": true, "middleware without fields": false} {
		if s := open(fields); s.middleware != nil {
			h := s.middleware(noContent)
			all[name] = func(w *writer, r *http.Request) (bool, error) {
				switch status := w.serve(h, r); status {
				case http.StatusNoContent:
					return true, nil
				case http.StatusTooManyRequests:
					return false, nil
				default:
					return false, fmt.Errorf("status %d", status)
				}
			}
		}
	}
	return all
}

// count has goroutines ask concurrently, each of them times times. It returns how
// many units they got together, and one of the errors.
func count(goroutines, times int, ask func(*writer, *http.Request) (bool, error)) (int64, error) {
	var wg sync.WaitGroup
	var got atomic.Int64
	var failed atomic.Pointer[error]
	start := make(chan struct{})
	for range goroutines {
		wg.Go(func() {
			w, r := newWriter(), newRequest()
			<-start
			for range times {
				ok, err := ask(w, r)
				if ok {
					got.Add(1)
				}
				if err != nil {
					failed.Store(&err)
				}
			}
		})
	}
	close(start)
	wg.Wait()
	if err := failed.Load(); err != nil {
		return got.Load(), *err
	}
	return got.Load(), nil
}
