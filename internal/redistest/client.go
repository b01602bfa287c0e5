package redistest

import (
	"context"
	"testing"

	"github.com/redis/go-redis/v9"
)

// Client returns a client of the server at an address, with go-redis's defaults. It is
// closed when the test ends.
func Client(t testing.TB, addr string, opts ...func(*redis.Options)) *redis.Client {
	o := &redis.Options{Addr: addr}
	for _, opt := range opts {
		opt(o)
	}
	c := redis.NewClient(o)
	t.Cleanup(func() { c.Close() }) // the test may have closed it
	return c
}

// A Hook is called for each command of a client, alone or in a pipeline. It sends the
// command by calling next. In a pipeline, next only adds the command to the ones that
// are sent together after the last call of the hook.
type Hook func(ctx context.Context, cmd redis.Cmder, next redis.ProcessHook) error

// DialHook leaves dialling as it is.
func (Hook) DialHook(next redis.DialHook) redis.DialHook { return next }

// ProcessHook calls the hook for a command that is sent alone.
func (h Hook) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error { return h(ctx, cmd, next) }
}

// ProcessPipelineHook calls the hook for each command of a pipeline.
func (h Hook) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		var rest []redis.Cmder
		for _, cmd := range cmds {
			h(ctx, cmd, func(_ context.Context, cmd redis.Cmder) error {
				rest = append(rest, cmd)
				return nil
			})
		}
		if rest == nil {
			return nil
		}
		return next(ctx, rest)
	}
}
