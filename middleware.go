package ratelimit

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"reflect"
	"strconv"

	"github.com/ratelimit-go/ratelimit/internal/accept"
)

// Middleware returns a handler that admits requests to next or answers them
// itself: with 429 where they are denied, 400 where they have no key, 500 where an
// option's function failed, 503 where no decision could be made, because the store
// failed, the limiter is closed, or the client has left. It can be
// mounted on any number of routes; a request that passes it twice counts once.
//
// Of limiters stacked around each other the outer one decides first. What it took is
// given back if one further in denies; but a request that an inner limiter is to
// refuse still waits in line at the outer one, so put the limiter per client
// outside and the one for all clients inside.
// A nil next is [http.DefaultServeMux], as for [http.Server].
func (l *Limiter) Middleware(next http.Handler) http.Handler {
	if next == nil {
		next = http.DefaultServeMux
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		pass, ok := l.check(w, r)
		if !ok {
			return
		}
		if pass == nil {
			next.ServeHTTP(w, r)
			return
		}
		inner := r.WithContext(pass)
		defer handBack(r, inner)
		if l.opts.Count == nil {
			next.ServeHTTP(w, inner)
			return
		}
		pass.count(next, w, inner)
	})
}

// handBack tells the request that a handler's was a copy of what those around the
// limiter want to know of it: the server removes the files of its multipart form,
// and logs and metrics read its pattern. It writes only what is new, because a
// request that nothing has changed may be in several hands.
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
// Options.Count has no effect here: call AddCost with a negative cost after the
// handler, for a response that is not to count.
func (l *Limiter) Check(w http.ResponseWriter, r *http.Request) bool {
	if l.opts.Count != nil {
		l.report.warn(warnCountIgnored)
	}
	pass, ok := l.check(w, r)
	if ok && pass != nil {
		*r = *r.WithContext(pass)
	}
	return ok
}

// DecisionFrom returns the decision on the request whose context this is: inside
// a handler behind [Limiter.Middleware], after [Limiter.Check], and in Options.Denied.
// Where several limiters are stacked it is that of the innermost.
func DecisionFrom(ctx context.Context) (Decision, bool) {
	if pass := passageOf(ctx); pass != nil {
		return pass.decision(), true
	}
	return Decision{}, false
}

// passage is one request's way through one limiter: a link in the request's chain
// of contexts. It also carries what the header fields need, so that a request
// costs one allocation for all of this.
type passage struct {
	context.Context
	limiter *Limiter
	header  http.Header // the request's: what stays the same when a request is copied
	parent  *passage    // of the limiter around this one
	told    *passage    // that which binds most, of all that the client is told of here and further out
	policy  *policy
	key     string
	result  Result // of the limit that binds
	binding uint8  // its place
	source  Source
	styles  Headers
	tab     tab
	field   [2]string // the values of RateLimit and RateLimit-Policy, as a header stores them
}

func (p *passage) allowed() bool { return p.result.RetryAfter == 0 }

func (p *passage) decision() (d Decision) {
	p.policy.decision(&d, int(p.binding), &p.result)
	d.Source = p.source
	return d
}

type passageKey struct{}

// Value implements [context.Context].
func (p *passage) Value(key any) any {
	if key == (passageKey{}) {
		return p
	}
	return p.Context.Value(key)
}

// sameRequest tells by their headers whether two requests are one: a copy made to
// change its context or its URL shares the map.
func sameRequest(a, b http.Header) bool {
	return reflect.ValueOf(a).Pointer() == reflect.ValueOf(b).Pointer()
}

func passageOf(ctx context.Context) *passage {
	p, _ := ctx.Value(passageKey{}).(*passage)
	return p
}

// verdict is what check has found, before anything is written.
type verdict struct {
	pass    *passage // nil if the request goes on uncounted, or was not decided
	status  int      // 0 if the request goes on
	results [MaxLimits]Result
}

// check decides, and then renders.
func (l *Limiter) check(w http.ResponseWriter, r *http.Request) (pass *passage, ok bool) {
	var v verdict
	l.decide(r, &v)
	if v.pass != nil {
		v.pass.writeFields(w.Header(), v.results[:len(v.pass.policy.limits)])
	}
	if v.status == 0 {
		return v.pass, true
	}
	if v.pass != nil {
		defer v.pass.giveBackOuter() // when the client has its answer
		l.deny(w, r, &v)
		return nil, false
	}
	l.refuse(w, r, v.status)
	return nil, false
}

