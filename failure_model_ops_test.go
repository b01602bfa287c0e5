package ratelimit_test

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"log/slog"
	"math"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"time"

	. "github.com/ratelimit-go/ratelimit"
)

// This file makes the histories that the model tests run, at random or from a
// fuzzer's bytes. The other files:
//
//	failure_model_subject_test.go  runs a limiter through a history
//	failure_model_test.go          model 1: a store that never answers
//	failure_model_bound_test.go    model 2: a store that comes and goes
//	failure_model_books_test.go    counts what model 2 admits
//	failure_model_rolling_test.go  counts what a rolling window may still hold in model 2
//	failure_model_blocks_test.go   model 2 with blocks, and the books of them
//	failure_model_found_test.go    the shortest histories of faults that were found

// A history is a world, which does not change, and the steps that are taken in
// it. A step is data. It refers to a request in flight by a number modulo how
// many there are, so any step can be left out when a failing history is
// shortened.
type history struct {
	world *world
	steps []step
}

// A world holds the keys and settings of a history's limiters.
type world struct {
	keys     []string
	counters []Limit   // the largest limit of each algorithm and window
	start    []Limit   // Options.Limits at first
	outer    []Limit   // of the limiter around it, for doNest
	plans    [][]Limit // what LimitsFor returns for each plan; the last one is not valid
	opts     Options
	looks    bool // look at the key after each step
	huge     bool // limits go up to the largest number of units

	blocks   bool            // limits have Block
	policies []FailurePolicy // OnFailure of the first limiter and of its successors, in turn; nil for FallbackLocal
}

// An action is what a step does.
type action uint8

const (
	doWait action = iota
	doTake
	doDrain             // take single units until one is denied
	doTakeShortDeadline // the context's deadline comes before Options.Timeout
	doTakeGone          // the context is done already
	doRefund
	doReset
	doLook
	doServe // a request passes Middleware, and stays in flight if it is admitted
	doCheck // a request passes Check, and stays in flight
	doNest  // a request passes another limiter's Middleware and then this one's
	doOuter // take at that other limiter
	doAddCost
	doEnd // a request in flight ends
	doSetLimits
	doReload
	doFailReload
	doTakeReplaced  // take at the limiter that the last Reload has replaced
	doCloseReplaced // close that limiter
	doRestart       // Close and New
	doMode          // decides what happens to calls to the store from now on
	doBlock         // block by hand
	actions
)

var actionNames = [actions]string{
	"wait", "take", "drain", "take with a short deadline", "take gone", "refund", "reset", "look", "serve", "check", "nest", "outer", "add cost", "end",
	"set limits", "reload", "fail reload", "take replaced", "close replaced", "restart", "mode", "block",
}

// A step is one action with its arguments.
type step struct {
	do     action
	in     int           // which process, if there are several
	key    int           // index in world.keys
	n      int64         // units
	plan   int           // index in world.plans
	which  int           // which request in flight, counted from the last one, modulo their number
	status int           // what a request ends with; 0 is a panic
	limits []Limit       // the limiter's new limits
	wait   time.Duration // how long to wait, in addition to until; how long to block
	until  until
	mode   mode
}

// An until is a duration of the last decision.
type until uint8

const (
	untilNothing until = iota
	untilRetry
	untilHalf // of RetryAfter
	untilReset
)

func (s step) String() string {
	text := fmt.Sprintf("%s in=%d key=%d n=%d", actionNames[s.do], s.in, s.key, s.n)
	switch s.do {
	case doWait:
		text = fmt.Sprintf("wait %v", s.wait)
		if s.until != untilNothing {
			text = fmt.Sprintf("wait %s%+d ns", [...]string{untilRetry: "RetryAfter", untilHalf: "RetryAfter/2", untilReset: "ResetAfter"}[s.until], s.wait)
		}
	case doBlock:
		text = fmt.Sprintf("block in=%d key=%d for %v", s.in, s.key, s.wait)
	case doLook, doServe, doCheck, doNest:
		text += fmt.Sprintf(" plan=%d", s.plan)
	case doAddCost:
		text = fmt.Sprintf("add cost %d which=%d", s.n, s.which)
	case doEnd:
		text = fmt.Sprintf("end status=%d which=%d", s.status, s.which)
	case doSetLimits, doReload, doFailReload, doRestart:
		text = fmt.Sprintf("%s in=%d %v", actionNames[s.do], s.in, s.limits)
	case doMode:
		text = fmt.Sprintf("mode in=%d %s", s.in, modeNames[s.mode])
	}
	return text
}

