package benchmarks

import (
	"log/slog"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/ratelimit-go/ratelimit"
)

func openOursOnRedis(limit func(quota) ratelimit.Limit, lease time.Duration) func(target, quota) subject {
	return func(where target, q quota) subject {
		client := where.goRedis(func(o *redis.UniversalOptions) { o.ContextTimeoutEnabled = true })
		l := must(new(ratelimit.Registry).New("api", ratelimit.Options{
			Limits: q.limitsOf(limit),
			Redis:  client,
			Lease:  lease,

			DenyRecheck: q.recheck,
			// The timeout that go-redis, and so every rival, uses for a reply. A busy machine
			// should not favor anybody.
			Timeout: 3 * time.Second,
			Logger:  slog.New(slog.DiscardHandler),
		}))
		return subject{
			take:  takeOf(l, q),
			close: func() { l.Close(); client.Close() },
		}
	}
}

// openAcross counts across slots, as only the cases on a Cluster do.
func openAcross(where target, q quota) subject {
	client := where.goRedis(func(o *redis.UniversalOptions) { o.ContextTimeoutEnabled = true })
	store := must(ratelimit.NewRedisStore(client, "rl:api:", ratelimit.AcrossSlots()))
	l := must(new(ratelimit.Registry).New("api", ratelimit.Options{
		Limits: q.limitsOf(fixedWindow), Store: store, DenyRecheck: q.recheck, Timeout: 3 * time.Second, Logger: slog.New(slog.DiscardHandler),
	}))
	return subject{
		take:  takeOf(l, q),
		close: func() { l.Close(); store.Close(); client.Close() },
	}
}

// across is the name of the library row of AcrossSlots.
const across = "across"
