package interop_test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cenkalti/backoff/v5"
	restyv2 "github.com/go-resty/resty/v2"
	"github.com/hashicorp/go-retryablehttp"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	resty "resty.dev/v3"

	. "github.com/ratelimit-go/ratelimit"
)

// A retryingClient is an HTTP client that sends a request again after a 429.
type retryingClient struct {
	name    string // for readers
	module  string // the Go module or npm package
	setUp   string // for readers
	retries int    // the most that it sends again, or 0 if there is no maximum

	// send sends a request. The trial sees what the client does. It is nil for npm packages, which
	// testdata/npm/judge.mjs calls.
	send func(rt http.RoundTripper, method, url string)

	does string // with each of the responses of a table's row: see answers
}

var retryingClients = []retryingClient{
	{
		name: "go-retryablehttp", module: "github.com/hashicorp/go-retryablehttp", setUp: "`NewClient`", retries: 4,
		send: func(rt http.RoundTripper, method, url string) {
			client := retryablehttp.NewClient()
			client.Logger, client.HTTPClient.Transport = nil, rt
			request, err := retryablehttp.NewRequest(method, url, nil)
			if err != nil {
				panic(err)
			}
			if answer, err := client.Do(request); err == nil {
				answer.Body.Close()
			}
		},
		does: "waits | waits | waits | backs off | waits",
	},
	{
		// As its documentation shows. A 429 without a Retry-After that it can read is a
		// result, and no error.
		name: "backoff", module: "github.com/cenkalti/backoff/v5", setUp: "`RetryAfter(seconds)`",
		send: func(rt http.RoundTripper, method, url string) {
			backoff.Retry(context.Background(), func() (int, error) {
				request, err := http.NewRequest(method, url, nil)
				if err != nil {
					return 0, err
				}
				answer, err := rt.RoundTrip(request)
				if err != nil {
					return 0, err
				}
				answer.Body.Close()
				if answer.StatusCode == http.StatusTooManyRequests {
					seconds, err := strconv.ParseInt(answer.Header.Get("Retry-After"), 10, 64)
					if err == nil {
						return 0, backoff.RetryAfter(int(seconds))
					}
				}
				return answer.StatusCode, nil
			}, backoff.WithBackOff(backoff.NewExponentialBackOff()))
		},
		does: "waits | gives up | gives up | gives up | waits",
	},
	{
		name: "resty 3", module: "resty.dev/v3", setUp: "`SetRetryCount(3)`, `RetryConditionStatusTooManyRequests`", retries: 3,
		send: func(rt http.RoundTripper, method, url string) {
			client := resty.New().SetTransport(rt).SetRetryCount(3).AddRetryConditions(resty.RetryConditionStatusTooManyRequests)
			defer client.Close()
			client.R().Execute(method, url)
		},
		does: "waits | waits | waits | backs off | gives up",
	},
	{
		name: "resty 2", module: "github.com/go-resty/resty/v2", setUp: "`SetRetryCount(3)`, and a condition: status 429", retries: 3,
		send: func(rt http.RoundTripper, method, url string) {
			client := restyv2.New().SetTransport(rt).SetRetryCount(3).
				AddRetryCondition(func(r *restyv2.Response, err error) bool { return r.StatusCode() == http.StatusTooManyRequests })
			client.R().Execute(method, url)
		},
		does: "backs off | backs off | backs off | backs off | backs off",
	},
	{name: "got", module: "got", setUp: "defaults", retries: 2, does: "waits | waits | again at once | backs off | gives up"},
	{name: "ky", module: "ky", setUp: "defaults", retries: 2, does: "waits | waits | again after 597h | waits | gives up"},
	{name: "undici, RetryAgent", module: "undici", setUp: "defaults", retries: 5, does: "waits | again after 30s | again after 30s | backs off | gives up"},
	{name: "undici, interceptors.retry", module: "undici", setUp: "defaults", retries: 5, does: "waits | again after 30s | again after 30s | backs off | gives up"},
	{name: "axios with axios-retry", module: "axios-retry", setUp: "defaults", retries: 3, does: "waits | waits | again at once | again at once | gives up"},
}

