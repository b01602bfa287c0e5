package storekit

import (
	"sync"

	"github.com/ratelimit-go/ratelimit"
	"github.com/ratelimit-go/ratelimit/internal/counting"
)

// maxLimits bounds the cache of a program whose limits keep changing. Then it begins again.
const maxLimits = 1024

// A limitCache has how limits count. It is worked out once for each limit, because a record
// asks at each call. Its zero value is ready to use, from any number of goroutines.
type limitCache struct {
	mu     sync.RWMutex
	limits map[ratelimit.Limit]*counting.Limit // without their names
}

// knownLimits are the limits of all stores and records.
var knownLimits limitCache

// of returns how a limit counts, or an error if it is not valid.
func (c *limitCache) of(l ratelimit.Limit) (*counting.Limit, error) {
	l = l.Named("")
	c.mu.RLock()
	found := c.limits[l]
	c.mu.RUnlock()
	if found != nil {
		return found, nil
	}
	made, err := counting.New(l)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.limits == nil || len(c.limits) >= maxLimits {
		c.limits = make(map[ratelimit.Limit]*counting.Limit)
	}
	c.limits[l] = made
	return made, nil
}
