package benchmarks

import (
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ratelimit-go/ratelimit"
)

// honest counts as a library should.
func honest(q quota, _ bool) subject { return openInMemory(fixedWindow)(q, true) }

// A broken library makes its row fail, this one as well as a rival, and the reason says how.
func TestBrokenLibraries(t *testing.T) {
	every := func(n int64, do func(ok bool) (bool, error)) func(quota) subject {
		return func(q quota) subject {
			s := honest(q, true)
			take := s.take
			var asked atomic.Int64
			s.take = func(key string) (bool, error) {
				ok, err := take(key)
				if asked.Add(1)%n == 0 {
					return do(ok)
				}
				return ok, err
			}
			return s
		}
	}
	unaudited := func(open func(quota) subject) func(quota) subject {
		return func(q quota) subject {
			s := open(q)
			s.audit = nil
			return s
		}
	}
	down := func(q quota) subject {
		return openOursOnRedis(fixedWindow, 0)(target{addrs: []string{"127.0.0.1:1"}}, q)
	}
	some := quota{units: 5, window: time.Hour, refill: time.Hour}
	for name, test := range map[string]struct {
		open func(quota) subject
		q    quota
		kind Kind
		used bool // the units of all keys before
		want string
	}{
		"honest, allowed":           {every(1, func(ok bool) (bool, error) { return ok, nil }), plenty, Ours, false, ""},
		"honest, denied":            {every(1, func(ok bool) (bool, error) { return ok, nil }), some, Ours, true, ""},
		"a rival has errors":        {unaudited(every(7, func(ok bool) (bool, error) { return ok, errors.New("EOF") })), plenty, Rival, false, "decisions were wrong: EOF"},
		"errors instead of denials": {unaudited(every(7, func(ok bool) (bool, error) { return ok, errors.New("EOF") })), some, Rival, true, "decisions were wrong: EOF"},
		"a floor has errors":        {unaudited(every(7, func(bool) (bool, error) { return false, errors.New("EOF") })), plenty, Floor, false, "decisions were wrong: EOF"},
		"it admits what it denies":  {unaudited(every(7, func(bool) (bool, error) { return true, nil })), some, Rival, true, "a unit was admitted above the limit"},
		"it denies what it admits":  {unaudited(every(7, func(bool) (bool, error) { return false, nil })), plenty, Rival, false, "a unit that the limit allows was denied"},
		"it admits too few":         {unaudited(func(q quota) subject { q.units--; return honest(q, true) }), some, Rival, true, "40 units were admitted, and the limit allows 50"},
		"it admits one unit more":   {unaudited(func(q quota) subject { q.units++; return honest(q, true) }), some, Rival, true, "60 units were admitted, and the limit allows 50"},
		"it never denies":           {unaudited(func(quota) subject { return honest(plenty, true) }), some, Rival, true, "a unit was admitted above the limit"},
		"it does not count":         {uncounting, plenty, Ours, false, "the store has counted"},
		"a fallback answers":        {down, plenty, Ours, false, "a decision comes from the fallback"},
	} {
		t.Run(name, func(t *testing.T) {
			e := &entrant{subject: test.open(test.q), ServerLibrary: ServerLibrary{Library: Library{Kind: test.kind}}, quota: test.q, keys: keys(10)}
			defer e.end()
			if test.used {
				e.use()
			}
			for asked := e.all.done + e.all.failed; e.all.done+e.all.failed < asked+20; { // on a busy machine, few in a turn
				e.decide(4, time.Millisecond, !test.used)
			}
			switch err := e.check(); {
			case test.want == "" && err != nil:
				t.Error(err)
			case test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)):
				t.Errorf("error %v, want %q", err, test.want)
			}
		})
	}
}

// uncounting answers every tenth call without its store, as a broken cache would.
func uncounting(q quota) subject {
	s := honest(q, true)
	take := s.take
	var asked atomic.Int64
	s.take = func(key string) (bool, error) {
		if asked.Add(1)%10 == 0 {
			return true, nil
		}
		return take(key)
	}
	return s
}

// A decision from another source than the row measures is an error, also if no call fails.
func TestSources(t *testing.T) {
	for _, test := range []struct {
		from, also ratelimit.Source
		ok         bool
	}{
		{ratelimit.SourceStore, ratelimit.SourceStore, true},
		{ratelimit.SourceStore, ratelimit.SourceLease, true},
		{ratelimit.SourceLease, ratelimit.SourceLease, true},
		{ratelimit.SourceCache, ratelimit.SourceCache, true},
		{ratelimit.SourceCache, ratelimit.SourceStore, false},
		{ratelimit.SourceLease, ratelimit.SourceCache, false},
		{ratelimit.SourceFallback, ratelimit.SourceCache, false},
		{ratelimit.SourceFailOpen, ratelimit.SourceLease, false},
	} {
		if err := checkSource(ratelimit.Decision{Source: test.from}, nil, test.also); (err == nil) != test.ok {
			t.Errorf("from the %v, with the %v allowed: %v", test.from, test.also, err)
		}
	}
}
