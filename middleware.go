package ratelimit

import (
	"errors"
	"fmt"
	"math"
	"net/http"
	"strconv"

	"github.com/ratelimit-go/ratelimit/internal/accept"
	"github.com/ratelimit-go/ratelimit/internal/clock"
)

// Middleware returns a handler that admits requests to next or answers them
// itself: with 429 if they are denied, 400 if they have no key, 500 if an option's
// function failed, 503 if no decision could be made, because the store failed, the
// limiter is closed, or the client has left. It can be mounted on any number of
// routes; a request that passes it twice counts once.
//
// When limiters are nested, the outer one decides first. What it took is given back
// if an inner one denies. But a request that an inner limiter will refuse still
// needs units of the outer one, so put the limiter per client outside and the one
// for all clients inside. A nil next is [http.DefaultServeMux], as for
// [http.Server].
func (l *Limiter) Middleware(next http.Handler) http.Handler {
	if next == nil {
		next = http.DefaultServeMux
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		state, ok := l.check(w, r)
		if !ok {
			return
		}
		if state == nil {
			next.ServeHTTP(w, r)
			return
		}
		inner := r.WithContext(state)
		defer handBack(r, inner)
		if l.opts.Count == nil {
			next.ServeHTTP(w, inner)
			return
		}
		state.count(next, w, inner)
	})
}

// handBack copies to the request what those around the limiter want to know of the
// handler's copy of it: the server removes the files of its multipart form, and
// logs and metrics read its pattern. It writes only what is new, because other
// goroutines may read a request that nothing has changed.
func handBack(r, inner *http.Request) {
	if r.Pattern != inner.Pattern {
		r.Pattern = inner.Pattern
	}
	if r.MultipartForm == nil && inner.MultipartForm != nil {
		r.MultipartForm = inner.MultipartForm
	}
	if r.Form == nil && inner.Form != nil {
		r.Form, r.PostForm = inner.Form, inner.PostForm
	}
}

// Check admits r and returns true, or answers it and returns false. It is
// [Limiter.Middleware] for frameworks of any kind:
//
//	if !limiter.Check(w, r) {
//		return
//	}
//
// A request is counted once, however often it is checked: to limit the messages of
// one connection, use [Limiter.Take].
//
// Check puts the decision into r's context, by changing *r, so that [DecisionFrom]
// and [Limiter.AddCost] work afterwards. As it does not see the response,
// Options.Count has no effect here: for a response that should not count, call
// AddCost with a negative cost after the handler.
func (l *Limiter) Check(w http.ResponseWriter, r *http.Request) bool {
	if l.opts.Count != nil {
		l.report.warn(warnCountIgnored)
	}
	state, ok := l.check(w, r)
	if ok && state != nil {
		*r = *r.WithContext(state)
	}
	return ok
}

// verdict is what decide has found, before anything is written.
type verdict struct {
	state   *requestState // nil if the request was not counted, or not decided
	status  int           // of the answer; 0 if the request goes on to its handler
	results [MaxLimits]Result
}

// under returns the results of a policy's limits.
func (v *verdict) under(p *policy) []Result { return v.results[:len(p.limits)] }

// check decides, and then writes what the client gets.
func (l *Limiter) check(w http.ResponseWriter, r *http.Request) (state *requestState, ok bool) {
	var v verdict
	l.decide(r, &v)
	if v.state != nil {
		v.writeFields(w.Header())
	}
	switch {
	case v.status == 0:
		return v.state, true
	case v.state == nil:
		l.refuse(w, r, v.status)
	default:
		defer v.state.giveBackOuter()
		l.deny(w, r, &v)
	}
	return nil, false
}

// writeFields writes the header fields of a decision, whichever it is.
func (v *verdict) writeFields(h http.Header) {
	s := v.state
	var outer *fields
	if s.outer != nil {
		outer = &s.outer.fields
	}
	opts := &s.limiter.opts
	partition := partitionParam(opts.PartitionSecret, s.limiter.name, s.key)
	s.fields.write(h, opts.Headers, outer, shown{&s.bound, partition}, v.under(s.bound.policy))
}

// decide takes what r costs, unless r is exempt or was decided before. It does not
// touch the response.
func (l *Limiter) decide(r *http.Request, v *verdict) {
	outer := stateOf(r.Context())
	if before := l.decidedBefore(outer, r); before != nil {
		l.report.warn(warnCountedOnce)
		if !before.bound.allowed() && !l.opts.Shadow { // Options.Denied has sent it round again
			v.status = http.StatusTooManyRequests
		}
		return
	}
	if l.opts.Skip != nil && l.opts.Skip(r) || l.opts.SkipPreflight && isPreflight(r) {
		return
	}
	key, p, cost, err := l.question(r)
	if err != nil {
		v.status = l.undecided(err)
		return
	}
	if w, found := l.key.mistake(r, key); found {
		l.report.warn(w)
	}
	results := v.under(p)
	var start int64
	if l.remote != nil {
		start = clock.Now()
	}
	at, source, err := l.take(r.Context(), key, cost, p, results)
	if err != nil {
		v.status = l.failed(r, err)
		return
	}
	var spent uint32
	if l.remote != nil {
		spent = uint32(min((clock.Now()-start)/1000, math.MaxUint32))
	}
	i := binding(results)
	v.state = &requestState{
		Context: r.Context(), limiter: l, header: r.Header, outer: outer, key: key,
		bound: bound{p, results[i].Remaining, results[i].RetryAfter, results[i].ResetAfter, uint8(i), source, spent},
		tab:   tab{at: at},
	}
	switch {
	case v.state.bound.allowed():
		if at != nothingTaken {
			v.state.tab.units = cost
		}
	case l.opts.Shadow:
		l.report.warn(warnShadow, "denied", l.shadow.Add(1))
	default:
		v.status = http.StatusTooManyRequests
	}
}

