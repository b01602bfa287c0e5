package ratelimit_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"time"

	. "github.com/ratelimit-go/ratelimit"
)

// This file has the histories that the model tests run: what they consist of, how
// they are made at random or from a fuzzer's bytes, and how a limiter is taken
// through one. What must hold is in failure_model_test.go for a store that never
// answers, and in failure_model_bound_test.go for a store that comes and goes.

// A history is a world, which stays the same, and what happens in it. Steps are
// data. They refer to requests in flight by a number modulo how many there are,
// so any step can be left out when a failing history is shortened.
type history struct {
	world *world
	steps []step
}

// A world is what a limiter is made of.
type world struct {
	keys     []string
	counters []Limit   // one for each algorithm and window
	start    []Limit   // Options.Limits
	outer    []Limit   // of the limiter around this one
	plans    [][]Limit // what LimitsFor returns, by the request's plan; some are refused
	opts     Options
	looks    bool // whether the key is looked at after each step
	huge     bool // whether limits are up to the largest
}

// action is what a step does.
type action uint8

const (
	doWait action = iota
	doTake
	doDrain    // takes of one unit each, until one is denied
	doTakeLate // with a context whose deadline comes before Options.Timeout
	doTakeGone // with a context that is done
	doRefund
	doReset
	doLook
	doServe // a request through Middleware, which stays in flight if it is admitted
	doCheck // a request through Check
	doNest  // a request through another limiter's Middleware, and then this one's
	doOuter // a take at that limiter
	doAddCost
	doEnd // of a request in flight
	doSetLimits
	doReload
	doFailReload
	doTakeReplaced  // at the limiter that the last Reload has replaced
	doCloseReplaced // that limiter
	doRestart       // Close and New
	doMode          // what becomes of calls to the store from now on
	actions
)

var actionNames = [actions]string{
	"wait", "take", "drain", "take late", "take gone", "refund", "reset", "look", "serve", "check", "nest", "outer", "add cost", "end",
	"set limits", "reload", "fail reload", "take replaced", "close replaced", "restart", "mode",
}

// step is one action, with the fields that it needs.
type step struct {
	do     action
	in     int           // the process, where there are several
	key    int           // of world.keys
	n      int64         // units
	plan   int           // of world.plans
	which  int           // of the requests in flight, modulo their number
	status int           // that a request ends with; 0 is a panic
	limits []Limit       // for a limiter from now on
	wait   time.Duration // how long, beside the wait that until names
	until  until
	mode   mode
}

// until is a span that the limiter has just stated.
type until uint8

const (
	untilNothing until = iota
	untilRetry
	untilReset
)

func (s step) String() string {
	text := fmt.Sprintf("%s in=%d key=%d n=%d", actionNames[s.do], s.in, s.key, s.n)
	switch s.do {
	case doWait:
		text = fmt.Sprintf("wait %v", s.wait)
		if s.until != untilNothing {
			text = fmt.Sprintf("wait %s%+d ns", [...]string{untilRetry: "RetryAfter", untilReset: "ResetAfter"}[s.until], s.wait)
		}
	case doLook, doServe, doCheck, doNest:
		text += fmt.Sprintf(" plan=%d", s.plan)
	case doAddCost:
		text = fmt.Sprintf("add cost %d which=%d", s.n, s.which)
	case doEnd:
		text = fmt.Sprintf("end status=%d which=%d", s.status, s.which)
	case doSetLimits, doReload, doFailReload, doRestart:
		text = fmt.Sprintf("%s in=%d %v", actionNames[s.do], s.in, s.limits)
	case doMode:
		text = fmt.Sprintf("mode in=%d %v", s.in, s.mode)
	}
	return text
}

