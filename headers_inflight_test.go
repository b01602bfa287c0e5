package ratelimit_test

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
)

// export is an in-flight limit for the tests of header fields.
var export = InFlight(20, 30*time.Second).Named("export")

// TestHeadersOfInFlightLimits has each style, for an in-flight limit alone and beside a rate
// that does not bind: the first request, and one that is denied 1.5 s after the first of 20
// holds began. In a bubble, time begins at 946684800.
func TestHeadersOfInFlightLimits(t *testing.T) {
	const (
		aloneTen   = "Ratelimit-Policy: \"export\";q=20;qu=\"concurrent-requests\"\n"
		aloneOlder = "Ratelimit-Policy: 20;qu=\"concurrent-requests\"\n"
		bothTen    = "Ratelimit-Policy: \"h\";q=100;w=3600, \"export\";q=20;qu=\"concurrent-requests\"\n"
		bothOlder  = "Ratelimit-Policy: 100;w=3600, 20;qu=\"concurrent-requests\"\n"

		six1    = "Ratelimit-Limit: 20\nPOLICYRatelimit-Remaining: 19\nRatelimit-Reset: 30\n"
		six21   = "Ratelimit-Limit: 20\nPOLICYRatelimit-Remaining: 0\nRatelimit-Reset: 30\n"
		seven1  = "Ratelimit: limit=20, remaining=19, reset=30\n"
		seven21 = "Ratelimit: limit=20, remaining=0, reset=30\n"

		legacy1  = "X-Ratelimit-Limit: 20\nX-Ratelimit-Remaining: 19\nX-Ratelimit-Reset: 946684830\n"
		legacy21 = "X-Ratelimit-Limit: 20\nX-Ratelimit-Remaining: 0\nX-Ratelimit-Reset: 946684832\n"
		retry    = "Retry-After: 29\n"
	)
	ten := map[string][2]string{
		"alone": {"Ratelimit: \"export\";r=19\n", "Ratelimit: \"export\";r=0\n"},
		"both":  {"Ratelimit: \"h\";r=99;t=3600, \"export\";r=19\n", "Ratelimit: \"h\";r=79;t=3599, \"export\";r=0\n"},
	}
	policies := map[string][2]string{"alone": {aloneTen, aloneOlder}, "both": {bothTen, bothOlder}}
	limits := map[string][]Limit{"alone": {export}, "both": {export, FixedWindow(100, time.Hour).Named("h")}}
	for _, kind := range []string{"alone", "both"} {
		for name, tc := range map[string]struct {
			styles        Headers
			first, denied string
		}{
			"10":               {HeadersDraft10, ten[kind][0] + policies[kind][0], ten[kind][1] + policies[kind][0] + retry},
			"7":                {HeadersDraft7, seven1 + policies[kind][1], seven21 + policies[kind][1] + retry},
			"6":                {HeadersDraft6, six1, six21 + retry},
			"legacy":           {HeadersLegacy, legacy1, retry + legacy21},
			"none":             {HeadersNone, "", retry},
			"7, 6 and legacy":  {HeadersDraft7 | HeadersDraft6 | HeadersLegacy, seven1 + six1 + legacy1, seven21 + six21 + retry + legacy21},
			"10, 6 and legacy": {HeadersDraft10 | HeadersDraft6 | HeadersLegacy, ten[kind][0] + six1 + legacy1, ten[kind][1] + six21 + retry + legacy21},
		} {
			t.Run(kind+", "+name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					policy := policies[kind][1]
					if tc.styles&HeadersDraft10 != 0 {
						policy = policies[kind][0]
					}
					of := strings.NewReplacer("POLICY", policy)
					l := httpLimiter(t, Options{Limits: limits[kind], Headers: tc.styles})
					h := l.Middleware(httpServed)
					assert.Equal(t, strings.TrimSpace(of.Replace(tc.first)), httpFields(h, httpRequest("GET")))
					for range 20 {
						_, d, err := l.Acquire(ctx, httpKey)
						require.NoError(t, err)
						require.True(t, d.Allowed)
					}
					time.Sleep(1500 * time.Millisecond)
					assert.Equal(t, strings.TrimSpace(of.Replace(tc.denied)), httpFields(h, httpRequest("GET")))
				})
			})
		}
	}
}

