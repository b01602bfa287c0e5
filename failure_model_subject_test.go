package ratelimit_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"

	. "github.com/ratelimit-go/ratelimit"
)

// This file runs a limiter through a history, one step at a time, and returns
// what a caller sees of each step. It does not check whether that is correct.

// An inflight is one request that has not ended.
type inflight struct {
	key  string
	plan int
	cost int64

	limiter  *Limiter
	outer    *Limiter // around the limiter; nil if there is none
	limits   []Limit  // that the request was admitted under
	recorder *httptest.ResponseRecorder
	cancel   context.CancelFunc // cancels the request's context

	// After Check:
	request *http.Request

	// Behind Middleware, a handler runs on its own goroutine:
	entered chan Decision
	orders  chan order
	replies chan error
	done    chan struct{}
}

// An order is what a handler does next.
type order struct {
	cost   int64 // for AddCost, if end is false
	end    bool
	status int // 0 is a panic
}

type inflightKey struct{}

func inflightOf(r *http.Request) *inflight {
	f, _ := r.Context().Value(inflightKey{}).(*inflight)
	if f == nil {
		return &inflight{}
	}
	return f
}

// ServeHTTP is the handler behind Middleware. It carries out orders.
func (f *inflight) ServeHTTP(w http.ResponseWriter, r *http.Request) {
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

// counts is Options.Count: requests that fail count. A panic has the status
// 500.
func counts(status int) bool { return status >= 400 }

// A subject is one process's limiter in a history, with its requests in flight.
type subject struct {
	world    *world
	newStore func() Store // makes the store of a limiter after doRestart
	store    Store
	registry *Registry
	limiter  *Limiter
	outer    *Limiter
	replaced *Limiter // the limiter that the last Reload has replaced, unless it is closed
	requests []*inflight
	made     []*Limiter // all limiters, to be closed at the end
	policy   int        // counts the limiters that have got one of world.policies
}

func newSubject(w *world, newStore func() Store) *subject {
	p := &subject{world: w, newStore: newStore, registry: new(Registry)}
	p.start(w.start)
	return p
}

// nestIn makes the outer limiter, for doNest.
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
	if policies := p.world.policies; policies != nil {
		opts.OnFailure = policies[p.policy%len(policies)]
		p.policy++
	}
	return opts
}

// end ends all requests and closes all limiters, so that no goroutine is left.
func (p *subject) end() {
	for len(p.requests) > 0 {
		p.do(context.Background(), step{do: doEnd, status: http.StatusUnauthorized})
	}
	for _, l := range p.made {
		l.Close()
	}
}

// An outcome is what a caller sees of a step.
type outcome struct {
	decision  Decision
	standings []Standing
	err       error
	status    int
	header    http.Header
	body      string
	inflight  *inflight // the request of the step
}

// String leaves out empty fields.
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

