// Package storetest is the contract of [ratelimit.Store] as a test suite. The author
// of a store runs it in a test:
//
//	func TestStore(t *testing.T) {
//		storetest.Run(t, func(t *testing.T, prefix string) ratelimit.Store {
//			return mystore.New(prefix)
//		})
//	}
//
// # Cases
//
// Each case is a subtest. It has a name, the rule that it checks in words, and the
// numbers of that rule in the library's design; a failure reports all three. A case
// calls the methods of the store and checks what they return. There is a case for
// each clause of the contract that can be checked in this way; the last section lists
// the others.
//
// The contracts of [ratelimit.KindStore] with [ratelimit.KindBlock], with
// [ratelimit.KindRolling] and with [ratelimit.KindCalendar], of [ratelimit.HoldStore], and of
// [ratelimit.SharedStore], have cases of their own. These are skipped, with a reason, for a
// store that does not implement them. A limiter hands no store a limit that needs more than
// the store's Kinds, so no case does.
//
// # Time
//
// A store that takes its time from package time needs no option: each case runs in
// a bubble of testing/synctest, and none waits for real. [Clock] is for a store
// whose clock the test sets, and [RealTime] for one with a server's clock.
//
// With RealTime, the cases that wait take 38 windows at most, all together, 47 for a
// KindStore that counts blocks, 53 for one that counts rolling windows, too, and 60 for a
// HoldStore. They run one after the other; 38 windows of 1.5 s are a minute. The other
// cases do not wait. All cases make some 9,000 calls, 13,000 for a KindStore that counts
// blocks and calendar periods, 15,000 for a HoldStore, and 26,000 for a HoldStore that is a
// SharedStore. Most calls come from 64 goroutines at once. With go test -short, the cases
// that wait in real time are skipped. If such a case fails and a call took longer than the
// slack, it runs again, twice at most, with another prefix.
//
// The cases of calendar periods compare what the store returns with its wall clock. In a
// bubble and with RealTime, that is the clock of package time, and with RealTime a
// difference of a minute is allowed. With Clock, these cases need the option [WallClock].
// Some of them advance the clock by months, or by more than a year. These are skipped with
// RealTime. The other ones check the waits and the counters of the present periods.
//
// # Connecting
//
// A case that waits measures time from its first call on, and that call must not
// include the time it takes to connect. So newStore should connect, for example with
// one call, before it returns. The suite does its part: before a case that waits in
// real time, it calls every method once under each algorithm, in a way that changes
// nothing.
//
// # What the suite does not check
//
// The suite cannot see what is behind a store. These are left to the author's own
// tests:
//   - A call is not sent again if its reply is lost.
//   - Every stored key has a time to live.
//   - A remote store takes the time from its backend. If both are on one machine, their
//     clocks are the same.
//   - A clock that is set back frees no key.
//   - The end of a calendar period is in force for processes with another tz database, too.
//   - A call returns when its context ends, even if the backend hangs.
//   - Fault classifies errors correctly.
//   - A call on an existing key allocates nothing.
//   - A SharedStore does not set Newest if another caller of the same command gets a newer
//     answer about the key.
package storetest

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/ratelimit-go/ratelimit"
)

// Run runs every case on stores that newStore makes. It calls newStore from one
// goroutine at a time. All stores that are made within one test must be on one
// backend, which is empty at first, and each must write to the prefix that it is given.
// Two stores of one prefix must have the same counters if they implement
// [ratelimit.RemoteStore]. A case first makes a store with the prefix "storetest:"; some
// make more. newStore cleans up with t.Cleanup. If a store has a Close method, one case
// calls it before that.
//
// Without an option a case runs in a testing/synctest bubble, for a store that is in
// this process and takes its time from package time. See the package comment for the
// time that Run takes with [RealTime].
func Run(t *testing.T, newStore func(t *testing.T, prefix string) ratelimit.Store, opts ...Option) {
	cfg := inBubble()
	for _, opt := range opts {
		opt(&cfg)
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			if c.waits && cfg.slack > 0 && (cfg.window == 0 || testing.Short()) {
				t.Skip("waits for real time")
			}
			if c.days && cfg.slack > 0 {
				t.Skip("waits for days")
			}
			for _, problem := range c.run(t, cfg, newStore) {
				t.Errorf("%s\n\t%s", problem, c)
			}
		})
	}
}

