package ratelimit_test

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
)

// warningCase is a limiter that should warn, and the request that causes the warning.
type warningCase struct {
	opts Options
	r    *http.Request
}

// requestWithSecrets makes a request with header fields that no log line may contain.
func requestWithSecrets() *http.Request {
	return from("192.0.2.1:1234", "X-Secret: "+secret, "User-Agent: "+secret, "Cookie: c="+secret)
}

// TestWarningsHaveACodeAndComeOnceAMinute also checks that a warning has the
// limiter's name and nothing that a client wrote, and that Options.Silence
// turns it off.
func TestWarningsHaveACodeAndComeOnceAMinute(t *testing.T) {
	fails := func(err error) KeyFunc { return func(*http.Request) (string, error) { return "", err } }
	negative := func(*http.Request) int64 { return -1 }
	get := requestWithSecrets()
	testWarnings(t, map[Code]warningCase{
		CodeStoreFailed:               {Options{Store: &brokenStore{err: errors.New("down")}}, get},
		CodeOptionFailed:              {Options{Key: fails(errors.New("bad"))}, get},
		CodeOptionFailed + " cost":    {Options{Cost: negative}, get},
		CodeOptionFailed + " plan":    {Options{LimitsFor: func(*http.Request) []Limit { return make([]Limit, 1) }}, get},
		CodeOptionFailed + " pattern": {Options{Key: PatternKey}, get},
		CodeNoAddress:                 {Options{}, from("@")},
		CodeNoAddress + " text":       {Options{}, from(secret, "X-Forwarded-For: "+secret)},
		CodeNoAddress + " FirstKey":   {Options{Key: FirstKey(HeaderKey("X-API-Key"), ClientIP{}.Key)}, from("@")},
		CodeNoKey:                     {Options{Key: HeaderKey("X-Key")}, get},
		CodeCostTooHigh:               {Options{Cost: func(*http.Request) int64 { return 100 }}, get},
		CodeShadow:                    {Options{Shadow: true, Cost: func(*http.Request) int64 { return 100 }}, get},
	})
}

// testWarnings checks the warnings of each case. The name of a case begins with the
// warning's code.
func testWarnings(t *testing.T, cases map[Code]warningCase) {
	for name, test := range cases {
		text, _, _ := strings.Cut(string(name), " ")
		code := Code(text)
		t.Run(string(name), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				log := new(logged)
				test.opts.Limits, test.opts.Logger = []Limit{FixedWindow(50, time.Second)}, log.logger()
				h := httpLimiter(t, test.opts).Middleware(httpServed)
				serve := func(n int) {
					for range n {
						h.ServeHTTP(httptest.NewRecorder(), test.r)
					}
				}
				serve(5)
				assert.Equal(t, []Code{code}, log.codes())
				time.Sleep(time.Minute - 1)
				serve(5)
				assert.Equal(t, []Code{code}, log.codes())
				time.Sleep(time.Nanosecond)
				serve(5)
				assert.Equal(t, []Code{code, code}, log.codes())
				time.Sleep(24 * time.Hour)
				serve(5)
				assert.Equal(t, []Code{code, code, code}, log.codes())
				for line := range strings.Lines(log.text()) {
					assert.Regexp(t, `limiter="?`+regexp.QuoteMeta(t.Name())+`[" ]`, line)
					assert.Contains(t, line, `msg="ratelimit: `)
					assert.NotContains(t, line, secret)
				}

				silent := new(logged)
				test.opts.Logger, test.opts.Silence = silent.logger(), []Code{CodeInHandler, code}
				if test.opts.Store != nil {
					test.opts.Store = &brokenStore{err: errors.New("down")}
				}
				quiet := httpLimiterNamed(t, t.Name()+" silent", test.opts)
				quiet.Middleware(httpServed).ServeHTTP(httptest.NewRecorder(), test.r)
				assert.Empty(t, silent.text())
			})
		})
	}
}

func TestWarningsOfOneLimiterDoNotSilenceAnother(t *testing.T) {
	log := new(logged)
	for _, name := range []string{" 1", " 2"} {
		l := httpLimiterNamed(t, t.Name()+name, Options{Limits: []Limit{FixedWindow(50, time.Second)}, Logger: log.logger()})
		l.Middleware(httpServed).ServeHTTP(httptest.NewRecorder(), from("192.0.2.1:1", "Forwarded: for=x"))
	}
	assert.Equal(t, []Code{CodeUntrustedProxy, CodeUntrustedProxy}, log.codes())
}

