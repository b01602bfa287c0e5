package ratelimit_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
)

// failures is an Options.Count that counts only failed requests.
func failures(_ *http.Request, status int) bool { return status >= 400 }

// TestRespondedAppliesCount uses Check and Responded like a framework's adapter.
func TestRespondedAppliesCount(t *testing.T) {
	log := new(logged)
	l := httpLimiter(t, Options{Limits: []Limit{FixedWindow(3, time.Hour)}, Count: failures, Logger: log.logger()})
	check := func() *http.Request {
		ctx, cancel := context.WithCancel(t.Context())
		t.Cleanup(cancel)
		r := httpRequest("GET").WithContext(ctx)
		require.True(t, l.Check(httptest.NewRecorder(), r))
		return r
	}
	left := func(want int64) {
		t.Helper()
		require.Equal(t, want, leftOf(t, l, httpKey))
	}
	r := check()
	left(2)
	require.NoError(t, l.Responded(r.Context(), 200))
	left(3)
	require.NoError(t, l.Responded(r.Context(), 401), "the second call does nothing")
	require.NoError(t, l.Responded(r.Context(), 200))
	left(3)

	r = check()
	require.NoError(t, l.Responded(r.Context(), 401))
	require.NoError(t, l.Responded(r.Context(), 200), "the second call does nothing")
	left(2)
	require.NoError(t, l.AddCost(r.Context(), 1), "a request that is over can still cost more")
	left(1)
	require.NoError(t, l.Responded(context.WithValue(check().Context(), anyKey{}, 1), 500))
	left(0)
	denied := httpRequest("GET")
	require.False(t, l.Check(httptest.NewRecorder(), denied))
	require.NoError(t, l.Responded(denied.Context(), 429), "a denied request has taken nothing")
	left(0)
	require.ErrorContains(t, l.Responded(context.Background(), 200),
		`ratelimit: limiter "TestRespondedAppliesCount": Responded: the limiter has not decided the request of this context`)
	assert.Empty(t, log.text())
}

// TestRespondedIsForTheRequestOfItsContext has requests within requests, two keys of one
// request, and Middleware, which reports the status itself.
func TestRespondedIsForTheRequestOfItsContext(t *testing.T) {
	t.Run("a handler's own request", func(t *testing.T) {
		l := httpLimiter(t, Options{Limits: []Limit{hour}, Count: failures})
		r := httptest.NewRequest("GET", "/batch", nil)
		require.True(t, l.Check(httptest.NewRecorder(), r))
		sub := httptest.NewRequest("GET", "/login", nil).WithContext(r.Context())
		require.True(t, l.Check(httptest.NewRecorder(), sub))
		require.NoError(t, l.Responded(sub.Context(), 200))
		assert.EqualValues(t, 4, leftOf(t, l, httpKey), "the batch is not over")
		require.NoError(t, l.Responded(r.Context(), 200))
		assert.EqualValues(t, 5, leftOf(t, l, httpKey))
	})
	t.Run("two keys", func(t *testing.T) {
		key := "1"
		l := httpLimiter(t, Options{Limits: []Limit{hour}, Count: failures, Key: func(*http.Request) (string, error) { return key, nil }})
		w, r := httptest.NewRecorder(), httpRequest("GET")
		require.True(t, l.Check(w, r))
		key = "2"
		require.True(t, l.Check(w, r))
		require.NoError(t, l.Responded(r.Context(), 200))
		assert.EqualValues(t, 5, leftOf(t, l, "1"))
		assert.EqualValues(t, 5, leftOf(t, l, "2"))
	})
	t.Run("Middleware", func(t *testing.T) {
		l := httpLimiter(t, Options{Limits: []Limit{hour}, Count: failures})
		l.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			assert.NoError(t, l.Responded(r.Context(), 401))
			w.WriteHeader(200)
		})).ServeHTTP(httptest.NewRecorder(), httpRequest("GET"))
		assert.EqualValues(t, 4, leftOf(t, l, httpKey), "the first status holds")
	})
	t.Run("a client that has left", func(t *testing.T) {
		l := httpLimiter(t, Options{Limits: []Limit{hour}, Count: func(*http.Request, int) bool { return false }})
		for status, left := range map[int]int64{503: 4, 200: 5} {
			ctx, cancel := context.WithCancel(t.Context())
			r := httpRequest("GET").WithContext(ctx)
			require.True(t, l.Check(httptest.NewRecorder(), r))
			cancel()
			require.NoError(t, l.Responded(r.Context(), status))
			assert.Equal(t, left, leftOf(t, l, httpKey), status)
			require.NoError(t, l.Reset(t.Context(), httpKey))
		}
	})
	t.Run("no Count", func(t *testing.T) {
		l := httpLimiter(t, Options{Limits: []Limit{hour}})
		r := httpRequest("GET")
		require.True(t, l.Check(httptest.NewRecorder(), r))
		require.NoError(t, l.Responded(r.Context(), 200))
		assert.EqualValues(t, 4, leftOf(t, l, httpKey))
	})
	t.Run("a store that fails", func(t *testing.T) {
		log := new(logged)
		store := memory(t, "x")
		l := httpLimiter(t, Options{Limits: []Limit{hour}, Count: failures, Store: &unsteadyStore{store}, Logger: log.logger()})
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		r := httpRequest("GET").WithContext(ctx)
		require.True(t, l.Check(httptest.NewRecorder(), r))
		require.NoError(t, l.Responded(r.Context(), 200))
		assert.Equal(t, []Code{CodeStoreFailed}, log.codes(), "as with Middleware")
	})
	t.Run("from many goroutines", func(t *testing.T) {
		l := httpLimiter(t, Options{Limits: []Limit{hour}, Count: failures})
		r := httpRequest("GET")
		require.True(t, l.Check(httptest.NewRecorder(), r))
		var all sync.WaitGroup
		for range 20 {
			all.Go(func() { l.Responded(r.Context(), 200) })
		}
		all.Wait()
		assert.EqualValues(t, 5, leftOf(t, l, httpKey))
	})
}

