package benchmarks

import (
	"context"

	"github.com/sethvargo/go-limiter/httplimit"
	"github.com/sethvargo/go-limiter/memorystore"
)

func openGoLimiter(q quota, fields bool) subject {
	store := must(memorystore.New(&memorystore.Config{Tokens: uint64(q.units), Interval: q.window}))
	ctx := context.Background()
	s := subject{
		take: func(key string) (bool, error) {
			_, _, _, ok, err := store.Take(ctx, key)
			return ok, err
		},
		close: func() { store.Close(ctx) },
	}
	if fields { // fields of this library cannot be turned off
		s.middleware = must(httplimit.NewMiddleware(store, httplimit.IPKeyFunc())).Handle
	}
	return s
}
