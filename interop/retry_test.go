package interop_test

import (
	"net/http"
	"net/http/httptest"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-retryablehttp"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
)

// TestClientThatWaitsForRetryAfterIsAdmitted sends requests with a client that waits for
// Retry-After before it tries again. Each request needs one retry at most.
func TestClientThatWaitsForRetryAfterIsAdmitted(t *testing.T) {
	for _, test := range []struct {
		name   string
		limits []Limit
		want   []time.Duration // the waits for 8 requests, one after the other
	}{
		{"fixed", []Limit{FixedWindow(3, time.Second)}, []time.Duration{time.Second, time.Second}},
		{"sliding", []Limit{SlidingWindow(3, 1500*time.Millisecond)}, []time.Duration{2 * time.Second, time.Second, time.Second, time.Second}},
		{"bucket", []Limit{TokenBucket(1, 1500*time.Millisecond, 3)}, []time.Duration{2 * time.Second, time.Second, 2 * time.Second, time.Second, 2 * time.Second}},
		{"several", []Limit{FixedWindow(2, time.Second), FixedWindow(5, time.Minute), TokenBucket(4, time.Second, 4)}, []time.Duration{time.Second, time.Second, 58 * time.Second, time.Second}},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := newLimiter(t, t.Name(), Options{Limits: test.limits}).Middleware(served)
				client := retryablehttp.NewClient()
				client.Logger = nil
				client.HTTPClient.Transport = roundTripper(func(r *http.Request) (*http.Response, error) {
					r.RemoteAddr = "192.0.2.1:1"
					w := httptest.NewRecorder()
					h.ServeHTTP(w, r)
					return w.Result(), nil
				})
				var waits []time.Duration
				tries := 0
				client.Backoff = func(least, most time.Duration, try int, answer *http.Response) time.Duration {
					wait := retryablehttp.DefaultBackoff(least, most, try, answer)
					waits, tries = append(waits, wait), tries+1
					return wait
				}
				for range 8 {
					tries = 0
					answer, err := client.Get("http://example.org/")
					require.NoError(t, err)
					answer.Body.Close()
					require.Equal(t, http.StatusNoContent, answer.StatusCode)
					require.LessOrEqual(t, tries, 1, "a needless retry")
				}
				assert.Equal(t, test.want, waits)
			})
		})
	}
}

// roundTripper is a function as an http.RoundTripper.
type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }
