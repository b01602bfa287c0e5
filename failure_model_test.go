package ratelimit_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"reflect"
	"slices"
	"strconv"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	. "github.com/ratelimit-go/ratelimit"
)

// This file has the first model: a limiter whose store never answers decides like
// a limiter on memory. It also runs the histories of the other models.

// runSeeds runs a test with n seeds, or as many as RATELIMIT_MODEL_SEEDS says.
// It ends with the first seed that fails. To run one seed again:
//
//	go test -run 'TestStoreNeverAnswers/fixed/17$' .
func runSeeds(t *testing.T, n int, test func(t *testing.T, seed int)) {
	if text := os.Getenv("RATELIMIT_MODEL_SEEDS"); text != "" {
		var err error
		if n, err = strconv.Atoi(text); err != nil {
			t.Fatalf("RATELIMIT_MODEL_SEEDS is %q: want the number of seeds for each family", text)
		}
	}
	for seed := range n {
		if !t.Run(strconv.Itoa(seed), func(t *testing.T) { test(t, seed) }) {
			return
		}
	}
}

// deadStore is a store that no call reaches. A call fails at once or hangs
// until its timeout, and has certainly changed nothing.
type deadStore struct{ hangs *atomic.Bool }

var errDead = errors.New("nothing reaches the store")

func (s *deadStore) Prefix() string    { return "dead" }
func (s *deadStore) Fault(error) Fault { return FaultRefused }

func (s *deadStore) call(ctx context.Context) error {
	if s.hangs.Load() {
		<-ctx.Done()
	}
	return errDead
}

func (s *deadStore) Take(ctx context.Context, _ string, _ int64, _ []Limit, _ []Result) (Instant, error) {
	return 0, s.call(ctx)
}

func (s *deadStore) Adjust(ctx context.Context, _ string, _ int64, _ Instant, _ []Limit) (int64, error) {
	return 0, s.call(ctx)
}

func (s *deadStore) Reset(ctx context.Context, _ string, _ []Limit) error { return s.call(ctx) }

func (s *deadStore) Kinds() Kinds { return KindBlock | KindRolling | KindCalendar }

func (s *deadStore) TakePending(ctx context.Context, _ string, _ int64, _ []Pending, _ []Limit, _ []Result) (Instant, error) {
	return 0, s.call(ctx)
}

func (s *deadStore) Block(ctx context.Context, _ string, _ Block, _ []Limit) error {
	return s.call(ctx)
}

// neverFamilies are the families of histories of a store that never answers.
func neverFamilies() map[string]worldSpec {
	families := map[string]worldSpec{}
	for _, algorithm := range []string{"fixed", "sliding", "bucket", "calendar", "mixed", "rolling", "mixed with rolling"} {
		spec := worldSpec{
			algorithms: []string{algorithm},
			windows:    []int{1, 1, 2, 3, 5, 8, 9, 14},
			sizes:      []int64{1, 2, 3, 4, 5, 6},
			scales:     []time.Duration{20 * time.Millisecond, time.Second, time.Minute, time.Hour},
			timeouts:   []time.Duration{0, 10 * time.Millisecond},
			leases:     []time.Duration{0, 0, 0, 20 * time.Millisecond},
			huge:       true,
		}
		switch algorithm {
		case "mixed":
			spec.algorithms = []string{"fixed", "sliding", "bucket", "calendar"}
		case "rolling", "mixed with rolling":
			spec.leases = []time.Duration{0} // New refuses Lease
			if algorithm != "rolling" {
				spec.algorithms = []string{"rolling", "rolling", "fixed", "sliding", "bucket", "calendar"}
			}
		}
		families[algorithm] = spec
		spec.blocks = true
		families[algorithm+" with blocks"] = spec
	}
	return families
}

