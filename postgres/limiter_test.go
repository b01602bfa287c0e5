package postgres_test

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ratelimit-go/ratelimit"
	"github.com/ratelimit-go/ratelimit/internal/pgtest"
)

// TestLimiterSparesTheDatabase checks that what a limiter does for a store outside of the
// process works for this one: a cache of denials, leases, and the local part in an outage.
func TestLimiterSparesTheDatabase(t *testing.T) {
	server := migrated(t)
	pool := newPool(t, server.URL(pgtest.Superuser))
	t.Run("denials", func(t *testing.T) {
		limiter := newLimiter(t, newStore(t, pool, "denials"), []ratelimit.Limit{ratelimit.FixedWindow(5, time.Hour)}, func(o *ratelimit.Options) { o.Timeout = 5 * time.Second })
		sources := map[ratelimit.Source]int{}
		for i := range 500 {
			d, err := limiter.Take(ctx, "key")
			require.NoError(t, err)
			assert.Equal(t, i < 5, d.Allowed)
			sources[d.Source]++
		}
		assert.Greater(t, sources[ratelimit.SourceCache], 400, "%v", sources)
	})
	t.Run("leases", func(t *testing.T) {
		var admitted, leased atomic.Int64
		var wg sync.WaitGroup
		for p := range 2 { // two processes, as far as the database can see
			limiter := newLimiter(t, newStore(t, pool, "leases"), []ratelimit.Limit{ratelimit.FixedWindow(20_000, time.Hour)}, func(o *ratelimit.Options) {
				o.Timeout, o.Lease = 5*time.Second, 250*time.Millisecond
			})
			for range 16 {
				wg.Go(func() {
					for range 1000 {
						d, err := limiter.Take(ctx, "key")
						if !assert.NoError(t, err, "process %d", p) {
							return
						}
						if d.Allowed {
							admitted.Add(1)
						}
						if d.Source == ratelimit.SourceLease {
							leased.Add(1)
						}
					}
				})
			}
		}
		wg.Wait()
		assert.LessOrEqual(t, admitted.Load(), int64(20_000))
		assert.Greater(t, admitted.Load(), int64(15_000))
		assert.Greater(t, leased.Load(), int64(5_000))
	})
	t.Run("outage", func(t *testing.T) {
		store := newStore(t, pool, "outage")
		limiter := newLimiter(t, store, hourly, func(o *ratelimit.Options) { o.Timeout = 5 * time.Second }) // a server that was stopped refuses at once
		for i := range 20 {
			_, err := limiter.Take(ctx, fmt.Sprint("key", i%2))
			require.NoError(t, err)
		}
		server.Stop()
		for i := range 20 {
			d, err := limiter.Take(ctx, fmt.Sprint("key", i%2))
			require.NoError(t, err)
			assert.Equal(t, ratelimit.SourceFallback, d.Source)
		}
		server.Restart()
		// What was admitted in the meantime is written.
		require.Eventually(t, func() bool {
			limiter.Take(ctx, "another key")
			return counted(t, store, "key0") == 20 && counted(t, store, "key1") == 20
		}, 20*time.Second, 50*time.Millisecond)
	})
}
