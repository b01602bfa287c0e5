package storetest

import (
	"context"
	"errors"
	"math"
	"strings"
	"sync"
	"time"

	"github.com/ratelimit-go/ratelimit"
)

var holdFaults = []fault{
	{caught: "hold", does: "admits one hold more than Most", breaks: otherRoom(func(room int64) int64 { return room + 1 })},
	{caught: "hold", does: "admits one hold less than Most", breaks: otherRoom(func(room int64) int64 { return room - 1 })},
	{caught: "hold", does: "does not hear what has ended in a call for a hold", breaks: beforeHold(func(q *ratelimit.HoldRequest) {
		if q.Action == ratelimit.HoldAdd {
			q.Ended = 0
		}
	})},
	{caught: "hold", does: "does not hear what has ended in a renewal", breaks: beforeHold(func(q *ratelimit.HoldRequest) {
		if q.Action == ratelimit.HoldRenew {
			q.Ended = 0
		}
	})},
	{caught: "hold", does: "gives the place of the hold that was denied away", breaks: func(s *reference) {
		s.afterHold(func(c *call, reply *ratelimit.HoldReply) {
			if c.full {
				s.editHolds(c, func(h *holdRecord) { h.began++ })
			}
		})
	}},
	{caught: "hold", does: "returns what remained before the hold", breaks: lastResult(func(c *call, res *ratelimit.Result) {
		if c.hold.Action == ratelimit.HoldAdd && res.RetryAfter == 0 && res.Remaining < c.hold.Most {
			res.Remaining++
		}
	})},
	{caught: "hold", does: "counts no other kinds after the first hold", breaks: func(s *reference) {
		s.afterHold(func(*call, *ratelimit.HoldReply) { s.kinds = ratelimit.KindInFlight })
	}},
	{caught: "hold-several", does: "takes units without room for the hold", breaks: func(s *reference) {
		s.afterHold(func(c *call, _ *ratelimit.HoldReply) {
			if c.full {
				s.edit(c, func(l ratelimit.Limit, was *counter, _ int64) { *was = add(l, *was, c.n) })
			}
		})
	}},
	{caught: "hold-several", does: "begins a hold without the units", breaks: func(s *reference) {
		s.afterHold(func(c *call, _ *ratelimit.HoldReply) {
			if !c.full && c.n > 0 && !admitted(c.results) {
				s.editHolds(c, func(h *holdRecord) { h.began++ })
			}
		})
	}},
	{caught: "hold-several", does: "takes one unit, whatever is asked for", breaks: func(s *reference) {
		onHold := s.onHold
		s.onHold = func(c *call) (ratelimit.HoldReply, error) {
			c.n = min(c.n, 1)
			return onHold(c)
		}
	}},
	{caught: "hold-several", does: "takes under the first limit only", breaks: func(s *reference) {
		s.afterHold(func(c *call, _ *ratelimit.HoldReply) {
			if c.n > 0 && admitted(c.results) && len(c.limits) > 1 {
				s.adjust(&call{ctx: c.ctx, key: c.key, n: -c.n, at: ratelimit.Now, limits: c.limits[1:]})
			}
		})
	}},
	{caught: "hold-several", does: "denies under the other limits too if there is no room", breaks: func(s *reference) {
		s.afterHold(func(c *call, _ *ratelimit.HoldReply) {
			for i := range c.limits {
				if c.full && c.results[i].RetryAfter == 0 {
					c.results[i].RetryAfter = c.results[i].MoreAfter
				}
			}
		})
	}},
	{caught: "hold-several", does: "denies the hold, too, if the units do not fit", breaks: lastResult(func(c *call, res *ratelimit.Result) {
		if !admitted(c.results) {
			res.RetryAfter = res.MoreAfter
		}
	})},
	{caught: "hold-several", does: "gives units back when the hold ends", breaks: func(s *reference) {
		s.afterHold(func(c *call, reply *ratelimit.HoldReply) {
			if c.hold.Action == ratelimit.HoldRenew {
				s.edit(&call{key: c.key, limits: []ratelimit.Limit{ratelimit.FixedWindow(9, 2*c.hold.Lasts)}}, func(_ ratelimit.Limit, was *counter, _ int64) { was.units = 0 })
			}
		})
	}},
	{caught: "hold-look", does: "stores what a look says", breaks: func(s *reference) {
		s.stores = func(q *ratelimit.HoldRequest, stored, own holdRecord, began bool) bool {
			return own.held() > 0 || stored != holdRecord{}
		}
	}},
	{caught: "hold-look", does: "returns the stored totals for a look", breaks: func(s *reference) {
		s.merge = func(stored holdRecord, q *ratelimit.HoldRequest) holdRecord {
			if q.Action == ratelimit.HoldLook {
				return holdRecord{began: stored.began, ended: stored.ended}
			}
			return merge(stored, q)
		}
	}},
	{caught: "hold-look", does: "returns a RetryAfter for a look", breaks: lastResult(func(c *call, res *ratelimit.Result) {
		if res.Remaining == 0 && c.hold.Action == ratelimit.HoldLook {
			res.RetryAfter = res.MoreAfter
		}
	})},
	{caught: "hold-look", does: "returns less than no holds for a look", breaks: func(s *reference) {
		s.afterHold(func(c *call, reply *ratelimit.HoldReply) {
			c.results[len(c.limits)].Remaining = c.hold.Most - reply.Others - (reply.Began - reply.Ended)
		})
	}},
	{caught: "hold-totals", does: "keeps what the last call says", breaks: merging(func(_ holdRecord, q *ratelimit.HoldRequest) holdRecord {
		return holdRecord{began: q.Began, ended: q.Ended}
	})},
	{caught: "hold-totals", does: "keeps the last call that says more of Began", breaks: merging(func(stored holdRecord, q *ratelimit.HoldRequest) holdRecord {
		if q.Began >= stored.began {
			return holdRecord{began: q.Began, ended: q.Ended}
		}
		return holdRecord{began: stored.began, ended: stored.ended}
	})},
	{caught: "hold-totals", does: "adds what a call says", breaks: merging(func(stored holdRecord, q *ratelimit.HoldRequest) holdRecord {
		m := merge(stored, q)
		if q.Action == ratelimit.HoldRenew && stored.ended > 0 && q.Ended > 0 {
			m.ended = min(m.began, stored.ended+1)
		}
		return m
	})},
	{caught: "hold-totals", does: "counts what is held, and not the totals", breaks: merging(func(stored holdRecord, q *ratelimit.HoldRequest) holdRecord {
		return holdRecord{began: max(stored.held(), q.Began-q.Ended)}
	})},
	{caught: "hold-totals", does: "does not hear of holds that began without it", breaks: merging(func(stored holdRecord, q *ratelimit.HoldRequest) holdRecord {
		m := merge(stored, q)
		if stored != (holdRecord{}) {
			m.began = stored.began
			m.ended = min(m.began, m.ended)
		}
		return m
	})},
	{caught: "hold-totals", does: "returns what the call says", breaks: func(s *reference) {
		s.afterHold(func(c *call, reply *ratelimit.HoldReply) {
			if c.hold.Action == ratelimit.HoldAdd && c.full && reply.Began > c.hold.Began {
				reply.Began, reply.Ended = c.hold.Began, c.hold.Ended
			}
		})
	}},
	{caught: "hold-late", does: "deletes every record without holds", breaks: func(s *reference) {
		s.deletes = func(*ratelimit.HoldRequest) bool { return true }
	}},
	{caught: "hold-denied", does: "stores nothing with a denial", breaks: func(s *reference) {
		s.stores = func(q *ratelimit.HoldRequest, stored, own holdRecord, began bool) bool {
			return stores(q, stored, own, began) && (began || q.Action == ratelimit.HoldRenew)
		}
	}},
	{caught: "hold-denied", does: "stores nothing with the denial of another limit", breaks: func(s *reference) {
		s.stores = func(q *ratelimit.HoldRequest, stored, own holdRecord, began bool) bool {
			return stores(q, stored, own, began) && (began || q.Action == ratelimit.HoldRenew || len(q.Limits) == 0)
		}
	}},
	{caught: "hold-denied", does: "makes no record with a denial", breaks: func(s *reference) {
		s.stores = func(q *ratelimit.HoldRequest, stored, own holdRecord, began bool) bool {
			return stores(q, stored, own, began) && (began || q.Action == ratelimit.HoldRenew || stored != holdRecord{})
		}
	}},
	{caught: "hold-denied", does: "stores only what has ended with a denial", breaks: func(s *reference) {
		s.merge = func(stored holdRecord, q *ratelimit.HoldRequest) holdRecord {
			m := merge(stored, q)
			if q.Action == ratelimit.HoldAdd && stored != (holdRecord{}) {
				m.began = stored.began
				m.ended = min(m.began, m.ended)
			}
			return m
		}
	}},
	{caught: "hold-processes", does: "has one record for all processes", breaks: beforeHold(func(q *ratelimit.HoldRequest) { q.Process = "all" })},
	{caught: "hold-processes", does: "has one record for a and A", breaks: beforeHold(func(q *ratelimit.HoldRequest) { q.Process = strings.ToLower(q.Process) })},
	{caught: "hold-processes", does: "keeps 31 letters of the name of a process", breaks: beforeHold(func(q *ratelimit.HoldRequest) { q.Process = q.Process[:min(31, len(q.Process))] })},
	{caught: "hold-processes", does: "counts only the holds of the process that asks", breaks: func(s *reference) {
		s.room = func(q *ratelimit.HoldRequest, own holdRecord, _ map[string]holdRecord) int64 {
			return room(q, own, nil)
		}
	}},
	{caught: "hold-processes", does: "counts its own holds as those of others", breaks: func(s *reference) {
		s.afterHold(func(_ *call, reply *ratelimit.HoldReply) {
			if reply.Others > 0 {
				reply.Others += reply.Began - reply.Ended
			}
		})
	}},
	{caught: "hold-processes", does: "returns an OthersLeft without others", breaks: func(s *reference) {
		s.afterHold(func(c *call, reply *ratelimit.HoldReply) { reply.OthersLeft = max(reply.OthersLeft, c.hold.Lasts) })
	}},
	{caught: "hold-elsewhere", does: "has the same holds for all keys", breaks: func(s *reference) { s.holdName = func(string) string { return s.prefix } }},
	{caught: "hold-elsewhere", does: "has the same holds for key and KEY", breaks: func(s *reference) {
		s.holdName = func(key string) string { return s.prefix + "\x00" + strings.ToLower(key) }
	}},
	{caught: "hold-elsewhere", does: "cuts keys at a zero byte", breaks: func(s *reference) {
		s.holdName = func(key string) string { return s.prefix + "\x00" + strings.TrimRight(key, "\x00") }
	}},
	{caught: "hold-elsewhere", does: "cuts the suffix of the holds off", breaks: func(s *reference) {
		s.holdName = func(key string) string { return s.prefix + "\x00" + strings.TrimSuffix(key, ":inflight") }
	}},
	{caught: "hold-elsewhere", does: "has the same holds at all prefixes", breaks: func(s *reference) { s.holdName = func(key string) string { return key } }},
	{caught: "hold-elsewhere", does: "counts a hold under a window of its Lasts", breaks: func(s *reference) {
		s.afterHold(func(c *call, _ *ratelimit.HoldReply) {
			if c.hold.Action == ratelimit.HoldAdd && !c.full {
				s.adjust(&call{ctx: c.ctx, key: c.key, n: 1, at: ratelimit.Now, limits: []ratelimit.Limit{ratelimit.FixedWindow(1, c.hold.Lasts)}})
			}
		})
	}},
	{caught: "hold-reset", does: "forgets holds with Reset", breaks: func(s *reference) {
		s.onReset = func(c *call) error {
			s.mu.Lock()
			delete(s.holds, s.holdName(c.key))
			s.mu.Unlock()
			return s.reset(c)
		}
	}},
	{caught: "hold-reset", does: "ends holds with a refund", breaks: func(s *reference) {
		s.onAdjust = func(c *call) (int64, error) {
			if c.n < 0 {
				s.editHolds(c, func(h *holdRecord) { h.ended = min(h.began, h.ended-c.n) })
			}
			return s.adjust(c)
		}
	}},
	{caught: "hold-most", does: "has holds of its own for each Most", breaks: func(s *reference) {
		onHold := s.onHold
		s.onHold = func(c *call) (ratelimit.HoldReply, error) {
			s.holdName = func(key string) string { return s.prefix + "\x00" + key + string(rune(c.hold.Most)) }
			return onHold(c)
		}
	}},
	{caught: "hold-most", does: "counts no more holds than Most", breaks: func(s *reference) {
		s.room = func(q *ratelimit.HoldRequest, own holdRecord, others map[string]holdRecord) int64 {
			if left := room(q, own, others); left >= -1 {
				return left
			}
			return 1
		}
	}},
	{caught: "hold-most", does: "drops the holds that are too many", breaks: func(s *reference) {
		s.merge = func(stored holdRecord, q *ratelimit.HoldRequest) holdRecord {
			m := merge(stored, q)
			m.began = min(m.began, m.ended+q.Most)
			return m
		}
	}},
	{caught: "hold-concurrent", does: "asks first and begins the hold then", breaks: func(s *reference) {
		var hasRoom sync.Map // by the address of the request
		s.room = func(q *ratelimit.HoldRequest, own holdRecord, others map[string]holdRecord) int64 {
			if _, ok := hasRoom.LoadAndDelete(q); ok {
				return 1
			}
			return room(q, own, others)
		}
		onHold := s.onHold
		s.onHold = func(c *call) (ratelimit.HoldReply, error) {
			if c.hold.Action == ratelimit.HoldAdd {
				look := *c
				look.hold.Action, look.n, look.results = ratelimit.HoldLook, 0, make([]ratelimit.Result, len(c.results))
				if _, err := onHold(&look); err != nil {
					return ratelimit.HoldReply{}, err
				}
				time.Sleep(time.Millisecond) // others ask in the meantime
				if look.results[len(c.limits)].Remaining > 0 {
					hasRoom.Store(&c.hold, true)
				}
			}
			return onHold(c)
		}
	}},
	{caught: "hold-block", does: "starts no block", breaks: startsIf(func(starts bool, c *call, _ ratelimit.Limit) bool { return starts && c.hold.Process == "" })},
	{caught: "hold-block", does: "ignores pending units", breaks: func(s *reference) {
		onHold := s.onHold
		s.onHold = func(c *call) (ratelimit.HoldReply, error) {
			c.pending = nil
			return onHold(c)
		}
	}},
	{caught: "hold-block", does: "starts a block if there is no room", breaks: func(s *reference) {
		s.afterHold(func(c *call, _ *ratelimit.HoldReply) {
			if c.full {
				s.editBlocks(c, func(l ratelimit.Limit, b *block, now int64) { *b = start(l, *b, 0, now) })
			}
		})
	}},
	{caught: "hold-call", does: "ignores the context", breaks: func(s *reference) {
		onHold := s.onHold
		s.onHold = func(c *call) (ratelimit.HoldReply, error) {
			c.ctx = context.Background()
			return onHold(c)
		}
	}},
	{caught: "hold-call", does: "begins the hold and returns the context's error", breaks: func(s *reference) {
		onHold := s.onHold
		s.onHold = func(c *call) (ratelimit.HoldReply, error) {
			err := c.ctx.Err()
			c.ctx = context.Background()
			reply, failed := onHold(c)
			return reply, errors.Join(err, failed)
		}
	}},
	{caught: "hold-call", does: "has an error of its own", breaks: func(s *reference) {
		onHold := s.onHold
		s.onHold = func(c *call) (ratelimit.HoldReply, error) {
			if c.ctx.Err() != nil {
				return ratelimit.HoldReply{}, errors.New("too late")
			}
			return onHold(c)
		}
	}},
	{caught: "hold-closed", does: "goes on after Close", breaks: beforeHoldOf(func(s *reference, _ *call) { s.closed = false })},
	{caught: "hold-extremes", does: "has numbers of 32 bits", breaks: beforeHold(func(q *ratelimit.HoldRequest) {
		q.Most, q.Began, q.Ended = min(q.Most, math.MaxInt32), min(q.Began, math.MaxInt32), min(q.Ended, math.MaxInt32)
	})},
	{caught: "hold-extremes", does: "has records of 30 bits of seconds", breaks: beforeHold(func(q *ratelimit.HoldRequest) {
		q.Lasts %= 1 << 30 * time.Second
	})},
	{caught: "hold-extremes", does: "refuses short records", breaks: func(s *reference) {
		onHold := s.onHold
		s.onHold = func(c *call) (ratelimit.HoldReply, error) {
			if c.hold.Lasts < time.Second {
				return ratelimit.HoldReply{}, errors.New("too short")
			}
			return onHold(c)
		}
	}},
}