// String names the keys and plans that the steps use, and no others.
func (h history) String() string {
	var b strings.Builder
	w := h.world
	fmt.Fprintf(&b, "limits %v, outer %v\n", w.start, w.outer)
	fmt.Fprintf(&b, "Timeout %v, DenyRecheck %v, Lease %v, Shadow %v\n", w.opts.Timeout, w.opts.DenyRecheck, w.opts.Lease, w.opts.Shadow)
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

// choices are where a history comes from.
type choices interface {
	pick(n int) int // from 0 to n-1
	over() bool     // there are no more; pick returns 0
}

// randomChoices never end.
type randomChoices struct{ *rand.Rand }

func seeded(seed uint64) choices { return randomChoices{rand.New(rand.NewPCG(seed, 14))} }

func (c randomChoices) pick(n int) int { return c.IntN(n) }
func (c randomChoices) over() bool     { return false }

// byteChoices end with the fuzzer's input.
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

// hostileKeys include a key that is too long for some stores to keep as it is, and
// the key that equals its hash, in the forms in which a store might keep that.
var hostileKeys = func() []string {
	long := strings.Repeat("A key of a client's choice. ", 20)
	sum := sha256.Sum256([]byte(long))
	return []string{
		long, string(sum[:]), fmt.Sprintf("%x", sum), long + "x",
		"a", "\x00", " ", "a\x00", "1=a", "rl:{a}:\r\nX: \xff\xfe", strings.Repeat("k", 512), strings.Repeat("k", 513), "",
	}
}()

// worldSpec is what a family of histories has in common.
type worldSpec struct {
	algorithms []string
	windows    []int // how many, one of these
	sizes      []int64
	scales     []time.Duration // of windows
	timeouts   []time.Duration
	leases     []time.Duration
	huge       bool
}

func newWorld(c choices, spec worldSpec) *world {
	w := &world{looks: c.pick(2) == 0}
	hostile := c.pick(len(hostileKeys) - 2)
	w.keys = []string{hostileKeys[hostile], hostileKeys[hostile+1], hostileKeys[c.pick(len(hostileKeys))]}
	w.keys = slices.Compact(w.keys)

	w.huge = spec.huge && c.pick(8) == 0
	scale := oneOf(c, spec.scales...)
	for i := range oneOf(c, spec.windows...) {
		window := scale*time.Duration(1+3*i) + time.Duration(c.pick(3)*7)
		rate := oneOf(c, spec.sizes...)
		switch oneOf(c, spec.algorithms...) {
		case "fixed":
			w.counters = append(w.counters, FixedWindow(1, window))
		case "sliding":
			w.counters = append(w.counters, SlidingWindow(1, window))
		default:
			// Keys keep a bucket's rate for the whole history. What is forgotten of a
			// bucket that is whole at one rate cannot be known at a slower one.
			w.counters = append(w.counters, TokenBucket(w.size(rate), window, 1))
		}
	}
	w.start, w.outer = w.limits(c, spec), w.limits(c, spec)
	w.plans = append(w.plans, nil) // Options.Limits
	for range 2 + c.pick(12) {
		w.plans = append(w.plans, w.limits(c, spec))
	}
	w.plans = append(w.plans, w.tooMany())
	w.opts = Options{
		Limits:      w.start,
		Key:         func(r *http.Request) (string, error) { return flightOf(r).key, nil },
		LimitsFor:   func(r *http.Request) []Limit { return w.plans[flightOf(r).plan] },
		Cost:        func(r *http.Request) int64 { return flightOf(r).cost },
		Count:       func(_ *http.Request, status int) bool { return status >= 400 },
		Shadow:      c.pick(16) == 0,
		Timeout:     oneOf(c, spec.timeouts...),
		DenyRecheck: oneOf(c, 0, -1, 50*time.Millisecond),
		Lease:       oneOf(c, spec.leases...),
		NearKeys:    4096, // not those of other tests in this process, whose time is another one
		Logger:      slog.New(slog.DiscardHandler),
	}
	return w
}

// size makes a number of units of a small one.
func (w *world) size(n int64) int64 {
	if w.huge {
		return min(n*150_000_000_000_000, 999_999_999_999_999)
	}
	return n
}

// limits are some of the world's, with numbers of their own.
func (w *world) limits(c choices, spec worldSpec) []Limit {
	some := min(len(w.counters), MaxLimits, 1+oneOf(c, 0, 0, 0, 1, 2, 7))
	first, stride := c.pick(len(w.counters)), 1
	if len(w.counters)%2 == 1 {
		stride = 1 + c.pick(2) // a generator of all of them either way
	}
	var limits []Limit
	for i := range some {
		l := w.counters[(first+i*stride)%len(w.counters)]
		n := w.size(oneOf(c, spec.sizes...))
		switch l.Algorithm() {
		case "fixed":
			l = FixedWindow(n, l.Window())
		case "sliding":
			l = SlidingWindow(n, l.Window())
		default:
			l = TokenBucket(l.N(), l.Window(), n)
		}
		limits = append(limits, l)
	}
	return limits
}

// tooMany are limits that are refused.
func (w *world) tooMany() (limits []Limit) {
	for i := range MaxLimits + 1 {
		limits = append(limits, FixedWindow(1, time.Duration(i+1)*time.Hour))
	}
	return limits
}

// script says how often each action is taken, and what else steps may be.
type script struct {
	steps   int
	weights [actions]int
	modes   []mode
	units   []int64 // of a take, and of a request's cost
	costs   []int64 // of AddCost
	waits   int     // of 16 waits, how many are until an instant that matters
	procs   int
}

// newHistory makes a history out of choices.
func newHistory(c choices, spec worldSpec, sc script) history {
	h := history{world: newWorld(c, spec)}
	total := 0
	for _, weight := range sc.weights {
		total += weight
	}
	for len(h.steps) < sc.steps && !c.over() {
		h.steps = append(h.steps, newStep(c, h.world, spec, sc, total))
	}
	return h
}

func newStep(c choices, w *world, spec worldSpec, sc script, total int) step {
	s := step{in: c.pick(max(1, sc.procs)), key: c.pick(len(w.keys))}
	at := c.pick(total)
	for s.do = range actions {
		if at -= sc.weights[s.do]; at < 0 {
			break
		}
	}
	units := func(of []int64) int64 {
		n := oneOf(c, of...)
		if w.huge && n > 0 && c.pick(2) == 0 {
			return min(n, 9) * 100_000_000_000_000
		}
		return n
	}
	switch s.do {
	case doWait:
		s.until, s.wait = newWait(c, w, sc)
	case doTake, doTakeLate, doTakeGone, doTakeReplaced, doOuter, doRefund:
		s.n = units(sc.units)
	case doLook:
		s.plan = c.pick(len(w.plans))
	case doServe, doCheck, doNest:
		s.plan, s.n = c.pick(len(w.plans)), units(sc.units)
	case doAddCost:
		s.which, s.n = c.pick(16), units(sc.costs)
	case doEnd:
		s.which, s.status = c.pick(16), oneOf(c, http.StatusOK, http.StatusOK, http.StatusUnauthorized, 0)
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

func newWait(c choices, w *world, sc script) (until, time.Duration) {
	near := time.Duration(c.pick(3) - 1)
	window := w.counters[c.pick(len(w.counters))].Window()
	if c.pick(16) < sc.waits {
		switch c.pick(4) {
		case 0:
			return untilRetry, near
		case 1:
			return untilReset, near
		case 2:
			return untilNothing, window + near
		default:
			return untilNothing, 2*window + near
		}
	}
	return untilNothing, oneOf(c, 1, window/64, window/16, window/4) * time.Duration(1+c.pick(4))
}

// flight is a request on its way through a limiter.
type flight struct {
	key  string
	plan int
	cost int64

	limiter  *Limiter
	outer    *Limiter // around it, or nil
	limits   []Limit  // under which it was admitted
	recorder *httptest.ResponseRecorder
	request  *http.Request // as it came out of Check; nil with Middleware
	leave    context.CancelFunc

	// With Middleware, a handler of its own goroutine:
	entered chan Decision
	orders  chan order
	replies chan error
	done    chan struct{}
}

// order is what a handler does next.
type order struct {
	cost   int64
	end    bool
	status int
}

type flightKey struct{}

func flightOf(r *http.Request) *flight {
	f, _ := r.Context().Value(flightKey{}).(*flight)
	if f == nil {
		return &flight{}
	}
	return f
}

// ServeHTTP is the handler behind the limiter.
func (f *flight) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	d, _ := DecisionFrom(r.Context())
	f.entered <- d
	for o := range f.orders {
		switch {
		case !o.end:
			f.replies <- f.limiter.AddCost(r.Context(), o.cost)
		case o.status == 0:
			panic(http.ErrAbortHandler)
		default:
			w.WriteHeader(o.status)
			return
		}
	}
}

// counts reports whether the units of a request that ends so stay taken.
func counts(status int) bool { return status == 0 || status >= 400 }

// subject is a limiter on its way through a history, and its requests in flight.
type subject struct {
	world    *world
	newStore func() Store // for each doRestart
	store    Store
	registry *Registry
	limiter  *Limiter
	outer    *Limiter
	replaced *Limiter // by the last Reload, and not yet closed
	flights  []*flight
	made     []*Limiter
}

func newSubject(w *world, newStore func() Store) *subject {
	p := &subject{world: w, newStore: newStore, registry: new(Registry)}
	p.start(w.start)
	return p
}

// nestIn makes the limiter that is around the other one in doNest.
func (p *subject) nestIn(store Store) {
	opts := p.world.opts
	opts.Limits, opts.Store, opts.LimitsFor, opts.Count = p.world.outer, store, nil, nil
	p.outer = Must(new(Registry).New("outer", opts))
	p.made = append(p.made, p.outer)
}

func (p *subject) start(limits []Limit) {
	p.store = p.newStore()
	p.limiter = Must(p.registry.New("l", p.options(limits)))
	p.made = append(p.made, p.limiter)
}

func (p *subject) options(limits []Limit) Options {
	opts := p.world.opts
	opts.Limits, opts.Store = limits, p.store
	return opts
}

// end ends what is under way, so that no goroutine is left.
func (p *subject) end() {
	for len(p.flights) > 0 {
		p.do(context.Background(), step{do: doEnd, status: http.StatusUnauthorized})
	}
	for _, l := range p.made {
		l.Close()
	}
}

// An outcome is all that a caller sees of a step.
type outcome struct {
	decision  Decision
	standings []Standing
	err       error
	status    int
	header    http.Header
	body      string
	flight    *flight // that the step was about
}

// String leaves out what is not there.
func (o outcome) String() string {
	var parts []string
	if o.decision != (Decision{}) {
		parts = append(parts, fmt.Sprintf("%+v", o.decision))
	}
	for _, s := range o.standings {
		parts = append(parts, fmt.Sprintf("%+v", s))
	}
	if o.err != nil {
		parts = append(parts, fmt.Sprintf("error %q", o.err))
	}
	if o.header != nil {
		parts = append(parts, fmt.Sprintf("status %d, %v, %q", o.status, o.header, o.body))
	}
	return strings.Join(parts, "; ")
}

// do takes the limiter one step further.
func (p *subject) do(ctx context.Context, s step) (o outcome) {
	key := p.world.keys[s.key%len(p.world.keys)]
	switch s.do {
	case doTake, doTakeLate, doTakeGone:
		o.decision, o.err = p.limiter.TakeN(ctx, key, s.n)
	case doRefund:
		o.err = p.limiter.Refund(ctx, key, s.n)
	case doReset:
		o.err = p.limiter.Reset(ctx, key)
	case doLook:
		f := &flight{key: key, plan: s.plan}
		o.standings, o.err = p.limiter.Look(f.newRequest(ctx))
	case doOuter:
		o.decision, o.err = p.outer.TakeN(ctx, key, s.n)
	case doServe, doCheck, doNest:
		f := &flight{key: key, plan: s.plan, cost: s.n, limiter: p.limiter, limits: p.world.plans[s.plan]}
		if s.do == doNest {
			f.outer = p.outer
		}
		if len(f.limits) == 0 {
			f.limits = p.limiter.Limits()
		}
		return p.serve(ctx, f, s.do == doCheck)
	case doAddCost, doEnd:
		if len(p.flights) == 0 {
			return o
		}
		i := s.which % len(p.flights)
		if s.do == doAddCost {
			return p.flights[i].addCost(s.n)
		}
		o = p.flights[i].end(s.status)
		p.flights = slices.Delete(p.flights, i, i+1)
	case doSetLimits:
		o.err = p.limiter.SetLimits(s.limits...)
	case doReload:
		o.err = p.reload(s.limits, nil)
	case doFailReload:
		o.err = p.reload(s.limits, errReload)
	case doTakeReplaced:
		if p.replaced != nil {
			o.decision, o.err = p.replaced.TakeN(ctx, key, s.n)
		}
	case doCloseReplaced:
		if p.replaced != nil {
			o.err = p.replaced.Close()
			p.replaced = nil
		}
	case doRestart:
		o = p.restart(ctx, s, key)
	}
	return o
}

var errReload = errors.New("a reload that fails")

// reload replaces the limiter, or tries to.
func (p *subject) reload(limits []Limit, fail error) error {
	var next *Limiter
	err := p.registry.Reload(func(r *Registry) (err error) {
		if next, err = r.New("l", p.options(limits)); err != nil {
			return err
		}
		p.made = append(p.made, next)
		p.world.introduce(next)
		return fail
	})
	if err == nil {
		p.replaced, p.limiter = p.limiter, next
	}
	return err
}

// introduce has a limiter use all of the world's windows: Reset forgets what this
// limiter has used, which need not be all that the one before it has.
func (w *world) introduce(l *Limiter) {
	limits := l.Limits()
	for some := range slices.Chunk(w.counters, MaxLimits) {
		l.SetLimits(some...)
	}
	l.SetLimits(limits...)
}

// restart closes the limiter, asks it for something, and makes another one.
func (p *subject) restart(ctx context.Context, s step, key string) (o outcome) {
	errs := []error{p.limiter.Close()}
	_, err := p.limiter.Take(ctx, key)
	errs = append(errs, err, p.limiter.Refund(ctx, key, 1), p.limiter.Reset(ctx, key), p.limiter.SetLimits(s.limits...))
	o = p.serve(ctx, &flight{key: key, cost: 1, limiter: p.limiter}, false)
	o.err = errors.Join(errs...)
	p.start(s.limits)
	p.replaced = nil
	return o
}

func (f *flight) newRequest(ctx context.Context) *http.Request {
	r := httptest.NewRequest("GET", "/", nil)
	return r.WithContext(context.WithValue(ctx, flightKey{}, f))
}

// serve has a request come in. If it is admitted, it stays in flight.
func (p *subject) serve(ctx context.Context, f *flight, check bool) (o outcome) {
	f.recorder = httptest.NewRecorder()
	ctx, leave := context.WithCancel(ctx)
	f.leave = leave
	r := f.newRequest(ctx)
	o.flight = f
	if check {
		if f.limiter.Check(f.recorder, r) {
			f.request = r
			o.decision, _ = DecisionFrom(r.Context())
			p.flights = append(p.flights, f)
		} else {
			o.status = f.recorder.Code
			leave()
		}
		o.header, o.body = f.recorder.Header().Clone(), f.recorder.Body.String()
		return o
	}
	f.entered, f.done = make(chan Decision), make(chan struct{})
	f.orders, f.replies = make(chan order), make(chan error)
	go func() {
		defer close(f.done)
		defer func() {
			if with := recover(); with != nil && with != http.ErrAbortHandler {
				panic(with)
			}
		}()
		h := f.limiter.Middleware(f)
		if f.outer != nil {
			h = f.outer.Middleware(h)
		}
		h.ServeHTTP(f.recorder, r)
	}()
	select {
	case o.decision = <-f.entered:
		p.flights = append(p.flights, f)
		o.header = f.recorder.Header().Clone()
	case <-f.done:
		o.status, o.header, o.body = f.recorder.Code, f.recorder.Header(), f.recorder.Body.String()
		leave()
	}
	return o
}

func (f *flight) addCost(n int64) (o outcome) {
	o.flight = f
	if f.request != nil {
		o.err = f.limiter.AddCost(f.request.Context(), n)
		return o
	}
	f.orders <- order{cost: n}
	o.err = <-f.replies
	return o
}

// end has the request's client leave, and its handler return.
func (f *flight) end(status int) (o outcome) {
	f.leave()
	o.flight = f
	if f.request == nil {
		f.orders <- order{end: true, status: status}
		<-f.done
	}
	o.status, o.header, o.body = f.recorder.Code, f.recorder.Header(), f.recorder.Body.String()
	return o
}

// least and most are the ends of int64.
const least, most = math.MinInt64, math.MaxInt64
