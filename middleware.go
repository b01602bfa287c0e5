package ratelimit

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/ratelimit-go/ratelimit/internal/accept"
	"github.com/ratelimit-go/ratelimit/internal/clock"
)

// Middleware returns a handler that admits requests to next or answers them
// itself: with 429 if they are denied, 400 if they have no key, 500 if an option's
// function failed, 503 if no decision could be made, because the store failed, the
// limiter is closed, or the client has left. No such answer may be stored by a cache.
// With Options.MaxWait, a request may wait before that; see there.
//
// It can be mounted on any number of routes. A request that passes it twice with the
// same key counts once, also as a clone. Two requests are the same one if the second
// has the first one's context, the same RequestURI, and the same response to write
// to, or the response of an [http.TimeoutHandler]. So a request that a handler makes
// for something else, with a response of its own, is another one, and counts.
//
// When limiters are nested, the outer one decides first. What it took is given back
// if an inner one denies. But a request that an inner limiter will refuse still
// needs units of the outer one, so put the limiter per client outside and the one
// for all clients inside. A nil next is [http.DefaultServeMux], as for
// [http.Server]. A nil Limiter panics here, and not with its first request.
func (l *Limiter) Middleware(next http.Handler) http.Handler {
	if l == nil {
		panic("ratelimit: Middleware of a nil *Limiter: check the error of New, or use Must")
	}
	if next == nil {
		next = http.DefaultServeMux
	}
	return &limitedHandler{l, next}
}

// A limitedHandler is what [Limiter.Middleware] returns: next behind a limiter.
type limitedHandler struct {
	limiter *Limiter
	next    http.Handler
}

