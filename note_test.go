package ratelimit_test

import (
	"context"
	"errors"
	"log/slog"
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

// logged is a slog handler that keeps the warnings.
type logged struct {
	mu      sync.Mutex
	records []slog.Record
}

func (l *logged) logger() *slog.Logger                     { return slog.New(l) }
func (l *logged) Enabled(context.Context, slog.Level) bool { return true }
func (l *logged) WithAttrs([]slog.Attr) slog.Handler       { panic("not used") }
func (l *logged) WithGroup(string) slog.Handler            { panic("not used") }
func (l *logged) Handle(_ context.Context, record slog.Record) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if record.Level >= slog.LevelWarn {
		l.records = append(l.records, record.Clone())
	}
	return nil
}

// codes are those of the warnings so far.
func (l *logged) codes() (codes []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, record := range l.records {
		record.Attrs(func(a slog.Attr) bool {
			if a.Key == "code" {
				codes = append(codes, a.Value.String())
			}
			return true
		})
	}
	return codes
}

// text is all that was logged, as a line of text each.
func (l *logged) text() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var b strings.Builder
	for _, record := range l.records {
		slog.NewTextHandler(&b, nil).Handle(context.Background(), record)
	}
	return b.String()
}

// secret stands wherever a client or a backend can write.
const secret = "s3cr3t"

// noteCases has for each code a limiter that has reason to warn, and a request.
func noteCases() map[string]struct {
	opts Options
	r    *http.Request
} {
	fails := func(err error) KeyFunc { return func(*http.Request) (string, error) { return "", err } }
	keyed := func(key string) Options { return Options{Key: StaticKey(key)} }
	negative := func(*http.Request) int64 { return -1 }
	get := from("192.0.2.1:1234", "X-Secret: "+secret, "User-Agent: "+secret, "Cookie: c="+secret)
	type noteCase = struct {
		opts Options
		r    *http.Request
	}
	return map[string]noteCase{
		CodeStoreFailed:                 {Options{Store: &brokenStore{err: errors.New("down")}}, get},
		CodeOptionFailed:                {Options{Key: fails(errors.New("bad"))}, get},
		CodeOptionFailed + " cost":      {Options{Cost: negative}, get},
		CodeOptionFailed + " plan":      {Options{LimitsFor: func(*http.Request) []Limit { return make([]Limit, 1) }}, get},
		CodeOptionFailed + " pattern":   {Options{Key: PatternKey}, get},
		CodeNoAddress:                   {Options{}, from("@")},
		CodeNoAddress + " text":         {Options{}, from(secret, "X-Forwarded-For: "+secret)},
		CodeNoAddress + " FirstKey":     {Options{Key: FirstKey(HeaderKey("X-API-Key"), ClientIP{}.Key)}, from("@")},
		CodeNoKey:                       {Options{Key: HeaderKey("X-Key")}, get},
		CodeCostTooHigh:                 {Options{Cost: func(*http.Request) int64 { return 100 }}, get},
		CodeUntrustedProxy + " other":   {Options{Key: ClientIP{TrustedProxies: networksOf("10.0.0.0/8")}.Key}, from("192.0.2.1:1", "X-Forwarded-For: "+secret)},
		CodeUntrustedProxy + " header":  {Options{Key: ClientIP{TrustedProxies: networksOf("10.0.0.0/8"), Header: "X-Real-IP"}.Key}, from("10.0.0.1:1", "X-Forwarded-For: "+secret)},
		CodeUntrustedProxy + " unknown": {Options{Key: ClientIP{TrustedProxies: networksOf("10.0.0.0/8")}.Key}, from("10.0.0.1:1", "X-Forwarded-For: unknown")},
		CodeUntrustedProxy:              {Options{}, from("192.0.2.1:1", "X-Forwarded-For: "+secret)},
		CodeUntrustedProxy + " 7239":    {Options{}, from("192.0.2.1:1", "Forwarded: for="+secret)},
		CodeUntrustedProxy + " real":    {Options{}, from("192.0.2.1:1", "X-Real-IP: "+secret)},
		CodeUntrustedProxy + " cdn":     {Options{}, from("192.0.2.1:1", "CF-Connecting-IP: "+secret)},
		CodeUntrustedProxy + " first":   {Options{Key: FirstKey(HeaderKey("X-API-Key"), ClientIP{}.Key)}, from("192.0.2.1:1", "X-Forwarded-For: "+secret)},
		CodeUntrustedProxy + " joined":  {Options{Key: JoinKeys(HeaderKey("X-Secret"), ClientIP{}.Key)}, from("192.0.2.1:1", "X-Secret: "+secret, "X-Forwarded-For: "+secret)},
		CodeKeyWithPort:                 {keyed("192.0.2.1:4711"), get},
		CodeKeyWithPort + " IPv6":       {keyed("[2001:db8::1]:4711"), get},
		CodeKeyWithPort + " RemoteAddr": {Options{Key: func(r *http.Request) (string, error) { return r.RemoteAddr, nil }}, get},
		CodeKeyWithPort + " FirstKey":   {Options{Key: FirstKey(StaticKey("192.0.2.1:4711"))}, get},
		CodeWholeIPv6:                   {keyed("2001:db8::1"), get},
		CodeWholeIPv6 + " brackets":     {keyed("[2001:db8::1]"), get},
		CodeWholeIPv6 + " zone":         {keyed("fe80::1%eth0"), get},
		CodeShadow:                      {Options{Shadow: true, Cost: func(*http.Request) int64 { return 100 }}, get},
	}
}