var neverScript = script{
	steps: 120,
	weights: [actions]int{
		doWait: 30, doTake: 24, doTakeShortDeadline: 1, doTakeGone: 1, doRefund: 5, doReset: 2, doLook: 4,
		doServe: 14, doCheck: 6, doNest: 4, doOuter: 2, doAddCost: 14, doEnd: 12, doSetLimits: 4, doReload: 2, doFailReload: 1,
		doTakeReplaced: 2, doCloseReplaced: 1, doRestart: 1, doMode: 2,
	},
	modes: []mode{refused, unreached},
	units: []int64{0, 1, 1, 1, 2, 2, 3, 4, 6, 7, most},
	costs: []int64{least, -7, -3, -2, -1, -1, 0, 1, 1, 2, 3, 5, 12, most},
	exact: 8,
}

// TestStoreNeverAnswers compares a limiter whose store never answers with one
// on memory: callers see the same results, to the nanosecond.
func TestStoreNeverAnswers(t *testing.T) {
	for name, spec := range neverFamilies() {
		t.Run(name, func(t *testing.T) {
			runSeeds(t, 100, func(t *testing.T, seed int) {
				sc := neverScript
				if spec.blocks {
					sc.weights[doBlock] = 3
				}
				if slices.Contains(spec.algorithms, "calendar") {
					// Units of before a Reset that are given back after it are given back to
					// the same period, so it matters which of two calls is faster.
					sc.weights[doReset] = 0
				}
				failIfWrong(t, newHistory(seeded(name, seed), spec, sc), runNeverAnswers)
			})
		})
	}
}

// FuzzStoreNeverAnswers is TestStoreNeverAnswers with the fuzzer's histories.
func FuzzStoreNeverAnswers(f *testing.F) {
	spec := neverFamilies()["mixed"]
	for seed := range 8 {
		c := seeded("fuzz", seed)
		input := make([]byte, 600)
		for i := range input {
			input[i] = byte(c.pick(256))
		}
		f.Add(input)
	}
	f.Fuzz(func(t *testing.T, input []byte) {
		h := newHistory(&byteChoices{input}, spec, neverScript)
		if wrong := inBubble(t, h, runNeverAnswers); wrong != nil {
			t.Fatalf("%v\n%v", h.upTo(wrong.step), wrong)
		}
	})
}

// wrong is a fault, and the step that has shown it: len(steps) if that was a
// check at the end.
type wrong struct {
	step int
	what string
}

func (w *wrong) String() string { return fmt.Sprintf("after step %d: %s", w.step, w.what) }

func (h history) upTo(step int) history {
	h.steps = h.steps[:min(len(h.steps), step+1)]
	return h
}

// inBubble runs a history in a bubble of testing/synctest. It returns nil if
// nothing is wrong.
func inBubble(t *testing.T, h history, run func(t *testing.T, h history) *wrong) (found *wrong) {
	synctest.Test(t, func(t *testing.T) { found = run(t, h) })
	return found
}

// failIfWrong runs a history. If it shows a fault, the test fails with the
// shortest history that still shows one, found by leaving out steps.
func failIfWrong(t *testing.T, h history, run func(t *testing.T, h history) *wrong) {
	found := inBubble(t, h, run)
	if found == nil {
		return
	}
	length := len(h.steps)
	h = h.upTo(found.step)
	attempts := 0
	for size := len(h.steps) / 2; size > 0; size /= 2 {
		for from := len(h.steps) - size; from >= 0 && attempts < 2000; from -= size {
			shorter := h
			shorter.steps = slices.Delete(slices.Clone(h.steps), from, min(from+size, len(h.steps)))
			attempts++
			if w := inBubble(t, shorter, run); w != nil {
				h, found = shorter.upTo(w.step), w
				from = min(from, len(h.steps))
			}
		}
	}
	t.Errorf("a history of %d steps, shortened to %d:\n%v%v", length, len(h.steps), h, found)
}

var modelStores atomic.Int64

