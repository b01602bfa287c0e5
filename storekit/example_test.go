package storekit_test

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/ratelimit-go/ratelimit"
	"github.com/ratelimit-go/ratelimit/storekit"
)

// A store over a map, for one process; see the comment of the package for its 25 lines.
func ExampleNew() {
	store := storekit.New("login", &backend{records: map[string][]byte{}})
	login := ratelimit.Must(new(ratelimit.Registry).New("login", ratelimit.Options{
		Store:  store,
		Limits: []ratelimit.Limit{ratelimit.FixedWindow(2, time.Hour), ratelimit.Daily(10, nil)},
	}))
	defer login.Close()
	for range 3 {
		d, err := login.Take(context.Background(), "alice")
		fmt.Println(d.Allowed, d.Remaining, err)
	}
	// Output:
	// true 1 <nil>
	// true 0 <nil>
	// false 0 <nil>
}

// A store whose counters have columns of their own: for each key, the rows of a table.
type columns struct {
	mu   sync.Mutex
	rows map[string][]storekit.Counter
}

// take is the Take of a ratelimit.Store.
func (c *columns) take(key string, n int64, limits []ratelimit.Limit, results []ratelimit.Result) (ratelimit.Instant, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	record := storekit.Record{Counters: c.rows[key]}
	reply, err := record.Take(now, ratelimit.SharedRequest{Units: n, Limits: limits}, results)
	if err != nil || !record.Changed() {
		return reply.At, err
	}
	var kept []storekit.Counter
	for _, counter := range record.Counters {
		if counter.End > now.UnixNano() {
			kept = append(kept, counter)
		}
	}
	c.rows[key] = kept
	return reply.At, nil
}

func ExampleRecord() {
	c := columns{rows: map[string][]storekit.Counter{}}
	limits, results := []ratelimit.Limit{ratelimit.FixedWindow(5, time.Hour)}, make([]ratelimit.Result, 1)
	for range 2 {
		if _, err := c.take("alice", 2, limits, results); err != nil {
			panic(err)
		}
	}
	row := c.rows["alice"][0]
	fmt.Println(row.Name, row.A, time.Duration(row.End-row.T), results[0].Remaining)
	// Output: fixed-1h 4 1h0m0s 1
}
