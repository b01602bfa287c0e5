package storetest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync/atomic"
	"time"

	"github.com/ratelimit-go/ratelimit"
)

// Holds of in-flight limits: how many there may be, and what a process says of its own.
var holdCases = []testCase{
	{
		name:  "hold",
		rules: []int{1, 22},
		rule:  "a hold begins while there are less than Most; the one that ends makes room for the next",
		holds: true,
		check: func(r *run) {
			kinds, p := r.store.(ratelimit.KindStore).Kinds(), r.process("key", "a", 3)
			for left := int64(2); left >= 0; left-- {
				if _, res := p.begins(); res.Remaining != left {
					r.problem("with %d of 3 holds: %+v, want %d remaining", 3-left, res, left)
				}
			}
			for range 5 {
				if _, res := p.refused(); res.Remaining != 0 {
					r.problem("with 3 of 3 holds: %+v, want none remaining", res)
				}
			}
			p.counts(3)
			p.ended++ // which the next call says
			p.begins()
			p.refused()
			p.ended += 2
			p.renews()
			p.counts(1)
			p.ended++
			p.renews()
			p.counts(0)
			p.begins()
			if now := r.store.(ratelimit.KindStore).Kinds(); now != kinds {
				r.problem("Kinds() was %b and is now %b", kinds, now)
			}
		},
	},
	{
		name:  "hold-several",
		rules: []int{2, 4, 22},
		rule:  "a hold begins and units are taken under all other limits, or neither",
		holds: true,
		check: func(r *run) {
			for _, l := range r.three(5) {
				other := ratelimit.FixedWindow(9, 2*r.window)
				p := r.process(l.Algorithm(), "a", 2)
				p.units = 2
				p.begins(l, other)
				p.begins(l, other)
				p.units = 1
				for range 3 {
					_, results := p.holds(ratelimit.HoldAdd, []ratelimit.Limit{l, other})
					if results[2].RetryAfter == 0 {
						r.problem("a hold, with 2 of 2, was not denied: %+v", results)
					}
					for i, res := range results[:2] {
						if res.RetryAfter != 0 {
							r.problem("the result of limit %d, under which the units fit, is %+v, with no room for a hold", i, res)
						}
					}
				}
				r.remains(p.key, 1, l)
				r.remains(p.key, 5, other)
				p.counts(2)
				p.ended, p.units = 1, 2
				for range 3 { // there is room, but 2 units do not fit
					if results := p.deniedBy(l, other); results[0].RetryAfter == 0 || results[1].RetryAfter != 0 || results[2].RetryAfter != 0 {
						r.problem("2 units, of which 1 is left under %v, with room for a hold: %+v, want a RetryAfter for %[1]v only", l, results)
					}
				}
				r.remains(p.key, 1, l)
				r.remains(p.key, 5, other)
				p.counts(1)
				p.units = 6
				if results := p.deniedBy(l); results[0].RetryAfter != ratelimit.Never {
					r.problem("6 units under %v: %+v, want RetryAfter Never", l, results[0])
				}
				p.units = 1
				p.begins(other, l)
				r.remains(p.key, 0, l)
				r.remains(p.key, 4, other)
				p.counts(2)
				p.ended = 3 // units stay taken
				p.renews()
				r.remains(p.key, 4, other)
			}
		},
	},
	{
		name:  "hold-look",
		rules: []int{2, 22},
		rule:  "a look at holds changes nothing, whatever the process says in it",
		holds: true,
		check: func(r *run) {
			l := ratelimit.FixedWindow(5, r.window)
			p := r.process("key", "a", 4)
			p.began = 3
			for range 2 {
				if reply, res := p.looks(l); reply.Began != 3 || reply.Ended != 0 || res.Remaining != 1 || res.RetryAfter != 0 {
					r.problem("a look of a process with 3 of 4 holds: %+v and %+v, want its totals and 1 remaining", reply, res)
				}
			}
			p.counts(0)
			p.began = 0
			p.begins(l)
			p.begins(l)
			ended := *p
			ended.ended = 2
			if reply, res := ended.looks(l); reply.Began != 2 || reply.Ended != 2 || res.Remaining != 4 {
				r.problem("a look of a process whose 2 holds have ended: %+v and %+v, want its totals and 4 remaining", reply, res)
			}
			p.counts(2)
			r.remains("key", 3, l)
			full := *p
			full.began = 9
			if _, res := full.looks(); res.Remaining != 0 || res.RetryAfter != 0 {
				r.problem("a look of a process with 9 of 4 holds: %+v, want none remaining and no RetryAfter", res)
			}
			p.counts(2)
		},
	},
	{
		name:  "hold-totals",
		rules: []int{14, 22},
		rule:  "of the totals that a process says and those that are stored, the larger ones count: no late, repeated or lost call does harm",
		holds: true,
		check: func(r *run) {
			p := r.process("key", "a", 3)
			first := *p // as it is before the first call
			p.begins()
			p.begins()
			lost := *p
			lost.begins() // a call whose reply is lost: p does not know of the hold
			if reply, _ := p.refused(); reply.Began != 3 || reply.Ended != 0 {
				r.problem("after a lost reply: %+v, want Began 3 and Ended 0", reply)
			}
			p.began, p.ended = 3, 1 // it gives back what nobody has got
			p.renews()
			p.counts(2)
			late := first
			for range 3 {
				late.renews() // an older call, which is late and repeated
				p.counts(2)
			}
			if reply, _ := late.looks(); reply.Began != 3 || reply.Ended != 1 {
				r.problem("a call of a process that knows nothing: %+v, want the stored Began 3 and Ended 1", reply)
			}
			late.began, late.ended = 2, 2 // less has begun and more has ended than is stored
			late.renews()
			p.counts(1)
			p.renews()
			p.counts(1)
			p.ended = 2
			p.began += 2 // which began without the store
			p.renews()
			p.counts(3)
			p.refused()
			p.ended = 4
			p.renews()
			p.renews()
			p.counts(1)
			p.began, p.ended = 9, 9
			p.renews()
			p.counts(0)
		},
	},
	{
		name:  "hold-late",
		rules: []int{14, 22},
		rule:  "a record without holds stays while other calls of its process are under way: one that is late begins a hold that the totals of the others do not end",
		holds: true,
		check: func(r *run) {
			p := r.process("key", "a", 1)
			late := *p // a call that is under way from here on
			p.begins()
			p.ended = 1
			p.renews()
			p.counts(0)
			late.begins()
			p.renews()
			p.counts(1)
			p.began, p.ended, p.alone = 2, 2, true
			p.renews()
			p.counts(0)
		},
	},
	{
		name:  "hold-denied",
		rules: []int{22},
		rule:  "a call that begins no hold stores totals that are larger than the stored ones",
		holds: true,
		check: func(r *run) {
			l := ratelimit.FixedWindow(2, r.window)
			p := r.process("key", "a", 3)
			p.begins(l)
			p.begins(l)
			p.ended = 1
			p.deniedBy(l) // by the rate
			p.counts(1)
			p.began, p.ended = 7, 2 // which began without the store
			p.refused()
			p.counts(5)
			p.ended = 4
			p.refused()
			p.counts(3)
			q := r.process("another", "a", 3)
			q.began = 4
			q.refused() // the first that the store hears of it
			q.counts(4)
			q.ended = 2
			q.begins()
			q.counts(3)
		},
	},
	{
		name:  "hold-processes",
		rules: []int{1, 22},
		rule:  "each process has a record of its own, and the holds of all of them count",
		holds: true,
		check: func(r *run) {
			var all []*process
			for i, name := range []string{"a", "b", "A", "a-b_", "0", strings.Repeat("x", 32), strings.Repeat("x", 31) + "y"} {
				p := r.process("key", name, 100)
				all = append(all, p)
				for range i + 1 {
					p.begins()
				}
				p.lasts = 2 * r.window
				p.renews()
			}
			total := int64(28)
			for i, p := range all {
				reply, res := p.looks()
				own := int64(i + 1)
				if reply.Began != own || reply.Ended != 0 || reply.Others != total-own || res.Remaining != 100-total {
					r.problem("a look by %q: %+v and %+v, want Began %d, Ended 0, %d others and %d remaining", p.name, reply, res, own, total-own, 100-total)
				}
				r.about(fmt.Sprintf("OthersLeft for %q", p.name), reply.OthersLeft, 2*r.window)
			}
			for i, p := range all {
				p.most = total
				p.refused()
				p.ended = int64(i + 1)
				p.renews()
				total -= int64(i + 1)
				p.counts(total)
			}
			if reply, res := all[0].looks(); reply.Others != 0 || reply.OthersLeft != 0 || res.MoreAfter != 0 {
				r.problem("after all holds have ended: %+v and %+v", reply, res)
			}
		},
	},
	{
		name:  "hold-elsewhere",
		rules: []int{8, 9, 22},
		rule:  "a hold counts for no other key, at no other prefix, and not as units",
		holds: true,
		check: func(r *run) {
			p := r.process("key", "a", 1)
			p.begins()
			for _, key := range []string{"key2", "ke", "KEY", "key ", "key:inflight", "inflight", "a", "key\x00", "{key}"} {
				other := r.process(key, "a", 1)
				other.counts(0)
				other.begins()
				other.ended = 1
				other.renews()
			}
			for _, l := range r.three(1) {
				r.admits("key", 1, l)
				r.admits("key:inflight", 1, l)
			}
			p.counts(1)
			here := r.store
			r.store = r.newStore(r.t, "storetest:key:")
			elsewhere := r.process("key", "a", 1)
			elsewhere.counts(0)
			elsewhere.begins()
			elsewhere.ended = 1
			elsewhere.renews()
			r.store = here
			p.refused()
		},
	},
	{
		name:  "hold-reset",
		rules: []int{22},
		rule:  "neither Reset nor Adjust changes holds",
		holds: true,
		check: func(r *run) {
			limits := r.three(5)
			p := r.process("key", "a", 3)
			p.begins(limits...)
			p.begins(limits...)
			r.refunds("key", 2, ratelimit.Now, limits...)
			r.charges("key", 1, 1, ratelimit.Now, limits...)
			p.counts(2)
			r.reset("key", limits...)
			for _, l := range limits {
				r.remains("key", 5, l)
			}
			p.counts(2)
			p.begins(limits...)
			p.refused()
		},
	},
	{
		name:  "hold-most",
		rules: []int{7, 22},
		rule:  "holds count under any Most, also if there are more than that",
		holds: true,
		check: func(r *run) {
			p, other := r.process("key", "a", 5), r.process("key", "b", 5)
			for range 4 {
				p.begins()
			}
			other.begins()
			for most, left := range map[int64]int64{1000: 995, 6: 1, 5: 0, 4: 0, 1: 0} {
				p.most = most
				if _, res := p.looks(); res.Remaining != left {
					r.problem("with 5 holds, %d remain of %d, want %d", res.Remaining, most, left)
				}
			}
			p.most, other.most = 2, 2
			for ended := range int64(4) {
				p.ended = ended
				p.refused()
				other.refused()
			}
			p.ended = 4
			p.begins()
			p.most = 3
			p.begins()
			p.refused()
		},
	},
	{
		name:  "hold-concurrent",
		rules: []int{1, 4, 22},
		rule:  "there are never more than Most holds, however many goroutines and processes ask",
		holds: true,
		check: func(r *run) {
			l := ratelimit.FixedWindow(100_000, r.window)
			var now, highest, begun atomic.Int64
			r.inParallel(func(number int) error {
				ctx, name := context.Background(), fmt.Sprint("one-", number)
				limits := []ratelimit.Limit{l}[:number%2]
				q := ratelimit.HoldRequest{
					Action: ratelimit.HoldAdd, Key: "key", Most: 10, Lasts: r.window, Process: name, Units: 1, Limits: limits,
				}
				results := make([]ratelimit.Result, len(limits)+1)
				reply, err := r.store.(ratelimit.HoldStore).Hold(ctx, q, results)
				if err != nil || !admitted(results) {
					return err
				}
				begun.Add(1)
				held := now.Add(1)
				for seen := highest.Load(); held > seen && !highest.CompareAndSwap(seen, held); seen = highest.Load() {
				}
				time.Sleep(time.Duration(number) * time.Microsecond)
				now.Add(-1)
				q.Action, q.Began, q.Ended, q.Units, q.Limits = ratelimit.HoldRenew, reply.Began, reply.Began, 0, nil
				_, err = r.store.(ratelimit.HoldStore).Hold(ctx, q, results[len(limits):])
				return err
			})
			if got := highest.Load(); got > 10 {
				r.problem("there were %d holds at the same time, want 10 at most", got)
			}
			if begun.Load() < 10 {
				r.problem("only %d holds have begun", begun.Load())
			}
			r.process("key", "last", 10).counts(0)

			begun.Store(0)
			tight := ratelimit.FixedWindow(30, r.window)
			r.inParallel(func(number int) error {
				results := make([]ratelimit.Result, 2)
				_, err := r.store.(ratelimit.HoldStore).Hold(context.Background(), ratelimit.HoldRequest{
					Action: ratelimit.HoldAdd, Key: "stay", Most: 20, Lasts: r.window, Process: fmt.Sprint("all-", number%8), Units: 1, Limits: []ratelimit.Limit{tight},
				}, results)
				if err == nil && admitted(results) {
					begun.Add(1)
				}
				return err
			})
			if begun.Load() != 20 {
				r.problem("%d of 20 holds have begun", begun.Load())
			}
			r.process("stay", "last", 20).counts(20)
			r.remains("stay", 10, tight)
		},
	},
	{
		name:   "hold-block",
		rules:  []int{4, 19, 22},
		rule:   "a limit that denies by itself starts its block, no hold begins during a block, and pending units excuse a denial",
		holds:  true,
		blocks: true,
		check: func(r *run) {
			for _, l := range r.three(2) {
				blocking := l.Block(3*r.window, 9*r.window)
				p := r.process(l.Algorithm(), "a", 3)
				p.begins(blocking)
				p.begins(blocking)
				p.pending = []ratelimit.Pending{{Units: 1, At: r.at}}
				if results := p.deniedBy(blocking); results[0].Blocked {
					r.problem("a unit under %v, with a pending unit: %+v, want a denial without a block", l, results[0])
				}
				p.pending = nil
				r.blockedBy(p.deniedBy(blocking)[0], p.key, true, 3*r.window, blocking)
				r.blockedBy(p.deniedBy(blocking)[0], p.key, false, 3*r.window, blocking)
				p.counts(2)
				r.reset(p.key, blocking)
				p.begins(blocking)
				p.refused(blocking) // there is no room, but the unit fits
				r.free(p.key, blocking)
				r.remains(p.key, 1, blocking)
			}
		},
	},
	{
		name:  "hold-call",
		rules: []int{13, 14, 22},
		rule:  "Hold returns the error of a context that is done, and that of a deadline that has passed, and changes nothing",
		holds: true,
		check: func(r *run) {
			p := r.process("key", "a", 3)
			p.begins()
			cancelled, cancel := context.WithCancel(context.Background())
			cancel()
			expired, cancel := context.WithDeadline(context.Background(), time.Unix(0, 0))
			defer cancel()
			for _, action := range []ratelimit.HoldAction{ratelimit.HoldLook, ratelimit.HoldAdd, ratelimit.HoldRenew} {
				for _, ctx := range []context.Context{cancelled, expired} {
					q := p.request(action)
					q.Began = 2
					if _, err := p.call(ctx, q, make([]ratelimit.Result, 1)); !errors.Is(err, ctx.Err()) {
						r.problem("Hold with action %d returned %v, want %v", action, err, ctx.Err())
					}
				}
			}
			p.counts(1)
			q := p.request(ratelimit.HoldAdd)
			q.Deadline = time.Now().Add(-time.Hour)
			if _, err := p.call(context.Background(), q, make([]ratelimit.Result, 1)); err != nil && !errors.Is(err, context.DeadlineExceeded) {
				r.problem("Hold after its deadline returned %v", err)
			} else if err != nil {
				p.counts(1)
			}
		},
	},
	{
		name:  "hold-closed",
		rules: []int{17, 22},
		rule:  "after Close, Hold returns ErrStoreClosed",
		holds: true,
		check: func(r *run) {
			p := r.process("key", "a", 3)
			p.begins()
			c, ok := r.store.(io.Closer)
			if !ok {
				return
			}
			if err := c.Close(); err != nil {
				r.problem("Close returned %v", err)
			}
			for _, action := range []ratelimit.HoldAction{ratelimit.HoldLook, ratelimit.HoldAdd, ratelimit.HoldRenew} {
				if _, err := p.call(context.Background(), p.request(action), make([]ratelimit.Result, 1)); !errors.Is(err, ratelimit.ErrStoreClosed) {
					r.problem("after Close, Hold with action %d returned %v, want ErrStoreClosed", action, err)
				}
			}
		},
	},
	{
		name:  "hold-extremes",
		rules: []int{6, 22},
		rule:  "the longest and the shortest records, and the largest numbers, are counted as all others",
		holds: true,
		check: func(r *run) {
			const most, years = 999_999_999_999_999, 50 * 365 * 24 * time.Hour
			p := r.process("key", "a", most)
			p.lasts = years
			p.begins()
			_, res := p.begins()
			if res.Remaining != most-2 {
				r.problem("with 2 of %d holds: %+v", int64(most), res)
			}
			r.about("MoreAfter of a record of 50 years", res.MoreAfter, years)
			p.began = most - 1
			p.renews()
			p.begins()
			p.refused()
			p.counts(most)
			p.ended = most - 1
			p.renews()
			p.counts(1)
			p.ended = most
			p.renews()
			p.counts(0)
			brief := r.process("brief", "a", 1)
			brief.lasts = 10 * time.Millisecond
			q := brief.request(ratelimit.HoldAdd)
			if _, err := brief.call(context.Background(), q, make([]ratelimit.Result, 1)); err != nil {
				r.problem("a hold of 10 ms: error: %v", err)
			}
		},
	},
}