// modelMemory returns a memory store that is closed when the test is over. It
// is small, and so looks for expired counters often.
func modelMemory(t *testing.T, w *world) *MemoryStore {
	s, err := NewMemoryStore(fmt.Sprint("model ", modelStores.Add(1)), MemoryOptions{MaxKeys: w.places()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// runNeverAnswers runs a history on a limiter whose store never answers, and on
// one on memory. Each step is first taken by the former. If that has to wait
// for its store, the other one decides at the same instant.
func runNeverAnswers(t *testing.T, h history) (found *wrong) {
	var hangs atomic.Bool
	remote := newSubject(h.world, func() Store { return &deadStore{hangs: &hangs} })
	remote.nestIn(&deadStore{hangs: &hangs})
	inMemory := newSubject(h.world, func() Store { return modelMemory(t, h.world) })
	inMemory.nestIn(modelMemory(t, h.world))
	defer inMemory.end()
	defer remote.end()
	var last Decision
	both := func(s step) string {
		ctx, cancel := modelContext(h.world, s)
		defer cancel()
		if hangs.Load() && (s.do == doNest || s.do == doBlock) {
			// Two decisions a timeout apart would be made at one instant on
			// memory. A block begins before the store is called.
			hangs.Store(false)
			defer hangs.Store(true)
			time.Sleep(10 * time.Second) // until no call hangs any more
		}
		got := remote.do(ctx, s)
		if errors.Is(got.err, context.DeadlineExceeded) {
			<-ctx.Done() // the limiter may have read the clock before
		}
		want := inMemory.do(ctx, s)
		synctest.Wait()
		if s.do == doReset && inMemory.world.keys[s.key] != "" {
			if !errors.Is(got.err, errDead) {
				return fmt.Sprintf("Reset without a store returned %v", got.err)
			}
			got.err = nil
		}
		if want.decision != (Decision{}) {
			last = want.decision
		}
		return got.difference(want)
	}
	for i, s := range h.steps {
		switch s.do {
		case doWait:
			s.sleep(last)
			continue
		case doMode:
			hangs.Store(s.mode == unreached)
			time.Sleep(10 * time.Second) // until no earlier call hangs any more
			continue
		}
		if what := both(s); what != "" {
			return &wrong{i, what}
		}
		if h.world.looks {
			if what := both(step{do: doTake, key: s.key}); what != "" {
				return &wrong{i, "look: " + what}
			}
		}
	}
	for key := range h.world.keys {
		for plan := range h.world.plans {
			if what := both(step{do: doLook, key: key, plan: plan}); what != "" {
				return &wrong{len(h.steps), fmt.Sprintf("key %d, plan %d: %s", key, plan, what)}
			}
		}
		if what := both(step{do: doOuter, key: key}); what != "" {
			return &wrong{len(h.steps), fmt.Sprintf("key %d at the outer limiter: %s", key, what)}
		}
	}
	return nil
}

// modelContext returns the context of a step.
func modelContext(w *world, s step) (context.Context, context.CancelFunc) {
	switch s.do {
	case doTakeShortDeadline:
		return context.WithTimeout(context.Background(), timeoutOf(w)/2)
	case doTakeGone:
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		return ctx, cancel
	}
	return context.Background(), func() {}
}

func timeoutOf(w *world) time.Duration { return cmp.Or(w.opts.Timeout, DefaultTimeout) }

// sleep carries out doWait, but not for years.
func (s step) sleep(last Decision) {
	span := s.wait
	switch s.until {
	case untilRetry:
		span += last.RetryAfter
	case untilHalf:
		span += last.RetryAfter / 2
	case untilReset:
		span += last.ResetAfter
	}
	const longest = 1000 * time.Hour
	time.Sleep(max(0, min(span, longest)))
}

// difference returns how an outcome differs from the one on memory, or "".
func (o outcome) difference(want outcome) string {
	o.decision.Source, want.decision.Source = 0, 0
	o.inflight, want.inflight = nil, nil
	text := func(err error) string { return fmt.Sprint(err) }
	if text(o.err) == text(want.err) {
		o.err = want.err
	}
	if reflect.DeepEqual(o, want) {
		return ""
	}
	return fmt.Sprintf("\nmemory: %v\nremote: %v", want, o)
}
