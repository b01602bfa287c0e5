package e2e_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	"github.com/stretchr/testify/require"
)

// This file has the sequential model of one key at a store, and the check of a
// history against it. histories_test.go records histories.

// maxTaken is the most units that a worker takes or gives back in one call.
const maxTaken = 3

// action is what an operation of a history does.
type action string

const (
	actTake   action = "take" // of no units: a look
	actRefund action = "refund"
	actLose   action = "lose" // the fault: the store loses calls that it has executed
	actRead   action = "read" // what the store has counted in the end
	actReset  action = "reset"
	actBlock  action = "block" // by hand
)

// operation is one operation of a history: the input of the model's step.
type operation struct {
	action  action
	process int
	units   int64 // that are taken or given back
	// most is the exact excess that the model allows. For actLose it is how many
	// units the store may lose, in calls that it has carried out; everything if that is
	// negative. For actRead it is how many units may be counted that nobody was
	// admitted with.
	most int64
}

// verdict is what a caller knows when its call has returned.
type verdict string

const (
	done     verdict = "done" // a take was admitted
	denied   verdict = "denied"
	cached   verdict = "denied from the cache"
	leased   verdict = "admitted from a lease"
	local    verdict = "admitted in an outage"
	unsent   verdict = "not sent"   // an error: nothing has changed
	unknown  verdict = "unanswered" // an error: the store may carry it out, now or later
	anything verdict = "denied, for a reason that the model does not state"
)

// outcome is the end of an operation: the output of the model's step.
type outcome struct {
	verdict   verdict
	remaining int64            // of a decision of the store; -1 is not checked
	counted   [maxLimits]int64 // by actRead
	block     block            // of a decision, and by actRead
	rung      int              // by actRead
}

// block is a block by its duration. No block ends during a history.
type block uint8

const (
	notBlocked block = iota
	firstBlock
	byHand
	secondBlock // of a ladder; a model never has it, because no block ends
)

// blockSpans are the durations of blocks. Each is longer than the window.
var blockSpans = [...]time.Duration{notBlocked: time.Hour, firstBlock: 2 * time.Hour, byHand: 3 * time.Hour, secondBlock: 4 * time.Hour}

// blockOf returns which block denies for a time. PostgreSQL reads the clock before it reads
// the row. If the row is written in between, the time is a little longer than the block.
func blockOf(retryAfter time.Duration) (b block) {
	for retryAfter > blockSpans[b]+time.Second && b < secondBlock {
		b++
	}
	return b
}

// maxLimits is the most limits that a history's keys have.
const maxLimits = 2

// keyState is a state of the model, for one key.
type keyState struct {
	used [maxLimits]int64 // units counted under each limit
	// unanswered are the calls that the store may have carried out, or may still carry
	// out: by their units, from -maxTaken for refunds to maxTaken.
	unanswered [2*maxTaken + 1]uint8
	block      block
	rung       int // how many denials have blocked the key
	lateResets uint8
	lateBlocks uint8               // unanswered calls, too
	admitted   [maxProcesses]int64 // units of each process; counted with FallbackLocal only
}

// maxProcesses is the most processes that a history has.
const maxProcesses = 4

// keyModel is the model of a key.
type keyModel struct {
	limits []int64 // units under each limit
	// leases: units may be counted at the store before they are handed out. The model
	// then counts what is handed out, which is at most the limit. It does not say
	// which of the processes must be denied while another one holds units.
	leases bool
	// fallback: while the store fails, each process admits what it does not know to be
	// used. The excess is that each process may admit the whole limit, and not one
	// unit more. The model then has in used what the store itself has admitted. It does
	// not say when a debt is paid, and so which calls the store must deny. In the end
	// the store has counted everything, up to the limit.
	fallback bool
	// blocks: the limit has Block. There is one limit then, and neither leases nor
	// fallback.
	blocks bool
}

// porcupine returns the model for the checker. It tries both fates of each call
// that was not answered.
func (m keyModel) porcupine() porcupine.Model {
	nondeterministic := porcupine.NondeterministicModel{
		Init: func() []any { return []any{keyState{}} },
		Step: func(state, input, output any) []any {
			return m.step(state.(keyState), input.(operation), output.(outcome))
		},
		Hash: func(state any) uint64 {
			s := state.(keyState)
			return uint64(s.used[0])<<16 ^ uint64(s.used[1])
		},
		DescribeOperation: func(input, output any) string { return fmt.Sprintf("%+v: %+v", input, output) },
	}
	return nondeterministic.ToModel()
}