// How long records last.
var holdTimeCases = []testCase{
	{
		name:  "hold-ends",
		rules: []int{22},
		rule:  "a record lasts for Lasts from the last call that begins a hold or renews, and counts no longer then; no other call extends it",
		waits: true,
		holds: true,
		check: func(r *run) {
			r.lanes(func(r *run) {
				p := r.process("begun", "a", 2)
				p.begins()
				r.until(r.eighths(4))
				p.begins()
				r.until(r.eighths(6))
				_, res := p.refused()
				r.about("RetryAfter without room", res.RetryAfter, r.eighths(6))
				_, res = p.looks()
				r.about("MoreAfter", res.MoreAfter, r.eighths(6))
				p.counts(2)
				p.ends(r.eighths(6))
			}, func(r *run) {
				p := r.process("renewed", "a", 2)
				p.begins()
				r.until(r.eighths(5))
				p.renews()
				p.ended = 0
				p.ends(r.eighths(8))
			}, func(r *run) { // what is not renewed
				l := ratelimit.FixedWindow(1, 4*r.window)
				p := r.process("not renewed", "a", 2)
				p.begins(l)
				r.until(r.eighths(2))
				p.looks()
				p.deniedBy(l)
				p.began = 2 // which began without the store
				p.refused()
				p.counts(2)
				r.until(r.eighths(4))
				p.ended = 1
				p.deniedBy(l)
				p.counts(1)
				p.ends(r.eighths(4))
			}, func(r *run) { // the first that the store hears of it
				p := r.process("denied", "a", 1)
				p.began = 1
				p.refused()
				p.ends(r.eighths(8))
			})
		},
	},
	{
		name:  "hold-lasts",
		rules: []int{22},
		rule:  "a call with a shorter Lasts does not shorten a record, and one with a longer Lasts extends it",
		waits: true,
		holds: true,
		check: func(r *run) {
			r.lanes(func(r *run) {
				p := r.process("shorter", "a", 2)
				p.begins()
				p.lasts = r.eighths(3)
				p.renews()
				p.begins()
				_, res := p.refused()
				r.about("RetryAfter after a call with a shorter Lasts", res.RetryAfter, r.eighths(8))
				r.until(r.eighths(6))
				p.renews()
				p.ends(r.eighths(3))
			}, func(r *run) {
				p := r.process("longer", "a", 2)
				p.lasts = r.eighths(4)
				p.begins()
				p.lasts = r.eighths(9)
				p.renews()
				p.lasts = r.eighths(2)
				p.ends(r.eighths(9))
			})
		},
	},
	{
		name:  "hold-others-end",
		rules: []int{3, 22},
		rule:  "the record of one process ends without those of others; RetryAfter is until the first ends, OthersLeft until the last of the others",
		waits: true,
		holds: true,
		check: func(r *run) {
			a, b, c := r.process("key", "a", 4), r.process("key", "b", 4), r.process("key", "c", 4)
			a.lasts, b.lasts, c.lasts = r.eighths(4), r.eighths(8), r.eighths(12)
			a.begins()
			a.begins()
			b.begins()
			c.begins()
			check := func(of *process, soonest, latest int64) {
				reply, res := of.refused()
				r.about(fmt.Sprintf("RetryAfter of %q", of.name), res.RetryAfter, r.eighths(soonest))
				r.about(fmt.Sprintf("ResetAfter of %q", of.name), res.ResetAfter, r.eighths(soonest))
				r.about(fmt.Sprintf("OthersLeft of %q", of.name), reply.OthersLeft, r.eighths(latest))
			}
			check(a, 4, 12)
			check(c, 4, 8)
			r.until(r.eighths(6))
			c.counts(2)
			b.most, c.most = 2, 2
			check(b, 2, 6)
			check(c, 2, 2)
			c.renews()
			r.until(r.eighths(10))
			c.counts(1)
			if reply, res := c.looks(); reply.Others != 0 || reply.OthersLeft != 0 || reply.Began != 1 {
				r.problem("after the records of all others have ended: %+v and %+v", reply, res)
			}
			d := r.process("key", "d", 2)
			d.begins()
			d.refused()
		},
	},
	{
		name:  "hold-after-end",
		rules: []int{22},
		rule:  "a record that has ended is forgotten: a later call of its process counts for what it says, and no more",
		waits: true,
		holds: true,
		check: func(r *run) {
			p, q := r.process("key", "a", 5), r.process("known", "a", 5)
			p.began, p.ended = 6, 3
			p.renews()
			q.began, q.ended = 6, 3
			q.renews()
			r.sleep(r.eighths(8) + r.step())
			p.counts(0)
			p.began, p.ended = 0, 0 // it knows nothing
			if reply, _ := p.looks(); reply.Began != 0 || reply.Ended != 0 {
				r.problem("a look after the end of the record: %+v, want Began 0 and Ended 0", reply)
			}
			if reply, _ := p.begins(); reply.Began != 1 || reply.Ended != 0 {
				r.problem("the first hold after the end of the record: %+v, want Began 1 and Ended 0", reply)
			}
			p.counts(1)
			q.ended = 4 // it knows what it had
			if reply, _ := q.begins(); reply.Began != 7 || reply.Ended != 4 {
				r.problem("a hold of a process with 6 and 4, after the end of its record: %+v, want Began 7 and Ended 4", reply)
			}
			q.counts(3)
			q.ends(r.eighths(8))
		},
	},
}

