//go:build !(386 || arm || mips || mipsle)

// There is no example on 32-bit machines: miniredis keeps integers in an int, and the
// library's scripts have larger ones.

package ratelimit_test

import (
	"context"
	"fmt"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"

	"github.com/ratelimit-go/ratelimit"
)

// serve starts a Redis for an example. A program uses its real one.
func serve() (addr string, stop func()) {
	server, err := miniredis.Run()
	if err != nil {
		panic(err)
	}
	return server.Addr(), server.Close
}

// Any number of limiters can use one client, each under its own prefix.
func ExampleOptions_redis() {
	addr, stop := serve()
	defer stop()
	client := redis.NewUniversalClient(&redis.UniversalOptions{Addrs: []string{addr}})
	defer client.Close()

	login := ratelimit.Must(ratelimit.New("login", ratelimit.Options{
		Limits:    []ratelimit.Limit{ratelimit.FixedWindow(5, time.Hour)},
		Redis:     client,
		OnFailure: ratelimit.FailClosed, // nobody may log in without being counted
		Logger:    discard,
	}))
	defer login.Close()

	ctx := context.Background()
	d, err := login.Take(ctx, "203.0.113.7")
	fmt.Println(d.Allowed, d.Remaining, d.Source, err)
	fmt.Println(client.Get(ctx, "rl:login:{203.0.113.7}:fixed-1h").Val())
	// Output:
	// true 4 store <nil>
	// 1
}

// While Redis is away, a limiter continues from the last known state of each key.
func ExampleFailurePolicy() {
	addr, stop := serve()
	client := redis.NewClient(&redis.Options{Addr: addr, DialerRetries: 1})
	defer client.Close()
	api := ratelimit.Must(ratelimit.New("api", ratelimit.Options{
		Limits: []ratelimit.Limit{ratelimit.FixedWindow(3, time.Hour)},
		Redis:  client,
		Logger: discard,
	}))
	defer api.Close()

	ctx := context.Background()
	for range 2 {
		d, err := api.Take(ctx, "203.0.113.7")
		fmt.Println(d.Allowed, d.Source, err)
	}
	stop()
	for range 2 {
		d, err := api.Take(ctx, "203.0.113.7")
		fmt.Println(d.Allowed, d.Source, err)
	}
	// Output:
	// true store <nil>
	// true store <nil>
	// true fallback <nil>
	// false fallback <nil>
}

// A store with another prefix, for two services on one Redis whose limiters may have the
// same names.
func ExampleNewRedisStore() {
	addr, stop := serve()
	defer stop()
	client := redis.NewClient(&redis.Options{Addr: addr})
	defer client.Close()

	store, err := ratelimit.NewRedisStore(client, "shop:login:", ratelimit.RefuseSharedPrefix())
	if err != nil {
		panic(err)
	}
	defer store.Close()
	login := ratelimit.Must(ratelimit.New("login", ratelimit.Options{
		Limits: []ratelimit.Limit{ratelimit.FixedWindow(5, time.Hour)},
		Store:  store,
		Logger: discard,
	}))
	defer login.Close()
	_, err = login.Take(context.Background(), "203.0.113.7")
	fmt.Println(store.Prefix(), err)

	_, err = ratelimit.NewRedisStore(client, "shop:{login}:")
	fmt.Println(err)
	// Output:
	// shop:login: <nil>
	// ratelimit: RedisStore "shop:{login}:": its prefix has a brace, which would make a hash tag of it: use one such as "rl:login:"
}
