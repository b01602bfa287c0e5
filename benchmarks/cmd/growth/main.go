// Growth measures how the cost of a decision grows with the number of keys, limits, limiters
// and plans. It writes the tables and charts of docs/scaling.md.
//
//	cd benchmarks && go run ./cmd/growth
//
// The times are CPU times of one goroutine, and each is the least of some rounds, so other
// processes on the machine have little influence.
package main

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/ratelimit-go/ratelimit"
	"github.com/ratelimit-go/ratelimit/internal/chart"
)

func main() {
	docs := flag.String("docs", "../docs", "the folder of scaling.md")
	only := flag.String("only", "", "one of keys, limits, limiters and plans; empty means all")
	rounds := flag.Int("rounds", 5, "how often each cost is measured; the least counts")
	flag.Parse()
	if err := run(*docs, *only, *rounds); err != nil {
		fmt.Fprintln(os.Stderr, "growth:", err)
		os.Exit(1)
	}
}

// A curve is a cost that grows, or does not, with a number.
type curve struct {
	name, of      string // the number
	title         string
	first, second string // what is measured
	sizes         []int
	measure       func(n int) (first, second float64)
}

var curves = []curve{
	{
		name: "keys", of: "keys", title: "A decision, by number of keys: in memory, random keys of a full table",
		first: "ns per decision", second: "bytes per key", sizes: []int{1000, 10_000, 100_000, 1_000_000, 10_000_000}, measure: keys,
	},
	{
		name: "limits", of: "limits", title: "A decision, by number of limits: in memory, one key",
		first: "ns per decision", second: "ns per limit", sizes: []int{1, 2, 3, 4, 5, 6, 7, 8}, measure: limits,
	},
	{
		name: "limiters", of: "limiters", title: "A decision, by number of limiters: in memory, one key of each in turn",
		first: "ns per decision", second: "bytes per idle limiter", sizes: []int{1, 10, 100, 1000, 10_000}, measure: limiters,
	},
	{
		name: "plans", of: "plans", title: "A request through the middleware, by number of plans in use",
		first: "ns per request", second: "allocations", sizes: []int{1, 10, 64, 100, 1000, 2000, 4000}, measure: plans,
	},
}

func run(docs, only string, rounds int) error {
	path := filepath.Join(docs, "scaling.md")
	for _, c := range curves {
		if only != "" && only != c.name {
			continue
		}
		table, picture := c.draw(rounds)
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		page, err := chart.Fill(string(text), "growth-"+c.name, table)
		if err != nil {
			return err
		}
		if err := os.WriteFile(path, []byte(page), 0o666); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(docs, "growth-"+c.name+".svg"), []byte(picture), 0o666); err != nil {
			return err
		}
	}
	return nil
}

func (c *curve) draw(rounds int) (table, picture string) {
	var b strings.Builder
	fmt.Fprintf(&b, "| %s | %s | %s |\n|---|---|---|\n", c.of, c.first, c.second)
	p := chart.Picture{Title: c.title, Command: "cd benchmarks && go run ./cmd/growth -only " + c.name}
	for _, title := range []string{c.first, c.second} {
		p.Panels = append(p.Panels, chart.Panel{Title: title, Lines: []chart.Line{{Color: chart.Blue}}, X: chart.Axis{Title: c.of}})
	}
	least, seconds := make([]float64, len(c.sizes)), make([]float64, len(c.sizes))
	for round := range rounds { // in turn, so that a slow moment of the machine affects all sizes
		for i, n := range c.sizes {
			fmt.Fprintln(os.Stderr, c.name, n)
			first, second := c.measure(n)
			if round == 0 || first < least[i] {
				least[i] = first
			}
			seconds[i] = second
		}
	}
	for i, n := range c.sizes {
		first, second := least[i], seconds[i]
		fmt.Fprintf(&b, "| %s | %.0f | %s |\n", thousands(n), first, strconv.FormatFloat(second, 'f', max(0, 1-int(second/20)), 64))
		for i, v := range []float64{first, second} {
			line := &p.Panels[i].Lines[0]
			line.Points = append(line.Points, chart.Point{X: float64(n), Y: v})
		}
	}
	if c.name == "limits" {
		for i := range p.Panels {
			p.Panels[i].X.Ticks = []float64{0, 2, 4, 6, 8}
		}
	}
	return b.String(), p.SVG()
}