// A process of a case is what one process knows of the holds of a key.
type process struct {
	*run
	key, name    string
	most         int64
	lasts        time.Duration
	began, ended int64
	alone        bool // no other call of it is under way
	units        int64
	pending      []ratelimit.Pending
}

// process returns a process whose records last for one window.
func (r *run) process(key, name string, most int64) *process {
	return &process{run: r, key: key, name: name, most: most, lasts: r.window, units: 1}
}

// request returns a request without limits.
func (p *process) request(action ratelimit.HoldAction) ratelimit.HoldRequest {
	q := ratelimit.HoldRequest{Action: action, Key: p.key, Most: p.most, Lasts: p.lasts, Process: p.name, Began: p.began, Ended: p.ended, Alone: p.alone}
	if action == ratelimit.HoldAdd {
		q.Units, q.Pending = p.units, p.pending
	}
	return q
}

func (p *process) call(ctx context.Context, q ratelimit.HoldRequest, results []ratelimit.Result) (ratelimit.HoldReply, error) {
	return p.store.(ratelimit.HoldStore).Hold(ctx, q, results)
}

// holds calls Hold. It is a problem if there is an error, or if what is returned contradicts
// itself. The process learns nothing.
func (p *process) holds(action ratelimit.HoldAction, limits []ratelimit.Limit) (reply ratelimit.HoldReply, results []ratelimit.Result) {
	q := p.request(action)
	q.Limits = limits
	results = make([]ratelimit.Result, len(limits)+1)
	for i := range results {
		results[i] = junk
	}
	var err error
	p.timed(func() { reply, err = p.call(context.Background(), q, results) })
	if err != nil {
		p.problem("Hold(%+v): error: %v", q, err)
		return ratelimit.HoldReply{}, make([]ratelimit.Result, len(limits)+1)
	}
	p.at = reply.At
	all := admitted(results)
	for i, res := range results[:len(limits)] {
		wrong := contradiction(res, limits[i], q.Units, all)
		if results[len(limits)].RetryAfter > 0 && res.RetryAfter == 0 && q.Units <= res.Remaining {
			wrong = ""
		}
		if wrong == "" {
			wrong = p.wrongBlock(res, limits[i], q.Units, results)
		}
		if wrong != "" {
			p.problem("Hold(%+v): limit %v: %s: %+v", q, limits[i], wrong, res)
		}
	}
	if wrong := wrongHolds(q, reply, results, all); wrong != "" {
		p.problem("Hold(%+v): %s: %+v, with the last result %+v", q, wrong, reply, results[len(limits)])
	}
	return reply, results
}