// modeNames are the names of the modes that the models use; see remoteBackend and
// linkStore.
var modeNames = map[mode]string{up: "up", refused: "refused", silent: "silent", lost: "lost", unreached: "unreached"}

// String leaves out keys and plans that no step uses.
func (h history) String() string {
	var b strings.Builder
	w := h.world
	fmt.Fprintf(&b, "limits %v, outer %v\n", w.start, w.outer)
	fmt.Fprintf(&b, "Timeout %v, DenyRecheck %v, Lease %v, Shadow %v\n", w.opts.Timeout, w.opts.DenyRecheck, w.opts.Lease, w.opts.Shadow)
	if w.policies != nil {
		fmt.Fprintf(&b, "policies %v\n", w.policies)
	}
	for i, key := range w.keys {
		if slices.ContainsFunc(h.steps, func(s step) bool { return s.key == i }) {
			fmt.Fprintf(&b, "key %d: %d bytes, %.40q\n", i, len(key), key)
		}
	}
	for i, plan := range w.plans {
		if slices.ContainsFunc(h.steps, func(s step) bool { return s.plan == i }) {
			fmt.Fprintf(&b, "plan %d: %v\n", i, plan)
		}
	}
	for i, s := range h.steps {
		fmt.Fprintf(&b, "step %d: %v\n", i, s)
	}
	return b.String()
}

// choices decide what is in a history.
type choices interface {
	pick(n int) int // a number from 0 to n-1
	over() bool     // reports whether the choices have ended; pick returns 0 then
}

// randomChoices never end.
type randomChoices struct{ *rand.Rand }

// seeded returns the choices for one history of a family.
func seeded(family string, seed int) choices {
	sum := sha256.Sum256([]byte(family))
	return randomChoices{rand.New(rand.NewPCG(uint64(seed), binary.BigEndian.Uint64(sum[:])))}
}

func (c randomChoices) pick(n int) int { return c.IntN(n) }
func (c randomChoices) over() bool     { return false }

// byteChoices end with the fuzzer's input. Each takes one byte.
type byteChoices struct{ left []byte }

func (c *byteChoices) pick(n int) int {
	if n <= 1 || c.over() {
		return 0
	}
	b := c.left[0]
	c.left = c.left[1:]
	return int(b) % n
}

func (c *byteChoices) over() bool { return len(c.left) == 0 }

func oneOf[T any](c choices, of ...T) T { return of[c.pick(len(of))] }

// hostileKeys include a long key, and keys that equal its hash, in case a
// limiter keeps hashes of long keys.
var hostileKeys = func() []string {
	long := strings.Repeat("A key of a client's choice. ", 20)
	sum := sha256.Sum256([]byte(long))
	return []string{
		long, string(sum[:]), fmt.Sprintf("%x", sum), long + "x",
		"a", "\x00", " ", "a\x00", "1=a", "rl:{a}:\r\nX: \xff\xfe", strings.Repeat("k", 512), strings.Repeat("k", 513), "",
	}
}()

// A worldSpec has the common properties of the worlds of a family of histories.
// A world has one element of each list.
type worldSpec struct {
	algorithms []string
	windows    []int           // how many
	scales     []time.Duration // the length of the shortest window
	sizes      []int64         // units of a limit; each limit has one of these
	timeouts   []time.Duration
	leases     []time.Duration
	huge       bool
	blocks     bool            // three in four limits have Block
	policies   []FailurePolicy // at random; nil means FallbackLocal alone
}