// Option says how time passes for the stores under test.
type Option func(*config)

// Clock is for a store whose clock the test sets: advance moves it on, and in between
// it does not move. The resolution is the smallest step that it can represent.
func Clock(advance func(time.Duration), resolution time.Duration) Option {
	return func(c *config) { c.advance, c.resolution, c.bubble = advance, resolution, false }
}

// RealTime is for a store with a clock of its own. The limits of cases that wait have
// windows of about this length, and the cases wait for real; with a window of 0 they
// are skipped.
//
// Slack is how far apart two moments may be that would be one if nothing took time: the
// time of a slow call, and the clock's resolution. It should be at most a tenth of the
// window, and at least 30 times as long as a usual call, because a case makes many calls
// at the same moment. For a server nearby, a window of 1.5 s and a slack of 150 ms are good.
func RealTime(window, slack time.Duration) Option {
	return func(c *config) { c.window, c.slack, c.resolution, c.bubble = window, slack, slack, false }
}

// WallClock is for a store with [ratelimit.KindCalendar] whose wall clock is not the clock of
// package time: now returns its time. It is needed with [Clock], and with [RealTime] if the
// clock of the server is off by more than a minute.
func WallClock(now func() time.Time) Option { return func(c *config) { c.wall = now } }

type config struct {
	window     time.Duration
	advance    func(time.Duration) // lets time pass
	resolution time.Duration       // of waits that a store returns
	slack      time.Duration       // how far time may pass on its own; 0 if it does not
	bubble     bool
	wall       func() time.Time // the store's wall clock; nil for the clock of package time
}

// wallClock returns the store's wall clock. ok is false if the suite does not know it.
func (c *config) wallClock() (now func() time.Time, ok bool) {
	if c.wall == nil && (c.bubble || c.slack > 0) {
		return time.Now, true
	}
	return c.wall, c.wall != nil
}

func inBubble() config { return config{window: time.Hour, advance: time.Sleep, bubble: true} }

// A testCase is a clause of the contract.
type testCase struct {
	name  string
	rules []int  // their numbers in the library's design: what a limiter promises on any store
	rule  string // what the contract says, in words
	waits bool   // the case sleeps
	check func(r *run)

	blocks, rolling, calendar bool // only for a KindStore with KindBlock, KindRolling or KindCalendar
	holds, shared             bool // only for a HoldStore with KindInFlight, and for a SharedStore
	days                      bool // advances the clock by days or months: not in real time
}

// missing returns why the case cannot run on a store, or "".
func (c testCase) missing(s ratelimit.Store, cfg config) string {
	_, shared := s.(ratelimit.SharedStore)
	_, wall := cfg.wallClock()
	switch {
	case c.blocks && !counts(s, ratelimit.KindBlock):
		return "the store is not a KindStore with KindBlock"
	case c.rolling && !counts(s, ratelimit.KindRolling):
		return "the store is not a KindStore with KindRolling"
	case c.calendar && !counts(s, ratelimit.KindCalendar):
		return "the store is not a KindStore with KindCalendar"
	case c.holds && !countsHolds(s):
		return "the store is not a HoldStore with KindInFlight"
	case c.shared && !shared:
		return "the store is not a SharedStore"
	case c.calendar && !wall:
		return "the time of the store's wall clock is not known: use WallClock"
	}
	return ""
}

func (c testCase) String() string {
	numbers := strings.Trim(strings.ReplaceAll(fmt.Sprint(c.rules), " ", ", "), "[]")
	if len(c.rules) == 1 {
		return "rule " + numbers + ": " + c.rule
	}
	return "rules " + numbers + ": " + c.rule
}

// cases are all cases, in the order in which they run.
var cases = concat(takeCases, severalCases, waitCases, timeCases, adjustCases, lateCases, resetCases, changeCases, keyCases, callCases,
	blockCases, severalBlockCases, handBlockCases, blockTimeCases, rollingCases, calendarCases, calendarTimeCases, calendarBlockCases,
	holdCases, holdTimeCases, sharedCases)

func concat(groups ...[]testCase) (all []testCase) {
	for _, group := range groups {
		all = append(all, group...)
	}
	return all
}
