package storetest

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ratelimit-go/ratelimit"
)

// Takes by TakeShared.
var sharedCases = []testCase{
	{
		name:   "shared-take",
		rules:  []int{1, 2, 3, 4},
		rule:   "TakeShared is as Take: the cases of takes that do not wait hold with it in place of Take",
		shared: true,
		check:  func(r *run) { r.byTakeShared(takeCases, severalCases, waitCases) },
	},
	{
		name:   "shared-blocks",
		rules:  []int{19},
		rule:   "TakeShared is as TakePending: the cases of blocks that do not wait hold with it",
		blocks: true,
		shared: true,
		check:  func(r *run) { r.byTakeShared(blockCases, severalBlockCases, handBlockCases) },
	},
	{
		name:     "shared-calendar",
		rules:    []int{1, 2, 3, 4},
		rule:     "TakeShared is as Take under limits of a calendar: the cases that do not wait hold with it",
		calendar: true,
		shared:   true,
		check:    func(r *run) { r.byTakeShared(calendarCases) },
	},
	{
		name:   "shared-reply",
		rules:  []int{3, 5},
		rule:   "the reply of TakeShared has the instant of the decision, as Take returns it; that of a lone call is the newest",
		shared: true,
		check: func(r *run) {
			for _, l := range r.three(2) {
				for _, n := range []int64{0, 2, 1, 3} {
					request := ratelimit.SharedRequest{Key: "shared", Units: n, Limits: []ratelimit.Limit{l}}
					reply, shared := r.takeShared(request)
					alone := r.take("alone", n, l)[0]
					r.about(fmt.Sprintf("the time from TakeShared of %d units under %v to Take", n, l), time.Duration(r.at-reply.At), 0)
					if !reply.Newest {
						r.problem("Newest is not set, but no other call for %d units under %v was made", n, l)
					}
					if shared := shared[0]; shared.Remaining != alone.Remaining || (shared.RetryAfter == 0) != (alone.RetryAfter == 0) {
						r.problem("%d units under %v: %+v by TakeShared, and %+v by Take", n, l, shared, alone)
					}
				}
			}
		},
	},
	{
		name:   "shared-up-to",
		rules:  []int{1, 2, 3, 4},
		rule:   "with UpTo, TakeShared takes as many units as fit under every limit; if none fits, it denies one unit",
		shared: true,
		check: func(r *run) {
			for _, l := range r.three(5) {
				for i, asked := range []int64{2, 3, 4, math.MaxInt64} {
					key := fmt.Sprint("key ", i)
					r.admits(key, 2, l)
					granted := min(asked, 3)
					if res := r.takeUpTo(key, asked, granted, l)[0]; res.Remaining != 3-granted {
						r.problem("after up to %d units under %v: %+v, want %d remaining", asked, l, res, 3-granted)
					}
					r.remains(key, 3-granted, l)
				}
				for range 2 {
					one := r.take("key 3", 1, l)[0].RetryAfter
					res := r.takeUpTo("key 3", 5, 0, l)[0]
					r.about(fmt.Sprintf("RetryAfter of up to 5 units under %v", l), res.RetryAfter, one)
				}
			}
			wide, narrow, bucket := ratelimit.FixedWindow(9, r.window), ratelimit.SlidingWindow(4, 2*r.window), ratelimit.TokenBucket(6, r.window, 6)
			r.takeUpTo("several", 7, 4, wide, narrow, bucket)
			r.takeUpTo("several", 7, 2, bucket, wide)
			res := r.takeUpTo("several", 7, 0, narrow, wide, bucket)
			if res[0].RetryAfter == 0 || res[1].RetryAfter != 0 || res[2].RetryAfter == 0 {
				r.problem("of limits with 0, 3 and 0 units left the first and the last should deny: %+v", res)
			}
			r.remains("several", 3, wide)
		},
	},
	{
		name:   "shared-up-to-concurrent",
		rules:  []int{1},
		rule:   "the units that are granted with UpTo to many goroutines add up to exactly n",
		shared: true,
		check: func(r *run) {
			for _, l := range r.three(1000) {
				var sum atomic.Int64
				r.inParallel(func(number int) error {
					request := ratelimit.SharedRequest{Key: "key", Units: int64(1 + number%16), UpTo: true, Limits: []ratelimit.Limit{l}}
					reply, err := r.store.(ratelimit.SharedStore).TakeShared(context.Background(), request, make([]ratelimit.Result, 1))
					sum.Add(reply.Granted)
					return err
				})
				if got := sum.Load(); got != 1000 {
					r.problem("%d units were granted under %v, want 1000", got, l)
				}
				r.remains("key", 0, l)
			}
		},
	},
	{
		name:   "shared-deadline",
		rules:  []int{13, 14},
		rule:   "TakeShared returns an error and changes nothing if its context is done, or its deadline has passed",
		shared: true,
		check: func(r *run) {
			l := ratelimit.FixedWindow(3, r.window)
			request := ratelimit.SharedRequest{Key: "key", Units: 1, Limits: []ratelimit.Limit{l}, Deadline: time.Now().Add(time.Hour)}
			if _, res := r.takeShared(request); !admitted(res) {
				r.problem("a call with a deadline in an hour was denied: %+v", res)
			}
			cancelled, cancel := context.WithCancel(context.Background())
			cancel()
			for _, upTo := range []bool{false, true} {
				for _, n := range []int64{1, 2} {
					request.Units, request.UpTo, request.Deadline = n, upTo, time.Time{}
					store, results := r.store.(ratelimit.SharedStore), make([]ratelimit.Result, 1)
					if _, err := store.TakeShared(cancelled, request, results); !errors.Is(err, context.Canceled) {
						r.problem("TakeShared of %d units with a context that is done returned %v, want %v", n, err, context.Canceled)
					}
					request.Deadline = time.Unix(1, 0)
					if _, err := store.TakeShared(context.Background(), request, results); err == nil {
						r.problem("TakeShared of %d units with a deadline that has passed returned no error", n)
					}
				}
			}
			r.remains("key", 2, l)
		},
	},
	{
		name:   "shared-up-to-blocks",
		rules:  []int{19},
		rule:   "with UpTo a block starts only if no unit fits, and during a block none is granted",
		blocks: true,
		shared: true,
		check: func(r *run) {
			for _, l := range r.three(5) {
				blocking := l.Block(3*r.window, 9*r.window)
				r.admits("key", 2, blocking)
				r.takeUpTo("key", 9, 3, blocking)
				r.free("key", blocking)
				r.blockedBy(r.takeUpTo("key", 9, 0, blocking)[0], "key", true, 3*r.window, blocking)
				r.blockedBy(r.takeUpTo("key", 9, 0, blocking)[0], "key", false, 3*r.window, blocking)
				r.block("by hand", ratelimit.Block{Left: 3 * r.window}, l)
				r.blockedBy(r.takeUpTo("by hand", 2, 0, l)[0], "by hand", false, 3*r.window, l)

				r.admits("pending", 5, blocking)
				for _, tc := range []struct {
					pending int64
					blocks  bool
				}{{1, false}, {0, true}} {
					request := ratelimit.SharedRequest{
						Key: "pending", Units: 5, UpTo: true, Limits: []ratelimit.Limit{blocking}, Pending: []ratelimit.Pending{{Units: tc.pending, At: r.at}},
					}
					if _, res := r.takeShared(request); res[0].RetryAfter == 0 || res[0].BlockBegan != tc.blocks {
						r.problem("up to 5 units under %v, %d are pending: %+v, want a denial and BlockBegan %v", l, tc.pending, res[0], tc.blocks)
					}
				}
			}
		},
	},
}

