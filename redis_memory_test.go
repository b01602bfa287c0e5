package ratelimit_test

import (
	"fmt"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
	"github.com/ratelimit-go/ratelimit/internal/near"
	"github.com/ratelimit-go/ratelimit/internal/rule"
)

// TestNearMemory: a key that a process remembers takes as much there as Options.NearKeys says.
func TestNearMemory(t *testing.T) {
	limits := []rule.Limit{{Kind: rule.Fixed, N: 5, Window: int64(time.Hour)}}
	before := memLiveHeap()
	c := near.New(DefaultNearKeys)
	for i := range 2 * DefaultNearKeys {
		key := fmt.Sprintf("198.51.%08d", i)
		c.Learn(key, 1, limits, []rule.Answer{{Retry: int64(time.Hour), Reset: int64(time.Hour)}}, 1, 1, int64(time.Second), c.Version(key))
	}
	each := (memLiveHeap() - before) / DefaultNearKeys
	t.Logf("%d bytes a key", each)
	require.InDelta(t, 400, each, 100)
	runtime.KeepAlive(c)
}