func newWorld(c choices, spec worldSpec) *world {
	w := &world{looks: c.pick(2) == 0, blocks: spec.blocks}
	hostile := c.pick(len(hostileKeys) - 2)
	w.keys = []string{hostileKeys[hostile], hostileKeys[hostile+1], hostileKeys[c.pick(len(hostileKeys))]}
	w.keys = slices.Compact(w.keys)[:min(len(w.keys), oneOf(c, 1, 1, 2, 3))]

	w.huge = spec.huge && c.pick(8) == 0
	scale, largest := oneOf(c, spec.scales...), w.size(slices.Max(spec.sizes))
	calendars := calendarsOf(c, largest)
	for i := range oneOf(c, spec.windows...) {
		window := scale*time.Duration(1+3*i) + time.Duration(c.pick(3)*7)
		rate := oneOf(c, spec.sizes...)
		algorithm := oneOf(c, spec.algorithms...)
		if algorithm == "calendar" && len(calendars) == 0 {
			algorithm = "fixed"
		}
		switch algorithm {
		case "calendar":
			w.counters = append(w.counters, calendars[0])
			calendars = calendars[1:]
		case "fixed":
			w.counters = append(w.counters, FixedWindow(largest, window))
		case "sliding":
			w.counters = append(w.counters, SlidingWindow(largest, window))
		case "rolling":
			w.counters = append(w.counters, Rolling(w.rollingSize(slices.Max(spec.sizes)), window))
		default:
			// The rate of a bucket stays the same. A store may forget a bucket
			// that is whole at the present rate, although it would not be at a
			// slower one.
			w.counters = append(w.counters, TokenBucket(w.size(rate), window, largest))
		}
	}
	w.start, w.outer = w.limits(c, spec), w.limits(c, spec)
	w.plans = append(w.plans, nil) // Options.Limits
	for range 2 + c.pick(12) {
		w.plans = append(w.plans, w.limits(c, spec))
	}
	w.plans = append(w.plans, w.tooMany())
	w.opts = w.options(Options{
		Shadow:      c.pick(16) == 0 && !spec.blocks, // what AddCost charges a request that the cache has denied is not given back
		Timeout:     oneOf(c, spec.timeouts...),
		DenyRecheck: oneOf(c, 0, -1, -1, 50*time.Millisecond),
		Lease:       oneOf(c, spec.leases...),
	})
	if spec.policies != nil {
		for range 4 {
			w.policies = append(w.policies, oneOf(c, spec.policies...))
		}
	}
	return w
}

// options completes a limiter's options. A request's context has its key, plan
// and cost.
func (w *world) options(opts Options) Options {
	opts.Limits = w.start
	opts.Key = func(r *http.Request) (string, error) { return inflightOf(r).key, nil }
	opts.LimitsFor = func(r *http.Request) []Limit { return w.plans[inflightOf(r).plan] }
	opts.Cost = func(r *http.Request) int64 { return inflightOf(r).cost }
	opts.Count = func(_ *http.Request, status int) bool { return counts(status) }
	opts.NearKeys = w.places() // its own cache: the shared one is used by tests in other bubbles, which have another time
	opts.Logger = slog.New(slog.DiscardHandler)
	return opts
}

// size returns a limit's units, which are much larger in a huge world.
func (w *world) size(n int64) int64 {
	if w.huge {
		return min(n*150_000_000_000_000, 999_999_999_999_999)
	}
	return n
}

// rollingSize is size for a rolling window.
func (w *world) rollingSize(n int64) int64 {
	if w.huge {
		return min(n*170, MaxRolling)
	}
	return n
}

// places is how many places the model's stores have. In a huge world, one rolling window
// takes hundreds of them.
func (w *world) places() int {
	if w.huge && slices.ContainsFunc(w.counters, func(l Limit) bool { return l.Algorithm() == "rolling" }) {
		return 1 << 16
	}
	return 4096
}

