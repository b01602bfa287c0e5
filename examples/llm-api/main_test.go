package main

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"iter"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ratelimit-go/ratelimit"
	"github.com/ratelimit-go/ratelimit/ratelimittest"
)

// A service is the API of a test.
type service struct {
	*httptest.Server
	t       *testing.T
	limiter *ratelimit.Limiter
	finish  chan bool // lets one slow answer end
}

// start serves a model whose answers have ten tokens. The prompt "slow" gets one token, and
// the others when the test says so.
func start(t *testing.T, limits ...ratelimit.Limit) *service {
	s := &service{t: t, finish: make(chan bool)}
	a := &api{clients: map[string]string{"ada-key": "ada", "bob-key": "bob"}}
	a.model = func(ctx context.Context, prompt string) iter.Seq[string] {
		return func(yield func(string) bool) {
			for i := range 10 {
				if i == 1 && prompt == "slow" {
					select {
					case <-s.finish:
					case <-ctx.Done():
						return
					}
				}
				if !yield("word") {
					return
				}
			}
		}
	}
	a.limiter = ratelimittest.New(t, ratelimit.Options{Limits: limits, Key: a.clientKey})
	s.limiter = a.limiter
	s.Server = httptest.NewServer(a.handler())
	t.Cleanup(s.Close)
	return s
}

// get sends a request, and returns when the response has begun. leave disconnects the client.
func (s *service) get(key, path string) (response *http.Response, leave func()) {
	s.t.Helper()
	ctx, leave := context.WithCancel(s.t.Context())
	s.t.Cleanup(leave)
	r, err := http.NewRequestWithContext(ctx, "GET", s.URL+path, nil)
	require.NoError(s.t, err)
	r.Header.Set("X-API-Key", key)
	response, err = s.Client().Do(r)
	require.NoError(s.t, err)
	s.t.Cleanup(func() { response.Body.Close() })
	return response, leave
}

// all returns a whole response.
func (s *service) all(key, path string) (response *http.Response, body string) {
	s.t.Helper()
	response, _ = s.get(key, path)
	b, err := io.ReadAll(response.Body)
	require.NoError(s.t, err)
	return response, string(b)
}

// left returns what a client has left under a limit, as /usage says.
func (s *service) left(key, limit string) int {
	s.t.Helper()
	_, body := s.all(key, "/usage")
	var standings []struct {
		Name      string
		Remaining int
	}
	require.NoError(s.t, json.Unmarshal([]byte(body), &standings))
	for _, standing := range standings {
		if standing.Name == limit {
			return standing.Remaining
		}
	}
	s.t.Fatalf("%s does not tell of %s", body, limit)
	return 0
}

// TestStreams: a client has two streams at the same time. One that ends makes room, and so
// does a client that leaves.
func TestStreams(t *testing.T) {
	s := start(t, limits...)
	first, _ := s.get("ada-key", "/complete?prompt=slow")
	_, leave := s.get("ada-key", "/complete?prompt=slow")
	require.Equal(t, 0, s.left("ada-key", "streams"))
	denied, _ := s.all("ada-key", "/complete")
	require.Equal(t, 429, denied.StatusCode)
	require.NotEmpty(t, denied.Header.Get("Retry-After"))
	require.Equal(t, 2, s.left("bob-key", "streams"))

	s.finish <- true
	// The end of either stream makes room; this waits for the one that was let go.
	require.Eventually(t, func() bool { return s.limiter.Stats().InFlight == 1 }, 20*time.Second, time.Millisecond)
	next, body := s.all("ada-key", "/complete")
	require.Equal(t, 200, next.StatusCode)
	require.Len(t, body, 10*len("data: word\n\n"))

	first.Body.Close()
	leave()
	require.Eventually(t, func() bool { return s.limiter.Stats().InFlight == 0 }, 20*time.Second, time.Millisecond)
	require.Equal(t, 2, s.left("ada-key", "streams"))
}

// TestTokens: an answer is charged when it is over, to the minute and to the month. A client
// that leaves pays for what it was sent, and a denied request for nothing.
func TestTokens(t *testing.T) {
	s := start(t, ratelimit.InFlight(1, time.Minute).Named("streams"),
		ratelimit.TokenBucket(100, 24*time.Hour, 100).Named("tokens"), ratelimit.Monthly(1000, 1, time.UTC).Named("month"))
	response, _ := s.all("ada-key", "/complete")
	require.Contains(t, response.Header.Get("RateLimit"), `"month";r=999;`)
	require.Contains(t, response.Header.Get("RateLimit-Policy"), `"streams";q=1;qu="concurrent-requests"`)
	require.Equal(t, 990, s.left("ada-key", "month"))
	require.Equal(t, 90, s.left("ada-key", "tokens"))

	stream, leave := s.get("ada-key", "/complete?prompt=slow")
	line, err := bufio.NewReader(stream.Body).ReadString('\n')
	require.NoError(t, err)
	require.Equal(t, "data: word\n", line)
	denied, _ := s.all("ada-key", "/complete")
	require.Equal(t, 429, denied.StatusCode)
	leave()
	require.Eventually(t, func() bool { return s.limiter.Stats().InFlight == 0 }, 20*time.Second, time.Millisecond)
	require.Equal(t, 989, s.left("ada-key", "month"))

	for range 9 {
		response, _ := s.all("ada-key", "/complete")
		require.Equal(t, 200, response.StatusCode)
	}
	denied, _ = s.all("ada-key", "/complete")
	require.Equal(t, 429, denied.StatusCode, "no tokens are left")
	require.Equal(t, 899, s.left("ada-key", "month"), "the last answer was longer than what was left of the minute, and the month has all of it")
	require.Equal(t, 1000, s.left("bob-key", "month"))
}

// TestUnknownClients: a request without a valid API key is refused before it is counted.
func TestUnknownClients(t *testing.T) {
	s := start(t, limits...)
	for _, path := range []string{"/complete", "/usage"} {
		response, _ := s.all("invented", path)
		require.Equal(t, 401, response.StatusCode)
	}
	require.Zero(t, s.limiter.Stats().Allowed)
}