var holdTimeFaults = []fault{
	{caught: "hold-ends", does: "lets no record end", breaks: func(s *reference) { s.alive = func(holdRecord, int64) bool { return true } }},
	{caught: "hold-ends", does: "lets a record end a quarter too early", breaks: ending(func(stored holdRecord, q *ratelimit.HoldRequest, began bool, now int64) int64 {
		short := *q
		short.Lasts -= q.Lasts / 4
		return until(stored, &short, began, now)
	})},
	{caught: "hold-ends", does: "lets a record end a quarter too late", breaks: func(s *reference) {
		s.alive = func(h holdRecord, now int64) bool { return h.until > now-int64(400*time.Millisecond) && h.until > 0 }
	}},
	{caught: "hold-ends", does: "does not extend a record with a hold", breaks: ending(func(stored holdRecord, q *ratelimit.HoldRequest, began bool, now int64) int64 {
		return until(stored, q, false, now)
	})},
	{caught: "hold-ends", does: "does not extend a record with a renewal", breaks: ending(func(stored holdRecord, q *ratelimit.HoldRequest, began bool, now int64) int64 {
		if q.Action == ratelimit.HoldRenew && stored != (holdRecord{}) {
			return stored.until
		}
		return until(stored, q, began, now)
	})},
	{caught: "hold-ends", does: "extends a record with a denial", breaks: ending(func(stored holdRecord, q *ratelimit.HoldRequest, began bool, now int64) int64 {
		return until(stored, q, began || q.Action == ratelimit.HoldAdd, now)
	})},
	{caught: "hold-ends", does: "extends a record with a denial that says more", breaks: ending(func(stored holdRecord, q *ratelimit.HoldRequest, began bool, now int64) int64 {
		return until(stored, q, began || q.Began > stored.began || q.Ended > stored.ended, now)
	})},
	{caught: "hold-ends", does: "extends a record with a look", breaks: func(s *reference) {
		s.afterHold(func(c *call, reply *ratelimit.HoldReply) {
			if c.hold.Action == ratelimit.HoldLook {
				s.editHolds(c, func(h *holdRecord) { h.until = int64(reply.At) + int64(c.hold.Lasts) })
			}
		})
	}},
	{caught: "hold-lasts", does: "makes a record shorter", breaks: ending(func(stored holdRecord, q *ratelimit.HoldRequest, began bool, now int64) int64 {
		return until(holdRecord{began: stored.began}, q, began || stored.began == 0, now)
	})},
	{caught: "hold-lasts", does: "keeps the first Lasts of a record", breaks: func(s *reference) {
		lasts := map[string]time.Duration{}
		s.beforeHold(func(c *call) {
			if first, ok := lasts[c.key]; ok {
				c.hold.Lasts = min(c.hold.Lasts, first)
			} else {
				lasts[c.key] = c.hold.Lasts
			}
		})
	}},
	{caught: "hold-others-end", does: "lets all records of a key end with the last one", breaks: func(s *reference) {
		onHold := s.onHold
		s.onHold = func(c *call) (ratelimit.HoldReply, error) {
			s.mu.Lock()
			latest := int64(0)
			for _, h := range s.holds[s.holdName(c.key)] {
				latest = max(latest, h.until)
			}
			s.mu.Unlock()
			s.alive = func(h holdRecord, now int64) bool { return latest > now }
			return onHold(c)
		}
	}},
	{caught: "hold-others-end", does: "lets all records of a key end with the first one", breaks: func(s *reference) {
		s.beforeHold(func(c *call) {
			s.mu.Lock()
			defer s.mu.Unlock()
			for _, h := range s.holds[s.holdName(c.key)] {
				if h.until <= s.clock() {
					delete(s.holds, s.holdName(c.key))
					return
				}
			}
		})
	}},
	{caught: "hold-others-end", does: "says to wait until the last record ends", breaks: func(s *reference) {
		s.afterHold(func(c *call, reply *ratelimit.HoldReply) {
			last := &c.results[len(c.limits)]
			last.MoreAfter = max(last.MoreAfter, reply.OthersLeft)
			last.ResetAfter = last.MoreAfter
			if last.RetryAfter > 0 {
				last.RetryAfter = last.MoreAfter
			}
		})
	}},
	{caught: "hold-others-end", does: "returns in OthersLeft when the first of the others ends", breaks: func(s *reference) {
		s.afterHold(func(c *call, reply *ratelimit.HoldReply) {
			if c.hold.Process == "a" && reply.Others > 0 {
				reply.OthersLeft = c.results[len(c.limits)].MoreAfter
			}
		})
	}},
	{caught: "hold-after-end", does: "remembers the totals of a record that has ended", breaks: func(s *reference) {
		totals := map[string]holdRecord{}
		s.merge = func(stored holdRecord, q *ratelimit.HoldRequest) holdRecord {
			if stored == (holdRecord{}) {
				stored = totals[q.Key+q.Process]
			}
			m := merge(stored, q)
			totals[q.Key+q.Process] = m
			return m
		}
	}},
	{caught: "hold-after-end", does: "counts a new record as ended", breaks: merging(func(stored holdRecord, q *ratelimit.HoldRequest) holdRecord {
		m := merge(stored, q)
		if stored == (holdRecord{}) && q.Action == ratelimit.HoldAdd {
			m.ended = m.began
		}
		return m
	})},
	{caught: "hold-after-end", does: "renews a record that has ended, with a look", breaks: func(s *reference) {
		s.stores = func(q *ratelimit.HoldRequest, stored, own holdRecord, began bool) bool {
			return stores(q, stored, own, began) || own.held() > 0
		}
		s.alive = func(h holdRecord, now int64) bool { return true }
		s.afterHold(func(*call, *ratelimit.HoldReply) { s.alive = func(h holdRecord, now int64) bool { return h.began > 0 } })
	}},
}