// limits returns limits for some of the world's counters, with other numbers.
func (w *world) limits(c choices, spec worldSpec) []Limit {
	some := min(len(w.counters), MaxLimits, 1+oneOf(c, 0, 0, 0, 1, 2, 7))
	first, stride := c.pick(len(w.counters)), 1
	if len(w.counters)%2 == 1 {
		stride = 1 + c.pick(2) // both visit each counter once
	}
	var limits []Limit
	for i := range some {
		l := w.counters[(first+i*stride)%len(w.counters)]
		n := w.size(oneOf(c, spec.sizes...))
		switch l.Algorithm() {
		case "calendar":
			text := l.String()
			l = parsed(fmt.Sprint(n, text[strings.IndexByte(text, '/'):]))
		case "fixed":
			l = FixedWindow(n, l.Window())
		case "sliding":
			l = SlidingWindow(n, l.Window())
		case "rolling":
			l = Rolling(w.rollingSize(oneOf(c, spec.sizes...)), l.Window())
		default:
			l = TokenBucket(l.N(), l.Window(), n)
		}
		if spec.blocks && c.pick(4) > 0 {
			ladder := newLadder(c, l.Window())
			if l.Algorithm() == "calendar" {
				// Longer than any period. Otherwise a rung is remembered for the length of
				// the period of its denial, which the models do not know.
				ladder[len(ladder)-1] = 750 * time.Hour
			}
			l = l.Block(ladder...)
		}
		limits = append(limits, l)
	}
	return limits
}

// calendarsOf returns a limit for each unit of calendars, in zones whose clocks change.
func calendarsOf(c choices, n int64) []Limit {
	zone := oneOf(c, "UTC", "Europe/Berlin", "America/Santiago", "Australia/Lord_Howe")
	return []Limit{
		parsed(fmt.Sprintf("%d/day calendar tz=%s", n, zone)),
		parsed(fmt.Sprintf("%d/week calendar first=%s tz=%s", n, strings.ToLower(time.Weekday(c.pick(7)).String()), zone)),
		parsed(fmt.Sprintf("%d/month calendar day=%d tz=%s", n, 1+c.pick(31), zone)),
	}
}

func parsed(text string) Limit {
	l, err := ParseLimit(text)
	if err != nil {
		panic(err)
	}
	return l
}

// newLadder returns the durations of a limit's blocks, from an eighth of its window up.
func newLadder(c choices, window time.Duration) (ladder []time.Duration) {
	d := oneOf(c, window/8, window/2, window, 2*window) + time.Duration(c.pick(3))
	for range 1 + c.pick(4) {
		ladder = append(ladder, min(d, longestBlock))
		d *= time.Duration(1 + c.pick(4))
	}
	return ladder
}

// longestBlock is the longest duration of a block. Histories wait for longer than that in
// the end.
const longestBlock = 500 * time.Hour

// tooMany returns limits that are not valid.
func (w *world) tooMany() (limits []Limit) {
	for i := range MaxLimits + 1 {
		limits = append(limits, FixedWindow(1, time.Duration(i+1)*time.Hour))
	}
	return limits
}

// A script determines how frequent each action is, and which arguments it may have.
type script struct {
	steps     int
	weights   [actions]int
	modes     []mode
	units     []int64       // of a take, and the cost of a request
	costs     []int64       // of AddCost
	exact     int           // of 16 waits, how many end at an instant that matters, or 1 ns before or after it
	sleep     time.Duration // the unit of other waits; 0 means the length of a window
	processes int
}

