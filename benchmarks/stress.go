package benchmarks

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"
)

// smaller divides the number of keys of the cases below. Tests set it above 1.
var smaller = 1

const (
	inserted = 10_000_000
	held     = 1_000_000
)

// text has the keys of all cases below, one after the other. It has no pointers, so that
// garbage collections, which should not be timed, need not scan it.
var text = sync.OnceValue(func() string {
	all := make([]byte, 0, (inserted+held)*len(key(0)))
	for i := range (inserted + held) / smaller {
		all = fmt.Appendf(all, "user:%010d", i)
	}
	return string(all)
})

func textKey(all string, i int) string { return all[i*15:][:15] }

// latencies are the times of single decisions, in nanoseconds, sorted.
type latencies []uint32

// timed has s decide on n keys, and returns the time of each decision.
func timed(b *testing.B, n int, s subject, key func(i int) string) latencies {
	all := make(latencies, n)
	runtime.GC()
	last := time.Since(started)
	for i := range all {
		if ok, err := s.take(key(i)); !ok || err != nil {
			b.Fatal(unexpected(ok, err))
		}
		now := time.Since(started)
		all[i] = uint32(min(now-last, 1<<32-1))
		last = now
	}
	slices.Sort(all)
	return all
}

// quantile returns the q-quantile in microseconds.
func (l latencies) quantile(q float64) float64 {
	return float64(l[min(int(q*float64(len(l))), len(l)-1)]) / 1e3
}

// expiry compares a store in which a million keys have just expired with a store in which
// they have not. Both make the same million decisions. One decision in newIn is on a new
// key, the others are on one of the million.
func expiry(newIn int) func(*testing.B, opener) {
	return func(b *testing.B, open opener) { expire(b, open, newIn) }
}

func expire(b *testing.B, open opener, newIn int) {
	const brief = time.Second
	var during, without, ratios []float64
	n, all := held/smaller, text()
	order := make(order, n)
	r := rand.New(rand.NewPCG(1, 2))
	for i := range order {
		order[i] = r.Uint32N(uint32(n))
		if r.IntN(newIn) == 0 {
			order[i] = uint32(n + i)
		}
	}
	filled := func(w time.Duration) subject {
		s := open(quota{units: 1000, window: w, refill: w})
		for i := range n {
			s.take(textKey(all, i))
		}
		return s
	}
	mix := func(s subject) float64 {
		defer s.end()
		return timed(b, n, s, func(i int) string { return textKey(all, int(order[i])) }).quantile(0.999)
	}
	for b.Loop() {
		for range 3 {
			expiring := filled(brief)
			expired := time.Now().Add(brief)
			lasting := mix(filled(time.Hour))
			time.Sleep(time.Until(expired))
			d := mix(expiring)
			during, without, ratios = append(during, d), append(without, lasting), append(ratios, d/lasting)
		}
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(Median(ratios), "x/p99.9")
	b.ReportMetric(Median(during), "us/p99.9")
	b.ReportMetric(Median(without), "us/p99.9-without")
}

// growth inserts ten million new keys. Then it does nothing for a while, and measures how
// long the idle loop is delayed.
func growth(b *testing.B, open opener) {
	var slowest, most, idle []float64
	all := text()
	for b.Loop() {
		s := open(quota{units: 1000, window: time.Hour, refill: time.Hour, keys: 16_000_000})
		l := timed(b, inserted/smaller, s, func(i int) string { return textKey(all, i) })
		slowest, most = append(slowest, l.quantile(1)/1e3), append(most, l.quantile(0.9999))
		s.end()

		var longest time.Duration
		for begin, last := time.Since(started), time.Since(started); last-begin < 3*time.Second/time.Duration(smaller); {
			now := time.Since(started)
			longest, last = max(longest, now-last), now
		}
		idle = append(idle, longest.Seconds()*1e3)
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(Median(slowest), "ms/slowest")
	b.ReportMetric(Median(most), "us/p99.99")
	b.ReportMetric(Median(idle), "ms/idle")
}

// flood fills a store to its maximum, including a thousand keys that are denied. Then it
// sends ten times as many new keys.
func flood(b *testing.B, open opener) {
	const blocked = 1000
	n, all := held/smaller, text()
	for b.Loop() {
		before, _ := collected()
		s := open(quota{units: 2, window: time.Hour, refill: time.Hour, keys: n})
		for i := range blocked {
			s.use(b, key(-1-i), 2)
		}
		for i := range n {
			s.take(textKey(all, i))
		}
		full, _ := collected()
		for i := n; i < n+inserted/smaller; i++ {
			s.take(textKey(all, i))
		}
		flooded, _ := collected()
		denied := 0
		for i := range blocked {
			if ok, _ := s.take(key(-1 - i)); !ok {
				denied++
			}
		}
		b.ReportMetric((float64(full)-float64(before))/1e6, "MB/before")
		b.ReportMetric((float64(flooded)-float64(before))/1e6, "MB/after")
		b.ReportMetric(float64(denied), "denied")
		if s.stats != nil {
			stats := s.stats()
			b.ReportMetric(float64(stats.Evicted)/1e6, "M-evicted")
			b.ReportMetric(float64(stats.EvictedDenied), "evicted-denied")
		}
		s.end()
	}
	b.ReportMetric(0, "ns/op")
}

// Median returns the median of all, or 0 if all is empty.
func Median(all []float64) float64 {
	if len(all) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(all))
	return (s[(len(s)-1)/2] + s[len(s)/2]) / 2
}
