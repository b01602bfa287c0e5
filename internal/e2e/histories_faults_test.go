package e2e_test

import (
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	. "github.com/ratelimit-go/ratelimit"
	"github.com/ratelimit-go/ratelimit/internal/redistest"
)

// Limits of histories: their windows do not end during a test.
var (
	oneLimit  = []Limit{FixedWindow(20, time.Hour)}
	twoLimits = []Limit{FixedWindow(20, time.Hour), FixedWindow(23, 2*time.Hour)}
	bigLimit  = []Limit{FixedWindow(150, time.Hour)} // of which there is something to lease
)

// scenarios are the faults of which histories are recorded.
var scenarios = []scenario{
	{name: "no fault", limits: twoLimits, onFailure: FailClosed, refunds: true, setup: onServer(func(r *run, _ *redistest.Server) {})},
	{name: "SCRIPT FLUSH", limits: oneLimit, onFailure: FailClosed, refunds: true, setup: onServer(flushScripts)},
	{name: "SCRIPT FLUSH, leases", limits: bigLimit, lease: 50 * time.Millisecond, onFailure: FailClosed, refunds: true, setup: onServer(flushScripts)},
	{name: "connections killed", limits: twoLimits, onFailure: FailClosed, refunds: true, setup: onServer(func(r *run, s *redistest.Server) {
		for range 5 {
			s.Do("CLIENT", "KILL", "TYPE", "normal")
			r.awaitCalls(20)
		}
	})},
	// The exact excess is everything: Redis has no counters when it is back.
	{name: "restarted without persistence", limits: oneLimit, onFailure: FailClosed, refunds: true, setup: onServer(func(r *run, s *redistest.Server) {
		r.lose(-1, s.Restart)
	})},
	{name: "replies lost", limits: oneLimit, onFailure: FailClosed, refunds: true, setup: onProxy(loseReplies)},
	{name: "replies lost, two limits", limits: twoLimits, onFailure: FailClosed, refunds: true, setup: onProxy(loseReplies)},
	{name: "connections reset", limits: oneLimit, onFailure: FailClosed, refunds: true, setup: onProxy(func(r *run, p *redistest.Proxy) {
		p.ResetRate(0.2)
		r.awaitCalls(callsAfter)
		p.ResetRate(0)
	})},
	// The exact excess is the whole limit for each process.
	{name: "unreachable, FallbackLocal", slow: true, limits: oneLimit, onFailure: FallbackLocal, setup: onProxy(func(r *run, p *redistest.Proxy) {
		p.Refuse(true)
		r.awaitCalls(callsAfter)
		p.Refuse(false)
	})},
}

// onServer returns the setup of a fault of a single server.
func onServer(strike func(*run, *redistest.Server)) func(t *testing.T) site {
	return func(t *testing.T) site {
		server := redistest.Start(t)
		client := func() redis.UniversalClient { return server.Client() }
		return site{client: client, reader: server.Client(), strike: func(r *run) { strike(r, server) }}
	}
}

// onProxy returns the setup of a fault of the network in front of a single server.
func onProxy(strike func(*run, *redistest.Proxy)) func(t *testing.T) site {
	return func(t *testing.T) site {
		server := redistest.Start(t)
		proxy := redistest.NewProxy(t, server.Addr)
		client := func() redis.UniversalClient { return redistest.Client(t, proxy.Addr) }
		return site{client: client, reader: server.Client(), strike: func(r *run) { strike(r, proxy) }}
	}
}

// flushScripts has Redis forget the scripts, again and again.
func flushScripts(r *run, s *redistest.Server) {
	for range 10 {
		s.Do("SCRIPT", "FLUSH")
		r.awaitCalls(10)
	}
}

// loseReplies loses replies for a while, three times.
func loseReplies(r *run, p *redistest.Proxy) {
	for range 3 {
		p.LoseReplies(true)
		time.Sleep(20 * time.Millisecond)
		p.LoseReplies(false)
		r.awaitCalls(20)
	}
}
