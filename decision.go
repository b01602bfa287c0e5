package ratelimit

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"math"
	"sync/atomic"
	"time"
)

// Decision is the answer for one request. It prints as a sentence, and in package slog
// as a group of attributes, in which retry_after is missing if it is 0 or [Never]. In
// JSON its durations are seconds, and Never is null:
//
//	{"allowed":false,"limit":"5/1h fixed","remaining":0,"reset_after":3542.5,"retry_after":3542.5,"source":"store","policy":"login","more_after":3542.5}
type Decision struct {
	Allowed bool

	// Limit is the limit that binds: among the limits that denied, the one that
	// denies for the longest; if none denied, the one with the least remaining.
	Limit Limit

	// Remaining is what Limit still allows now: under [Unlimited] 999,999,999,999,999,
	// more than any other limit allows.
	Remaining int64

	// ResetAfter is how long it takes Limit to be whole again, if nobody uses the key.
	ResetAfter time.Duration

	// RetryAfter is 0 if allowed. Otherwise a client that waits exactly that long,
	// alone, is admitted, and one that waits less is not; [Never] means that the
	// cost is above what a limit can hold. Compare it with Never before you calculate
	// with it, or print it as a number. For an [InFlight] limit it is an estimate.
	RetryAfter time.Duration

	// Source says where the decision was made.
	Source Source

	// Blocked means that a block of the key is in force, under Limit or another limit;
	// see [Limit.Block]. That goes also for a look, and for a request that costs 0: these
	// are allowed.
	Blocked bool

	// Policy is the name of Limit, as in the header fields.
	Policy string

	// MoreAfter is the time until Remaining grows; 0 if Limit is whole.
	MoreAfter time.Duration
}

// String returns the decision as a sentence, such as "denied by 5/1h fixed for 59m2s".
// For a block it has "blocked" in place of "denied".
func (d Decision) String() string {
	switch {
	case d.Limit == (Limit{}):
		return "no decision"
	case d.Allowed && d.Limit.rule.Kind == kindUnlimited:
		return "allowed by " + d.Limit.String()
	case d.Allowed && d.Blocked:
		return fmt.Sprintf("allowed, blocked by %v for %v", d.Limit, d.MoreAfter)
	case d.Allowed:
		return fmt.Sprintf("allowed, %d left of %v", d.Remaining, d.Limit)
	case d.RetryAfter == Never:
		return fmt.Sprintf("denied by %v for ever", d.Limit)
	case d.Blocked:
		return fmt.Sprintf("blocked by %v for %v", d.Limit, d.RetryAfter)
	}
	return fmt.Sprintf("denied by %v for %v", d.Limit, d.RetryAfter)
}

// LogValue implements [slog.LogValuer].
func (d Decision) LogValue() slog.Value {
	attrs := []slog.Attr{slog.Bool("allowed", d.Allowed), slog.String("limit", d.Limit.String()), slog.Int64("remaining", d.Remaining)}
	if d.RetryAfter != 0 && d.RetryAfter != Never {
		attrs = append(attrs, slog.Duration("retry_after", d.RetryAfter))
	}
	if d.Blocked {
		attrs = append(attrs, slog.Bool("blocked", true))
	}
	return slog.GroupValue(append(attrs, slog.String("source", d.Source.String()))...)
}

// MarshalJSON implements [json.Marshaler].
func (d Decision) MarshalJSON() ([]byte, error) {
	form := struct {
		Allowed    bool     `json:"allowed"`
		Limit      string   `json:"limit,omitempty"`
		Remaining  int64    `json:"remaining"`
		ResetAfter float64  `json:"reset_after"`
		RetryAfter *float64 `json:"retry_after"`
		Source     Source   `json:"source"`
		Policy     string   `json:"policy,omitempty"`
		MoreAfter  float64  `json:"more_after,omitzero"`
		Blocked    bool     `json:"blocked,omitzero"`
	}{d.Allowed, "", d.Remaining, d.ResetAfter.Seconds(), orNull(d.RetryAfter), d.Source, d.Policy, d.MoreAfter.Seconds(), d.Blocked}
	if d.Limit != (Limit{}) {
		form.Limit = d.Limit.String()
	}
	return json.Marshal(form)
}