// step returns the states in which a key may be after an operation. There are none
// if the operation cannot have had this outcome in state s.
func (m keyModel) step(s keyState, o operation, out outcome) (next []any) {
	switch out.verdict {
	case unsent, anything:
		return []any{s}
	case unknown: // it takes effect before a later operation, or never
		switch o.action {
		case actReset:
			s.lateResets++
			return []any{s}
		case actBlock:
			s.lateBlocks++
			return []any{s}
		}
		u := o.units
		if o.action == actRefund {
			u = -u
		}
		if u != 0 {
			s.unanswered[u+maxTaken]++
		}
		return []any{s}
	}
	for _, s := range m.reachable(s) {
		for _, s := range m.apply(s, o, out) {
			next = append(next, s)
		}
	}
	return next
}

// reachable returns s and the states into which unanswered calls can bring it.
func (m keyModel) reachable(s keyState) []keyState {
	all := []keyState{s}
	for i := 0; i < len(all); i++ {
		add := func(s keyState) {
			if !slices.Contains(all, s) {
				all = append(all, s)
			}
		}
		for j, calls := range all[i].unanswered {
			s, units := all[i], int64(j-maxTaken)
			if calls == 0 || units > 0 && (s.block != notBlocked || !m.blocks && !m.fits(s, units)) {
				continue
			}
			s.unanswered[j]--
			if m.blocks && units > 0 && !m.fits(s, units) {
				add(m.denies(s))
				continue
			}
			add(m.count(s, units))
		}
		if s := all[i]; s.lateResets > 0 {
			s.lateResets--
			add(m.reset(s))
		}
		if s := all[i]; s.lateBlocks > 0 {
			s.lateBlocks--
			add(m.blockByHand(s))
		}
	}
	return all
}

// denies returns the state after a denial that starts a block.
func (m keyModel) denies(s keyState) keyState {
	s.block, s.rung = firstBlock, 1
	return s
}

// blockByHand returns the state after a block by hand. The later one of two ends stays.
func (m keyModel) blockByHand(s keyState) keyState {
	s.block = max(s.block, byHand)
	return s
}

// reset returns the state after a reset. Calls that were not answered may still be
// carried out.
func (m keyModel) reset(s keyState) keyState {
	clear(s.used[:])
	s.block, s.rung = notBlocked, 0
	return s
}

// apply returns the states after an operation that takes effect in state s.
func (m keyModel) apply(s keyState, o operation, out outcome) []keyState {
	switch o.action {
	case actRefund:
		s = m.count(s, -o.units)
		s.admitted[o.process] -= o.units
		return []keyState{m.forget(s)}
	case actReset:
		return []keyState{m.reset(s)}
	case actBlock:
		return []keyState{m.blockByHand(s)}
	case actLose:
		return m.lose(s, o.most)
	case actRead:
		if out.block != notBlocked && s.block == notBlocked || out.block == notBlocked && s.block != notBlocked || out.rung != s.rung {
			return nil
		}
		for i, n := range m.limits {
			used := s.used[i]
			if m.fallback {
				used = min(n, sum(s.admitted))
			}
			if extra := out.counted[i] - used; extra < 0 || extra > o.most {
				return nil
			}
		}
		return []keyState{s}
	}
	if m.blocks {
		return m.takeBlocking(s, o, out)
	}
	switch out.verdict {
	case denied, cached:
		if m.fits(s, o.units) || out.remaining >= 0 && !m.isLeftWhereDenied(s, o.units, out.remaining) {
			return nil
		}
		return []keyState{s}
	case local:
		if s.admitted[o.process]+o.units > m.narrowest() {
			return nil
		}
		s.admitted[o.process] += o.units
		return []keyState{m.forget(s)}
	}
	if !m.fits(s, o.units) { // the property: never more than the limit
		return nil
	}
	s = m.count(s, o.units)
	if out.remaining >= 0 && out.remaining != m.left(s) {
		return nil
	}
	s.admitted[o.process] += o.units
	return []keyState{m.forget(s)}
}