// TestNotes: each warning has a code and the limiter's name, comes at most once a
// minute, holds nothing that a client wrote, and can be turned off.
func TestNotes(t *testing.T) {
	for name, test := range noteCases() {
		code, _, _ := strings.Cut(name, " ")
		t.Run(name, func(t *testing.T) {
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
				assert.Equal(t, []string{code}, log.codes())
				time.Sleep(time.Minute - 1)
				serve(5)
				assert.Equal(t, []string{code}, log.codes())
				time.Sleep(time.Nanosecond)
				serve(5)
				assert.Equal(t, []string{code, code}, log.codes())
				time.Sleep(24 * time.Hour)
				serve(5)
				assert.Equal(t, []string{code, code, code}, log.codes())
				for line := range strings.Lines(log.text()) {
					assert.Regexp(t, `limiter="?`+regexp.QuoteMeta(t.Name())+`[" ]`, line)
					assert.Contains(t, line, `msg="ratelimit: `)
					assert.NotContains(t, line, secret)
				}

				silent := new(logged)
				test.opts.Logger, test.opts.Silence = silent.logger(), []string{CodeInHandler, code}
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

// TestNotesAreALimitersOwn: one that warned a lot does not keep another one quiet.
func TestNotesAreALimitersOwn(t *testing.T) {
	log := new(logged)
	for _, name := range []string{" 1", " 2"} {
		l := httpLimiterNamed(t, t.Name()+name, Options{Limits: []Limit{FixedWindow(50, time.Second)}, Logger: log.logger()})
		l.Middleware(httpServed).ServeHTTP(httptest.NewRecorder(), from("192.0.2.1:1", "Forwarded: for=x"))
	}
	assert.Equal(t, []string{CodeUntrustedProxy, CodeUntrustedProxy}, log.codes())
}

// TestNotesOfManyGoroutines comes to one.
func TestNotesOfManyGoroutines(t *testing.T) {
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
	assert.Equal(t, []string{CodeUntrustedProxy}, log.codes())
}

// TestNothingToNote: what is as it should be is not commented on.
func TestNothingToNote(t *testing.T) {
	trusting := ClientIP{TrustedProxies: networksOf("10.0.0.0/8")}
	for name, test := range map[string]struct {
		key KeyFunc
		r   *http.Request
	}{
		"address":               {nil, from("192.0.2.1:1")},
		"IPv6 address":          {nil, from("[2001:db8::1]:1")},
		"whole IPv6 by choice":  {ClientIP{IPv6Prefix: 128}.Key, from("[2001:db8::1]:1")},
		"proxy":                 {trusting.Key, from("10.0.0.1:1", "X-Forwarded-For: 198.51.100.1")},
		"API key with a colon":  {StaticKey("user:4711"), from("192.0.2.1:1")},
		"API key with brackets": {StaticKey("[x]:4711"), from("192.0.2.1:1")},
		"a network":             {StaticKey("2001:db8::/64"), from("192.0.2.1:1")},
		"no address needed":     {HeaderKey("X-Key"), from("@", "X-Key: k", "X-Forwarded-For: 198.51.100.1")},
		"first an API key":      {FirstKey(HeaderKey("X-Key"), trusting.Key), from("10.0.0.1:1", "X-Key: k", "X-Forwarded-For: 198.51.100.1")},
		"exempt":                {func(*http.Request) (string, error) { return "", ErrExempt }, from("192.0.2.1:1")},
		"whole IPv6 of a first": {FirstKey(ClientIP{IPv6Prefix: 128}.Key), from("[2001:db8::1]:1")},
	} {
		log := new(logged)
		l := httpLimiter(t, Options{Limits: []Limit{FixedWindow(50, time.Hour)}, Key: test.key, Logger: log.logger()})
		l.Middleware(httpServed).ServeHTTP(httptest.NewRecorder(), test.r)
		require.NoError(t, l.Close())
		assert.Empty(t, log.text(), name)
	}
}

// TestClientThatLeavesIsNoFailure: the store is not to blame for it.
func TestClientThatLeavesIsNoFailure(t *testing.T) {
	log := new(logged)
	ctx, leave := context.WithCancel(context.Background())
	leave()
	l := httpLimiter(t, Options{Limits: []Limit{FixedWindow(50, time.Hour)}, Logger: log.logger()})
	w := httptest.NewRecorder()
	l.Middleware(httpServed).ServeHTTP(w, httpRequest("GET").WithContext(ctx))
	assert.Equal(t, http.StatusServiceUnavailable, w.Code)
	assert.Empty(t, log.text())
	assert.EqualValues(t, 50, leftOf(t, l, httpKey))
}

// TestLimiterMadeInAHandler is said where the limiter is made, and not where one is
// made on the way of a Reload.
func TestLimiterMadeInAHandler(t *testing.T) {
	log := new(logged)
	reg := new(Registry)
	defer reg.Close()
	make := func(reg *Registry, name string, silence ...string) {
		t.Cleanup(func() { Memory(name).Close() })
		_, err := reg.New(name, Options{Limits: []Limit{FixedWindow(50, time.Hour)}, Logger: log.logger(), Silence: silence})
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
	assert.Equal(t, []string{CodeInHandler}, log.codes())
}

// TestShadowSaysHowOften it would have denied.
func TestShadowSaysHowOften(t *testing.T) {
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
