package benchmarks

import "github.com/go-redis/redis_rate/v10"

func openRedisRate(where target, q quota) subject {
	client := where.goRedis()
	l := redis_rate.NewLimiter(client)
	limit := redis_rate.Limit{Rate: 1, Period: q.refill, Burst: int(q.units)}
	return subject{
		take: func(key string) (bool, error) {
			r, err := l.Allow(background, key, limit)
			return err == nil && r.Allowed > 0, err
		},
		close: func() { client.Close() },
	}
}
