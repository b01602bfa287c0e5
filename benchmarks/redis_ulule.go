package benchmarks

import (
	"github.com/ulule/limiter/v3"
	store "github.com/ulule/limiter/v3/drivers/store/redis"
)

func openUluleOnRedis(auto bool) func(target, quota) subject {
	return func(where target, q quota) subject {
		client := where.goRedis()
		var commands store.Client = client
		if auto {
			commands = must(client.AutoPipeline())
		}
		l := limiter.New(must(store.NewStore(commands)), limiter.Rate{Limit: q.units, Period: q.window})
		return subject{
			take: func(key string) (bool, error) {
				c, err := l.Get(background, key)
				return err == nil && !c.Reached, err
			},
			close: func() { client.Close() },
		}
	}
}
