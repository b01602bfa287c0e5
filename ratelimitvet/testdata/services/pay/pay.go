// Package pay has a limiter per route, from a table.
package pay

import (
	"fmt"
	"net/http"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/ratelimit-go/ratelimit"
)

var table = map[string][]ratelimit.Limit{
	"charge": {ratelimit.SlidingWindow(100, time.Minute)},
	"refund": {ratelimit.FixedWindow(10, time.Hour).Block(time.Hour, 24*time.Hour)},
	"report": {ratelimit.Daily(20, nil)},
}

// Routes wraps each handler in the limiter of its route.
func Routes(client redis.UniversalClient, handlers map[string]http.Handler) (http.Handler, error) {
	mux := http.NewServeMux()
	for name, limits := range table {
		store, err := ratelimit.NewRedisStore(client, fmt.Sprintf("pay:%s:", name))
		if err != nil {
			return nil, err
		}
		limiter, err := ratelimit.New(name, ratelimit.Options{
			Limits: limits,
			Store:  store,
			Key:    ratelimit.JoinKeys(ratelimit.HeaderKey("X-Merchant"), ratelimit.ClientIP{TrustedHops: 1}.Key),
		})
		if err != nil {
			return nil, err
		}
		mux.Handle("POST /"+name, limiter.Middleware(handlers[name]))
	}
	return mux, nil
}

// Global has one store for what has one limiter, whichever backend there is.
func Global(client redis.UniversalClient) (*ratelimit.Limiter, error) { // want Global:"makes"
	var store ratelimit.Store = ratelimit.Memory("global")
	if client != nil {
		shared, err := ratelimit.NewRedisStore(client, "pay:global:")
		if err != nil {
			return nil, err
		}
		store = shared
	}
	limits := []ratelimit.Limit{ratelimit.TokenBucket(1000, time.Second, 2000)}
	if client == nil {
		return ratelimit.New("global-local", ratelimit.Options{Limits: limits, Store: store})
	}
	return ratelimit.New("global", ratelimit.Options{Limits: limits, Store: store})
}
