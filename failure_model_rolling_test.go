package ratelimit_test

import (
	"fmt"
	"maps"
	"net/http"
	"slices"
	"testing"
	"time"

	. "github.com/ratelimit-go/ratelimit"
)

// This file checks the other side of a rolling window: that one process denies no request
// that has room. The books in failure_model_books_test.go assume that as many units as
// possible are given back. Here as few as possible are: holds have each unit that a window
// may count, with its instant. So a denial must follow from them, and RetryAfter must not
// be later than when enough of them have left.
//
// A unit that was admitted while the store was away may count a 64th of the window too
// long, because the store gets units that are close to each other with the last of their
// instants.

// holds have the units of all keys under rolling limits.
type holds struct {
	units map[counterID][]*held
	of    map[*inflight][]*held
	era   int // counts the changes of mode
	debts int // how often units were given back that the store is owed; see maxGivenBack of internal/nearcache

	// Since the store was last owed nothing, by key: what was given back, and whether a
	// Reset has not reached the store.
	given  map[string][]given
	forgot map[string]bool
}

// A given has units that were given back.
type given struct {
	*held
	n int64
}

// A held has units of one instant.
type held struct {
	at      time.Duration
	n       int64
	limit   Limit
	stored  bool // the store has decided, and its reply has arrived
	local   bool // the process has decided, and owes the store the units
	owed    bool // the store is owed the units, or some of them
	era     int  // when they were admitted
	unclear bool // it is not known how many the process would give back
}

func newHolds() *holds {
	return &holds{units: map[counterID][]*held{}, of: map[*inflight][]*held{}, given: map[string][]given{}, forgot: map[string]bool{}}
}

// giveBack gives back up to n units of a key, and returns how many.
func (h *holds) giveBack(key string, u *held, n int64) int64 {
	n = min(n, u.n)
	u.n -= n
	h.given[key] = append(h.given[key], given{u, n})
	return n
}

// leaves returns when the units have left the window for certain.
func (u *held) leaves(l Limit) time.Duration {
	if u.owed {
		return u.at + l.Window() + l.Window()/64
	}
	return u.at + l.Window()
}

// closed enters that a limiter was closed. Its requests in flight give units back, but what
// it then owes the store is never sent.
func (h *holds) closed() {
	for _, units := range h.of {
		for _, u := range units {
			u.unclear = true
		}
	}
}

// A reach says what of the limiter's calls reaches the store.
type reach struct{ all, none bool }

func (p *bounded) reach() reach {
	stats, now := p.limiter.Stats().Remote, mode(p.link.mode.Load())
	return reach{all: now == up && stats.Owed == 0 && !stats.BreakerOpen, none: now == refused}
}