// decidedBefore returns the state of r at this limiter if r has passed it already.
// A request of a handler's own, made with r's context, is another one.
func (l *Limiter) decidedBefore(outer *requestState, r *http.Request) *requestState {
	for s := outer; s != nil; s = s.outer {
		if s.limiter == l && sameRequest(s.header, r.Header) {
			return s
		}
	}
	return nil
}

// question asks the options' functions what r takes, and from whom.
func (l *Limiter) question(r *http.Request) (key string, p *policy, cost int64, err error) {
	if key, p, err = l.subject(r); err != nil {
		return "", nil, 0, err
	}
	if l.opts.Cost == nil {
		return key, p, 1, nil
	}
	if cost = l.opts.Cost(r); cost < 0 {
		return "", nil, 0, fmt.Errorf("Options.Cost returned %d: want 0 or more", cost)
	}
	return key, p, cost, nil
}

// subject finds who is limited by r, and by which limits.
func (l *Limiter) subject(r *http.Request) (key string, p *policy, err error) {
	if key, err = l.opts.Key(r); err != nil {
		if !errors.Is(err, ErrNoKey) && !errors.Is(err, ErrExempt) {
			err = fmt.Errorf("Options.Key: %w", err)
		}
		return "", nil, err
	}
	if key == "" {
		return "", nil, ErrNoKey
	}
	if l.opts.LimitsFor != nil {
		if limits := l.opts.LimitsFor(r); len(limits) > 0 {
			p, err = l.plans.of(l.name, limits, &l.used)
			return key, p, err
		}
	}
	return key, l.policy.Load(), nil
}

// Standing is how a request's key stands under one of its limits.
type Standing struct {
	Name  string // the policy name, as in the header fields
	Limit Limit
	Result
}

// Look returns how r's key stands under each limit that holds for r, without taking
// anything or answering: for a page that shows callers what they have left. It
// applies Options.Key and LimitsFor, and returns their errors, among them [ErrNoKey]
// and [ErrExempt]; Options.Skip plays no part.
func (l *Limiter) Look(r *http.Request) ([]Standing, error) {
	key, p, err := l.subject(r)
	if err != nil {
		return nil, l.wrap(err)
	}
	var results [MaxLimits]Result
	if _, _, err := l.take(r.Context(), key, 0, p, results[:len(p.limits)]); err != nil {
		return nil, err
	}
	standings := make([]Standing, len(p.limits))
	for i := range standings {
		standings[i] = Standing{p.names[i], p.limits[i], results[i]}
	}
	return standings, nil
}

// undecided maps an error of one of the options' functions to a status, 0 to let
// the request through uncounted.
func (l *Limiter) undecided(err error) int {
	status := http.StatusBadRequest
	switch {
	case errors.Is(err, ErrExempt):
		return 0
	case errors.Is(err, errNoAddress):
		l.report.warn(warnNoAddress)
	case errors.Is(err, ErrNoKey):
		l.report.warn(warnNoKey) // without the error, which may contain what the client has sent
	default:
		l.report.warn(warnOptionFailed, "error", err)
		status = http.StatusInternalServerError
	}
	if l.opts.Shadow {
		return 0
	}
	return status
}

// failed maps an error of the store to a status, 0 to let the request through
// uncounted.
func (l *Limiter) failed(r *http.Request, err error) int {
	switch {
	case errors.Is(err, ErrClosed):
		l.report.warn(warnClosed)
	case r.Context().Err() == nil: // otherwise the client has left, and the store is not to blame
		l.report.warn(warnStoreFailed, "error", err)
	}
	if l.opts.Shadow {
		return 0
	}
	return http.StatusServiceUnavailable
}

// deny answers a denied request.
func (l *Limiter) deny(w http.ResponseWriter, r *http.Request, v *verdict) {
	h := w.Header()
	if retry := v.state.bound.retryAfter; retry == Never {
		l.report.warn(warnCostTooHigh)
	} else {
		h["Retry-After"] = []string{strconv.FormatInt(max(1, seconds(retry)), 10)}
	}
	if l.opts.Denied != nil {
		l.opts.Denied.ServeHTTP(w, r.WithContext(v.state))
		return
	}
	body, contentType := l.message, plainText
	if accept.PrefersJSON(r.Header["Accept"]) {
		body, contentType = problem(l.problem, v.state.bound.policy, v.under(v.state.bound.policy)), problemJSON
	}
	answer(w, r, http.StatusTooManyRequests, contentType, body)
}

// refuse answers a request that was not decided. It says nothing about why: the
// log does.
func (l *Limiter) refuse(w http.ResponseWriter, r *http.Request, status int) {
	if status == http.StatusServiceUnavailable {
		w.Header()["Retry-After"] = []string{"1"}
	}
	answer(w, r, status, plainText, []byte(http.StatusText(status)))
}

// isPreflight recognises a CORS preflight (Fetch standard, section 3.2.2).
func isPreflight(r *http.Request) bool {
	return r.Method == http.MethodOptions && r.Header["Access-Control-Request-Method"] != nil && r.Header["Origin"] != nil
}