// The rest are parts of faults.

// beforeHoldOf changes the store or the call before Hold.
func beforeHoldOf(change func(s *reference, c *call)) func(*reference) {
	return func(s *reference) { s.beforeHold(func(c *call) { change(s, c) }) }
}

func (r *reference) beforeHold(change func(c *call)) {
	onHold := r.onHold
	r.onHold = func(c *call) (ratelimit.HoldReply, error) {
		change(c)
		return onHold(c)
	}
}

// beforeHold changes what each call asks.
func beforeHold(change func(q *ratelimit.HoldRequest)) func(*reference) {
	return beforeHoldOf(func(_ *reference, c *call) { change(&c.hold) })
}

// afterHold changes what a call of Hold that has succeeded returns.
func (r *reference) afterHold(change func(c *call, reply *ratelimit.HoldReply)) {
	onHold := r.onHold
	r.onHold = func(c *call) (ratelimit.HoldReply, error) {
		reply, err := onHold(c)
		if err == nil {
			change(c, &reply)
		}
		return reply, err
	}
}

// lastResult changes the result of the in-flight limit.
func lastResult(change func(c *call, res *ratelimit.Result)) func(*reference) {
	return func(s *reference) {
		s.afterHold(func(c *call, _ *ratelimit.HoldReply) { change(c, &c.results[len(c.limits)]) })
	}
}

// editHolds changes the stored record of a call's process, or the record of each process if
// the call is none of Hold.
func (r *reference) editHolds(c *call, change func(h *holdRecord)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for process, h := range r.holds[r.holdName(c.key)] {
		if c.hold.Process == "" || process == c.hold.Process {
			change(&h)
			r.holds[r.holdName(c.key)][process] = h
		}
	}
}

// otherRoom changes how many holds may begin.
func otherRoom(change func(room int64) int64) func(*reference) {
	return func(s *reference) {
		s.room = func(q *ratelimit.HoldRequest, own holdRecord, others map[string]holdRecord) int64 {
			return change(room(q, own, others))
		}
	}
}

// merging changes which totals count.
func merging(merge func(stored holdRecord, q *ratelimit.HoldRequest) holdRecord) func(*reference) {
	return func(s *reference) { s.merge = merge }
}

// ending changes when a record ends.
func ending(until func(stored holdRecord, q *ratelimit.HoldRequest, began bool, now int64) int64) func(*reference) {
	return func(s *reference) { s.until = until }
}