// step checks and enters a step that the process has carried out. to is what has
// reached the store before the step.
func (h *holds) step(p *bounded, s step, key string, limits []Limit, o outcome, record *callRecord, to reach) string {
	now := p.books.now()
	if to.all {
		h.debts = 0
		clear(h.given)
		clear(h.forgot)
	}
	switch s.do {
	case doCloseReplaced:
		h.closed()
	case doReset:
		if o.err != nil { // the process has forgotten what it owes the store
			for _, g := range h.given[key] {
				g.held.n += g.n
			}
			delete(h.given, key)
			h.forgot[key] = true
			return ""
		}
		maps.DeleteFunc(h.units, func(id counterID, _ []*held) bool { return id.key == key })
	case doRefund:
		if h.forgot[key] || !h.certain(to) {
			return "" // a Refund of units that are only at the store
		}
		for _, l := range limits {
			left := s.n
			for _, u := range slices.Backward(h.units[counterOf(key, l)]) {
				left -= h.giveBack(key, u, left)
			}
		}
	case doAddCost, doEnd:
		n := s.n
		if s.do == doEnd {
			n = least
			if o.inflight != nil && (o.inflight.request != nil || s.status == 0 || counts(s.status)) {
				return ""
			}
		}
		for _, u := range h.of[o.inflight] {
			switch {
			case n > 0:
				u.n = min(u.n+min(n, u.limit.N()), u.limit.N())
				// What not all limits have room for is not given back.
				u.unclear = u.unclear || len(o.inflight.limits) > 1 || !to.all && !(to.none && u.local && u.era == h.era)
				u.owed = u.owed || !to.all
			case n < 0 && !u.unclear && h.certain(to) && (u.stored || to.none && u.local && u.era == h.era):
				h.giveBack(o.inflight.key, u, -max(n, -most))
			case n < 0:
				u.unclear = true // units that were given back without an answer are not given back again
			}
		}
	case doTake, doTakeReplaced, doServe, doCheck:
		d := o.decision
		if key == "" || s.n > 0 && !d.Allowed {
			if what := h.denied(key, limits, s.n, d, o.status, now); what != "" {
				return what
			}
			if !record.unanswered || !record.applied {
				return ""
			}
		}
		for _, l := range limits {
			if l.Algorithm() != "rolling" {
				continue
			}
			id := counterOf(key, l)
			u := &held{at: now, n: s.n, limit: l, era: h.era}
			for _, largest := range p.world.counters { // SetLimits may raise it for a request in flight
				if largest.Algorithm() == "rolling" && largest.Window() == l.Window() {
					u.limit = largest
				}
			}
			u.stored = d.Source == SourceStore && !record.unanswered
			u.local = d.Source == SourceFallback && !record.unanswered
			u.owed = u.local
			h.units[id] = append(h.units[id], u)
			if o.inflight != nil {
				h.of[o.inflight] = append(h.of[o.inflight], u)
			}
		}
		if len(limits) == 1 && limits[0].Algorithm() == "rolling" && d.Allowed {
			if least := limits[0].N() - h.count(key, limits[0], now); d.Remaining < least {
				return fmt.Sprintf("%d of %v are left: want at least %d; it is %v", d.Remaining, limits[0], least, now)
			}
		}
	}
	return ""
}

// certain reports whether units that are given back are given back at the store, at once or
// when it answers again. The process joins what it owes if it owes much.
func (h *holds) certain(to reach) bool {
	if to.none {
		h.debts++
	}
	return to.all || to.none && h.debts < 16
}

func (h *holds) count(key string, l Limit, now time.Duration) (n int64) {
	for _, u := range h.units[counterOf(key, l)] {
		if u.leaves(l) > now {
			n += u.n
		}
	}
	return n
}

// denied checks a denial of n units. It can only follow from a limit that has no room for
// them.
func (h *holds) denied(key string, limits []Limit, n int64, d Decision, status int, now time.Duration) string {
	if key == "" || d == (Decision{}) && status != http.StatusTooManyRequests {
		return ""
	}
	wait, full := time.Duration(0), false
	for _, l := range limits {
		if l.Algorithm() != "rolling" || n > l.N() {
			return ""
		}
		over := h.count(key, l, now) + n - l.N()
		full = full || over > 0
		units := slices.Clone(h.units[counterOf(key, l)])
		slices.SortFunc(units, func(a, b *held) int { return int(a.leaves(l) - b.leaves(l)) })
		for _, u := range units {
			if left := u.leaves(l) - now; left > 0 && over > 0 {
				over -= u.n
				wait = max(wait, left)
			}
		}
	}
	if !full || d.RetryAfter > wait {
		return fmt.Sprintf("%d units of %v are denied for %v: want at most %v; it is %v", n, limits, d.RetryAfter, wait, now)
	}
	return ""
}

// TestOwedUnitsDoNotLeaveEarly runs a history that random ones rarely have: the store gets
// two units together, and is asked again when the first one leaves.
func TestOwedUnitsDoNotLeaveEarly(t *testing.T) {
	h := history{handWorld(Rolling(2, time.Hour)), []step{
		{do: doTake, key: 1, n: 1}, {do: doMode, mode: refused}, {do: doTake, n: 1}, {do: doWait, wait: 20 * time.Second}, {do: doTake, n: 1},
		{do: doMode, mode: up}, {do: doWait, wait: time.Minute}, {do: doTake}, {do: doTake, n: 1},
		{do: doWait, until: untilRetry}, {do: doDrain},
	}}
	if wrong := inBubble(t, h, runOneProcess); wrong != nil {
		t.Error(wrong)
	}
}