func thousands(n int) string {
	s := strconv.Itoa(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// cost returns the CPU time of one call of f in nanoseconds: the least of three times.
func cost(f func(i int)) float64 {
	least, calls, i := 0.0, 64, 0
	for turn := 0; turn < 3; {
		begin := cpu()
		for range calls {
			f(i)
			i++
		}
		took := cpu() - begin
		if took < 10*time.Millisecond { // so that the clock is exact enough
			calls *= 2
			continue
		}
		if each := float64(took) / float64(calls); turn == 0 || each < least {
			least = each
		}
		turn++
	}
	return least
}

// cpu returns the CPU time of this process.
func cpu() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// heap returns the bytes on the heap that are in use.
func heap() float64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&m)
	return float64(m.HeapAlloc)
}

const most = 1_000_000_000

var (
	ctx   = context.Background()
	quiet = slog.New(slog.DiscardHandler)
)

func take(l *ratelimit.Limiter, key string) {
	if d, err := l.Take(ctx, key); err != nil || !d.Allowed {
		panic(fmt.Sprint(d, err))
	}
}

func keys(n int) (float64, float64) {
	all := make([]string, n)
	for i := range all {
		all[i] = "198.51." + strconv.Itoa(i)
	}
	before := heap()
	store, err := ratelimit.NewMemoryStore("growth", ratelimit.MemoryOptions{MaxKeys: n*5/4 + 1000})
	l := ratelimit.Must(new(ratelimit.Registry).New("growth", ratelimit.Options{Logger: quiet, Store: store, Limits: []ratelimit.Limit{ratelimit.FixedWindow(most, time.Hour)}}))
	if err != nil {
		panic(err)
	}
	defer store.Close()
	defer l.Close()
	for _, key := range all {
		take(l, key)
	}
	bytes := (heap() - before) / float64(n)
	r := rand.New(rand.NewPCG(1, 2))
	order := make([]uint32, 1<<20) // random numbers cost time
	for i := range order {
		order[i] = uint32(r.IntN(n))
	}
	ns := cost(func(i int) { take(l, all[order[i%len(order)]]) })
	runtime.KeepAlive(all)
	return ns, bytes
}

func limits(n int) (float64, float64) {
	var all []ratelimit.Limit
	for i := range n {
		all = append(all, ratelimit.FixedWindow(most, time.Hour+time.Duration(i)*time.Minute))
	}
	l := ratelimit.Must(new(ratelimit.Registry).New("growth", ratelimit.Options{Logger: quiet, Limits: all}))
	defer ratelimit.Memory("growth").Close()
	defer l.Close()
	ns := cost(func(int) { take(l, "198.51.100.7") })
	return ns, ns / float64(n)
}

func limiters(n int) (float64, float64) {
	var reg ratelimit.Registry
	defer reg.Close()
	add := func(name string) *ratelimit.Limiter {
		return ratelimit.Must(reg.New(name, ratelimit.Options{Logger: quiet, Limits: []ratelimit.Limit{ratelimit.FixedWindow(most, time.Hour)}}))
	}
	add("first") // makes what all limiters share
	all := make([]*ratelimit.Limiter, n)
	before := heap()
	for i := range all {
		all[i] = add(strconv.Itoa(i))
	}
	defer func() {
		for _, l := range all {
			ratelimit.Memory(l.Name()).Close()
		}
	}()
	bytes := (heap() - before) / float64(n)
	return cost(func(i int) { take(all[i%n], "198.51.100.7") }), bytes
}

// writer is a ResponseWriter that allocates nothing.
type writer struct{ header http.Header }

func (w writer) Header() http.Header         { return w.header }
func (w writer) Write(b []byte) (int, error) { return len(b), nil }
func (w writer) WriteHeader(int)             {}

func plans(n int) (float64, float64) {
	all, next := make([][]ratelimit.Limit, n), 0
	for i := range all {
		all[i] = []ratelimit.Limit{ratelimit.FixedWindow(most+int64(i), time.Hour)}
	}
	l := ratelimit.Must(new(ratelimit.Registry).New("growth", ratelimit.Options{
		Logger: quiet, Limits: all[0], Silence: []ratelimit.Code{ratelimit.CodeTooManyPlans},
		LimitsFor: func(*http.Request) []ratelimit.Limit { next++; return all[next%n] },
	}))
	defer ratelimit.Memory("growth").Close()
	defer l.Close()
	h := l.Middleware(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	w, r := writer{make(http.Header)}, httptest.NewRequest("GET", "/", nil)
	request := func(int) {
		clear(w.header)
		h.ServeHTTP(w, r)
	}
	for range 2 * n {
		request(0)
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range 5000 {
		request(0)
	}
	runtime.ReadMemStats(&after)
	allocations := float64(after.Mallocs-before.Mallocs) / 5000
	return cost(request), allocations
}
