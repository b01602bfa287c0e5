package ratelimit_test

import (
	"testing"
	"time"

	. "github.com/ratelimit-go/ratelimit"
	"github.com/ratelimit-go/ratelimit/storetest"
)

func TestRedisStoreConformsOnMiniredis(t *testing.T) {
	var m *mini
	storetest.Run(t, func(t *testing.T, prefix string) Store {
		if prefix == "storetest:" { // the first of a case
			m = newMini(t)
		}
		return redisStore(t, m.client(t), prefix)
	}, storetest.Clock(func(d time.Duration) { m.advance(d) }, 2*time.Millisecond))
}
