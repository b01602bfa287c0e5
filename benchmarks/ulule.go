package benchmarks

import (
	"context"

	"github.com/ulule/limiter/v3"
	"github.com/ulule/limiter/v3/drivers/middleware/stdlib"
	"github.com/ulule/limiter/v3/drivers/store/memory"
)

func openUlule(q quota, fields bool) subject {
	l := limiter.New(memory.NewStore(), limiter.Rate{Limit: q.units, Period: q.window})
	ctx := context.Background()
	s := subject{
		take: func(key string) (bool, error) {
			c, err := l.Get(ctx, key)
			return err == nil && !c.Reached, err
		},
	}
	if fields { // fields of this library cannot be turned off
		s.middleware = stdlib.NewMiddleware(l).Handler
	}
	return s
}