// wrongHolds returns what is wrong with the reply of a call and its last result by themselves, or "".
func wrongHolds(q ratelimit.HoldRequest, reply ratelimit.HoldReply, results []ratelimit.Result, admitted bool) string {
	held, last := reply.Began-reply.Ended, results[len(results)-1]
	began := q.Action == ratelimit.HoldAdd && admitted
	before := held
	if began {
		before--
	}
	room := before+reply.Others < q.Most
	switch {
	case held < 0 || reply.Others < 0 || reply.OthersLeft < 0 || last.Remaining < 0 || last.RetryAfter < 0 || last.MoreAfter < 0 || last.ResetAfter < 0:
		return "a number is negative, or was not set"
	case reply.Began < q.Began || reply.Ended < q.Ended:
		return "the totals are less than those of the request"
	case last.Blocked || last.BlockBegan:
		return "the in-flight limit is blocked"
	case last.Remaining != max(0, q.Most-held-reply.Others):
		return "Remaining must be how many holds may begin"
	case (reply.OthersLeft == 0) != (reply.Others == 0):
		return "OthersLeft must be 0 if there are no others, and only then"
	case last.MoreAfter != last.ResetAfter || (last.MoreAfter == 0) != (held+reply.Others == 0):
		return "MoreAfter and ResetAfter must be the same, and 0 if there are no holds, and only then"
	case (last.RetryAfter > 0) != (q.Action == ratelimit.HoldAdd && !room):
		return "RetryAfter must be set if a hold had no room, and only then"
	case last.RetryAfter > 0 && last.RetryAfter != last.MoreAfter:
		return "RetryAfter must be until the first record ends"
	}
	return ""
}

