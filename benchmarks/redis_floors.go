package benchmarks

import (
	"sync"

	"github.com/redis/go-redis/v9"
)

// The floors on Redis increment a number and do not look at it. Three of them do so with the
// commands that a fixed window takes: it needs the units, the end of the window and the clock.
// They show what is left to gain for a library that sends its commands in the same way.

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

// openScript runs a script for each caller.
func openScript(script *redis.Script) func(target, quota) subject {
	return func(where target, _ quota) subject {
		client := where.goRedis()
		return subject{
			take: func(key string) (bool, error) {
				return succeeded(script.Run(background, client, []string{key}).Err())
			},
			close: func() { client.Close() },
		}
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

// The names of the floors with a window's commands say how these are sent.
const (
	windowCalls     = "window-calls"     // in a script for each caller
	windowPipelined = "window-pipelined" // in a script for each caller; callers share a round trip to their master
	windowShared    = "window-shared"    // callers share a script of their master
)

// windowScript makes the calls. In a Cluster, keys of several slots must not be declared, nor
// be in one command.
var windowScript = redis.NewScript(`
local keys, call = KEYS, redis.call
if #keys == 0 then
  keys = ARGV
  for i = 1, #keys do call('GET', keys[i]) end
else
  call('MGET', unpack(keys))
end
for i = 1, #keys do call('PTTL', keys[i]) end
call('TIME')
for i = 1, #keys do call('INCRBY', keys[i], '1') end
return 1
`)

// openWindowPipelined has a command for each key.
func openWindowPipelined(where target, _ quota) subject {
	return openTogether(where, func(master redis.UniversalClient, keys []string) error {
		pipe := master.Pipeline()
		for _, key := range keys {
			pipe.EvalSha(background, windowScript.Hash(), []string{key})
		}
		_, err := pipe.Exec(background)
		return err
	})
}

// openWindowShared has a command for each batch of keys.
func openWindowShared(where target, _ quota) subject {
	return openTogether(where, func(master redis.UniversalClient, keys []string) error {
		if !where.cluster {
			return master.EvalSha(background, windowScript.Hash(), keys).Err()
		}
		undeclared := make([]any, len(keys))
		for i, key := range keys {
			undeclared[i] = key
		}
		return master.EvalSha(background, windowScript.Hash(), nil, undeclared...).Err()
	})
}

// openTogether returns a subject whose callers share round trips, one at a time for each
// master.
func openTogether(where target, send func(master redis.UniversalClient, keys []string) error) subject {
	client := where.goRedis()
	cluster, _ := client.(*redis.ClusterClient)
	var masters sync.Map // of keys: *together
	var mu sync.Mutex
	all := make(map[redis.UniversalClient]*together)
	done := make(chan struct{})
	masterOf := func(key string) (*together, error) {
		master := client
		if cluster != nil {
			var err error
			if master, err = cluster.MasterForKey(background, key); err != nil {
				return nil, err
			}
		}
		mu.Lock()
		defer mu.Unlock()
		t := all[master]
		if t == nil {
			if err := windowScript.Load(background, master).Err(); err != nil {
				return nil, err
			}
			t = newTogether(done, func(keys []string) error { return send(master, keys) })
			all[master] = t
		}
		masters.Store(key, t)
		return t, nil
	}
	return subject{
		take: func(key string) (bool, error) {
			t, ok := masters.Load(key)
			if !ok {
				var err error
				if t, err = masterOf(key); err != nil {
					return false, err
				}
			}
			return t.(*together).take(key)
		},
		close: func() { close(done); client.Close() },
	}
}

// openWake sends nothing. Callers that share a command have to be woken up in addition to the
// command.
func openWake(target, quota) subject {
	done := make(chan struct{})
	t := newTogether(done, func([]string) error { return nil })
	return subject{take: t.take, close: func() { close(done) }}
}

// together has callers that share round trips. A goroutine sends what all of them have asked
// for since its last round trip, and answers each by a channel.
type together struct {
	mu      sync.Mutex
	keys    []string
	callers []chan error
	ready   chan struct{} // has an element if there are callers
}

// newTogether starts the goroutine. It ends when done is closed.
func newTogether(done chan struct{}, send func(keys []string) error) *together {
	t := &together{ready: make(chan struct{}, 1)}
	go t.run(done, send)
	return t
}

var answerChannels = sync.Pool{New: func() any { return make(chan error, 1) }}

func (t *together) take(key string) (bool, error) {
	answer := answerChannels.Get().(chan error)
	t.mu.Lock()
	t.keys, t.callers = append(t.keys, key), append(t.callers, answer)
	first := len(t.callers) == 1
	t.mu.Unlock()
	if first {
		t.ready <- struct{}{}
	}
	err := <-answer
	answerChannels.Put(answer)
	return succeeded(err)
}

func (t *together) run(done chan struct{}, send func(keys []string) error) {
	var keys []string
	var callers []chan error
	for {
		select {
		case <-t.ready:
		case <-done:
			return
		}
		t.mu.Lock()
		keys, t.keys = t.keys, keys[:0]
		callers, t.callers = t.callers, callers[:0]
		t.mu.Unlock()
		err := send(keys)
		for _, caller := range callers {
			caller <- err
		}
	}
}
