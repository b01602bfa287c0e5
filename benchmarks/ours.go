package benchmarks

import (
	"context"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/ratelimit-go/ratelimit"
)

func fixedWindow(q quota) ratelimit.Limit {
	if q.holds {
		return ratelimit.InFlight(q.units, time.Minute)
	}
	if q.perDay {
		return q.withBlock(ratelimit.Daily(q.units, zoneOfNow()))
	}
	if q.rolling {
		return ratelimit.Rolling(q.units, q.window)
	}
	return q.withBlock(ratelimit.FixedWindow(q.units, q.window))
}

func tokenBucket(q quota) ratelimit.Limit {
	return q.withBlock(ratelimit.TokenBucket(1, q.refill, q.units))
}

func (q quota) withBlock(l ratelimit.Limit) ratelimit.Limit {
	if q.block > 0 {
		l = l.Block(q.block)
	}
	return l
}

func openFixed(q quota, fields bool) subject { return openOurs(q, fields, fixedWindow(q)) }

func openBucket(q quota, fields bool) subject { return openOurs(q, fields, tokenBucket(q)) }

// opened makes the names of stores unique. The stores live as long as the process.
var opened atomic.Int64

func openOurs(q quota, fields bool, limit ratelimit.Limit) subject {
	store := must(ratelimit.NewMemoryStore(fmt.Sprintf("s%d", opened.Add(1)), ratelimit.MemoryOptions{MaxKeys: q.most()}))
	headers := ratelimit.HeadersDraft10
	if !fields {
		headers = ratelimit.HeadersNone
	}
	l := must(new(ratelimit.Registry).New("api", ratelimit.Options{
		Limits:  []ratelimit.Limit{limit},
		Store:   store,
		Headers: headers,
		MaxWait: q.wait,
		Logger:  slog.New(slog.DiscardHandler),
	}))
	return subject{
		take:       takeOf(l, q),
		middleware: l.Middleware,
		stats:      store.Stats,
		close:      func() { l.Close(); store.Close() },
	}
}

// takeOf returns how a case takes a unit of a limiter: a hold that is released at once, if its limit
// is an in-flight limit.
func takeOf(l *ratelimit.Limiter, q quota) func(key string) bool {
	ctx := context.Background()
	if q.holds {
		return func(key string) bool {
			release, d, err := l.Acquire(ctx, key)
			release()
			return err == nil && d.Allowed
		}
	}
	return func(key string) bool {
		d, err := l.Take(ctx, key)
		return err == nil && d.Allowed
	}
}