// TestHeadersWhenARateDenies: the in-flight limit beside it shows what is free, also in the
// answer to a denial, and has no time.
func TestHeadersWhenARateDenies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := httpLimiter(t, Options{Limits: []Limit{FixedWindow(1, time.Minute).Named("m"), export}, Headers: HeadersDraft10 | HeadersLegacy})
		h := l.Middleware(httpServed)
		assert.Equal(t, unindent(`
			Ratelimit: "m";r=0;t=60, "export";r=19
			Ratelimit-Policy: "m";q=1;w=60, "export";q=20;qu="concurrent-requests"
			X-Ratelimit-Limit: 1
			X-Ratelimit-Remaining: 0
			X-Ratelimit-Reset: 946684860`), httpFields(h, httpRequest("GET")))
		assert.Equal(t, unindent(`
			Ratelimit: "m";r=0;t=60, "export";r=20
			Ratelimit-Policy: "m";q=1;w=60, "export";q=20;qu="concurrent-requests"
			Retry-After: 60
			X-Ratelimit-Limit: 1
			X-Ratelimit-Remaining: 0
			X-Ratelimit-Reset: 946684860`), httpFields(h, httpRequest("GET")))
	})
}

// TestHeadersOfNestedInFlightLimits: a limiter inside another one adds its member, and the
// older styles show what binds.
func TestHeadersOfNestedInFlightLimits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const styles = HeadersDraft10 | HeadersLegacy
		out := httpLimiterNamed(t, "out", Options{Limits: []Limit{hour.Named("out")}, Headers: styles})
		in := httpLimiterNamed(t, "in", Options{Limits: []Limit{InFlight(3, time.Minute).Named("in")}, Headers: styles})
		assert.Equal(t, unindent(`
			Ratelimit: "out";r=4;t=3600, "in";r=2
			Ratelimit-Policy: "out";q=5;w=3600, "in";q=3;qu="concurrent-requests"
			X-Ratelimit-Limit: 3
			X-Ratelimit-Remaining: 2
			X-Ratelimit-Reset: 946684860`), httpFields(out.Middleware(in.Middleware(httpServed)), httpRequest("GET")))
		assert.Equal(t, unindent(`
			Ratelimit: "in";r=2, "out";r=3;t=3600
			Ratelimit-Policy: "in";q=3;qu="concurrent-requests", "out";q=5;w=3600
			X-Ratelimit-Limit: 3
			X-Ratelimit-Remaining: 2
			X-Ratelimit-Reset: 946684860`), httpFields(in.Middleware(out.Middleware(httpServed)), httpRequest("GET")))
	})
}

// TestPartitionOfInFlightLimits: the parameter pk comes last in each member.
func TestPartitionOfInFlightLimits(t *testing.T) {
	l := httpLimiter(t, Options{Limits: []Limit{export, hour.Named("h")}, PartitionSecret: []byte("sixteen bytes ...")})
	const pk = `;pk=:[A-Za-z0-9+/]{22}==:`
	require.Regexp(t, `^Ratelimit: "h";r=4;t=3600`+pk+`, "export";r=19`+pk+
		"\nRatelimit-Policy: \"h\";q=5;w=3600"+pk+`, "export";q=20;qu="concurrent-requests"`+pk+`$`, httpFields(l.Middleware(httpServed), httpRequest("GET")))
}

