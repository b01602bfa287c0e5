package ratelimittest_test

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ratelimit-go/ratelimit"
	"github.com/ratelimit-go/ratelimit/ratelimittest"
)

var five = ratelimit.Options{Limits: []ratelimit.Limit{ratelimit.FixedWindow(5, time.Hour)}}

func take(t testing.TB, l *ratelimit.Limiter) ratelimit.Decision {
	t.Helper()
	d, err := l.Take(context.Background(), "key")
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// TestLimitersOfATestDoNotMeet makes limiters with the same options in one test, in
// parallel tests, and in a test that runs again.
func TestLimitersOfATestDoNotMeet(t *testing.T) {
	a, b := ratelimittest.New(t, five), ratelimittest.New(t, five)
	if left := take(t, a).Remaining + take(t, b).Remaining; left != 8 {
		t.Errorf("%d are left of two limits of 5, want 8", left)
	}
	for range 20 {
		t.Run("in parallel", func(t *testing.T) {
			t.Parallel()
			if left := take(t, ratelimittest.New(t, five)).Remaining; left != 4 {
				t.Errorf("%d left, want 4", left)
			}
		})
	}
}

// TestLimiterEndsWithItsTest also checks that nothing is left of its store.
func TestLimiterEndsWithItsTest(t *testing.T) {
	var limiter *ratelimit.Limiter
	t.Run("inside", func(t *testing.T) {
		limiter = ratelimittest.New(t, five)
		take(t, limiter)
		if limiter.Name() != "TestLimiterEndsWithItsTest/inside" {
			t.Errorf("its name is %q", limiter.Name())
		}
		if _, ok := ratelimit.DefaultRegistry.Lookup(limiter.Name()); ok {
			t.Error("it is in the default registry")
		}
	})
	if _, err := limiter.Take(context.Background(), "key"); err == nil {
		t.Error("it is open after its test")
	}
}

// TestTimeIsTheBubbles runs in testing/synctest, as tests about time do.
func TestTimeIsTheBubbles(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := ratelimittest.New(t, five)
		for range 5 {
			take(t, l)
		}
		if d := take(t, l); d.Allowed || d.RetryAfter != time.Hour {
			t.Errorf("the sixth: %v", d)
		}
		time.Sleep(time.Hour)
		if d := take(t, l); !d.Allowed {
			t.Errorf("an hour later: %v", d)
		}
	})
}

// TestStoreThatIsGivenStaysOpen checks that New closes only what it has made.
func TestStoreThatIsGivenStaysOpen(t *testing.T) {
	store := ratelimit.Memory(t.Name())
	defer store.Close()
	t.Run("inside", func(t *testing.T) {
		opts := five
		opts.Store = store
		take(t, ratelimittest.New(t, opts))
	})
	opts := five
	opts.Store = store
	if left := take(t, ratelimittest.New(t, opts)).Remaining; left != 3 {
		t.Errorf("%d left, want 3", left)
	}
}

// TestAnyNameOfATestWillDo has names that no limiter can have.
func TestAnyNameOfATestWillDo(t *testing.T) {
	for _, name := range []string{"a\x00b", "\xff", strings.Repeat("long", 100), strings.Repeat("ü", 100), "é è", "\u200b"} {
		t.Run(name, func(t *testing.T) { take(t, ratelimittest.New(t, five)) })
	}
}

// recorder is a test that records how it has ended.
type recorder struct {
	testing.TB
	failed string
}

func (r *recorder) Fatal(args ...any) { r.failed = args[0].(error).Error(); panic(r) }

// TestOptionsThatAreNotValidEndTheTest, with the error of New.
func TestOptionsThatAreNotValidEndTheTest(t *testing.T) {
	r := &recorder{TB: t}
	func() {
		defer func() { recover() }()
		ratelimittest.New(r, ratelimit.Options{})
	}()
	if !strings.Contains(r.failed, "Options.Limits: there is none") {
		t.Errorf("it has ended with %q", r.failed)
	}
}

// TestWarningsAreInTheTestsLog uses a limiter in a way that it warns about.
func TestWarningsAreInTheTestsLog(t *testing.T) {
	opts := five
	opts.Key = ratelimit.HeaderKey("X-Key")
	l := ratelimittest.New(t, opts)
	w := httptest.NewRecorder()
	l.Middleware(http.NotFoundHandler()).ServeHTTP(w, httptest.NewRequest("GET", "/", nil))
	if w.Code != http.StatusBadRequest {
		t.Errorf("status %d", w.Code)
	}
}