// decide takes what r costs. It does not touch the response.
func (l *Limiter) decide(r *http.Request, v *verdict) {
	ctx := r.Context()
	parent := passageOf(ctx)
	for p := parent; p != nil; p = p.parent {
		if p.limiter != l || !sameRequest(p.header, r.Header) {
			continue // a request of its own, made by a handler with this one's context
		}
		l.report.warn(warnCountedOnce)
		if !p.allowed() && !l.opts.Shadow { // sent round again by Options.Denied
			v.status = http.StatusTooManyRequests
		}
		return
	}
	if l.opts.Skip != nil && l.opts.Skip(r) {
		return
	}
	if l.opts.SkipPreflight && isPreflight(r) {
		return
	}
	key, p, err := l.subject(r)
	cost := int64(1)
	if err == nil && l.opts.Cost != nil {
		if cost = l.opts.Cost(r); cost < 0 {
			err = fmt.Errorf("Options.Cost returned %d: want 0 or more", cost)
		}
	}
	if err != nil {
		v.status = l.undecided(err)
		return
	}
	if w, found := l.key.mistake(r, key); found {
		l.report.warn(w)
	}

	results := v.results[:len(p.limits)]
	at, source, err := l.take(ctx, key, cost, p, results)
	if err != nil {
		v.status = l.failed(r, err)
		return
	}
	i := binding(results)
	pass := &passage{Context: ctx, limiter: l, header: r.Header, parent: parent, policy: p, key: key, result: results[i], binding: uint8(i), source: source}
	pass.tab.at = at
	if pass.allowed() {
		if at != nothingTaken {
			pass.tab.units = cost
		}
	} else if l.opts.Shadow {
		l.shadowed()
	} else {
		v.status = http.StatusTooManyRequests
	}
	v.pass = pass
}

// Standing is how a request's key stands under one of its limits.
type Standing struct {
	Name  string // the policy name, as in the header fields
	Limit Limit
	Result
}

// Look tells how r's key stands under each limit that holds for r, without taking
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
			p, err = l.plans.of(l, limits)
			return key, p, err
		}
	}
	return key, l.policy.Load(), nil
}

// undecided maps an error of one of the options' functions to a status, 0 to let
// the request through uncounted.
func (l *Limiter) undecided(err error) int {
	switch {
	case errors.Is(err, ErrExempt):
		return 0
	case errors.Is(err, ErrNoKey):
		if errors.Is(err, errNoAddress) {
			l.report.warn(warnNoAddress)
		} else {
			l.report.warn(warnNoKey) // without the error: it may well say what the client has sent
		}
		if l.opts.Shadow {
			return 0
		}
		return http.StatusBadRequest
	}
	l.report.warn(warnOptionFailed, "error", err)
	if l.opts.Shadow {
		return 0
	}
	return http.StatusInternalServerError
}

// failed maps an error of the store to a status.
func (l *Limiter) failed(r *http.Request, err error) int {
	switch {
	case errors.Is(err, ErrClosed):
		l.report.warn(warnClosed)
	case r.Context().Err() == nil: // else the client has left, and the store is not to blame
		l.report.warn(warnStoreFailed, "error", err)
	}
	if l.opts.Shadow {
		return 0
	}
	return http.StatusServiceUnavailable
}

// shadowed reports a request that would have been denied.
func (l *Limiter) shadowed() {
	l.report.warn(warnShadow, "denied", l.shadow.Add(1))
}

// deny answers a denied request.
func (l *Limiter) deny(w http.ResponseWriter, r *http.Request, v *verdict) {
	h := w.Header()
	if retry := v.pass.result.RetryAfter; retry == Never {
		l.report.warn(warnCostTooHigh)
	} else {
		h["Retry-After"] = []string{strconv.FormatInt(max(1, seconds(retry)), 10)}
	}
	if l.opts.Denied != nil {
		l.opts.Denied.ServeHTTP(w, r.WithContext(v.pass))
		return
	}
	body, contentType := l.message, plainText
	if accept.PrefersJSON(r.Header["Accept"]) {
		body, contentType = v.pass.policy.problem(l.problem, v.results[:len(v.pass.policy.limits)]), problemJSON
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

const (
	plainText   = "text/plain; charset=utf-8"
	problemJSON = "application/problem+json"
)

func answer(w http.ResponseWriter, r *http.Request, status int, contentType string, body []byte) {
	h := w.Header()
	if len(h) > 3 { // more than the limiter's own
		for _, field := range [...]string{"Cache-Control", "Etag", "Last-Modified", "Content-Length"} {
			delete(h, field) // they were meant for the answer that there is not to be
		}
	}
	values := [...]string{contentType, "nosniff", strconv.Itoa(len(body))} // the response's own, in one allocation
	h["Content-Type"], h["X-Content-Type-Options"] = values[0:1:1], values[1:2:2]
	if h["Content-Encoding"] == nil { // else what is around compresses the body, and knows its length
		h["Content-Length"] = values[2:3:3]
	}
	w.WriteHeader(status)
	if r.Method != http.MethodHead {
		w.Write(body) // an error here is the client's connection, and nobody is left to tell
	}
}

// isPreflight recognises a CORS preflight (Fetch standard, section 3.2.2).
func isPreflight(r *http.Request) bool {
	return r.Method == http.MethodOptions && r.Header["Access-Control-Request-Method"] != nil && r.Header["Origin"] != nil
}