func TestManyGoroutinesCauseOneWarning(t *testing.T) {
	log := new(logged)
	h := httpLimiter(t, Options{Limits: []Limit{FixedWindow(5000, time.Hour)}, Logger: log.logger()}).Middleware(httpServed)
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			for range 20 {
				h.ServeHTTP(httptest.NewRecorder(), from("192.0.2.1:1", "Forwarded: for=x"))
			}
		})
	}
	wg.Wait()
	assert.Equal(t, []Code{CodeUntrustedProxy}, log.codes())
}

// TestCancelledRequestCausesNoWarning checks that the store is not reported as
// failed, and that no units are taken.
func TestCancelledRequestCausesNoWarning(t *testing.T) {
	log := new(logged)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	l := httpLimiter(t, Options{Limits: []Limit{FixedWindow(50, time.Hour)}, Logger: log.logger()})
	w := httptest.NewRecorder()
	l.Middleware(httpServed).ServeHTTP(w, httpRequest("GET").WithContext(ctx))
	assert.Equal(t, http.StatusServiceUnavailable, w.Code)
	assert.Empty(t, log.text())
	assert.EqualValues(t, 50, leftOf(t, l, httpKey))
}

// TestLimiterMadeInAHandlerIsWarnedAbout makes limiters in handlers and
// outside. One that is made during a Reload causes no warning.
func TestLimiterMadeInAHandlerIsWarnedAbout(t *testing.T) {
	log := new(logged)
	reg := new(Registry)
	defer reg.Close()
	make := func(reg *Registry, name string, silenced ...Code) {
		t.Cleanup(func() { Memory(name).Close() })
		_, err := reg.New(name, Options{Limits: []Limit{FixedWindow(50, time.Hour)}, Logger: log.logger(), Silence: silenced})
		require.NoError(t, err)
	}
	serve := func(f func()) {
		http.HandlerFunc(func(http.ResponseWriter, *http.Request) { f() }).ServeHTTP(httptest.NewRecorder(), httpRequest("GET"))
	}
	make(reg, t.Name()+" outside")
	serve(func() { make(reg, t.Name()+" silent", CodeInHandler) })
	serve(func() {
		require.NoError(t, reg.Reload(func(next *Registry) error {
			make(next, t.Name()+" reloaded")
			return nil
		}))
	})
	assert.Empty(t, log.codes())
	serve(func() { make(reg, t.Name()+" inside") })
	assert.Equal(t, []Code{CodeInHandler}, log.codes())
}

func TestShadowWarningHasTheNumberOfDenials(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := new(logged)
		l := httpLimiter(t, Options{Limits: []Limit{FixedWindow(1, time.Hour)}, Shadow: true, Logger: log.logger()})
		serve := func() { l.Middleware(httpServed).ServeHTTP(httptest.NewRecorder(), httpRequest("GET")) }
		for range 11 {
			serve()
		}
		time.Sleep(time.Minute)
		serve()
		lines := strings.Split(strings.TrimSpace(log.text()), "\n")
		require.Len(t, lines, 2)
		assert.Regexp(t, `[ =]1$`, lines[0])
		assert.Regexp(t, `[ =]11$`, lines[1])
		assert.EqualValues(t, 11, l.Stats().ShadowDenied)
	})
}

// TestLaterRequestsAreCheckedToo sends correct requests before the one that shows a
// mistake.
func TestLaterRequestsAreCheckedToo(t *testing.T) {
	log := new(logged)
	h := httpLimiter(t, Options{Limits: []Limit{FixedWindow(50, time.Hour)}, Logger: log.logger()}).Middleware(httpServed)
	for range 10 {
		h.ServeHTTP(httptest.NewRecorder(), from("192.0.2.1:1"))
	}
	require.Empty(t, log.codes())
	h.ServeHTTP(httptest.NewRecorder(), from("192.0.2.1:1", "X-Forwarded-For: 198.51.100.1"))
	require.Equal(t, []Code{CodeUntrustedProxy}, log.codes())
}
