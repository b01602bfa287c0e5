package ratelimit_test

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
)

// httpFields are the header fields of h's answer about limits, in the order of
// their names.
func httpFields(h http.Handler, r *http.Request) string {
	var about []string
	for line := range strings.Lines(httpAnswer(h, r)) {
		if strings.Contains(line, "Ratelimit") || strings.HasPrefix(line, "Retry-After") {
			about = append(about, strings.TrimSpace(line))
		}
	}
	return strings.Join(about, "\n")
}

// TestHeaders tells of the first, the fifth and the sixth request of six, under two
// limits. In a bubble, time begins at 946684800.
func TestHeaders(t *testing.T) {
	limits := []Limit{FixedWindow(5, time.Hour).Named("h"), TokenBucket(10, 90*time.Second, 20).Named("b")}
	const (
		policy10 = `
			Ratelimit-Policy: "h";q=5;w=3600, "b";q=10;w=90`
		older = `
			Ratelimit-Policy: 5;w=3600, 10;w=90`
		six1 = `
			Ratelimit-Limit: 5` + older + `
			Ratelimit-Remaining: 4
			Ratelimit-Reset: 3600`
		six6 = `
			Ratelimit-Limit: 5` + older + `
			Ratelimit-Remaining: 0
			Ratelimit-Reset: 3600`
		legacy1 = `
			X-Ratelimit-Limit: 5
			X-Ratelimit-Remaining: 4
			X-Ratelimit-Reset: 946688400`
		legacy6 = `
			X-Ratelimit-Limit: 5
			X-Ratelimit-Remaining: 0
			X-Ratelimit-Reset: 946688400`
		retry = `
			Retry-After: 3600`
		ten1 = `
			Ratelimit: "h";r=4;t=3600, "b";r=19;t=9`
		ten6 = `
			Ratelimit: "h";r=0;t=3600, "b";r=15;t=9`
		seven1 = `
			Ratelimit: limit=5, remaining=4, reset=3600`
		seven6 = `
			Ratelimit: limit=5, remaining=0, reset=3600`
		both1 = `
			Ratelimit-Limit: 5` + policy10 + `
			Ratelimit-Remaining: 4
			Ratelimit-Reset: 3600`
		both6 = `
			Ratelimit-Limit: 5` + policy10 + `
			Ratelimit-Remaining: 0
			Ratelimit-Reset: 3600`
	)
	for _, test := range []struct {
		styles             Headers
		name, first, sixth string
	}{
		{0, "default", ten1 + policy10, ten6 + policy10 + retry},
		{HeadersDraft10, "10", ten1 + policy10, ten6 + policy10 + retry},
		{HeadersDraft7, "7", seven1 + older, seven6 + older + retry},
		{HeadersDraft6, "6", six1, six6 + retry},
		{HeadersLegacy, "legacy", legacy1, retry + legacy6},
		{HeadersNone, "none", "", retry},
		{HeadersDraft10 | HeadersDraft6, "10 and 6", ten1 + both1, ten6 + both6 + retry},
		{HeadersDraft10 | HeadersLegacy, "10 and legacy", ten1 + policy10 + legacy1, ten6 + policy10 + retry + legacy6},
		{HeadersDraft10 | HeadersDraft6 | HeadersLegacy, "10, 6 and legacy", ten1 + both1 + legacy1, ten6 + both6 + retry + legacy6},
		{HeadersDraft7 | HeadersDraft6, "7 and 6", seven1 + six1, seven6 + six6 + retry},
		{HeadersDraft7 | HeadersLegacy, "7 and legacy", seven1 + older + legacy1, seven6 + older + retry + legacy6},
		{HeadersDraft6 | HeadersLegacy, "6 and legacy", six1 + legacy1, six6 + retry + legacy6},
		{HeadersDraft7 | HeadersDraft6 | HeadersLegacy, "7, 6 and legacy", seven1 + six1 + legacy1, seven6 + six6 + retry + legacy6},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := httpLimiter(t, Options{Limits: limits, Headers: test.styles}).Middleware(httpServed)
				r := httpRequest("GET")
				assert.Equal(t, unindent(test.first), httpFields(h, r))
				for range 4 {
					httpFields(h, r)
				}
				assert.Equal(t, unindent(test.sixth), httpFields(h, r))
			})
		})
	}
}

