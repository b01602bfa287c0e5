package benchmarks

import (
	"sync"

	"github.com/redis/go-redis/v9"
)

// The floors on Redis count up a number without looking at it.

// evalsha is the name of the floor that single decisions are held against.
const evalsha = "evalsha"

func openIncr(where target, _ quota) subject {
	client := where.goRedis()
	return subject{
		take:  func(key string) bool { return client.Incr(background, key).Err() == nil },
		close: func() { client.Close() },
	}
}

var incrScript = redis.NewScript(`return redis.call('INCR', KEYS[1])`)

func openEvalsha(where target, _ quota) subject {
	client := where.goRedis()
	return subject{
		take:  func(key string) bool { return incrScript.Run(background, client, []string{key}).Err() == nil },
		close: func() { client.Close() },
	}
}

func openIncrPipelined(where target, _ quota) subject {
	client := where.goRedis()
	pipes := sync.Pool{New: func() any { return client.Pipeline() }}
	return subject{
		take: func(key string) bool {
			pipe := pipes.Get().(redis.Pipeliner)
			defer pipes.Put(pipe)
			pipe.Incr(background, key)
			if pipe.Len() < 64 {
				return true
			}
			_, err := pipe.Exec(background)
			return err == nil
		},
		close: func() { client.Close() },
	}
}