// begins begins a hold. It is a problem if that is denied, or if anything but one hold more
// has begun. The process knows of the hold then, and of what else was stored.
func (p *process) begins(limits ...ratelimit.Limit) (ratelimit.HoldReply, ratelimit.Result) {
	reply, results := p.holds(ratelimit.HoldAdd, limits)
	if !admitted(results) {
		p.problem("a hold of %q for %.40q, of %d at most, was denied under %v: %+v, with results %+v", p.name, p.key, p.most, limits, reply, results)
	}
	if reply.Began <= p.began {
		p.problem("after a hold of %q for %.40q has begun, Began is %d; before, the process knew of %d", p.name, p.key, reply.Began, p.began)
	}
	p.began, p.ended = reply.Began, reply.Ended
	return reply, results[len(limits)]
}

// refused asks for a hold. It is a problem if there is room for it.
func (p *process) refused(limits ...ratelimit.Limit) (ratelimit.HoldReply, ratelimit.Result) {
	reply, results := p.holds(ratelimit.HoldAdd, limits)
	if results[len(limits)].RetryAfter == 0 {
		p.problem("a hold of %q for %.40q, of %d at most, was not denied: %+v, with results %+v", p.name, p.key, p.most, reply, results)
	}
	return reply, results[len(limits)]
}