// TestSecondsAreRoundedUp: half way through a second, a client is told the whole one.
func TestSecondsAreRoundedUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := httpLimiter(t, Options{Limits: []Limit{FixedWindow(1, 2500*time.Millisecond).Named("x")}, Headers: HeadersDraft10 | HeadersDraft6 | HeadersLegacy})
		h, r := l.Middleware(httpServed), httpRequest("GET")
		time.Sleep(700 * time.Millisecond) // the reset, at .2 of a second, is told as the next one
		assert.Equal(t, unindent(`
			Ratelimit: "x";r=0;t=3
			Ratelimit-Limit: 1
			Ratelimit-Policy: "x";q=1;w=3
			Ratelimit-Remaining: 0
			Ratelimit-Reset: 3
			X-Ratelimit-Limit: 1
			X-Ratelimit-Remaining: 0
			X-Ratelimit-Reset: 946684804`), httpFields(h, r))
		time.Sleep(2499 * time.Millisecond)
		assert.Equal(t, unindent(`
			Ratelimit: "x";r=0;t=1
			Ratelimit-Limit: 1
			Ratelimit-Policy: "x";q=1;w=3
			Ratelimit-Remaining: 0
			Ratelimit-Reset: 1
			Retry-After: 1
			X-Ratelimit-Limit: 1
			X-Ratelimit-Remaining: 0
			X-Ratelimit-Reset: 946684804`), httpFields(h, r))
	})
}

func TestRefusedHeaders(t *testing.T) {
	for _, test := range []struct {
		styles Headers
		secret []byte
		want   string
	}{
		{HeadersNone | HeadersDraft10, nil, "HeadersNone and other styles: leave one of them out"},
		{HeadersNone | HeadersLegacy, nil, "HeadersNone and other styles: leave one of them out"},
		{HeadersDraft10 | HeadersDraft7, nil, "HeadersDraft10 and HeadersDraft7, which write the same two fields: choose one of them"},
		{HeadersDraft10 | HeadersDraft7 | HeadersLegacy, nil, "HeadersDraft10 and HeadersDraft7"},
		{HeadersNone << 1, nil, "Options.Headers is 0x20: want HeadersDraft10"},
		{255, nil, "Options.Headers is 0xff: want HeadersDraft10"},
		{0, make([]byte, 15), "Options.PartitionSecret is 15 bytes long: want at least 16 random ones"},
	} {
		var reg Registry
		_, err := reg.New(t.Name(), Options{Limits: []Limit{FixedWindow(1, time.Hour)}, Headers: test.styles, PartitionSecret: test.secret})
		require.ErrorContains(t, err, test.want)
		require.ErrorContains(t, err, `ratelimit: limiter "TestRefusedHeaders": `)
	}
}

// TestProblem reads the body of a denial as a client would: as JSON, with names
// that are those of the limits that denied.
func TestProblem(t *testing.T) {
	hostile := `a"b\c é </script>`
	limits := []Limit{FixedWindow(2, time.Hour).Named(hostile), FixedWindow(9, time.Minute).Named("calm"), FixedWindow(1, time.Second).Named("s")}
	for _, test := range []struct {
		cost int64
		want []string
	}{{2, []string{"s"}}, {3, []string{hostile, "s"}}, {10, []string{hostile, "calm", "s"}}} {
		l := httpLimiter(t, Options{Limits: limits, Message: `"no" </p>`, Cost: func(*http.Request) int64 { return test.cost }})
		w := httptest.NewRecorder()
		l.Middleware(httpServed).ServeHTTP(w, httpRequest("GET", "Accept: application/problem+json"))
		require.NoError(t, l.Close())

		body, _ := io.ReadAll(w.Result().Body)
		var problem struct {
			Type, Title, Detail string
			Status              int
			Violated            []string `json:"violated-policies"`
		}
		decoder := json.NewDecoder(strings.NewReader(string(body)))
		decoder.DisallowUnknownFields()
		require.NoError(t, decoder.Decode(&problem))
		assert.Equal(t, "https://iana.org/assignments/http-problem-types#quota-exceeded", problem.Type)
		assert.Equal(t, "Request cannot be satisfied as assigned quota has been exceeded", problem.Title)
		assert.Equal(t, `"no" </p>`, problem.Detail)
		assert.Equal(t, w.Code, problem.Status)
		assert.Equal(t, test.want, problem.Violated)
		assert.Equal(t, strconv.Itoa(len(body)), w.Header().Get("Content-Length"))
	}
}

func TestNoPartitionUnasked(t *testing.T) {
	h := httpLimiter(t, Options{Limits: []Limit{FixedWindow(9, time.Hour)}}).Middleware(httpServed)
	assert.NotContains(t, httpAnswer(h, httpRequest("GET")), "pk")
}