// TestCheckWithoutRespondedIsWarnedAbout has requests that end, and Count set. The
// warning comes when a second request is over whose status nobody has reported.
func TestCheckWithoutRespondedIsWarnedAbout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := new(logged)
		l := httpLimiter(t, Options{Limits: []Limit{FixedWindow(50, time.Hour)}, Count: failures, Logger: log.logger()})
		serve := func(responded bool) {
			ctx, end := context.WithCancel(context.Background())
			r := httpRequest("GET").WithContext(ctx)
			require.True(t, l.Check(httptest.NewRecorder(), r))
			if responded {
				require.NoError(t, l.Responded(r.Context(), 200))
			}
			end()
			synctest.Wait()
		}
		serve(false)
		assert.Empty(t, log.codes(), "the handler may go on")
		serve(false)
		assert.Equal(t, []Code{CodeCountIgnored}, log.codes())
		assert.Contains(t, log.text(), "call Responded with the status")

		respondedLog := new(logged)
		l = httpLimiterNamed(t, "responded", Options{Limits: []Limit{FixedWindow(50, time.Hour)}, Count: failures, Logger: respondedLog.logger()})
		serve(true)
		serve(true)
		assert.Empty(t, respondedLog.codes())
	})
}

// TestClientThatLeavesFirstIsNoReasonToWarn has a handler that goes on after its client has
// left, and reports the status then. It also has requests whose context never ends.
func TestClientThatLeavesFirstIsNoReasonToWarn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, test := range []struct {
			name            string
			ends, responded bool
			want            []Code
		}{
			{"leaves", true, true, nil},
			{"endless", false, true, nil},
			{"leaves, ignored", true, false, []Code{CodeCountIgnored}},
			{"endless, ignored", false, false, []Code{CodeCountIgnored}},
		} {
			log := new(logged)
			l := httpLimiterNamed(t, test.name, Options{Limits: []Limit{FixedWindow(50, time.Hour)}, Count: failures, Logger: log.logger()})
			for range 2 {
				ctx, leave := context.Background(), func() {}
				if test.ends {
					ctx, leave = context.WithCancel(ctx)
				}
				r := httpRequest("GET").WithContext(ctx)
				require.True(t, l.Check(httptest.NewRecorder(), r))
				leave()
				synctest.Wait()
				if test.responded {
					require.NoError(t, l.Responded(r.Context(), 200))
				}
			}
			assert.Equal(t, test.want, log.codes(), test.name)
		}
	})
}

