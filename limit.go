package ratelimit

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/ratelimit-go/ratelimit/internal/calendar"
	"github.com/ratelimit-go/ratelimit/internal/rule"
)

// Limit is a number of quota units per window under one algorithm. It is a
// comparable value; make one with [FixedWindow], [SlidingWindow], [TokenBucket],
// [Rolling], [Daily], [Weekly], [Monthly], [InFlight] or [ParseLimit]. [Unlimited] and [Deny] are for
// plans. The zero Limit is not valid.
//
// The constructors take any numbers. Whether a Limit is valid is checked where it
// is put to use, by [New], [Limiter.SetLimits] and [ParseLimit]: units are from 1
// to 999,999,999,999,999 (the largest Integer of a header field, RFC 9651), and for
// Rolling to 1,000; windows from 1 ms to 50 years.
//
// The algorithm and the window identify a counter: under another window or algorithm a
// key starts from zero. N, the burst and the durations of [Limit.Block] do not: they can
// change while a key is being counted, and what was counted stays counted.
type Limit struct {
	rule  rule.Limit
	name  string
	block ladderHandle // zero without Block

	calendar *calendar.Calendar // nil for the other algorithms; there is one of each in a process
}

// Limits for plans that count nothing. They can have a name; their other numbers are 0.
var (
	// Unlimited admits everything. A request under Unlimited alone takes no units, is
	// admitted even if the store fails, and has no header fields. Beside other
	// limits it adds nothing.
	Unlimited = Limit{rule: rule.Limit{Kind: kindUnlimited}}

	// Deny denies everything, also a cost of 0, with a RetryAfter of [Never] and without
	// header fields. Limits beside it are not asked. The answer is that to any denial,
	// 429: for another one, Options.Denied finds Deny in [DecisionFrom].
	Deny = Limit{rule: rule.Limit{Kind: kindDeny}}
)

// Kinds that no store gets to see: package rule numbers the others from 1.
const (
	kindUnlimited rule.Kind = 255
	kindDeny      rule.Kind = 254
)

// counts reports whether a store counts under the limit.
func (l Limit) counts() bool { return l.rule.Kind < kindDeny }

// counted returns the limits under which a store counts. That may be the same slice.
func counted(limits []Limit) (counted []Limit) {
	if !slices.ContainsFunc(limits, func(l Limit) bool { return !l.counts() }) {
		return slices.Clip(limits)
	}
	for _, l := range limits {
		if l.counts() {
			counted = append(counted, l)
		}
	}
	return counted
}

// MaxLimits is the most limits that a limiter may have.
const MaxLimits = 8

const _ = uint(-(MaxLimits ^ rule.MaxLimits)) // one number for both

// FixedWindow allows n units per window. A key's window opens at its first
// request, not on the clock, and closes one window later; the next request
// after that opens the next one.
//
// Bound: at most n units in each of the key's windows. As the next window can
// open the moment that one has closed, an interval as long as the window sees at
// most 2n: n at one window's end and n at the start of the next.
func FixedWindow(n int64, window time.Duration) Limit {
	return Limit{rule: rule.Limit{Kind: rule.Fixed, N: n, Window: int64(window)}}
}

// SlidingWindow allows n units per window as estimated from two counters: all
// units of the current window, and the units of the window before, weighted by the
// part of it that a window ending now still covers. Windows follow each other from
// the key's first request on. The weighted part is rounded down, so that requests
// just over window/n apart always fit.
//
// Bound: at most n units in each of the key's windows and, at worst, 2n-1 in an
// interval as long as the window. The estimate takes the older window's units to
// be evenly spread. The worst case is where they are not: one unit opens a window,
// n-1 come in its last instant, and then n more as early as the estimate lets
// them, the last of them just before those n-1 are one window old. (Where units are
// given back it is 2n: the one that opened the window may be.)
func SlidingWindow(n int64, window time.Duration) Limit {
	return Limit{rule: rule.Limit{Kind: rule.Sliding, N: n, Window: int64(window)}}
}

// TokenBucket allows n units per duration per, evenly spread, and at most burst
// units at once: a bucket of burst units that is refilled with one unit every
// per/n, computed without rounding. It is the generic cell rate algorithm (GCRA,
// ITU-T I.371) kept as a level.
//
// Bound: at most burst + n·t/per units in any interval t. When n changes, the
// refill since a key's last admitted request is at the new rate; that gains or
// loses a key one bucket at most, each time. So n must not be the client's to
// choose: see Options.LimitsFor.
func TokenBucket(n int64, per time.Duration, burst int64) Limit {
	return Limit{rule: rule.Limit{Kind: rule.Bucket, N: n, Window: int64(per), Burst: burst}}
}

// Named returns the limit with a policy name, which response header fields and
// problem details show to clients. Without one a limit goes by its limiter's
// name, followed by its window where the limiter has several limits: "login",
// "api-1m", "api-1h". The name is no part of a counter's identity.
func (l Limit) Named(name string) Limit {
	l.name = name
	return l
}

// Name returns the name given with [Limit.Named], or "".
func (l Limit) Name() string { return l.name }

// Block returns the limit with blocks: a denial blocks the key for longer than the limit
// itself would deny it. The first denial blocks for the first duration, the next one
// after that block for the second, and so on. The last duration repeats. There are 1 to 4
// durations, each from 1 ms to 50 years and none shorter than the one before.
//
//	FixedWindow(5, time.Minute).Block(time.Minute, time.Hour, 24*time.Hour)
//
// A block lasts for its duration, or until the limit alone would admit the request if
// that is later. So a duration that is shorter than the window often has no effect. While
// the block lasts, requests are denied and counted nowhere, and nothing that the client
// does makes it longer. A request that costs 0 passes.
//
// The durations start again with the first one when the key has not been blocked for as
// long as the longest duration, or for as long as the window if that is longer.
// [Limiter.Refund] and [Limiter.AddCost] neither start nor lift a block. [Limiter.Reset]
// lifts it, and [Limiter.Block] starts one by hand. A request whose cost is above what
// the limit can ever hold starts no block.
//
// A block belongs to the counter: it also denies under other limits with the same
// algorithm and window. So it goes on if [Limiter.SetLimits], a [Reload] or another plan
// removes Block. With several limits, each one that has Block and denies starts its own
// block, and while one of them lasts, no limit counts. With Options.Count, the units
// that lead to a block are failures, and the denial after them starts it, whatever the
// request would have been. A denial starts no block if there would be none without the
// requests that this process is still handling. In Shadow, blocks are counted and
// reported, and requests are let through.
//
// A [MemoryStore] and a [RedisStore] count blocks, and so do stores that implement
// [KindStore]. [New] refuses the limit for other stores.
func (l Limit) Block(d ...time.Duration) Limit {
	l.block = newLadder(d)
	return l
}

// Ladder returns the durations given to [Limit.Block], or nil if there are none. The
// slice is the caller's own.
func (l Limit) Ladder() []time.Duration {
	if !l.blocks() {
		return nil
	}
	return l.block.Value().list()
}

// blocks reports whether the limit has Block.
func (l Limit) blocks() bool { return l.block != ladderHandle{} }

// anyBlocks reports whether any of the limits has Block.
func anyBlocks(limits []Limit) bool { return slices.ContainsFunc(limits, Limit.blocks) }

// validateLadders returns an error for a limit whose Block is not valid.
func validateLadders(limits []Limit) error {
	for _, l := range limits {
		if l.blocks() {
			if err := l.block.Value().validate(); err != nil {
				return fmt.Errorf("limit %v: %w", l, err)
			}
		}
	}
	return nil
}

// withoutBlocks returns the limits without Block.
func withoutBlocks(limits []Limit) []Limit {
	limits = slices.Clone(limits)
	for i := range limits {
		limits[i].block = ladderHandle{}
	}
	return limits
}

// laddersOf returns the ladders of valid limits, or nil if none has Block.
func laddersOf(limits []Limit) *[MaxLimits]*rule.Ladder {
	var all *[MaxLimits]*rule.Ladder
	for i := range limits {
		if limits[i].blocks() {
			if all == nil {
				all = new([MaxLimits]*rule.Ladder)
			}
			all[i] = limits[i].block.Value().rule()
		}
	}
	return all
}

// N returns the units per window, and of [InFlight] how many requests at the same time.
func (l Limit) N() int64 { return l.rule.N }

// Window returns the time that N units are for. For a period of a calendar it is the usual
// length: 24 hours, 7 days or 31 days. For InFlight it is the hold.
func (l Limit) Window() time.Duration { return time.Duration(l.rule.Window) }

// Burst returns the most units that are allowed at once: what was given to
// [TokenBucket], and N for the other algorithms.
func (l Limit) Burst() int64 { return l.rule.Cap() }

// sameCounter reports whether a key has one counter under both limits.
func (l Limit) sameCounter(other Limit) bool {
	return l.rule.SameCounter(&other.rule)
}

// Algorithm returns "fixed", "sliding", "bucket", "rolling", "calendar" or "inflight", or "unlimited" or
// "deny", as in [ParseLimit], and "" for the zero Limit.
func (l Limit) Algorithm() string {
	switch l.rule.Kind {
	case kindUnlimited:
		return "unlimited"
	case kindDeny:
		return "deny"
	}
	return l.rule.Kind.String()
}

// validate holds every rule for a single limit. Its errors name the value and
// the bound; the caller adds which limit, of which limiter.
func (l Limit) validate() error {
	if l.rule.Kind == 0 {
		return errors.New("it is the zero Limit; make one with FixedWindow, SlidingWindow, TokenBucket, Rolling, Daily or InFlight")
	}
	if !l.counts() {
		if l.blocks() {
			return fmt.Errorf("its block is %v, and %s counts nothing, so it cannot block: remove Block", l.block.Value(), l.Algorithm())
		}
		return validateName("its name", l.name, true)
	}
	switch n := l.rule.N; {
	case l.rule.Kind == rule.Rolling && n > rule.MaxRolling:
		return fmt.Errorf("it allows %d units, and a rolling window keeps the instant of each unit: want 1 to %d; for more, use SlidingWindow", n, rule.MaxRolling)
	case l.rule.Kind == rule.Rolling && n < 1:
		return fmt.Errorf("it allows %d units: want 1 to %d", n, rule.MaxRolling)
	case n < 1 || n > rule.MaxUnits:
		return fmt.Errorf("it allows %d units: want 1 to %d", n, int64(rule.MaxUnits))
	}
	if l.calendar != nil {
		if err := l.calendar.Err(); err != nil {
			return err
		}
	}
	if l.isInFlight() {
		if err := l.validateInFlight(); err != nil {
			return err
		}
	}
	if w := l.rule.Window; w < rule.MinSpan || w > rule.MaxSpan {
		return fmt.Errorf("its window is %v: want 1ms to 50 years%s", l.Window(), nanoseconds(l.Window()))
	}
	if l.rule.Kind == rule.Bucket {
		if b := l.rule.Burst; b < 1 || b > rule.MaxUnits {
			return fmt.Errorf("its burst is %d units: want 1 to %d", b, int64(rule.MaxUnits))
		}
		if full := l.rule.Refill(); full > rule.MaxSpan {
			return fmt.Errorf("an empty bucket of %d units takes more than 50 years to refill: want a smaller burst or a higher rate", l.rule.Burst)
		}
	}
	if l.blocks() {
		if err := l.block.Value().validate(); err != nil {
			return err
		}
	}
	return validateName("its name", l.name, true)
}

// minHold is the shortest hold. A process renews its holds while they last; with less time
// it would be late whenever the machine is busy.
const minHold = 10 * time.Millisecond

// isInFlight reports whether the limit counts holds.
func (l Limit) isInFlight() bool { return l.rule.Kind == rule.InFlight }

// validateInFlight is validate for what is special about holds.
func (l Limit) validateInFlight() error {
	switch w := l.Window(); {
	case w > 0 && w < time.Microsecond:
		return fmt.Errorf("its hold is %v: want 10ms to 50 years%s", w, nanoseconds(w))
	case w < minHold:
		return fmt.Errorf("its hold is %v: want 10ms to 50 years: a process that stands still for so long loses its holds", w)
	case w > rule.MaxSpan:
		return fmt.Errorf("its hold is %v: want 10ms to 50 years", w)
	}
	if l.blocks() {
		return fmt.Errorf("its block is %v, and how many requests run says nothing about the next one: use Block of a limit beside it", l.block.Value())
	}
	return nil
}

// validateName keeps names printable: they are written to header fields, logs and keys.
func validateName(what, name string, mayBeEmpty bool) error {
	switch {
	case name == "" && mayBeEmpty:
		return nil
	case name == "":
		return fmt.Errorf("%s is empty", what)
	case len(name) > maxName:
		return fmt.Errorf("%s is %d bytes long: want at most %d", what, len(name), maxName)
	case !utf8.ValidString(name):
		return fmt.Errorf("%s %q is not valid UTF-8", what, name)
	case strings.ContainsFunc(name, func(r rune) bool { return !unicode.IsPrint(r) }):
		return fmt.Errorf("%s %q has a control or invisible character", what, name)
	}
	return nil
}

// validateSecret wants 128 bits: with less, somebody who knows a key can find the secret.
func validateSecret(what string, secret []byte) error {
	const least = 16
	if len(secret) < least {
		return fmt.Errorf("%s is %d bytes long: want at least %d random ones", what, len(secret), least)
	}
	return nil
}

// maxName keeps a name short enough for every response.
const maxName = 128