// do carries out a step. Waits, modes and doDrain are up to the model.
func (p *subject) do(ctx context.Context, s step) (o outcome) {
	key := p.world.keys[s.key%len(p.world.keys)]
	switch s.do {
	case doTake, doTakeShortDeadline, doTakeGone:
		o.decision, o.err = p.limiter.TakeN(ctx, key, s.n)
	case doRefund:
		o.err = p.limiter.Refund(ctx, key, s.n)
	case doReset:
		o.err = p.limiter.Reset(ctx, key)
	case doBlock:
		o.err = p.limiter.Block(ctx, key, s.wait)
	case doLook:
		f := &inflight{key: key, plan: s.plan}
		o.standings, o.err = p.limiter.Look(f.newRequest(ctx))
	case doOuter:
		o.decision, o.err = p.outer.TakeN(ctx, key, s.n)
	case doServe, doCheck, doNest:
		f := &inflight{key: key, plan: s.plan, cost: s.n, limiter: p.limiter, limits: p.world.plans[s.plan]}
		if s.do == doNest {
			f.outer = p.outer
		}
		if len(f.limits) == 0 {
			f.limits = p.limiter.Limits()
		}
		return p.serve(ctx, f, s.do == doCheck)
	case doAddCost, doEnd:
		if len(p.requests) == 0 {
			return o
		}
		i := len(p.requests) - 1 - s.which%len(p.requests)
		if s.do == doAddCost {
			return p.requests[i].addCost(s.n)
		}
		o = p.requests[i].end(s.status)
		p.requests = slices.Delete(p.requests, i, i+1)
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

// reload replaces the limiter, unless build fails with an error.
func (p *subject) reload(limits []Limit, buildErr error) error {
	var next *Limiter
	err := p.registry.Reload(func(r *Registry) (err error) {
		if next, err = r.New("l", p.options(limits)); err != nil {
			return err
		}
		p.made = append(p.made, next)
		p.world.introduce(next)
		return buildErr
	})
	if err == nil {
		p.replaced, p.limiter = p.limiter, next
	}
	return err
}

// introduce makes a limiter use all windows of the world. Limiter.Reset forgets
// only what this limiter has used, not what its predecessor has. It also looks
// at some keys under all windows.
func (w *world) introduce(l *Limiter, look ...string) {
	limits := l.Limits()
	for some := range slices.Chunk(w.counters, MaxLimits) {
		l.SetLimits(some...)
		for _, key := range look {
			l.TakeN(context.Background(), key, 0)
		}
	}
	l.SetLimits(limits...)
}

// restart closes the limiter, checks that it answers as closed, and makes a new
// one on a new store.
func (p *subject) restart(ctx context.Context, s step, key string) (o outcome) {
	errs := []error{p.limiter.Close()}
	_, err := p.limiter.Take(ctx, key)
	errs = append(errs, err, p.limiter.Refund(ctx, key, 1), p.limiter.Reset(ctx, key), p.limiter.SetLimits(s.limits...))
	o = p.serve(ctx, &inflight{key: key, cost: 1, limiter: p.limiter}, false)
	o.err = errors.Join(errs...)
	p.start(s.limits)
	p.replaced = nil
	return o
}

func (f *inflight) newRequest(ctx context.Context) *http.Request {
	r := httptest.NewRequest("GET", "/", nil)
	return r.WithContext(context.WithValue(ctx, inflightKey{}, f))
}

// serve sends a request to the limiter. If it is admitted, it stays in flight.
func (p *subject) serve(ctx context.Context, f *inflight, check bool) (o outcome) {
	f.recorder = httptest.NewRecorder()
	ctx, cancel := context.WithCancel(ctx)
	f.cancel = cancel
	r := f.newRequest(ctx)
	o.inflight = f
	if check {
		if f.limiter.Check(f.recorder, r) {
			f.request = r
			o.decision, _ = DecisionFrom(r.Context())
			p.requests = append(p.requests, f)
		} else {
			o.status = f.recorder.Code
			cancel()
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
		p.requests = append(p.requests, f)
		o.header = f.recorder.Header().Clone()
	case <-f.done:
		o.status, o.header, o.body = f.recorder.Code, f.recorder.Header(), f.recorder.Body.String()
		cancel()
	}
	return o
}

func (f *inflight) addCost(n int64) (o outcome) {
	o.inflight = f
	if f.request != nil {
		o.err = f.limiter.AddCost(f.request.Context(), n)
		return o
	}
	f.orders <- order{cost: n}
	o.err = <-f.replies
	return o
}

// end cancels the request's context, as if the client had left, and then ends
// the handler.
func (f *inflight) end(status int) (o outcome) {
	f.cancel()
	o.inflight = f
	if f.request == nil {
		f.orders <- order{end: true, status: status}
		<-f.done
	}
	o.status, o.header, o.body = f.recorder.Code, f.recorder.Header(), f.recorder.Body.String()
	return o
}