// TestHandlerThatWritesNothingIsWarnedAbout uses Middleware in a framework that
// writes its errors after the middleware has returned.
func TestHandlerThatWritesNothingIsWarnedAbout(t *testing.T) {
	for name, test := range map[string]struct {
		opts   Options
		handle http.HandlerFunc
		want   []Code
	}{
		"nothing":           {Options{Count: failures}, func(w http.ResponseWriter, r *http.Request) {}, []Code{CodeNoResponse}},
		"early hints alone": {Options{Count: failures}, func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(103) }, []Code{CodeNoResponse}},
		"fields alone":      {Options{Count: failures}, func(w http.ResponseWriter, r *http.Request) { w.Header().Set("A", "b") }, []Code{CodeNoResponse}},
		"status":            {Options{Count: failures}, func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(204) }, nil},
		"body":              {Options{Count: failures}, func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "x") }, nil},
		"no Count":          {Options{}, func(w http.ResponseWriter, r *http.Request) {}, nil},
		"older fields":      {Options{Headers: HeadersLegacy}, func(w http.ResponseWriter, r *http.Request) {}, nil},
	} {
		log := new(logged)
		test.opts.Limits, test.opts.Logger = []Limit{hour}, log.logger()
		l := httpLimiterNamed(t, name, test.opts)
		gone, cancel := context.WithCancel(t.Context())
		leaves := l.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { cancel(); test.handle(w, r) }))
		leaves.ServeHTTP(httptest.NewRecorder(), httpRequest("GET").WithContext(gone))
		assert.Empty(t, log.codes(), "%s: the client has left, and the handler is not to blame", name)
		l.Middleware(test.handle).ServeHTTP(httptest.NewRecorder(), httpRequest("GET"))
		assert.Equal(t, test.want, log.codes(), name)
	}
}

// TestOpenStreamsHoldNoUnits has five clients with open streams of events, over a
// network, and a limit of five failures. A sixth client is served.
func TestOpenStreamsHoldNoUnits(t *testing.T) {
	begin := map[string]func(w http.ResponseWriter){
		"flushed":         func(w http.ResponseWriter) { http.NewResponseController(w).Flush() },
		"status, flushed": func(w http.ResponseWriter) { w.WriteHeader(200); http.NewResponseController(w).Flush() },
		"an event": func(w http.ResponseWriter) {
			io.WriteString(w, "data: 1\n\n")
			http.NewResponseController(w).Flush()
		},
	}
	overNetwork(t, func(t *testing.T, start func(http.Handler) *httptest.Server) {
		for name, begin := range begin {
			t.Run(name, func(t *testing.T) {
				l := httpLimiter(t, Options{Limits: []Limit{FixedWindow(5, time.Hour)}, Count: failures, Key: StaticKey("k")})
				end := make(chan struct{})
				s := start(l.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					if r.URL.Path == "/fail" {
						w.WriteHeader(403)
						return
					}
					begin(w)
					<-end
				})))
				defer close(end)
				for i := range 6 {
					answer, err := s.Client().Get(s.URL)
					require.NoError(t, err)
					defer answer.Body.Close()
					require.Equal(t, 200, answer.StatusCode, "stream %d", i)
				}
				for i := range 6 { // the limit still applies to failures
					answer, err := s.Client().Get(s.URL + "/fail")
					require.NoError(t, err)
					answer.Body.Close()
					require.Equal(t, map[bool]int{true: 403, false: 429}[i < 5], answer.StatusCode, i)
				}
			})
		}
	})
}

// TestUnitsAreBackBeforeTheStatusIsSent checks that a client's units have been given back
// when the client has the response, also on a slow store.
func TestUnitsAreBackBeforeTheStatusIsSent(t *testing.T) {
	l := httpLimiter(t, Options{Limits: []Limit{FixedWindow(1, time.Hour)}, Count: failures, Key: StaticKey("k"), Store: redisStore(t, newMini(t).client(t), "rl:"), Timeout: 10 * time.Second})
	end := make(chan struct{})
	s := httptest.NewServer(l.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(200)
		http.NewResponseController(w).Flush()
		<-end
	})))
	defer s.Close()
	defer close(end)
	for range 5 {
		answer, err := http.Get(s.URL)
		require.NoError(t, err)
		defer answer.Body.Close()
		require.Equal(t, 200, answer.StatusCode)
	}
}

// TestPanicAfterTheStatusChangesNothing panics after the status was sent, which decides
// whether the request counts.
func TestPanicAfterTheStatusChangesNothing(t *testing.T) {
	for status, want := range map[int]int64{200: 5, 401: 4} {
		l := httpLimiterNamed(t, http.StatusText(status), Options{Limits: []Limit{hour}, Count: failures})
		assert.Panics(t, func() {
			l.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				w.WriteHeader(status)
				panic(errors.New("no"))
			})).ServeHTTP(httptest.NewRecorder(), httpRequest("GET"))
		})
		assert.Equal(t, want, leftOf(t, l, httpKey), status)
	}
}

