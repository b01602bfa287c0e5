// Package storetest is the contract of [ratelimit.Store] as a test suite. Whoever
// writes a store runs it:
//
//	func TestStore(t *testing.T) {
//		storetest.Run(t, func(t *testing.T, prefix string) ratelimit.Store {
//			return mystore.New(prefix)
//		})
//	}
//
// Each case has a name and the rule that it checks in words. A case passes or fails
// on what the store answers alone; it knows nothing of the inside.
package storetest

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ratelimit-go/ratelimit"
)

// Run runs every case on stores that newStore makes. All stores made within one
// test are to be on one backend, empty at first, and each is to write to the
// prefix that it is given; newStore cleans up after itself with t.Cleanup.
//
// Unless an option says otherwise a case runs in a testing/synctest bubble, for a
// store that lives in this process and takes its time from package time.
func Run(t *testing.T, newStore func(t *testing.T, prefix string) ratelimit.Store, opts ...Option) {
	cfg := config{window: time.Hour, sleep: time.Sleep, bubble: true}
	for _, opt := range opts {
		opt(&cfg)
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			if c.waits && cfg.slack > 0 && (cfg.window == 0 || testing.Short()) {
				t.Skip("waits for real time")
			}
			for _, problem := range c.run(t, cfg, newStore) {
				t.Errorf("%s\n\trule: %s", problem, c.rule)
			}
		})
	}
}

// Option says how time passes for the stores under test.
type Option func(*config)

// Clock is for a store whose clock the test sets: advance moves it on, and it
// stands still otherwise. The resolution is the finest step that it tells apart.
func Clock(advance func(time.Duration), resolution time.Duration) Option {
	return func(c *config) { c.sleep, c.resolution, c.bubble = advance, resolution, false }
}

// RealTime is for a store with a clock of its own. The limits of cases that wait have
// windows of about this length, and waiting is for real; with a window of 0 they are left out. Slack is how far apart two moments
// may be that would be one if nothing took time: a slow call, and the clock's resolution.
func RealTime(window, slack time.Duration) Option {
	return func(c *config) { c.window, c.slack, c.resolution, c.bubble = window, slack, slack, false }
}

type config struct {
	window     time.Duration
	sleep      func(time.Duration)
	resolution time.Duration // of waits that a store tells
	slack      time.Duration // by which time passes on its own
	bubble     bool
}

// testCase is one rule of the contract.
type testCase struct {
	name  string
	rule  string
	waits bool // sleeps
	check func(r *run)
}

// run is one case on its way. It collects problems instead of failing a test, so
// that the suite itself can be tested on stores that are broken.
type run struct {
	config
	t        *testing.T
	newStore func(t *testing.T, prefix string) ratelimit.Store
	store    ratelimit.Store
	at       ratelimit.Instant // of the last take
	problems []string
}

func (c testCase) run(t *testing.T, cfg config, newStore func(*testing.T, string) ratelimit.Store) []string {
	r := &run{config: cfg, newStore: newStore}
	if cfg.slack > 0 && !c.waits {
		r.window, r.slack = 1000*time.Hour, time.Minute // the time that a case takes does not show
	}
	check := func(t *testing.T) {
		r.t = t
		if r.store = newStore(t, "storetest:"); r.store == nil {
			t.Fatal("newStore returned no store")
		}
		c.check(r)
	}
	if cfg.bubble {
		synctest.Test(t, check)
	} else {
		check(t)
	}
	return r.problems
}

func (r *run) problem(format string, args ...any) {
	r.problems = append(r.problems, fmt.Sprintf(format, args...))
}

// take takes n units of key and returns the results; an error is a problem.
func (r *run) take(key string, n int64, limits ...ratelimit.Limit) []ratelimit.Result {
	results := make([]ratelimit.Result, len(limits))
	at, err := r.store.Take(context.Background(), key, n, limits, results)
	if err != nil {
		r.problem("Take(%.40q, %d, %v): error: %v", key, n, limits, err)
	}
	r.at = at
	for i, res := range results {
		switch {
		case res.Remaining < 0 || res.RetryAfter < 0 || res.MoreAfter < 0 || res.ResetAfter < 0:
			r.problem("Take(%.40q, %d, %v): a result is negative: %+v", key, n, limits[i], res)
		case res.Remaining > limits[i].Burst():
			r.problem("Take(%.40q, %d, %v): more remains than the limit holds: %+v", key, n, limits[i], res)
		case res.MoreAfter > res.ResetAfter:
			r.problem("Take(%.40q, %d, %v): whole before there is more: %+v", key, n, limits[i], res)
		}
	}
	return results
}

func admitted(results []ratelimit.Result) bool {
	for _, res := range results {
		if res.RetryAfter != 0 {
			return false
		}
	}
	return true
}

// admits takes and says that it is a problem if that is denied.
func (r *run) admits(key string, n int64, limits ...ratelimit.Limit) {
	if results := r.take(key, n, limits...); !admitted(results) {
		r.problem("%d units of %.40q were denied under %v: %+v", n, key, limits, results)
	}
}

// denies takes and says that it is a problem if that is admitted.
func (r *run) denies(key string, n int64, limits ...ratelimit.Limit) {
	if admitted(r.take(key, n, limits...)) {
		r.problem("%d units of %.40q were admitted under %v", n, key, limits)
	}
}

// remains looks, and says that it is a problem if anything else is left.
func (r *run) remains(key string, want int64, limit ratelimit.Limit) {
	results := r.take(key, 0, limit)
	if !admitted(results) {
		r.problem("a look at %.40q was denied under %v: %+v", key, limit, results)
	}
	if got := results[0].Remaining; got != want {
		r.problem("%d units of %.40q are left under %v, want %d", got, key, limit, want)
	}
}

func (r *run) adjust(key string, n int64, at ratelimit.Instant, limits ...ratelimit.Limit) (charged int64) {
	charged, err := r.store.Adjust(context.Background(), key, n, at, limits)
	if err != nil {
		r.problem("Adjust(%.40q, %d, %v): error: %v", key, n, limits, err)
	}
	return charged
}

// charges adjusts, and says that it is a problem if other than want units are charged.
func (r *run) charges(key string, n, want int64, limits ...ratelimit.Limit) {
	if got := r.adjust(key, n, ratelimit.Now, limits...); got != want {
		r.problem("Adjust(%.40q, %d, %v) says that %d were charged, want %d", key, n, limits, got, want)
	}
}

func (r *run) reset(key string, limits ...ratelimit.Limit) {
	if err := r.store.Reset(context.Background(), key, limits); err != nil {
		r.problem("Reset(%.40q, %v): error: %v", key, limits, err)
	}
}

// about says that it is a problem if a wait is not want: up to a step of the clock
// longer, and shorter only by the time that has passed on its own.
func (r *run) about(what string, got, want time.Duration) {
	if got > want+max(r.resolution, 1) || got < want-r.slack-r.resolution {
		r.problem("%s is %v, want %v", what, got, want)
	}
}

// three returns a limit of each algorithm: n units at once, and the window's.
func (r *run) three(n int64) []ratelimit.Limit {
	return []ratelimit.Limit{
		ratelimit.FixedWindow(n, r.window),
		ratelimit.SlidingWindow(n, r.window),
		ratelimit.TokenBucket(n, r.window, n),
	}
}
