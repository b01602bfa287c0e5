package storetest

import (
	"context"
	"errors"
	"io"
	"slices"
	"sync/atomic"
	"time"

	"github.com/ratelimit-go/ratelimit"
)

// What a call does to its arguments, and what its context does to a call.
var callCases = []testCase{
	{
		name:  "context",
		rules: []int{13, 14},
		rule:  "a call whose context is done returns the context's error and changes nothing",
		check: func(r *run) {
			l := ratelimit.FixedWindow(3, r.window)
			r.admits("key", 2, l)
			cancelled, cancel := context.WithCancel(context.Background())
			cancel()
			expired, cancel := context.WithDeadline(context.Background(), time.Unix(0, 0))
			defer cancel()
			for _, ctx := range []context.Context{cancelled, expired} {
				want := ctx.Err()
				for _, n := range []int64{0, 1, 2} {
					_, err := r.store.Take(ctx, "key", n, []ratelimit.Limit{l}, make([]ratelimit.Result, 1))
					if !errors.Is(err, want) {
						r.problem("Take of %d units returned %v, want %v", n, err, want)
					}
				}
				for _, n := range []int64{-1, 1} {
					if _, err := r.store.Adjust(ctx, "key", n, ratelimit.Now, []ratelimit.Limit{l}); !errors.Is(err, want) {
						r.problem("Adjust by %d units returned %v, want %v", n, err, want)
					}
					r.remains("key", 1, l)
				}
				if err := r.store.Reset(ctx, "key", []ratelimit.Limit{l}); !errors.Is(err, want) {
					r.problem("Reset returned %v, want %v", err, want)
				}
				r.remains("key", 1, l)
				if k, ok := kindStore(r.store); ok {
					limits := []ratelimit.Limit{l.Block(r.window)}
					for _, n := range []int64{0, 1, 2} {
						if _, err := k.TakePending(ctx, "key", n, nil, limits, make([]ratelimit.Result, 1)); !errors.Is(err, want) {
							r.problem("TakePending of %d units returned %v, want %v", n, err, want)
						}
					}
					if err := k.Block(ctx, "key", ratelimit.Block{Left: r.window}, limits); !errors.Is(err, want) {
						r.problem("Block returned %v, want %v", err, want)
					}
					r.free("key", l)
					r.remains("key", 1, l)
				}
			}
		},
	},
	{
		name:  "abandoned",
		rules: []int{14},
		rule:  "a call that its caller gives up counts once or not at all: it is never made again",
		check: func(r *run) {
			l := ratelimit.FixedWindow(10*goroutines*rounds, r.window)
			var calls, took atomic.Int64
			r.inParallel(func(number int) error {
				ctx, cancel := context.WithTimeout(context.Background(), time.Duration(number)*25*time.Microsecond)
				defer cancel()
				calls.Add(1)
				results := make([]ratelimit.Result, 1)
				if _, err := r.store.Take(ctx, "key", 1, []ratelimit.Limit{l}, results); err == nil && admitted(results) {
					took.Add(1)
				}
				return nil
			})
			used := l.N() - r.take("key", 0, l)[0].Remaining
			if used < took.Load() || used > calls.Load() {
				r.problem("%d units are counted after %d takes of one unit, of which %d were admitted", used, calls.Load(), took.Load())
			}
		},
	},
	{
		name:  "limits-slice",
		rules: []int{4, 7},
		rule:  "a call neither changes nor keeps the slice of limits, nor what is behind its end",
		check: func(r *run) {
			sentinel := ratelimit.FixedWindow(7, 7*r.window)
			backing := []ratelimit.Limit{ratelimit.SlidingWindow(2, 2*r.window).Named("b"), ratelimit.FixedWindow(3, r.window).Named("a"), sentinel}
			limits, want := backing[:2], slices.Clone(backing)
			for range 2 {
				r.take("key", 1, limits...)
				r.adjust("key", 1, ratelimit.Now, limits...)
				r.adjust("key", -1, ratelimit.Now, limits...)
				if _, ok := kindStore(r.store); ok {
					pending := []ratelimit.Pending{{Units: 1, At: r.at}, {Units: 7}}
					r.takePending("other", 1, pending[:1], limits...)
					if pending[0].Units != 1 || pending[1].Units != 7 {
						r.problem("the pending units were 1 and 7, and are now %v", pending)
					}
					r.block("other", ratelimit.Block{Left: r.window}, limits...)
				}
				r.reset("other", limits...)
				if !slices.Equal(backing, want) {
					r.problem("the limits were %v and are now %v", want, backing)
				}
			}
			sliding, fixed := backing[0], backing[1]
			limits[0], limits[1] = ratelimit.FixedWindow(9, r.window), ratelimit.FixedWindow(9, 3*r.window)
			r.remains("key", 1, sliding)
			r.remains("key", 1, fixed)
			for i, res := range r.take("key", 1, limits...) {
				if want := []int64{6, 8}[i]; res.Remaining != want {
					r.problem("under limit %d of a slice that was used before are %d units left, want %d", i, res.Remaining, want)
				}
			}
		},
	},
	{
		name:  "results-slice",
		rules: []int{3},
		rule:  "a call writes to its own results only, not behind their end, and not after it has returned",
		check: func(r *run) {
			l := ratelimit.FixedWindow(5, r.window)
			var buffers [][]ratelimit.Result
			var want []ratelimit.Result
			for range 6 { // the last one is denied
				buffer := []ratelimit.Result{{}, junk}
				if _, err := r.store.Take(context.Background(), "key", 1, []ratelimit.Limit{l}, buffer[:1]); err != nil {
					r.problem("Take: error: %v", err)
				}
				buffers, want = append(buffers, buffer), append(want, buffer[0])
			}
			r.refunds("key", 3, ratelimit.Now, l)
			r.reset("key", l)
			for i, buffer := range buffers {
				if buffer[0] != want[i] {
					r.problem("the results of take %d were %+v and are now %+v", i+1, want[i], buffer[0])
				}
				if buffer[1] != junk {
					r.problem("what is behind the results of take %d is now %+v", i+1, buffer[1])
				}
			}
			reused := buffers[0][:1]
			for i := range reused {
				reused[i] = junk
			}
			r.remains("key", 5, l)
		},
	},
	{
		name:  "closed",
		rules: []int{17},
		rule:  "a store with a Close method returns ErrStoreClosed from each call after it",
		check: func(r *run) {
			closer, ok := r.store.(io.Closer)
			if !ok {
				return
			}
			limits := []ratelimit.Limit{ratelimit.FixedWindow(1, r.window)}
			if err := closer.Close(); err != nil {
				r.problem("Close returned %v", err)
			}
			ctx := context.Background()
			_, taken := r.store.Take(ctx, "key", 1, limits, make([]ratelimit.Result, 1))
			_, adjusted := r.store.Adjust(ctx, "key", 1, ratelimit.Now, limits)
			errs := map[string]error{"Take": taken, "Adjust": adjusted, "Reset": r.store.Reset(ctx, "key", limits)}
			if k, ok := kindStore(r.store); ok {
				_, errs["TakePending"] = k.TakePending(ctx, "key", 1, nil, limits, make([]ratelimit.Result, 1))
				errs["Block"] = k.Block(ctx, "key", ratelimit.Block{Left: r.window}, limits)
			}
			if s, ok := r.store.(ratelimit.SharedStore); ok {
				_, errs["TakeShared"] = s.TakeShared(ctx, ratelimit.SharedRequest{Key: "key", Units: 1, Limits: limits}, make([]ratelimit.Result, 1))
			}
			for method, err := range errs {
				if !errors.Is(err, ratelimit.ErrStoreClosed) {
					r.problem("after Close, %s returned %v, want ErrStoreClosed", method, err)
				}
				if remote, ok := r.store.(ratelimit.RemoteStore); ok && err != nil && remote.Fault(err) == ratelimit.FaultKey {
					r.problem("after Close, Fault of the error of %s is FaultKey, but no key can be counted", method)
				}
			}
		},
	},
}