// otherContext is a context of another make, as a framework's.
type otherContext struct {
	context.Context
	done chan struct{}
}

func (c otherContext) Done() <-chan struct{} { return c.done }
func (c otherContext) Err() error {
	select {
	case <-c.done:
		return context.Canceled
	default:
		return nil
	}
}

// TestWaitingForAStatusNeedsOneGoroutine has requests whose contexts need a goroutine to
// be watched, and whose status nobody reports.
func TestWaitingForAStatusNeedsOneGoroutine(t *testing.T) {
	l := httpLimiter(t, Options{Limits: []Limit{FixedWindow(5000, time.Hour)}, Count: failures})
	// Other tests have goroutines, too. These wait for a context of another make.
	watching := func() int {
		buf := make([]byte, 1<<24)
		return bytes.Count(buf[:runtime.Stack(buf, true)], []byte("created by context.(*cancelCtx).propagateCancel"))
	}
	before := watching()
	done := make(chan struct{})
	for range 1000 {
		require.True(t, l.Check(httptest.NewRecorder(), httpRequest("GET").WithContext(otherContext{t.Context(), done})))
	}
	assert.LessOrEqual(t, watching(), before+1)
	close(done)
}

// TestClientThatHasLeftIsKnownByTheRequest reports a status with a context that does
// not end, as for work after the request.
func TestClientThatHasLeftIsKnownByTheRequest(t *testing.T) {
	l := httpLimiter(t, Options{Limits: []Limit{hour}, Count: func(*http.Request, int) bool { return false }})
	ctx, cancel := context.WithCancel(t.Context())
	r := httpRequest("GET").WithContext(ctx)
	require.True(t, l.Check(httptest.NewRecorder(), r))
	cancel()
	require.NoError(t, l.Responded(context.WithoutCancel(r.Context()), 503))
	assert.EqualValues(t, 4, leftOf(t, l, httpKey))
}

// TestLoggerThatPanicsAtTheEndOfARequest: the logger panics when it gets a warning at the end of
// a request of Check, and of one whose handler has written nothing. The request's hold ends, and
// its units go back.
func TestLoggerThatPanicsAtTheEndOfARequest(t *testing.T) {
	start := func(t *testing.T, count func(*http.Request, int) bool, limits ...Limit) (*Limiter, *logged) {
		log := &logged{panics: panicAt(CodeCountIgnored, CodeNoResponse)}
		return httpLimiter(t, Options{Limits: limits, Count: count, Logger: log.logger(), Key: StaticKey("k")}), log
	}
	check := func(l *Limiter, ctx context.Context) {
		require.True(t, l.Check(httptest.NewRecorder(), httpRequest("GET").WithContext(ctx)))
	}
	t.Run("context", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			l, log := start(t, failures, InFlight(1, time.Minute), hour)
			for range 2 { // the warning is about the second one
				ctx, end := context.WithCancel(ctx)
				check(l, ctx)
				require.Equal(t, 1, l.Stats().InFlight)
				end()
				synctest.Wait()
				require.Zero(t, l.Stats().InFlight)
			}
			require.Equal(t, []Code{CodeCountIgnored}, log.codes())
		})
	})
	t.Run("a context without an end", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			l, log := start(t, failures, InFlight(1, time.Minute), hour)
			check(l, ctx)
			time.Sleep(time.Minute)
			synctest.Wait()
			require.Panics(t, func() { check(l, ctx) }) // the warning is about the second one
			require.Equal(t, []Code{CodeCountIgnored}, log.codes())
			require.Equal(t, 1, l.Stats().InFlight)
			time.Sleep(time.Minute)
			synctest.Wait()
			require.Zero(t, l.Stats().InFlight)
		})
	})
	t.Run("no response", func(t *testing.T) {
		l, log := start(t, func(*http.Request, int) bool { return false }, hour)
		h := l.Middleware(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
		require.Panics(t, func() { h.ServeHTTP(httptest.NewRecorder(), httpRequest("GET")) })
		require.Equal(t, []Code{CodeNoResponse}, log.codes())
		require.EqualValues(t, 5, leftOf(t, l, "k"))
	})
}