// takeBlocking is apply for a take under a limit with Block.
func (m keyModel) takeBlocking(s keyState, o operation, out outcome) []keyState {
	left := m.left(s)
	switch {
	case s.block == notBlocked && m.fits(s, o.units):
		if out.verdict != done || out.block != notBlocked {
			return nil
		}
		s = m.count(s, o.units)
		left -= o.units
	case s.block == notBlocked:
		if out.verdict != denied { // the store alone starts a block
			return nil
		}
		s, left = m.denies(s), 0
	default:
		left = 0
		if admits := out.verdict == done; admits != (o.units == 0) {
			return nil
		}
	}
	if out.remaining >= 0 && out.remaining != left {
		return nil
	}
	if o.units == 0 {
		if (out.block == notBlocked) != (s.block == notBlocked) {
			return nil
		}
	} else if out.block != s.block {
		return nil
	}
	return []keyState{s}
}

// fits reports whether units fit under all limits.
func (m keyModel) fits(s keyState, units int64) bool { return units <= m.left(s) }

// left returns what is left under the limit that has the least.
func (m keyModel) left(s keyState) int64 {
	left := m.limits[0] - s.used[0]
	for i, n := range m.limits {
		left = min(left, n-s.used[i])
	}
	return left
}

// isLeftWhereDenied reports whether remaining is what is left under one of the
// limits that deny units.
func (m keyModel) isLeftWhereDenied(s keyState, units, remaining int64) bool {
	for i, n := range m.limits {
		if left := n - s.used[i]; left < units && left == remaining {
			return true
		}
	}
	return false
}

// narrowest returns the units of the narrowest limit.
func (m keyModel) narrowest() int64 { return slices.Min(m.limits) }

// sum returns the units that all processes have admitted.
func sum(admitted [maxProcesses]int64) (units int64) {
	for _, n := range admitted {
		units += n
	}
	return units
}

// count adds units to all counters, which stay between zero and their limits.
func (m keyModel) count(s keyState, units int64) keyState {
	for i, n := range m.limits {
		s.used[i] = min(n, max(0, s.used[i]+units))
	}
	return s
}

// forget removes from a state the parts that its model does not use, so that there are
// fewer states.
func (m keyModel) forget(s keyState) keyState {
	if !m.fallback {
		clear(s.admitted[:])
	}
	return s
}

// lose returns the states after the store has lost at most most units, or all of them
// if most is negative. Lost commands may be refunds, too. A call that was not
// answered before the fault has no effect after it: its server is gone.
func (m keyModel) lose(s keyState, most int64) (next []keyState) {
	clear(s.unanswered[:])
	s.lateResets, s.lateBlocks = 0, 0
	if most < 0 {
		return []keyState{m.reset(s)}
	}
	for lost := -most; lost <= most; lost++ {
		if after := m.count(s, -lost); !slices.Contains(next, after) {
			next = append(next, after)
		}
	}
	return next
}

// check has porcupine look for an order of the operations that the model allows. That takes
// a second or so, unless the machine is overloaded.
func (m keyModel) check(history []porcupine.Operation) porcupine.CheckResult {
	return porcupine.CheckOperationsTimeout(m.porcupine(), history, 5*time.Minute)
}

// inOrder returns a history in which each operation ends before the next one begins.
// Its arguments are operations and outcomes in turn.
func inOrder(steps ...any) (history []porcupine.Operation) {
	for i := 0; i < len(steps); i += 2 {
		history = append(history, porcupine.Operation{Input: steps[i], Output: steps[i+1], Call: int64(i), Return: int64(i + 1)})
	}
	return history
}

