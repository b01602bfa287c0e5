package ratelimit_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"

	. "github.com/ratelimit-go/ratelimit"
)

// tally is what a test has sent to a limiter, and what came of it: what
// LimiterStats must say.
type tally struct {
	allowed, denied, allowedUnits, deniedUnits, near, shadow, exempt, noKey, failed atomic.Uint64
}

// note notes the decision about units.
func (s *tally) note(d Decision, units int64, shadow bool) {
	switch {
	case d.Allowed:
		s.allowed.Add(1)
		s.allowedUnits.Add(uint64(units))
		if d.Limit != Unlimited && d.Remaining <= d.Limit.N()/5 {
			s.near.Add(1)
		}
	case shadow:
		s.shadow.Add(1)
	default:
		s.denied.Add(1)
		s.deniedUnits.Add(uint64(units))
	}
}

// noteCall notes the decision of a call, unless it has failed.
func (s *tally) noteCall(d Decision, units int64, err error) {
	if err == nil {
		s.note(d, units, false)
	}
}

// total returns how many decisions and requests are noted.
func (s *tally) total() uint64 {
	return s.allowed.Load() + s.denied.Load() + s.shadow.Load() + s.exempt.Load() + s.noKey.Load() + s.failed.Load()
}

// check compares the tally with what a limiter has counted.
func (s *tally) check(t *testing.T, got LimiterStats) {
	t.Helper()
	for _, c := range []struct {
		name string
		want *atomic.Uint64
		got  uint64
	}{
		{"Allowed", &s.allowed, got.Allowed}, {"Denied", &s.denied, got.Denied},
		{"AllowedUnits", &s.allowedUnits, got.AllowedUnits}, {"DeniedUnits", &s.deniedUnits, got.DeniedUnits},
		{"NearLimit", &s.near, got.NearLimit}, {"ShadowDenied", &s.shadow, got.ShadowDenied},
		{"Exempt", &s.exempt, got.Exempt}, {"NoKey", &s.noKey, got.NoKey}, {"Failed", &s.failed, got.Failed},
	} {
		assert.Equal(t, c.want.Load(), c.got, c.name)
	}
	var denied uint64
	for _, p := range got.Policies {
		denied += p.Denied
	}
	assert.Equal(t, got.Denied, denied, "the sum of Policies")
}

// totalOf returns how many decisions and requests a limiter has counted.
func totalOf(s LimiterStats) uint64 {
	return s.Allowed + s.Denied + s.ShadowDenied + s.Exempt + s.NoKey + s.Failed
}

// countersOf returns all numbers of a limiter's statistics that must never fall.
func countersOf(s LimiterStats) map[string]uint64 {
	all := map[string]uint64{
		"Allowed": s.Allowed, "Denied": s.Denied, "AllowedUnits": s.AllowedUnits, "DeniedUnits": s.DeniedUnits, "NearLimit": s.NearLimit,
		"ShadowDenied": s.ShadowDenied, "Exempt": s.Exempt, "NoKey": s.NoKey, "Failed": s.Failed,
		"Calls": s.Remote.Calls, "CallTime": uint64(s.Remote.CallTime), "Failures": s.Remote.Failures, "Spared": s.Remote.Spared,
		"BreakerOpened": s.Remote.BreakerOpened, "Cached": s.Remote.Cached, "Leased": s.Remote.Leased, "Fallback": s.Remote.Fallback,
		"FailedOpen": s.Remote.FailedOpen, "Forgotten": s.Remote.Forgotten, "Evicted": s.Remote.Evicted,
	}
	for i, n := range s.Remote.CallTimes {
		all[fmt.Sprint("CallTimes ", i)] = n
	}
	for _, p := range s.Policies {
		all["policy "+p.Name] = p.Denied
	}
	for code, n := range s.Warnings {
		all["warning "+string(code)] = n
	}
	return all
}

// noneFalls checks that no counter is smaller than it was.
func noneFalls(t *testing.T, was, is map[string]uint64) {
	t.Helper()
	for name, n := range was {
		if is[name] < n {
			t.Errorf("%s has fallen from %d to %d", name, n, is[name])
		}
	}
}

// errOfKey is the error of a key function.
var errOfKey = errors.New("no such session")

// byHeader returns options whose functions do what a request's header says.
func byHeader() Options {
	opts := quiet(FixedWindow(50, time.Hour).Named("own"))
	opts.Timeout = time.Minute
	opts.Skip = func(r *http.Request) bool { return r.Header.Get("Skip") != "" }
	opts.Key = func(r *http.Request) (string, error) {
		switch key := r.Header.Get("Key"); key {
		case "exempt":
			return "", ErrExempt
		case "fail":
			return "", errOfKey
		default:
			return key, nil
		}
	}
	opts.Cost = func(r *http.Request) int64 {
		if cost, err := strconv.ParseInt(r.Header.Get("Cost"), 10, 64); err == nil {
			return cost
		}
		return 1
	}
	opts.LimitsFor = func(r *http.Request) []Limit {
		return map[string][]Limit{
			"gold": {Unlimited}, "bad": {Deny}, "two": {FixedWindow(40, time.Hour).Named("first"), SlidingWindow(1e6, time.Minute).Named("second")},
			"invalid": {{}},
		}[r.Header.Get("Plan")]
	}
	return opts
}

type decisionKey struct{}

// showDecision is a handler that hands its request's decision to noteRequest.
var showDecision = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
	if d, ok := DecisionFrom(r.Context()); ok {
		*r.Context().Value(decisionKey{}).(*Decision) = d
	}
	w.WriteHeader(http.StatusNoContent)
})

// noteRequest sends a request to a limiter around showDecision, and notes what came of
// it. A request that is let through without a decision counts as undecided, which is
// one of the tally's counters.
func (s *tally) noteRequest(t *testing.T, h http.Handler, units int64, undecided *atomic.Uint64, fields ...string) {
	t.Helper()
	var d Decision
	r := httpRequest("GET", fields...)
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), decisionKey{}, &d)))
	switch {
	case w.Code == http.StatusNoContent && d.Limit != (Limit{}):
		s.note(d, units, true)
	case w.Code == http.StatusTooManyRequests:
		s.note(d, units, false)
	case undecided == nil && w.Code != http.StatusNoContent:
		s.failed.Add(1) // of the store
		assert.Equal(t, http.StatusServiceUnavailable, w.Code, "%q", fields)
	case undecided == nil:
		s.failed.Add(1) // in Shadow
	default:
		undecided.Add(1)
	}
}
