package admin

import (
	"fmt"
	"math"
	"net/http"
	"net/url"
	"time"

	"github.com/ratelimit-go/ratelimit"
)

// This file has the page of the stores.

// storesPage lists what limiters know of their stores.
type storesPage struct {
	head `json:"process"`
	paging
	Remote []remoteRow `json:"remote"`
	Memory []memoryRow `json:"memory"`
}

// A remoteRow is about a store outside of this process.
type remoteRow struct {
	limiterRow
	Calls       uint64  `json:"calls"`
	Mean        float64 `json:"mean_seconds"`
	Median      float64 `json:"median_below_seconds"` // the bound of the histogram that half of the calls are below
	Slow        float64 `json:"p99_below_seconds"`
	Failures    uint64  `json:"failures"`
	Spared      uint64  `json:"spared"`
	BreakerOpen bool    `json:"breaker_open"`
	Outages     uint64  `json:"outages"`
	Cached      uint64  `json:"cached"`
	Leased      uint64  `json:"leased"`
	Fallback    uint64  `json:"fallback"`
	FailedOpen  uint64  `json:"failed_open"`
	Owed        int     `json:"owed_keys"`
	Forgotten   uint64  `json:"forgotten_keys"`
	Evicted     uint64  `json:"evicted"`
}

// MeanText, MedianText and SlowText are times of calls.
func (r *remoteRow) MeanText() string   { return latency(r.Mean, "") }
func (r *remoteRow) MedianText() string { return latency(r.Median, "≤ ") }
func (r *remoteRow) SlowText() string   { return latency(r.Slow, "≤ ") }

// A memoryRow is about a store in this process.
type memoryRow struct {
	limiterRow
	Counters        int    `json:"counters"`
	Capacity        int    `json:"capacity"` // 0 if it is not known
	Percent         int    `json:"-"`
	Evicted         uint64 `json:"evicted"`
	EvictedDenied   uint64 `json:"evicted_denied"`
	SnapshotsFailed uint64 `json:"snapshots_failed"`
}

// Held and Room are numbers of counters.
func (r *memoryRow) Held() uint64 { return uint64(r.Counters) }
func (r *memoryRow) Room() uint64 { return uint64(r.Capacity) }

// stores shows the stores of the limiters that match a filter.
func (q *request) stores() error {
	form := q.r.URL.Query()
	p := &storesPage{head: q.head("Stores"), Remote: []remoteRow{}, Memory: []memoryRow{}}
	p.Live, p.Section = true, "store"
	matching, _ := q.matching(form.Get("q"))
	p.paging = pagingOf("store", url.Values{"q": {form.Get("q")}}, form.Get("page"), len(matching))
	for _, l := range onPage(&p.paging, matching) {
		row, stats := q.row(l), l.Stats()
		if row.Remote {
			p.Remote = append(p.Remote, remoteRowOf(row, &stats.Remote))
			continue
		}
		m := memoryRow{
			limiterRow: row, Counters: stats.Memory.Counters, Capacity: l.Info().Capacity,
			Evicted: stats.Memory.Evicted, EvictedDenied: stats.Memory.EvictedDenied, SnapshotsFailed: stats.Memory.SnapshotsFailed,
		}
		if m.Capacity > 0 {
			m.Percent = 100 * m.Counters / m.Capacity
		}
		p.Memory = append(p.Memory, m)
	}
	return q.show(http.StatusOK, "store", p)
}

func remoteRowOf(row limiterRow, s *ratelimit.RemoteStats) remoteRow {
	r := remoteRow{
		limiterRow: row, Calls: s.Calls, Failures: s.Failures, Spared: s.Spared, BreakerOpen: s.BreakerOpen, Outages: s.BreakerOpened,
		Cached: s.Cached, Leased: s.Leased, Fallback: s.Fallback, FailedOpen: s.FailedOpen, Owed: s.Owed, Forgotten: s.Forgotten, Evicted: s.Evicted,
		Median: quantile(&s.CallTimes, 0.5), Slow: quantile(&s.CallTimes, 0.99),
	}
	if s.Calls > 0 {
		r.Mean = s.CallTime.Seconds() / float64(s.Calls)
	}
	return r
}

// quantile returns the bound of the histogram that a share of the calls is below, in seconds. It is
// 0 if there were no calls, and the largest bound if there is none above.
func quantile(times *ratelimit.CallTimes, share float64) float64 {
	all := uint64(0)
	for _, n := range times {
		all += n
	}
	if all == 0 {
		return 0
	}
	below := uint64(0)
	for i, n := range times {
		if below += n; float64(below) >= share*float64(all) {
			if bound := times.Bound(i); !math.IsInf(bound, 1) {
				return bound
			}
		}
	}
	return times.Bound(len(times) - 2)
}

// latency returns seconds as a text with two digits or so.
func latency(seconds float64, sign string) string {
	d := time.Duration(seconds * float64(time.Second))
	switch {
	case d == 0:
		return "–"
	case d < time.Millisecond:
		return fmt.Sprintf("%s%d µs", sign, d.Microseconds())
	case d < 10*time.Millisecond:
		return fmt.Sprintf("%s%.1f ms", sign, float64(d)/float64(time.Millisecond))
	case d < time.Second:
		return fmt.Sprintf("%s%d ms", sign, d.Milliseconds())
	}
	return fmt.Sprintf("%s%.1f s", sign, d.Seconds())
}
