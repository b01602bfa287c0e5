package ratelimit_test

import (
	"net/http"
	"testing"
	"time"

	. "github.com/ratelimit-go/ratelimit"
)

// handWorld returns a world for a history that is written by hand. Plan 0 has
// the current limits.
func handWorld(limit Limit, plans ...[]Limit) *world {
	w := &world{keys: []string{"key", "other"}, counters: []Limit{limit}, start: []Limit{limit}, outer: []Limit{limit}}
	w.plans = append([][]Limit{nil}, plans...)
	w.blocks = limit.Ladder() != nil
	w.opts = w.options(Options{DenyRecheck: -1})
	return w
}

// TestFoundByModels runs the shortest histories of the faults that the models
// have found.
func TestFoundByModels(t *testing.T) {
	three, six := FixedWindow(3, time.Hour), FixedWindow(6, time.Hour)
	var nine [][]Limit // one window each
	for i := range 9 {
		nine = append(nine, []Limit{FixedWindow(3, time.Duration(2+i)*time.Hour)})
	}
	var nineWithBlock [][]Limit
	for _, plan := range nine {
		nineWithBlock = append(nineWithBlock, []Limit{plan[0].Block(time.Hour)})
	}
	blocking := three.Block(time.Hour)
	failOpen := handWorld(FixedWindow(3, time.Minute).Block(time.Hour))
	failOpen.policies = []FailurePolicy{FailOpen}
	long := handWorld(three)
	long.keys = []string{hostileKeys[0], hostileKeys[1]}

	for _, test := range []struct {
		name  string
		run   func(*testing.T, history) *wrong
		world *world
		steps []step
	}{
		{"a key is used under nine windows", runNeverAnswers, handWorld(three, nine...), []step{
			{do: doCheck, n: 3, plan: 1}, {do: doCheck, n: 1, plan: 2}, {do: doCheck, n: 1, plan: 3}, {do: doCheck, n: 1, plan: 4},
			{do: doCheck, n: 1, plan: 5}, {do: doCheck, n: 1, plan: 6}, {do: doCheck, n: 1, plan: 7}, {do: doCheck, n: 1, plan: 8},
			{do: doCheck, n: 1, plan: 9}, {do: doCheck, n: 1, plan: 1},
		}},
		{"a charge above what is left is given back", runNeverAnswers, handWorld(six), []step{
			{do: doTake, n: 4}, {do: doServe, n: 1}, {do: doAddCost, n: 10}, {do: doEnd, status: http.StatusOK}, {do: doTake, n: 5},
		}},
		{"units are given back in a later window", runNeverAnswers, handWorld(three), []step{
			{do: doServe, n: 3}, {do: doWait, wait: time.Hour}, {do: doTake, n: 3}, {do: doEnd, status: http.StatusOK}, {do: doTake, n: 3},
		}},
		{"a key is another one's hash", runNeverAnswers, long, []step{
			{do: doTake, n: 3}, {do: doTake, key: 1, n: 1},
		}},
		{"a charge while the store hangs", runNeverAnswers, handWorld(three), []step{
			{do: doMode, mode: unreached}, {do: doServe}, {do: doAddCost, n: 1},
		}},
		{"a smaller plan is asked about", runOneProcess, handWorld(six, []Limit{three}), []step{
			{do: doTake, n: 6}, {do: doCheck, n: 1, plan: 1}, {do: doMode, mode: refused}, {do: doTake, n: 3},
		}},
		{"more is refunded than there is", runOneProcess, handWorld(three), []step{
			{do: doMode, mode: refused}, {do: doRefund, n: 4}, {do: doTake, n: 2}, {do: doMode, mode: up}, {do: doDrain},
		}},
		{"units are given back in one window and taken in the next", runOneProcess, handWorld(three), []step{
			{do: doTake, n: 3}, {do: doMode, mode: refused}, {do: doRefund, n: 3}, {do: doWait, wait: time.Hour}, {do: doTake, n: 3},
			{do: doMode, mode: up}, {do: doDrain},
		}},
		{"the store gets units under a smaller limit", runOneProcess, handWorld(three, []Limit{six}), []step{
			{do: doMode, mode: refused}, {do: doCheck, n: 6, plan: 1}, {do: doRefund, n: 1}, {do: doMode, mode: up}, {do: doCheck, n: 3, plan: 1},
		}},
		{"units are given back, without an answer, and again", runOneProcess, handWorld(three), []step{
			{do: doServe, n: 1}, {do: doTake, n: 2}, {do: doMode, mode: lost}, {do: doAddCost, n: -1}, {do: doMode, mode: up},
			{do: doEnd, status: http.StatusOK}, {do: doDrain},
		}},
		{"more is asked for than was denied, of a bucket above its limit", runShared, handWorld(TokenBucket(2, 7*time.Minute, 6)), []step{
			{do: doTake, n: 5}, {do: doSetLimits, in: 1, limits: []Limit{TokenBucket(2, 7*time.Minute, 3)}}, {do: doTake, in: 1, n: 1},
			{do: doWait, wait: 8 * time.Minute}, {do: doTake, in: 1, n: 2},
		}},
		{"a key is blocked by hand and reset under nine windows with Block", runOneProcess, handWorld(blocking, nineWithBlock...), []step{
			{do: doCheck, n: 3, plan: 1}, {do: doCheck, n: 1, plan: 2}, {do: doCheck, n: 1, plan: 3}, {do: doCheck, n: 1, plan: 4},
			{do: doCheck, n: 1, plan: 5}, {do: doCheck, n: 1, plan: 6}, {do: doCheck, n: 1, plan: 7}, {do: doCheck, n: 1, plan: 8},
			{do: doCheck, n: 1, plan: 9}, {do: doBlock, wait: time.Hour}, {do: doReset, key: 1},
		}},
		{"a block that is sent gets lost", runOneProcess, handWorld(blocking), []step{
			{do: doMode, mode: refused}, {do: doBlock, wait: time.Hour}, {do: doMode, mode: silent}, {do: doReload, limits: []Limit{blocking}},
		}},
		{"a blocked key is blocked by hand for a shorter time", runOneProcess, failOpen, []step{
			{do: doDrain}, {do: doBlock, wait: time.Second}, {do: doWait, wait: 2 * time.Second}, {do: doMode, mode: refused}, {do: doTake, n: 1},
		}},
		{"a denial starts a block beside a request under way", runNeverAnswers, handWorld(blocking), []step{
			{do: doServe, n: 1}, {do: doTake, n: 2}, {do: doBlock, wait: time.Second}, {do: doWait, wait: time.Second}, {do: doTake, n: 1}, {do: doTake, n: 2},
		}},
		{"the store answers for the first time after units of long ago", runOneProcess, handWorld(Rolling(4, 16*time.Hour)), []step{
			{do: doMode, mode: refused}, {do: doTake, n: 3}, {do: doWait, wait: 4 * time.Hour},
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			if wrong := inBubble(t, history{test.world, test.steps}, test.run); wrong != nil {
				t.Error(wrong)
			}
		})
	}
}