// newHistory makes a history. It leaves out a third of the actions, so that the
// others are more frequent: some faults need many steps of the same few kinds.
func newHistory(c choices, spec worldSpec, sc script) history {
	h := history{world: newWorld(c, spec)}
	total := 0
	for i := range sc.weights {
		if do := action(i); do != doTake && do != doMode && sc.weights[i] > 0 && c.pick(3) == 0 {
			sc.weights[i] = 0
		}
		total += sc.weights[i]
	}
	if len(sc.modes) > 2 && c.pick(2) == 0 {
		sc.modes = []mode{sc.modes[0], oneOf(c, sc.modes[1:]...)}
	}
	for len(h.steps) < sc.steps && !c.over() {
		s := newStep(c, h.world, spec, sc, total)
		h.steps = append(h.steps, s)
		if s.do == doMode && c.pick(2) == 0 {
			h.steps = append(h.steps, afterMode(c, h.world, s, sc))
		}
	}
	return h
}

// afterMode returns a step that often shows a fault after a change of mode: a
// request that returns units to a store that has just failed, or takes of all
// units from a store that is back.
func afterMode(c choices, w *world, changed step, sc script) step {
	if changed.mode == up {
		return step{do: doDrain, in: changed.in, key: c.pick(len(w.keys))}
	}
	return step{do: doAddCost, in: changed.in, which: newWhich(c), n: oneOf(c, sc.costs...)}
}

func newStep(c choices, w *world, spec worldSpec, sc script, total int) step {
	s := step{in: c.pick(max(1, sc.processes)), key: c.pick(len(w.keys))}
	at := c.pick(total)
	for s.do = range actions {
		if at -= sc.weights[s.do]; at < 0 {
			break
		}
	}
	units := func(of []int64) int64 {
		n := oneOf(c, of...)
		if w.huge && n > 0 && c.pick(2) == 0 {
			if !slices.ContainsFunc(w.counters, func(l Limit) bool { return l.Algorithm() != "rolling" }) {
				return min(n, 9) * 100
			}
			return min(n, 9) * 100_000_000_000_000
		}
		return n
	}
	switch s.do {
	case doWait:
		s.until, s.wait = newWait(c, w, sc)
	case doTake, doTakeShortDeadline, doTakeGone, doTakeReplaced, doOuter, doRefund:
		s.n = units(sc.units)
	case doLook:
		s.plan = c.pick(len(w.plans))
	case doServe, doCheck, doNest:
		s.plan, s.n = c.pick(len(w.plans)), units(sc.units)
	case doBlock:
		window := w.counters[c.pick(len(w.counters))].Window()
		s.wait = oneOf(c, time.Millisecond, window/8, window, 2*window) + time.Duration(c.pick(3))
	case doAddCost:
		s.which, s.n = newWhich(c), units(sc.costs)
	case doEnd:
		s.which, s.status = newWhich(c), oneOf(c, http.StatusOK, http.StatusOK, http.StatusUnauthorized, 0)
	case doSetLimits, doReload, doFailReload, doRestart:
		s.limits = w.limits(c, spec)
		if s.do == doSetLimits && c.pick(16) == 0 {
			s.limits = w.tooMany()
		}
	case doMode:
		s.mode = oneOf(c, sc.modes...)
	}
	return s
}

// newWhich returns most often the request that came last.
func newWhich(c choices) int { return oneOf(c, 0, 0, 0, 1, 2, c.pick(16)) }

func newWait(c choices, w *world, sc script) (until, time.Duration) {
	near := time.Duration(c.pick(3) - 1)
	window := w.counters[c.pick(len(w.counters))].Window()
	if c.pick(16) < sc.exact {
		switch c.pick(5) {
		case 0:
			return untilRetry, near
		case 1:
			return untilHalf, near
		case 2:
			return untilReset, near
		case 3:
			return untilNothing, window + near
		default:
			return untilNothing, 2*window + near
		}
	}
	if sc.sleep > 0 {
		window = sc.sleep
	}
	shortest := time.Duration(1)
	if slices.ContainsFunc(w.counters, func(l Limit) bool { return l.Algorithm() == "rolling" }) {
		shortest = window / 256 // so that an outage has units that are sent together
	}
	return untilNothing, oneOf(c, shortest, window/64, window/16, window/4) * time.Duration(1+c.pick(4))
}

// least and most are the smallest and the largest int64.
const least, most = math.MinInt64, math.MaxInt64