// orNull is a wait in seconds for JSON, or nil for Never.
func orNull(wait time.Duration) *float64 {
	if wait == Never {
		return nil
	}
	seconds := wait.Seconds()
	return &seconds
}

// boundFlags say more about a decision, in one byte.
type boundFlags uint8

const (
	keyBlocked    boundFlags = 1 << iota // a block of the key is in force
	timeoutWriter                        // the response is of an http.TimeoutHandler: see requestState.isOf
)

// bound is a decision in its smallest form: the limit that binds, and the result
// under it.
type bound struct {
	policy     *policy
	remaining  int64 // this and the next three are of the limit that binds
	retryAfter time.Duration
	resetAfter time.Duration
	moreAfter  time.Duration
	index      uint8 // of that limit in the policy
	source     Source
	styles     uint8 // the Headers of this limiter and those around it
	flags      boundFlags
	spent      atomic.Uint32 // how long an answer has waited for stores outside of this process, in microseconds
}

// spend adds to what an answer has waited.
func (b *bound) spend(microseconds int64) {
	b.spent.Store(uint32(min(int64(b.spent.Load())+microseconds, math.MaxUint32)))
}

func (b *bound) limit() *Limit { return b.policy.limit(int(b.index)) }
func (b *bound) allowed() bool { return b.retryAfter == 0 }

func (b *bound) decision() Decision {
	return Decision{
		b.allowed(), *b.limit(), b.remaining, b.resetAfter, b.retryAfter, b.source, b.flags&keyBlocked != 0, b.policy.names[b.index], b.moreAfter,
	}
}

// taken is what a limiter's take returns beside the results.
type taken struct {
	at      Instant // when, or nothingTaken
	granted int64   // of a TakeUpTo: how many units
	bound   int     // which limit binds
	source  Source
	shadow  bool            // see asShadow
	blocked bool            // a block of the key is in force
	began   uint8           // which limit has started a block that lasts longest, plus 1; 0 if none has
	counted Instant         // when the units were counted that may lead to a denial, or nothingTaken
	pending *pendingRequest // the units, if Options.Count may give them back; nil if nobody wants to know
	held    *held           // the hold that was taken; nil without one
}

// noteBlocks finds the blocks among the results.
func (t *taken) noteBlocks(results []Result) {
	for i := range results {
		r := &results[i]
		if !r.Blocked {
			continue
		}
		t.blocked = true
		if r.BlockBegan && (t.began == 0 || r.RetryAfter > results[t.began-1].RetryAfter) {
			t.began = uint8(i + 1)
		}
	}
}

// fill fills in the decision that follows from the limit that binds.
func (d *Decision) fill(p *policy, t *taken, r *Result) {
	d.Allowed = r.RetryAfter == 0
	d.Limit = *p.limit(t.bound)
	d.Remaining = r.Remaining
	d.ResetAfter = r.ResetAfter
	d.RetryAfter = r.RetryAfter
	d.Source = t.source
	d.Blocked = t.blocked
	d.Policy = p.names[t.bound]
	d.MoreAfter = r.MoreAfter
}

// Source says where a decision was made.
type Source uint8

const (
	// SourceStore: the limiter's store.
	SourceStore Source = iota
	// SourceCache: this process, because it knows from the store that the key is denied.
	SourceCache
	// SourceLease: this process, out of units that the store has counted for it in
	// advance; see Options.Lease.
	SourceLease
	// SourceFallback: this process, because the store failed; see [FallbackLocal].
	SourceFallback
	// SourceFailOpen: nobody, because the store failed; see [FailOpen].
	SourceFailOpen
)

var sources = [...]string{"store", "cache", "lease", "fallback", "fail-open"}

func (s Source) String() string {
	if int(s) < len(sources) {
		return sources[s]
	}
	return fmt.Sprintf("Source(%d)", s)
}

// MarshalText implements [encoding.TextMarshaler] with [Source.String].
func (s Source) MarshalText() ([]byte, error) { return []byte(s.String()), nil }
