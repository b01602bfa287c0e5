package ratelimit_test

import (
	"net/http"
	"net/http/httptest"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
)

// TestNothingToGiveBack: of a unit that the store may not have counted none is given
// back, or it would be somebody else's.
func TestNothingToGiveBack(t *testing.T) {
	count := func(_ *http.Request, status int) bool { return status >= 400 }
	remotely(t, Options{Limits: []Limit{hour}, Key: StaticKey("key"), Count: count}, func(t *testing.T, far *farStore, l *Limiter) {
		status, admitted := http.StatusUnauthorized, 0
		handler := l.Middleware(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			far.set(up)
			w.WriteHeader(status)
		}))
		serve := func() int {
			w := httptest.NewRecorder()
			handler.ServeHTTP(w, httptest.NewRequest("GET", "/", nil))
			return w.Code
		}
		for range 20 {
			status = http.StatusUnauthorized
			for range 4 {
				if serve() == status {
					admitted++
				}
			}
			status = http.StatusNoContent
			for range 4 {
				far.set(silent)
				serve()
			}
			far.set(up)
		}
		require.LessOrEqual(t, admitted, 5)
	})
}

// TestNoTimeout: where nobody waits for the store for a limited time, a key in use gets
// back to it all the same.
func TestNoTimeout(t *testing.T) {
	for _, timeout := range []time.Duration{-1, -2, time.Second} {
		remotely(t, Options{Limits: []Limit{FixedWindow(200, time.Hour)}, Timeout: timeout}, func(t *testing.T, far *farStore, l *Limiter) {
			far2 := &farStore{Store: far.Store}
			other := processOf(t, far2, Options{Limits: []Limit{FixedWindow(200, time.Hour)}, Timeout: timeout})
			far.set(refused)
			far2.set(refused)
			admitted := 0
			take := func(l *Limiter) {
				if d := decide(t, l, "key", 1); d.Allowed {
					admitted++
				}
			}
			for range 10 {
				take(l)
				take(other)
			}
			for _, f := range []*farStore{far, far2} {
				f.set(up)
				f.delay(time.Millisecond)
			}
			time.Sleep(2 * time.Second)
			for range 300 {
				take(l)
				take(other)
				time.Sleep(time.Millisecond)
			}
			require.Equal(t, 200, admitted, timeout)
		})
	}
}

// TestRedisStoreInput: what no script is to see is refused before.
func TestRedisStoreInput(t *testing.T) {
	s, err := NewRedisStore(redis.NewClient(&redis.Options{}), "rl:", nil)
	require.NoError(t, err)
	many := make([]Limit, 0, 9)
	for i := range 9 {
		many = append(many, FixedWindow(1, time.Duration(1+i)*time.Hour))
	}
	for name, take := range map[string]func() error{
		"negative": func() error { _, err := s.Take(ctx, "k", -1, []Limit{hour}, make([]Result, 1)); return err },
		"many":     func() error { _, err := s.Take(ctx, "k", 1, many, make([]Result, 9)); return err },
		"none":     func() error { _, err := s.Take(ctx, "k", 1, nil, nil); return err },
		"results":  func() error { _, err := s.Take(ctx, "k", 1, []Limit{hour}, nil); return err },
		"zero":     func() error { _, err := s.Take(ctx, "k", 1, []Limit{{}}, make([]Result, 1)); return err },
		"adjust":   func() error { _, err := s.Adjust(ctx, "k", 1, Now, []Limit{{}}); return err },
		"reset":    func() error { return s.Reset(ctx, "k", []Limit{{}}) },
	} {
		require.ErrorContains(t, take(), "want", name)
	}
}

// TestOneTimeout: to tell the store of what is owed, to see whether it is back, and to ask it take
// one Timeout together.
func TestOneTimeout(t *testing.T) {
	remotely(t, Options{Limits: []Limit{hour}, Timeout: time.Second}, func(t *testing.T, far *farStore, l *Limiter) {
		far.set(refused)
		decide(t, l, "key", 1)
		require.Equal(t, 1, l.Stats().Remote.Owed)
		far.set(up)
		far.delay(400 * time.Millisecond)
		start, done := time.Now(), make(chan struct{})
		go func() {
			defer close(done)
			decide(t, l, "key", 1)
		}()
		synctest.Wait()
		far.delay(0)
		time.Sleep(50 * time.Millisecond)
		breakDown(t, far, l, refused)
		far.set(silent)
		<-done
		require.LessOrEqual(t, time.Since(start), time.Second)
	})
}