// TestInFlightFieldsOverHTTP has a slow download and a second request over a real
// connection: what the second client gets, and that the first one's fields are sent while its
// hold lasts. The hold ends before the server is asked again.
func TestInFlightFieldsOverHTTP(t *testing.T) {
	finish := make(chan struct{})
	l := httpLimiter(t, Options{Limits: []Limit{InFlight(1, 30*time.Second).Named("export"), FixedWindow(100, time.Hour).Named("h")}, Key: StaticKey("k")})
	server := httptest.NewServer(l.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/slow" {
			w.(http.Flusher).Flush()
			<-finish
		}
	})))
	defer server.Close()
	get := func(path string) *http.Response {
		r, err := http.NewRequest("GET", server.URL+path, nil)
		require.NoError(t, err)
		r.Header.Set("Accept", "application/problem+json")
		res, err := server.Client().Do(r)
		require.NoError(t, err)
		t.Cleanup(func() { res.Body.Close() })
		return res
	}
	slow := get("/slow")
	require.Equal(t, http.StatusOK, slow.StatusCode)
	require.Equal(t, []string{`"h";r=99;t=3600, "export";r=0`}, slow.Header.Values("RateLimit"))
	require.Empty(t, slow.Header.Values("Retry-After"))
	require.Equal(t, 1, l.Stats().InFlight)

	denied := get("/")
	require.Equal(t, http.StatusTooManyRequests, denied.StatusCode)
	require.Regexp(t, `^"h";r=99;t=3[56]\d\d, "export";r=0$`, denied.Header.Get("RateLimit"))
	require.Equal(t, []string{`"h";q=100;w=3600, "export";q=1;qu="concurrent-requests"`}, denied.Header.Values("RateLimit-Policy"))
	require.Regexp(t, `^[23]\d$`, denied.Header.Get("Retry-After"))
	require.Equal(t, "no-store", denied.Header.Get("Cache-Control"))
	var problem struct {
		Status   int
		Violated []string `json:"violated-policies"`
	}
	require.NoError(t, json.NewDecoder(denied.Body).Decode(&problem))
	require.Equal(t, http.StatusTooManyRequests, problem.Status)
	require.Equal(t, []string{"export"}, problem.Violated)

	close(finish)
	_, err := io.ReadAll(slow.Body)
	require.NoError(t, err)
	require.Eventually(t, func() bool { return l.Stats().InFlight == 0 }, time.Minute, time.Millisecond)
	again := get("/")
	require.Equal(t, http.StatusOK, again.StatusCode)
	require.Regexp(t, `^"h";r=98;t=3[56]\d\d, "export";r=0$`, again.Header.Get("RateLimit"), "a denial took no unit")
}

// TestRetryAfterOfAnInFlightDenial is until the first hold would end by itself: at most the
// hold, and as long as that for holds of requests, which are renewed.
func TestRetryAfterOfAnInFlightDenial(t *testing.T) {
	for name, store := range map[string]func(t *testing.T) Store{
		"memory": func(t *testing.T) Store { return memory(t, "store") },
		"remote": func(t *testing.T) Store { return &remoteBackend{Store: memory(t, "store")} },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				opts := quiet(InFlight(2, time.Minute))
				opts.Key = StaticKey("k")
				l := processOf(t, store(t), opts)
				finish := make(chan struct{})
				defer func() { close(finish); synctest.Wait() }()
				hold := func() {
					go l.Middleware(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-finish })).ServeHTTP(httptest.NewRecorder(), httpRequest("GET"))
					synctest.Wait()
				}
				hold()
				time.Sleep(10 * time.Minute)
				_, d, err := l.Acquire(ctx, "k")
				require.NoError(t, err)
				require.True(t, d.Allowed)
				time.Sleep(20 * time.Second)
				_, d, err = l.Acquire(ctx, "k")
				require.NoError(t, err)
				require.Equal(t, 40*time.Second, d.RetryAfter, "the hold of Acquire ends first")
				require.Equal(t, d.RetryAfter, d.MoreAfter)
				require.Equal(t, time.Minute, d.ResetAfter)
				time.Sleep(40 * time.Second)
				synctest.Wait()
				hold()
				_, d, err = l.Acquire(ctx, "k")
				require.NoError(t, err)
				require.False(t, d.Allowed)
				require.Greater(t, d.RetryAfter, 39*time.Second, "records are renewed three times in each hold")
				require.LessOrEqual(t, d.RetryAfter, time.Minute)
			})
		})
	}
}
