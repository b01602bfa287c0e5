package ratelimit_test

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"

	. "github.com/ratelimit-go/ratelimit"
)

const problemOf = `{"type":"https://iana.org/assignments/http-problem-types#quota-exceeded",` +
	`"title":"Request cannot be satisfied as assigned quota has been exceeded",` +
	`"status":429,"detail":"Too many requests, please try again later.","violated-policies":`

func TestAnswersAreAsDocumented(t *testing.T) {
	login := []Limit{FixedWindow(2, time.Hour).Named("login")}
	three := []Limit{FixedWindow(9, time.Hour).Named("calm"), SlidingWindow(2, time.Minute).Named("m"), TokenBucket(2, time.Second, 3).Named("b")}
	key := func(key string, err error) KeyFunc {
		return func(*http.Request) (string, error) { return key, err }
	}
	costs := func(n int64) func(*http.Request) int64 { return func(*http.Request) int64 { return n } }
	get, head := httpRequest("GET"), httpRequest("HEAD")
	preflight := httpRequest("OPTIONS", "Origin: https://example.org", "Access-Control-Request-Method: PUT")
	const ( // the response if no decision was made
		badRequest = "400\nCache-Control: no-store\nContent-Length: 11\nContent-Type: text/plain; charset=utf-8\nX-Content-Type-Options: nosniff\n> Bad Request"
		internal   = "500\nCache-Control: no-store\nContent-Length: 21\nContent-Type: text/plain; charset=utf-8\nX-Content-Type-Options: nosniff\n> Internal Server Error"
		noService  = "503\nCache-Control: no-store\nContent-Length: 19\nContent-Type: text/plain; charset=utf-8\nRetry-After: 1\nX-Content-Type-Options: nosniff\n> Service Unavailable"
	)
	for _, test := range []struct {
		name   string
		opts   Options
		before int // earlier requests
		r      *http.Request
		want   string
	}{
		{"allowed", Options{}, 0, get, `204
			Ratelimit: "login";r=1;t=3600
			Ratelimit-Policy: "login";q=2;w=3600`},
		{"the last one", Options{}, 1, get, `204
			Ratelimit: "login";r=0;t=3600
			Ratelimit-Policy: "login";q=2;w=3600`},
		{"denied", Options{}, 2, get, `429` + denialHead + `
			Ratelimit: "login";r=0;t=3600
			Ratelimit-Policy: "login";q=2;w=3600
			Retry-After: 3600
			X-Content-Type-Options: nosniff
			> Too many requests, please try again later.`},
		{"denied, for a program", Options{}, 2, httpRequest("GET", "Accept: application/json"), `429
			Cache-Control: no-store
			Content-Length: 244
			Content-Type: application/problem+json
			Ratelimit: "login";r=0;t=3600
			Ratelimit-Policy: "login";q=2;w=3600
			Retry-After: 3600
			X-Content-Type-Options: nosniff
			> ` + problemOf + `["login"]}`},
		{"denied, for one that prefers text", Options{}, 2, httpRequest("GET", "Accept: application/json;q=0.5", "Accept: text/plain"), `429` + denialHead + `
			Ratelimit: "login";r=0;t=3600
			Ratelimit-Policy: "login";q=2;w=3600
			Retry-After: 3600
			X-Content-Type-Options: nosniff
			> Too many requests, please try again later.`},
		{"denied HEAD", Options{}, 2, head, `429` + denialHead + `
			Ratelimit: "login";r=0;t=3600
			Ratelimit-Policy: "login";q=2;w=3600
			Retry-After: 3600
			X-Content-Type-Options: nosniff`},
		{"denied HEAD, for a program", Options{}, 2, httpRequest("HEAD", "Accept: application/problem+json"), `429
			Cache-Control: no-store
			Content-Length: 244
			Content-Type: application/problem+json
			Ratelimit: "login";r=0;t=3600
			Ratelimit-Policy: "login";q=2;w=3600
			Retry-After: 3600
			X-Content-Type-Options: nosniff`},
		{"another message", Options{Message: `No, "ünd" </b>`}, 2, get, `429
			Cache-Control: no-store
			Content-Length: 15
			Content-Type: text/plain; charset=utf-8
			Ratelimit: "login";r=0;t=3600
			Ratelimit-Policy: "login";q=2;w=3600
			Retry-After: 3600
			X-Content-Type-Options: nosniff
			> No, "ünd" </b>`},
		{"another handler", Options{Denied: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			d, ok := DecisionFrom(r.Context())
			w.WriteHeader(http.StatusTeapot)
			fmt.Fprintf(w, "%v %v %v %v %v", ok, d.Allowed, d.Limit.Name(), d.Remaining, d.RetryAfter)
		})}, 2, get, `418
			Cache-Control: no-store
			Ratelimit: "login";r=0;t=3600
			Ratelimit-Policy: "login";q=2;w=3600
			Retry-After: 3600
			> true false login 0 1h0m0s`},

		{"several limits", Options{Limits: three}, 0, get, `204
			Ratelimit: "calm";r=8;t=3600, "m";r=1;t=60, "b";r=2;t=1
			Ratelimit-Policy: "calm";q=9;w=3600, "m";q=2;w=60, "b";q=2;w=1`},
		{"several limits, one denies", Options{Limits: three}, 2, get, `429` + denialHead + `
			Ratelimit: "calm";r=7;t=3600, "m";r=0;t=60, "b";r=1;t=1
			Ratelimit-Policy: "calm";q=9;w=3600, "m";q=2;w=60, "b";q=2;w=1
			Retry-After: 61
			X-Content-Type-Options: nosniff
			> Too many requests, please try again later.`},
		{"several limits, two deny", Options{Limits: three, Cost: costs(4)}, 0, httpRequest("GET", "Accept: application/json"), `429
			Cache-Control: no-store
			Content-Length: 244
			Content-Type: application/problem+json
			Ratelimit: "calm";r=9;t=1, "m";r=2;t=1, "b";r=3;t=1
			Ratelimit-Policy: "calm";q=9;w=3600, "m";q=2;w=60, "b";q=2;w=1
			X-Content-Type-Options: nosniff
			> ` + problemOf + `["m","b"]}`},
		{"a cost that never fits", Options{Cost: costs(3)}, 0, get, `429` + denialHead + `
			Ratelimit: "login";r=2;t=1
			Ratelimit-Policy: "login";q=2;w=3600
			X-Content-Type-Options: nosniff
			> Too many requests, please try again later.`},
		{"a cost of two", Options{Cost: costs(2)}, 0, get, `204
			Ratelimit: "login";r=0;t=3600
			Ratelimit-Policy: "login";q=2;w=3600`},
		{"no cost", Options{Cost: costs(0)}, 5, get, `204
			Ratelimit: "login";r=2;t=0
			Ratelimit-Policy: "login";q=2;w=3600`},
		{"a negative cost", Options{Cost: costs(-1)}, 0, get, internal},

		{"a plan", Options{LimitsFor: func(*http.Request) []Limit { return []Limit{FixedWindow(9, time.Hour).Named("pro")} }}, 3, get, `204
			Ratelimit: "pro";r=5;t=3600
			Ratelimit-Policy: "pro";q=9;w=3600`},
		{"no plan", Options{LimitsFor: func(*http.Request) []Limit { return []Limit{} }}, 0, get, `204
			Ratelimit: "login";r=1;t=3600
			Ratelimit-Policy: "login";q=2;w=3600`},
		{"an invalid plan", Options{LimitsFor: func(*http.Request) []Limit { return make([]Limit, 1) }}, 0, get, internal},
		{"too many plans", Options{LimitsFor: func(*http.Request) []Limit { return make([]Limit, MaxLimits+1) }}, 0, get, internal},

		{"an empty key", Options{Key: key("", nil)}, 0, get, badRequest},
		{"no key", Options{Key: key("", ErrNoKey)}, 0, get, badRequest},
		{"no key, wrapped", Options{Key: key("x", fmt.Errorf("secret: %w", ErrNoKey))}, 0, get, badRequest},
		{"no key, HEAD", Options{Key: key("", ErrNoKey)}, 0, head, strings.TrimSuffix(badRequest, "\n> Bad Request")},
		{"a key function's error", Options{Key: key("", errors.New("secret"))}, 0, get, internal},
		{"the store's error", Options{Store: &brokenStore{err: errors.New("dial tcp 10.0.0.5:6379: secret")}}, 0, get, noService},

		{"exempt", Options{Key: key("", ErrExempt)}, 5, get, "204"},
		{"exempt, wrapped", Options{Key: key("", fmt.Errorf("staff: %w", ErrExempt))}, 5, get, "204"},
		{"skipped", Options{Skip: func(r *http.Request) bool { return r.Method == "GET" }}, 5, get, "204"},
		{"skipped before the key is asked for", Options{Skip: func(r *http.Request) bool { return true }, Key: key("", ErrNoKey)}, 0, get, "204"},
		{"not skipped", Options{Skip: func(r *http.Request) bool { return r.Method == "GET" }}, 0, head, `204
			Ratelimit: "login";r=1;t=3600
			Ratelimit-Policy: "login";q=2;w=3600`},
		{"a preflight, exempt", Options{SkipPreflight: true}, 5, preflight, "204"},
		{"a preflight, counted", Options{}, 0, preflight, `204
			Ratelimit: "login";r=1;t=3600
			Ratelimit-Policy: "login";q=2;w=3600`},
		{"OPTIONS without an origin is no preflight", Options{SkipPreflight: true}, 0, httpRequest("OPTIONS", "Access-Control-Request-Method: PUT"), `204
			Ratelimit: "login";r=1;t=3600
			Ratelimit-Policy: "login";q=2;w=3600`},
		{"OPTIONS without a method is no preflight", Options{SkipPreflight: true}, 0, httpRequest("OPTIONS", "Origin: https://example.org"), `204
			Ratelimit: "login";r=1;t=3600
			Ratelimit-Policy: "login";q=2;w=3600`},
		{"GET is no preflight", Options{SkipPreflight: true}, 0, httpRequest("GET", "Origin: https://example.org", "Access-Control-Request-Method: PUT"), `204
			Ratelimit: "login";r=1;t=3600
			Ratelimit-Policy: "login";q=2;w=3600`},

		{"shadow", Options{Shadow: true}, 5, get, "204"},
		{"shadow that tells", Options{Shadow: true, Headers: HeadersDraft10}, 5, get, `204
			Ratelimit: "login";r=0;t=3600
			Ratelimit-Policy: "login";q=2;w=3600`},
		{"shadow without a key", Options{Shadow: true, Key: key("", ErrNoKey)}, 0, get, "204"},
		{"shadow with an error", Options{Shadow: true, Key: key("", errors.New("no"))}, 0, get, "204"},
		{"shadow with a broken store", Options{Shadow: true, Store: &brokenStore{err: errors.New("no")}}, 0, get, "204"},
		{"shadow with a negative cost", Options{Shadow: true, Cost: costs(-1)}, 0, get, "204"},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				if test.opts.Limits == nil {
					test.opts.Limits = login
				}
				h := httpLimiter(t, test.opts).Middleware(httpServed)
				for range test.before {
					httpAnswer(h, test.r)
				}
				assert.Equal(t, unindent(test.want), httpAnswer(h, test.r))
			})
		})
	}
}
