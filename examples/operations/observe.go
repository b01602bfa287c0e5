package main

import (
	"cmp"
	"context"
	"encoding/json"
	"log/slog"
	"maps"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/ratelimit-go/ratelimit"
)

// This file has the observers of the shop's limiters. They run on the goroutine of the
// request, so they must be quick.

// logDenials returns an observer that logs denials: one line per limiter, key and minute,
// so that an attacker does not fill the log. It also logs administrative calls.
func logDenials(log *slog.Logger) func(context.Context, ratelimit.Event) {
	// A limiter in a registry of its own decides what is logged. It is not observed, and it
	// is not in the metrics. Its memory is bounded.
	lines := ratelimit.Must(new(ratelimit.Registry).New("denial-log", ratelimit.Options{
		Limits: []ratelimit.Limit{ratelimit.FixedWindow(1, time.Minute)},
	}))
	return func(ctx context.Context, e ratelimit.Event) {
		switch e.Kind {
		case ratelimit.EventWarning, ratelimit.EventStoreDown, ratelimit.EventStoreBack:
			return // the limiter has logged it
		case ratelimit.EventDenied, ratelimit.EventShadowDenied:
			line, err := lines.Take(ctx, e.Limiter+" "+e.Key)
			if err == nil && !line.Allowed {
				return
			}
		}
		log.InfoContext(ctx, "ratelimit", "event", e)
	}
}

// offenders counts denials by limiter and key. It keeps the 64 pairs that are denied most,
// by the space-saving algorithm, so its memory is bounded. The zero value is ready to use.
type offenders struct {
	mu     sync.Mutex
	counts map[offender]uint64
}

type offender struct {
	Limiter string `json:"limiter"`
	Key     string `json:"key"`
}

const maxOffenders = 64

// observe counts a denial. If there is no room, the pair takes the place of the pair with
// the lowest count, and goes on from there: a count is never too low, and too high by at
// most that number.
func (o *offenders) observe(_ context.Context, e ratelimit.Event) {
	if e.Kind != ratelimit.EventDenied {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.counts == nil {
		o.counts = make(map[offender]uint64)
	}
	id := offender{e.Limiter, e.Key}
	if _, ok := o.counts[id]; !ok && len(o.counts) == maxOffenders {
		least := id
		for other, n := range o.counts {
			if least == id || n < o.counts[least] {
				least = other
			}
		}
		o.counts[id] = o.counts[least]
		delete(o.counts, least)
	}
	o.counts[id]++
}

// ranked returns the pairs, with the most denied one first. o.mu must be held.
func (o *offenders) ranked() []offender {
	return slices.SortedFunc(maps.Keys(o.counts), func(a, b offender) int {
		return cmp.Compare(o.counts[b], o.counts[a])
	})
}

// ServeHTTP lists the ten pairs that were denied most.
func (o *offenders) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	type row struct {
		offender
		Denied uint64 `json:"denied"`
	}
	rows := []row{}
	o.mu.Lock()
	for _, id := range o.ranked() {
		rows = append(rows, row{id, o.counts[id]})
	}
	o.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	json.NewEncoder(w).Encode(rows[:min(10, len(rows))]) // it escapes what clients have sent
}
