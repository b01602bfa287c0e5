package benchmarks

import (
	"context"

	"github.com/throttled/throttled/v2"
	"github.com/throttled/throttled/v2/store/memstore"
)

// openThrottled uses a plain map, or an LRU with a maximum number of keys.
func openThrottled(lru bool) func(quota, bool) subject {
	return func(q quota, fields bool) subject {
		most := 0
		if lru {
			most = q.most()
		}
		l := must(throttled.NewGCRARateLimiterCtx(must(memstore.NewCtx(most)), throttled.RateQuota{
			MaxRate:  throttled.PerDuration(1, q.refill),
			MaxBurst: int(q.units - 1), // in addition to the unit that is always there
		}))
		// With the default of 10, calls fail if many goroutines share a key.
		l.SetMaxCASAttemptsLimit(1000)
		ctx := context.Background()
		s := subject{
			take: func(key string) (bool, error) {
				limited, _, err := l.RateLimitCtx(ctx, key, 1)
				return err == nil && !limited, err
			},
		}
		if fields { // fields of this library cannot be turned off
			h := throttled.HTTPRateLimiterCtx{RateLimiter: l, VaryBy: &throttled.VaryBy{RemoteAddr: true}}
			s.middleware = h.RateLimit
		}
		return s
	}
}
