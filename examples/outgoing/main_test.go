package main

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ratelimit-go/ratelimit"
	"github.com/ratelimit-go/ratelimit/ratelimittest"
)

// A server answers requests, and notes when they came.
type server struct {
	mu     sync.Mutex
	start  time.Time
	came   map[string][]time.Duration // by host
	bodies []string
	answer func(n int) (status int, retryAfter string)
}

func (s *server) RoundTrip(r *http.Request) (*http.Response, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.came[r.URL.Host] = append(s.came[r.URL.Host], time.Since(s.start))
	if r.Body != nil {
		body, _ := io.ReadAll(r.Body)
		r.Body.Close()
		s.bodies = append(s.bodies, string(body))
	}
	status, after := s.answer(len(s.came[r.URL.Host]))
	response := &http.Response{StatusCode: status, Header: http.Header{}, Body: io.NopCloser(strings.NewReader("answer")), Request: r}
	if after != "" {
		response.Header.Set("Retry-After", after)
	}
	return response, nil
}

func start(t *testing.T, answer func(n int) (int, string)) (*server, *http.Client) {
	s := &server{start: time.Now(), came: make(map[string][]time.Duration), answer: answer}
	l := ratelimittest.New(t, ratelimit.Options{Limits: []ratelimit.Limit{ratelimit.TokenBucket(10, time.Second, 1)}})
	return s, &http.Client{Transport: &transport{l, s}}
}

// TestPace: all requests are sent, at the pace of the limiter, for each host.
func TestPace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, client := start(t, func(int) (int, string) { return 200, "" })
		var group sync.WaitGroup
		for _, host := range []string{"a", "b"} {
			for range 5 {
				group.Go(func() {
					response, err := client.Get("http://" + host + "/")
					require.NoError(t, err)
					response.Body.Close()
				})
			}
		}
		group.Wait()
		for _, host := range []string{"a", "b"} {
			require.Equal(t, []time.Duration{0, 100e6, 200e6, 300e6, 400e6}, s.came[host])
		}
	})
}

// TestRetryAfter: a host that says Retry-After is left alone by all requests until then, and
// gets the same body again.
func TestRetryAfter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, client := start(t, func(n int) (int, string) {
			if n == 1 {
				return http.StatusTooManyRequests, "7"
			}
			return 200, ""
		})
		var group sync.WaitGroup
		for range 3 {
			group.Go(func() {
				response, err := client.Post("http://a/", "text/plain", strings.NewReader("question"))
				require.NoError(t, err)
				require.Equal(t, 200, response.StatusCode)
				response.Body.Close()
			})
		}
		group.Wait()
		require.Equal(t, []time.Duration{0, 7000e6, 7100e6, 7200e6}, s.came["a"])
		require.Equal(t, []string{"question", "question", "question", "question"}, s.bodies)
	})
}

// TestGivesUp: a server that keeps denying is asked maxAttempts times, a request with a
// deadline that comes too early is not sent, and one that cannot be sent again is answered.
func TestGivesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, client := start(t, func(n int) (int, string) { return http.StatusServiceUnavailable, "1" })
		response, err := client.Get("http://a/")
		require.NoError(t, err)
		require.Equal(t, http.StatusServiceUnavailable, response.StatusCode)
		response.Body.Close()
		require.Equal(t, []time.Duration{0, 1000e6, 2000e6}, s.came["a"])

		response, err = client.Post("http://b/", "text/plain", io.MultiReader(strings.NewReader("once")))
		require.NoError(t, err)
		require.Equal(t, http.StatusServiceUnavailable, response.StatusCode)
		response.Body.Close()

		ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
		defer cancel()
		r, _ := http.NewRequestWithContext(ctx, "GET", "http://b/", nil)
		_, err = client.Do(r)
		var denied *ratelimit.DeniedError
		require.True(t, errors.As(err, &denied), "%v", err)
		require.Len(t, s.came["b"], 1)
	})
}

// TestRetryAfterForms lists what servers send.
func TestRetryAfterForms(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for value, want := range map[string]time.Duration{
			"": 0, "x": 0, "-5": 0, "0": 0, "3": 3 * time.Second, "999999999999": 24 * time.Hour,
			time.Now().Add(time.Minute).UTC().Format(http.TimeFormat):  time.Minute,
			time.Now().Add(-time.Minute).UTC().Format(http.TimeFormat): 0,
		} {
			response := &http.Response{StatusCode: 429, Header: http.Header{"Retry-After": {value}}}
			require.Equal(t, want, retryAfter(response), "%q", value)
			response.StatusCode = 200
			require.Zero(t, retryAfter(response))
		}
	})
}