// An answer is one way in which a limiter answers 429.
type answer struct {
	what    string // for readers: a column of the table
	method  string
	options Options
	removes string        // a field that is removed from the responses, as some proxies do
	wait    time.Duration // how long a client should wait
	long    bool          // so long that the clients in Go wait in virtual time
}

// older are all the older styles: each has a field that a client may read.
const older = HeadersDraft7 | HeadersDraft6 | HeadersLegacy

var answers = []answer{
	{what: "`Retry-After: 2`", method: "GET", options: Options{Limits: []Limit{FixedWindow(1, 2*time.Second)}}, wait: 2 * time.Second},
	{what: "`3600`", method: "GET", options: Options{Limits: []Limit{FixedWindow(1, time.Hour)}}, wait: time.Hour, long: true},
	{what: "`2592000`", method: "GET", options: Options{Limits: []Limit{FixedWindow(1, 30*24*time.Hour)}}, wait: 30 * 24 * time.Hour, long: true},
	{what: "`RateLimit-Reset: 2` alone", method: "GET", options: Options{Limits: []Limit{FixedWindow(1, 2*time.Second)}, Headers: older}, removes: "Retry-After", wait: 2 * time.Second},
	{what: "`Retry-After: 2`, to a POST", method: "POST", options: Options{Limits: []Limit{FixedWindow(1, 2*time.Second)}}, wait: 2 * time.Second},
}

// otherFields are answers that each client treats like the first one.
var otherFields = []answer{
	{what: "older fields", method: "GET", options: Options{Limits: []Limit{TokenBucket(1, 2*time.Second, 1)}, Headers: older}, wait: 2 * time.Second},
	{what: "no fields", method: "GET", options: Options{Limits: []Limit{SlidingWindow(1, 2*time.Second)}, Headers: HeadersNone}, wait: 2 * time.Second},
	{what: "several limits", method: "GET", options: Options{Limits: []Limit{FixedWindow(1, 2*time.Second), FixedWindow(9, time.Hour), InFlight(1, time.Minute)}, PartitionSecret: []byte("sixteen bytes ...")}, wait: 2 * time.Second},
}

// A trial is a limiter, and what it has answered.
type trial struct {
	answer
	http.Handler

	mu   sync.Mutex
	seen []exchange
}

// An exchange is a request and its response.
type exchange struct {
	at, answered time.Time
	status       int
	retryAfter   string
}

func newTrial(t *testing.T, a answer, try int) *trial {
	a.options.Key = StaticKey("key")
	limited := newLimiter(t, fmt.Sprintf("%s %s %d", t.Name(), a.what, try), a.options).Middleware(served)
	tr := &trial{answer: a}
	tr.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		x := exchange{at: time.Now()}
		recorder := httptest.NewRecorder()
		limited.ServeHTTP(recorder, r)
		header := recorder.Header()
		header.Del(a.removes)
		for name, values := range header {
			w.Header()[name] = values
		}
		x.status, x.retryAfter = recorder.Code, header.Get("Retry-After")
		w.WriteHeader(recorder.Code)
		w.Write(recorder.Body.Bytes())
		x.answered = time.Now()
		tr.mu.Lock()
		defer tr.mu.Unlock()
		tr.seen = append(tr.seen, x)
	})
	return tr
}

// does returns what the client has done with the first 429, or what is wrong with the trial.
// noted is a wait that the client has begun, and that nobody has waited for, or 0.
func (tr *trial) does(c retryingClient, noted time.Duration) string {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	denied := slices.IndexFunc(tr.seen, func(x exchange) bool { return x.status == http.StatusTooManyRequests })
	switch {
	case denied < 1:
		return fmt.Sprintf("not denied after an admission: %v", tr.seen)
	case len(tr.seen)-denied > 1+max(c.retries, 1):
		return fmt.Sprintf("more requests than retries: %v", tr.seen)
	case tr.removes == "" && tr.seen[denied].retryAfter != strconv.Itoa(int(tr.wait/time.Second)):
		return fmt.Sprintf("another Retry-After: %v", tr.seen[denied])
	}
	wait := noted
	if wait == 0 && len(tr.seen) == denied+1 {
		return "gives up"
	}
	if wait == 0 {
		wait = tr.seen[denied+1].at.Sub(tr.seen[denied].answered)
	}
	atOnce := 50 * time.Millisecond
	if c.send == nil { // a busy machine may hold up Node.js; the npm packages back off for half a second or more
		atOnce = 450 * time.Millisecond
	}
	switch {
	case wait < atOnce:
		return "again at once"
	case wait >= tr.wait-10*time.Millisecond && wait < tr.wait+5*time.Second: // timers of Node.js are up to 1 ms early
		if noted == 0 && (len(tr.seen) != denied+2 || tr.seen[denied+1].status != http.StatusNoContent) {
			return fmt.Sprintf("not one retry that is admitted: %v", tr.seen)
		}
		return "waits"
	case noted != 0:
		if noted > time.Hour {
			return fmt.Sprintf("again after %.0fh", noted.Hours())
		}
		return "again after " + noted.String()
	}
	return "backs off"
}

// TestRetryingClients sends requests with each client until one is denied, and observes what
// the client does then. The result is a row of the table in docs/testing.md.
func TestRetryingClients(t *testing.T) {
	page, err := os.ReadFile("../docs/testing.md")
	require.NoError(t, err)
	head := []string{"client", "set up with"}
	for _, a := range answers {
		head = append(head, a.what)
	}
	table := "| " + strings.Join(head, " | ") + " |\n|" + strings.Repeat("---|", len(head)) + "\n"
	for _, c := range retryingClients {
		table += fmt.Sprintf("| %s (%s) | %s | %s |\n", c.name, versionOf(t, c.module), c.setUp, c.does)
	}
	assert.True(t, strings.Contains(string(page), "\n"+table+"\n"), "docs/testing.md needs the table\n%s", table)
	for _, c := range retryingClients {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			all, want := slices.Concat(answers, otherFields), strings.Split(c.does, " | ")
			for range otherFields {
				want = append(want, want[0])
			}
			does := make([]string, len(all))
			var packages *npmPackages
			if c.send == nil {
				packages = npm(t)
			}
			for try := range 3 { // on a busy machine, a client may seem to wait for longer
				var running sync.WaitGroup
				for i, a := range all {
					if does[i] == want[i] {
						continue
					}
					if a.long && c.send != nil {
						does[i] = virtualTrial(t, a, try, c).does(c, 0)
						continue
					}
					tr := newTrial(t, a, try)
					server := httptest.NewServer(tr)
					t.Cleanup(server.Close)
					running.Go(func() {
						noted := time.Duration(0)
						for range 2 { // the second one is denied
							if c.send == nil {
								var end struct{ WaitsFor float64 }
								assert.NoError(t, packages.do("request", map[string]string{"client": c.name, "url": server.URL, "method": tr.method}, &end))
								noted = time.Duration(end.WaitsFor * float64(time.Millisecond))
							} else {
								c.send(http.DefaultTransport, tr.method, server.URL)
							}
						}
						does[i] = tr.does(c, noted)
					})
				}
				running.Wait()
			}
			assert.Equal(t, c.does, strings.Join(does[:len(answers)], " | "))
			for i, d := range does[len(answers):] {
				assert.Equal(t, want[0], d, otherFields[i].what)
			}
		})
	}
}

// virtualTrial is a trial in which waiting takes no time.
func virtualTrial(t *testing.T, a answer, try int, c retryingClient) (tr *trial) {
	synctest.Test(t, func(t *testing.T) {
		tr = newTrial(t, a, try)
		rt := roundTripper(func(r *http.Request) (*http.Response, error) {
			w := httptest.NewRecorder()
			tr.ServeHTTP(w, r)
			return w.Result(), nil
		})
		for range 2 {
			c.send(rt, a.method, "http://example.org/")
		}
	})
	return tr
}

// versionOf returns the version of a Go module or npm package that the tests use.
func versionOf(t *testing.T, module string) string {
	mod, err := os.ReadFile("go.mod")
	require.NoError(t, err)
	packages, err := os.ReadFile("testdata/npm/package.json")
	require.NoError(t, err)
	found := regexp.MustCompile(`[\s"]` + regexp.QuoteMeta(module) + `(?: v|": ")([^"\s]+)`).FindSubmatch(append(mod, packages...))
	require.NotNil(t, found, module)
	return string(found[1])
}
