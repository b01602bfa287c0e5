// Package ratelimittest makes limiters for tests: nothing that one test counts is seen
// by another one, whether they run in parallel, one after the other, or again.
//
//	func TestLogin(t *testing.T) {
//		login := ratelimittest.New(t, ratelimit.Options{
//			Limits: []ratelimit.Limit{ratelimit.FixedWindow(5, time.Hour)},
//		})
//		server := httptest.NewServer(login.Middleware(handler))
//		...
//	}
//
// To test what happens when time passes, call New in a bubble of testing/synctest, and
// its handler with httptest.NewRecorder: a limiter's time is the bubble's, and no test
// has to sleep. The clock of a bubble stops while a goroutine waits for a real
// connection, as the goroutines of httptest.NewServer do.
//
// A service that makes its limiters itself can take the function that makes them as a
// parameter: ratelimit.New in production, and in tests one that calls New.
package ratelimittest

import (
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"unicode"

	"github.com/ratelimit-go/ratelimit"
)

// New returns a limiter with opts. It is in a registry of its own and has the test's
// name, so that any number of them can be alive. Header fields show that name: give the
// limits names with [ratelimit.Limit.Named] to test them. New ends the test if the
// options are not valid. When the test ends, the limiter is closed.
//
// If opts has neither Store nor Redis, it counts in a memory store of its own, which
// ends with the limiter. A store or client that is given must be closed by the test.
// Without a Logger it logs to t.
//
// It works in bubbles of testing/synctest and with t.Parallel.
func New(t testing.TB, opts ratelimit.Options) *ratelimit.Limiter {
	t.Helper()
	name := nameOf(t)
	if opts.Logger == nil {
		out := &output{to: t.Output()}
		t.Cleanup(out.end) // it runs last
		opts.Logger = slog.New(slog.NewTextHandler(out, &slog.HandlerOptions{Level: slog.LevelWarn}))
	}
	if opts.Store == nil && opts.Redis == nil {
		store := ratelimit.Memory(fmt.Sprintf("ratelimittest %d", made.Add(1)))
		t.Cleanup(func() { store.Close() })
		opts.Store = store
	}
	registry := new(ratelimit.Registry)
	t.Cleanup(func() { registry.Close() })
	limiter, err := registry.New(name, opts)
	if err != nil {
		t.Fatal(err)
	}
	return limiter
}

// output is a test's output until the test ends. A test that is over must not log, and
// a warning may come from a goroutine that outlives it.
type output struct {
	mu sync.Mutex
	to io.Writer // nil when the test is over
}

func (o *output) Write(line []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.to == nil {
		return len(line), nil
	}
	return o.to.Write(line)
}

func (o *output) end() {
	o.mu.Lock()
	o.to = nil
	o.mu.Unlock()
}

// made counts the stores, so that each has a name of its own in this process.
var made atomic.Uint64

// nameOf returns the test's name, as far as it can be a limiter's: printable, and at
// most 128 bytes.
func nameOf(t testing.TB) string {
	name := strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '_'
		}
		return r
	}, strings.ToValidUTF8(t.Name(), "_"))
	if name == "" { // of a testing.TB that is no test
		return "ratelimittest"
	}
	const longest = 128
	if len(name) > longest {
		name = strings.ToValidUTF8(name[len(name)-longest:], "")
	}
	return name
}
