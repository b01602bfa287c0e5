package benchmarks

import (
	"github.com/throttled/throttled/v2"
	"github.com/throttled/throttled/v2/store/goredisstore.v9"
)

func openThrottledOnRedis(where target, q quota) subject {
	client := where.goRedis()
	l := must(throttled.NewGCRARateLimiterCtx(must(goredisstore.NewCtx(client, "throttled:")), throttled.RateQuota{
		MaxRate:  throttled.PerDuration(1, q.refill),
		MaxBurst: int(q.units - 1), // in addition to the unit that is always there
	}))
	// With the default of 10, more than half of the calls fail if 64 callers share a key.
	l.SetMaxCASAttemptsLimit(1000)
	return subject{
		take: func(key string) (bool, error) {
			limited, _, err := l.RateLimitCtx(background, key, 1)
			return err == nil && !limited, err
		},
		close: func() { client.Close() },
	}
}

// sentByThrottled counts TIME and GET, and then SETNX and EXPIRE or EVAL. Each EVAL calls
// GET itself, so the number of GETs includes the EVALs.
func sentByThrottled(calls map[string]int64) int64 {
	return calls["time"] + calls["get"] + calls["setnx"] + calls["expire"]
}
