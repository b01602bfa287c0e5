package benchmarks

import (
	"sync"

	"github.com/redis/go-redis/v9"
)

// The floors on Redis increment a number and do not look at it.

// succeeded is the answer of a floor, which admits everything.
func succeeded(err error) (bool, error) { return err == nil, err }

// evalsha is the name of the floor that single decisions are compared with.
const evalsha = "evalsha"

// wake is the name of the floor that does not use Redis.
const wake = "wake-up"

func openIncr(where target, _ quota) subject {
	client := where.goRedis()
	return subject{
		take:  func(key string) (bool, error) { return succeeded(client.Incr(background, key).Err()) },
		close: func() { client.Close() },
	}
}

var incrScript = redis.NewScript(`return redis.call('INCR', KEYS[1])`)

func openEvalsha(where target, _ quota) subject {
	client := where.goRedis()
	return subject{
		take: func(key string) (bool, error) {
			return succeeded(incrScript.Run(background, client, []string{key}).Err())
		},
		close: func() { client.Close() },
	}
}

func openIncrPipelined(where target, _ quota) subject {
	client := where.goRedis()
	pipes := sync.Pool{New: func() any { return client.Pipeline() }}
	return subject{
		take: func(key string) (bool, error) {
			pipe := pipes.Get().(redis.Pipeliner)
			defer pipes.Put(pipe)
			pipe.Incr(background, key)
			if pipe.Len() < 64 {
				return true, nil
			}
			_, err := pipe.Exec(background)
			return succeeded(err)
		},
		close: func() { client.Close() },
	}
}

// openWake sends nothing. A goroutine answers all callers that wait for it, by a channel each.
// Callers that share a command have to do this in addition to the command.
func openWake(target, quota) subject {
	var mu sync.Mutex
	var waiting []chan struct{}
	ready, done := make(chan struct{}, 1), make(chan struct{})
	channels := sync.Pool{New: func() any { return make(chan struct{}, 1) }}
	go func() {
		var batch []chan struct{}
		for {
			select {
			case <-ready:
			case <-done:
				return
			}
			mu.Lock()
			batch, waiting = waiting, batch[:0]
			mu.Unlock()
			for _, caller := range batch {
				caller <- struct{}{}
			}
		}
	}()
	return subject{
		take: func(string) (bool, error) {
			answer := channels.Get().(chan struct{})
			mu.Lock()
			waiting = append(waiting, answer)
			first := len(waiting) == 1
			mu.Unlock()
			if first {
				ready <- struct{}{}
			}
			<-answer
			channels.Put(answer)
			return true, nil
		},
		close: func() { close(done) },
	}
}