// deniedBy asks for a hold. It is a problem if none of the other limits denies it.
func (p *process) deniedBy(limits ...ratelimit.Limit) []ratelimit.Result {
	_, results := p.holds(ratelimit.HoldAdd, limits)
	if admitted(results[:len(limits)]) {
		p.problem("a hold of %q for %.40q was not denied under %v: %+v", p.name, p.key, limits, results)
	}
	return results
}

// looks looks.
func (p *process) looks(limits ...ratelimit.Limit) (ratelimit.HoldReply, ratelimit.Result) {
	reply, results := p.holds(ratelimit.HoldLook, limits)
	if !admitted(results) {
		p.problem("a look of %q at %.40q was denied under %v: %+v", p.name, p.key, limits, results)
	}
	return reply, results[len(limits)]
}

// renews reports to the store what the process knows, and that it is alive.
func (p *process) renews() ratelimit.HoldReply {
	reply, _ := p.holds(ratelimit.HoldRenew, nil)
	return reply
}

// counts looks, as a process without holds. It is a problem if the key has another number of
// holds.
func (p *process) counts(want int64) {
	nobody := *p
	nobody.name, nobody.began, nobody.ended = "nobody", 0, 0
	if reply, _ := nobody.looks(); reply.Others != want || reply.Began != 0 {
		p.problem("%.40q has %d holds, want %d: %+v", p.key, reply.Others, want, reply)
	}
}

// ends sleeps until the only record of the key ends, which is due after this time. It is a
// problem if the record ends at another time, as for unblocks.
func (p *process) ends(after time.Duration) {
	nobody := *p
	nobody.name, nobody.began, nobody.ended = "nobody", 0, 0
	reply, _ := nobody.looks()
	p.about(fmt.Sprintf("OthersLeft of %.40q", p.key), reply.OthersLeft, after)
	p.sleep(after - p.step())
	if reply, _ := nobody.looks(); reply.Others == 0 {
		p.problem("before its end the record of %.40q counts no longer", p.key)
	}
	p.sleep(p.step() + p.slack)
	p.counts(0)
}