func (m *limitedHandler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	state, inner, ok := m.limiter.check(w, r, true)
	if !ok {
		return
	}
	if state == nil {
		m.next.ServeHTTP(w, r)
		return
	}
	*inner = *r.WithContext(state) // the copy that WithContext makes stays on the stack
	defer handBack(r, inner)
	if h := state.held(); h != nil {
		defer h.end()
	}
	opts := &m.limiter.opts
	if opts.Count == nil {
		if m.limiter.nested.Load() {
			defer state.pending().over() // unless a limiter further in has decided
		}
		if opts.Headers&olderStyles == 0 {
			m.next.ServeHTTP(w, inner)
			return
		}
	}
	state.watch(m.next, w, inner)
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
// A request is counted once for each key, however often it is checked: a limiter
// whose Key finds the address first, and later a user, counts both. To limit the
// messages of one connection, use [Limiter.Take]. If w is an adapter to a framework's
// response, its Header must return the same map for all limiters on a request: by the
// map Check sees that it is one response.
//
// Check puts the decision into r's context, by changing *r, so that [DecisionFrom]
// and [Limiter.AddCost] work afterwards; DecisionFrom also if Check returns false
// because the request is denied. Check does not see the response of an admitted
// request: for Options.Count, report its status with [Limiter.Responded].
func (l *Limiter) Check(w http.ResponseWriter, r *http.Request) bool {
	state, _, ok := l.check(w, r, false)
	if state == nil {
		return ok
	}
	*r = *r.WithContext(state)
	if !ok {
		return false
	}
	state.forgetAtEnd()
	state.holdToEnd()
	if l.opts.Count != nil {
		state.expectStatus() // after the others, because the logger may panic
	}
	return true
}

// verdict is what decide has found, before anything is written.
type verdict struct {
	state   *requestState  // nil if the request was not counted, or not decided
	values  *refusalValues // for the answer to a request that does not go on
	inner   *http.Request  // for the copy of the request that its handler gets; nil if it gets none
	copied  bool           // the handler gets a copy
	status  int            // of the answer; 0 if the request goes on to its handler
	err     error          // why the request was not decided, for Options.Failed
	others  bool           // handlers around the limiter have set header fields
	results [MaxLimits]Result
}

// under returns the results of a policy's limits.
func (v *verdict) under(p *policy) []Result { return v.results[:p.width()] }

// check decides, and writes what the client gets. ok reports whether the request
// goes on to its handler. If the handler gets a copy of the request, copied must be true.
// check then returns inner, for that copy, unless state is nil.
func (l *Limiter) check(w http.ResponseWriter, r *http.Request, copied bool) (state *requestState, inner *http.Request, ok bool) {
	h := w.Header()
	v := verdict{copied: copied, others: len(h) > 0}
	l.decide(w, h, r, &v)
	if v.state != nil {
		v.writeFields(h)
	}
	switch {
	case v.status == 0:
		return v.state, v.inner, true
	case v.state == nil:
		l.fail(w, r, &v)
	default:
		defer v.state.giveBackOuter()
		l.deny(w, r, &v)
	}
	return v.state, nil, false
}

// writeFields writes the header fields of a decision, whichever it is.
func (v *verdict) writeFields(h http.Header) {
	s := v.state
	var outer *fields
	var before Headers
	shared := true // the response header with the limiter around this one
	if s.outer != nil && s.outer.isOfInner(s) {
		outer, before, shared = &s.outer.fields, Headers(s.outer.bound.styles), sameMap(s.outer.response, h)
	}
	opts := &s.limiter.opts
	styles := opts.Headers &^ HeadersNone
	var partition string
	if s.bound.policy.always != nil {
		styles = 0
	} else {
		partition = partitionParam(opts.PartitionSecret, s.limiter.name, s.key)
	}
	s.bound.styles = uint8(before | styles)
	s.fields.write(h, styles, before, outer, shared, shown{&s.bound, partition}, v.under(s.bound.policy))
}

// decide takes what r costs, unless r is exempt or was decided before. h is the header
// of w. It touches neither.
func (l *Limiter) decide(w http.ResponseWriter, h http.Header, r *http.Request, v *verdict) {
	if l.opts.Skip != nil && l.opts.Skip(r) || l.opts.SkipPreflight && isPreflight(r) {
		l.counts.exempt.Add(1)
		return
	}
	key, p, cost, err := l.readRequest(r)
	if err != nil {
		v.status, v.err = l.undecided(err), l.wrap(err)
		return
	}
	outer := stateOf(r.Context())
	inTimeout := outer != nil && !sameMap(outer.response, h) && ofTimeout(w)
	if before := l.decidedBefore(outer, key, h, r, inTimeout); before != nil {
		l.report.warn(warnCountedOnce)
		if !before.bound.allowed() && !l.opts.Shadow { // Options.Denied has sent it round again
			v.status, v.err = http.StatusTooManyRequests, errDeniedBefore
		}
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
	how := forRequest
	if l.opts.Shadow {
		how = asShadow
	}
	var t taken
	var waited time.Duration
	if l.opts.MaxWait > 0 && how == forRequest {
		t, p, waited, err = l.takeWaiting(r.Context(), key, cost, how, p, v.results[:], l.opts.MaxWait)
		results = v.under(p)
	} else {
		t, err = l.take(r.Context(), key, cost, how, p, results)
	}
	if err != nil {
		v.status, v.err = l.failed(r, err, waited), err
		return
	}
	if cost == 0 { // take has counted no look, but this is a request
		l.counts.decidedFree(p, &t, results)
	}
	binds := &results[t.bound]
	v.newState(binds.RetryAfter == 0 || l.opts.Shadow)
	s := v.state
	s.Context, s.limiter, s.request, s.response, s.outer, s.key = r.Context(), l, r, h, outer, key
	s.bound.policy, s.bound.index, s.bound.source = p, uint8(t.bound), t.source
	s.bound.remaining, s.bound.retryAfter = binds.Remaining, binds.RetryAfter
	s.bound.resetAfter, s.bound.moreAfter = binds.ResetAfter, binds.MoreAfter
	s.charge.at = t.at
	if inTimeout {
		s.bound.flags |= timeoutWriter
	}
	if t.blocked {
		s.bound.flags |= keyBlocked
	}
	if t.held != nil {
		t.held.Context = s.Context
		s.Context = t.held
	}
	if t.pending != nil {
		t.pending.Context = s.Context
		s.Context = t.pending
	}
	s.decidedInside()
	if l.remote != nil {
		s.bound.spend((clock.Now() - start - int64(waited)) / 1000)
	}
	switch {
	case s.bound.allowed():
		if s.charge.at != nothingTaken {
			s.charge.units = cost
		}
	case l.opts.Shadow:
		l.report.warn(warnShadow, "denied", l.counts.letThrough.Add(1))
		l.reportDecided(r, EventShadowDenied, s, cost, &t, results)
	default:
		v.status = http.StatusTooManyRequests
		l.reportDecided(r, EventDenied, s, cost, &t, results)
	}
}

// newState makes the state of a request. The same allocation has room for what is
// certain to follow: the copy of the request for its handler, or the values of the
// refusal's header fields. While a program keeps one of the parts, all of them stay in
// memory. The copy of a request keeps its state anyway, because the state is its context.
func (v *verdict) newState(admitted bool) {
	switch {
	case !admitted:
		refused := new(struct {
			state  requestState
			values refusalValues
		})
		v.state, v.values = &refused.state, &refused.values
	case v.copied:
		admitted := new(struct {
			state requestState
			inner http.Request
		})
		v.state, v.inner = &admitted.state, &admitted.inner
	default:
		v.state = new(requestState)
	}
}

// reportDecided reports the denial of a request, and the block that it has started, if any.
func (l *Limiter) reportDecided(r *http.Request, kind EventKind, s *requestState, cost int64, t *taken, results []Result) {
	if l.events.observed() {
		d := s.bound.decision()
		l.reportDenial(r.Context(), kind, s.key, cost, &d, s.bound.policy, t, results)
	}
}

var errDeniedBefore = errors.New("ratelimit: the request has been denied, and was sent to the same limiter again")

// decidedBefore returns the state of r at this limiter if r has passed it with the
// same key already. It stops at the request that a handler of this limiter has made
// r for.
func (l *Limiter) decidedBefore(outer *requestState, key string, h http.Header, r *http.Request, ofTimeout bool) *requestState {
	for s := outer; s != nil && s.isOf(r, h, ofTimeout); s = s.outer {
		if s.limiter == l && s.key == key {
			return s
		}
	}
	return nil
}

// readRequest asks the options' functions what r takes, and from whom.
func (l *Limiter) readRequest(r *http.Request) (key string, p *policy, cost int64, err error) {
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

// keyOf returns the key of r.
func (l *Limiter) keyOf(r *http.Request) (key string, err error) {
	switch key, err = l.opts.Key(r); {
	case err == nil && key != "":
		return key, nil
	case err == nil:
		return "", ErrNoKey
	case errors.Is(err, ErrNoKey), errors.Is(err, ErrExempt):
		return "", err
	}
	return "", fmt.Errorf("Options.Key: %w", err)
}

// subject finds who is limited by r, and by which limits.
func (l *Limiter) subject(r *http.Request) (key string, p *policy, err error) {
	if key, err = l.keyOf(r); err != nil {
		return "", nil, err
	}
	var plan []Limit
	if l.opts.LimitsFor != nil {
		plan = l.opts.LimitsFor(r)
	}
	if p, err = l.policyOf(plan); err != nil {
		err = fmt.Errorf("Options.LimitsFor: %w", err)
	}
	return key, p, err
}

// Standing is the state of a key under one of its limits. If Remaining is 0, the next
// request for a unit is denied, and MoreAfter is the time until one unit fits. RetryAfter
// is [Never] under [Deny], and otherwise 0, because a look asks for nothing.
type Standing struct {
	Name  string // the policy name, as in the header fields
	Limit Limit
	Result
}

// String returns the standing as a sentence, such as "login: 3 left of 5/1h fixed",
// "login: 0 left of 5/1h fixed, more after 59m2s" or
// "login: blocked by 5/1m fixed block=1h, more after 59m2s".
func (s Standing) String() string {
	switch {
	case s.RetryAfter == Never:
		return fmt.Sprintf("%s: denied by %v for ever", s.Name, s.Limit)
	case s.Limit.rule.Kind == kindUnlimited:
		return fmt.Sprintf("%s: %v", s.Name, s.Limit)
	case s.Blocked:
		return fmt.Sprintf("%s: blocked by %v, more after %v", s.Name, s.Limit, s.MoreAfter)
	case s.Remaining == 0:
		return fmt.Sprintf("%s: 0 left of %v, more after %v", s.Name, s.Limit, s.MoreAfter)
	}
	return fmt.Sprintf("%s: %d left of %v", s.Name, s.Remaining, s.Limit)
}

// MarshalJSON implements [json.Marshaler]. Durations are seconds, and [Never] is null.
func (s Standing) MarshalJSON() ([]byte, error) {
	return json.Marshal(struct {
		Name       string   `json:"name"`
		Limit      string   `json:"limit"`
		Remaining  int64    `json:"remaining"`
		RetryAfter *float64 `json:"retry_after"`
		MoreAfter  float64  `json:"more_after"`
		ResetAfter float64  `json:"reset_after"`
		Blocked    bool     `json:"blocked,omitzero"`
	}{s.Name, s.Limit.String(), s.Remaining, orNull(s.RetryAfter), s.MoreAfter.Seconds(), s.ResetAfter.Seconds(), s.Blocked})
}

// Look returns the state of r's key under each limit that holds for r, without taking
// anything or answering: for a page that shows callers what they have left. It
// applies Options.Key and LimitsFor, and returns their errors, among them [ErrNoKey]
// and [ErrExempt]; Options.Skip plays no part.
func (l *Limiter) Look(r *http.Request) ([]Standing, error) {
	key, p, err := l.subject(r)
	if err != nil {
		return nil, l.wrap(err)
	}
	return l.look(r.Context(), key, p)
}

// LookKey is [Limiter.Look] for any key: for a page that shows operators what a client
// has left. The key is one that Options.Key makes, as [Limiter.KeyOf] returns it. limits
// are the limits of the client's plan, as for [Limiter.TakeLimits]. Without any, LookKey
// looks under [Limiter.Limits], and says nothing of what the client has left under a plan.
// It is an error where TakeLimits has one.
func (l *Limiter) LookKey(ctx context.Context, key string, limits ...Limit) ([]Standing, error) {
	p, err := l.policyOf(limits)
	if err != nil {
		return nil, fmt.Errorf("ratelimit: limiter %q: LookKey: %w", l.name, err)
	}
	return l.look(ctx, key, p)
}

func (l *Limiter) look(ctx context.Context, key string, p *policy) ([]Standing, error) {
	var results [MaxLimits]Result
	if _, err := l.take(ctx, key, 0, forAll, p, results[:p.width()]); err != nil {
		return nil, err
	}
	standings := make([]Standing, p.width())
	for i := range standings {
		standings[i] = Standing{p.names[i], *p.limit(i), results[i]}
	}
	return standings, nil
}

// KeyOf returns what Options.Key makes of r, for [Limiter.Reset] and
// [Limiter.LookKey], without taking anything. It returns the errors of Options.Key,
// among them [ErrExempt], and [ErrNoKey] if there is no key.
func (l *Limiter) KeyOf(r *http.Request) (string, error) {
	key, err := l.keyOf(r)
	return key, l.wrap(err)
}

// undecided maps an error of one of the options' functions to a status, 0 to let
// the request through uncounted.
func (l *Limiter) undecided(err error) int {
	status, count := http.StatusBadRequest, &l.counts.noKey
	switch {
	case errors.Is(err, ErrExempt):
		l.counts.exempt.Add(1)
		return 0
	case errors.Is(err, errNoAddress):
		l.report.warn(warnNoAddress)
	case errors.Is(err, ErrNoKey):
		l.report.warn(warnNoKey) // without the error, which may contain what the client has sent
	default:
		l.report.warn(warnOptionFailed, "error", err)
		status, count = http.StatusInternalServerError, &l.counts.failed
	}
	count.Add(1)
	if l.opts.Shadow {
		return 0
	}
	return status
}

// failed maps an error of the store to a status, 0 to let the request through
// uncounted. waited is for how long the request has waited for its units.
func (l *Limiter) failed(r *http.Request, err error, waited time.Duration) int {
	switch {
	case errors.Is(err, ErrClosed):
		if waited == 0 { // otherwise Close has let it go, as when a server shuts down
			l.report.warn(warnClosed)
		}
	case r.Context().Err() == nil: // otherwise the client has left, and the store is not to blame
		l.report.warn(warnStoreFailed, "error", err)
	}
	l.counts.failed.Add(1)
	if l.opts.Shadow {
		return 0
	}
	return http.StatusServiceUnavailable
}

// deny answers a denied request.
func (l *Limiter) deny(w http.ResponseWriter, r *http.Request, v *verdict) {
	forgetSuccess(w, r, v.others)
	if retry := v.state.bound.retryAfter; retry == Never {
		if v.state.bound.policy.always == nil { // otherwise Deny says so on purpose
			l.report.warn(warnCostTooHigh)
		}
	} else {
		v.values[0] = strconv.FormatInt(max(1, seconds(retry)), 10)
		w.Header()["Retry-After"] = v.values[:1:1]
	}
	results := v.under(v.state.bound.policy)
	if l.opts.Denied != nil {
		inner := r.WithContext(&denial{v.state, slices.Clone(results)})
		defer handBack(r, inner)
		servePage(w, http.StatusTooManyRequests, Headers(v.state.bound.styles), func(w http.ResponseWriter) { l.opts.Denied.ServeHTTP(w, inner) })
		return
	}
	l.answerDenied(w, r, v.values, v.state.bound.policy, results)
}

// answerDenied sends the limiter's own answer.
func (l *Limiter) answerDenied(w http.ResponseWriter, r *http.Request, values *refusalValues, p *policy, results []Result) {
	body, contentType := l.message, plainText
	if accept.PrefersJSON(r.Header["Accept"]) {
		body, contentType = problem(l.problem, p, results), problemJSON
	}
	answer(w, r, values, http.StatusTooManyRequests, contentType, body)
}

// A denial is the context of a request that Options.Denied answers.
type denial struct {
	*requestState
	results []Result
}

type denialKey struct{}

// Value implements [context.Context].
func (d *denial) Value(key any) any {
	if key == (denialKey{}) {
		return d
	}
	return d.requestState.Value(key)
}

// AnswerDenied answers a denied request as its limiter does without Options.Denied: with
// Options.Message in plain text, or with problem details. It is for handlers in
// Options.Denied that add a header field, or do something else first. r is the request
// that such a handler gets, or a copy of it with a context derived from its context. Any
// other request is answered with 429 and the text of that status.
func AnswerDenied(w http.ResponseWriter, r *http.Request) {
	if d, ok := r.Context().Value(denialKey{}).(*denial); ok {
		d.limiter.answerDenied(w, r, nil, d.bound.policy, d.results)
		return
	}
	answer(w, r, nil, http.StatusTooManyRequests, plainText, []byte(http.StatusText(http.StatusTooManyRequests)))
}

// fail answers a request that was not decided. What it says itself does not say why:
// the log does.
func (l *Limiter) fail(w http.ResponseWriter, r *http.Request, v *verdict) {
	forgetSuccess(w, r, v.others)
	status, err := v.status, v.err
	if status == http.StatusServiceUnavailable {
		w.Header()["Retry-After"] = []string{"1"}
	}
	switch {
	case l.opts.Failed != nil && status != http.StatusTooManyRequests:
		servePage(w, status, 0, func(w http.ResponseWriter) { l.opts.Failed(w, r, status, err) })
	case accept.PrefersJSON(r.Header["Accept"]):
		answer(w, r, nil, status, problemJSON, failureProblem(status))
	default:
		answer(w, r, nil, status, plainText, []byte(http.StatusText(status)))
	}
}

// isPreflight recognises a CORS preflight (Fetch standard, section 3.2.2).
func isPreflight(r *http.Request) bool {
	return r.Method == http.MethodOptions && r.Header["Access-Control-Request-Method"] != nil && r.Header["Origin"] != nil
}
