// Package redis counts on Redis.
package redis

import (
	"github.com/redis/go-redis/v9"
	"github.com/ulule/limiter/v3"
	"github.com/ulule/limiter/v3/drivers/ours"
)

func NewStoreWithOptions(client redis.UniversalClient, options limiter.StoreOptions) (limiter.Store, error) {
	return ours.NewRedis(client, options.Prefix)
}