// TestModelRefusesHistories checks histories that break the limit or report it
// wrongly, and similar histories that are correct.
func TestModelRefusesHistories(t *testing.T) {
	takes := func(units int64) operation { return operation{action: actTake, units: units} }
	refunds := func(units int64) operation { return operation{action: actRefund, units: units} }
	loses := func(most int64) operation { return operation{action: actLose, most: most} }
	reads := func(most int64) operation { return operation{action: actRead, most: most} }
	admits := outcome{verdict: done, remaining: -1}
	counted := func(units ...int64) outcome {
		o := outcome{verdict: done}
		copy(o.counted[:], units)
		return o
	}
	type model = keyModel
	five := model{limits: []int64{5}}
	blocking := model{limits: []int64{5}, blocks: true}
	resets, blocksByHand := operation{action: actReset}, operation{action: actBlock}
	blocks := func(by block) outcome { return outcome{verdict: denied, block: by} }
	for _, c := range []struct {
		name string
		keyModel
		allowed []any
		refused []any // operations that make the checker refuse it
	}{
		{"one unit too many", five, []any{takes(3), admits, takes(2), admits}, []any{takes(1), admits}},
		{"a denial of what fits", five, []any{takes(3), admits, takes(3), outcome{verdict: denied, remaining: 2}}, []any{takes(2), outcome{verdict: denied, remaining: 2}}},
		{"a wrong remaining", five, []any{takes(3), outcome{verdict: done, remaining: 2}}, []any{takes(0), outcome{verdict: done, remaining: 3}}},
		{"a refund too many", five, []any{takes(5), admits, refunds(1), admits, takes(1), admits}, []any{takes(1), admits}},
		{"a call that was not sent", five, []any{takes(2), outcome{verdict: unsent}, takes(3), admits}, []any{takes(3), admits}},
		{"a call that was not answered", five, []any{takes(2), outcome{verdict: unknown}, takes(3), admits, takes(1), outcome{verdict: denied, remaining: 0}}, []any{takes(0), outcome{verdict: done, remaining: 1}}},
		{"the narrower of two limits", model{limits: []int64{7, 5}}, []any{takes(3), outcome{verdict: done, remaining: 2}, takes(2), admits}, []any{takes(1), admits}},
		{"one of two counters lost", model{limits: []int64{7, 5}}, []any{takes(3), admits, reads(0), counted(3, 3)}, []any{reads(0), counted(0, 3)}},
		{"no more than the excess lost", five, []any{takes(3), admits, takes(2), admits, loses(2), admits, takes(2), admits}, []any{takes(1), admits}},
		{"everything lost once", five, []any{takes(3), admits, takes(2), admits, loses(-1), admits, takes(3), admits, takes(2), admits}, []any{takes(1), admits}},
		{"units of a lease", model{limits: []int64{5}, leases: true}, []any{takes(3), outcome{verdict: leased, remaining: -1}, takes(2), admits}, []any{takes(1), outcome{verdict: leased, remaining: -1}}},
		{"more missing than a killed process held", five, []any{takes(2), admits, reads(2), counted(4)}, []any{reads(2), counted(5)}},
		{"a block that a refund does not lift", blocking, []any{takes(5), admits, takes(1), blocks(firstBlock), refunds(3), admits, takes(1), blocks(firstBlock)}, []any{takes(1), admits}},
		{"a reset that lifts a block", blocking, []any{takes(5), admits, takes(1), blocks(firstBlock), resets, admits, takes(5), admits}, []any{takes(1), outcome{verdict: done, remaining: 0}}},
		{"a denial that starts no block", blocking, []any{takes(4), admits, takes(2), blocks(firstBlock)}, []any{takes(0), outcome{verdict: done, remaining: 1}}},
		{"a rung that is skipped", blocking, []any{takes(5), admits, takes(1), blocks(firstBlock), resets, admits, takes(5), admits}, []any{takes(1), blocks(secondBlock)}},
		{"a shorter block that replaces one by hand", blocking, []any{takes(5), admits, blocksByHand, admits, takes(1), blocks(byHand)}, []any{takes(1), blocks(firstBlock)}},
		{"a denial without an answer that starts a block", blocking, []any{takes(5), admits, takes(1), outcome{verdict: unknown}, refunds(5), admits, takes(1), blocks(firstBlock)}, []any{takes(1), admits}},
		{"a block that is not at the store in the end", blocking, []any{takes(5), admits, takes(1), blocks(firstBlock)}, []any{reads(0), counted(5)}},
		{"a process's own limit in an outage", model{limits: []int64{5}, fallback: true}, []any{takes(3), admits, takes(2), outcome{verdict: local, remaining: -1}}, []any{takes(1), outcome{verdict: local, remaining: -1}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			require.Equal(t, porcupine.Ok, c.check(inOrder(c.allowed...)))
			require.Equal(t, porcupine.Illegal, c.check(inOrder(append(c.allowed, c.refused...)...)))
		})
	}
}