// byTakeShared runs the cases that do not wait with TakeShared in place of Take and of
// TakePending.
func (r *run) byTakeShared(groups ...[]testCase) {
	for _, c := range concat(groups...) {
		if c.waits || c.days {
			continue
		}
		shared := *r
		shared.findings = &findings{last: time.Now()}
		shared.newStore = func(t *testing.T, prefix string) ratelimit.Store {
			return takesShared{r.newStore(t, prefix).(ratelimit.SharedStore)}
		}
		shared.store = shared.newStore(r.t, "storetest:"+c.name+":")
		c.check(&shared)
		r.slowest = max(r.slowest, shared.slowest)
		for _, problem := range shared.problems {
			r.problem("with TakeShared, case %s: %s", c.name, problem)
		}
	}
}

// takesShared is a store that takes by TakeShared. It has the kinds of the store inside.
type takesShared struct{ ratelimit.SharedStore }

func (s takesShared) Take(ctx context.Context, key string, n int64, limits []ratelimit.Limit, results []ratelimit.Result) (ratelimit.Instant, error) {
	return s.TakePending(ctx, key, n, nil, limits, results)
}

func (s takesShared) TakePending(ctx context.Context, key string, n int64, pending []ratelimit.Pending, limits []ratelimit.Limit, results []ratelimit.Result) (ratelimit.Instant, error) {
	reply, err := s.TakeShared(ctx, ratelimit.SharedRequest{Key: key, Units: n, Limits: limits, Pending: pending}, results)
	return reply.At, err
}

func (s takesShared) Kinds() ratelimit.Kinds {
	if k, ok := s.SharedStore.(ratelimit.KindStore); ok {
		return k.Kinds()
	}
	return 0
}

func (s takesShared) Block(ctx context.Context, key string, b ratelimit.Block, limits []ratelimit.Limit) error {
	return s.SharedStore.(ratelimit.KindStore).Block(ctx, key, b, limits)
}
