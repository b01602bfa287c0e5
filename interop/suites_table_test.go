package interop_test

import (
	"flag"
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// This file has the table of the suites, and docs/judges.md, which is made of it.

var suites = []suite{
	{
		module: "github.com/go-chi/httprate", shim: "httprate",
		over:     "`Middleware` and `Check` with `SlidingWindow`, `ClientIP`, `JoinKeys`, `LimitsFor`, `Cost`; in memory",
		packages: []string{"."},
		run:      45,
		differ: []difference{
			{
				tests:  []string{"TestKeyFunc_EmptyKey", "TestJoinKeys_EmptyComponent"},
				why:    "A request with an empty key, or with an empty part of a joined key, gets 400. There, all such requests share a counter.",
				prints: "got [400 400 400], want [200 200 429]",
			},
			{
				tests:  []string{"TestCanonicalizeIP/bad_IP_unchanged", "TestCanonicalizeIP/bad_IPv6_unchanged", "TestCanonicalizeIP/invalid_mapped_IPv4_unchanged"},
				why:    "Text that is no address is no key: the request gets 400. There, the text is the key.",
				prints: "CanonicalizeIP() = , want",
			},
			{
				tests:  []string{"TestCanonicalizeIP/NAT64_IPv6"},
				why:    "An address of NAT64 (RFC 6052) is the IPv4 address in it. There, all clients behind such a gateway share a key.",
				prints: "CanonicalizeIP() = 192.0.2.1, want 64:ff9b::",
			},
			{
				tests:  []string{"TestKeyByRealIP_SpoofableRegression"},
				why:    "The test documents that a client can forge its key with a header field. `ClientIP` trusts no field unless you name proxies.",
				prints: `KeyByRealIP = "203.0.113.5", want "1.2.3.4"`,
			},
			{
				tests:  []string{"TestCustomResponseHeaders/custom_headers"},
				why:    "Retry-After cannot have another name. It is not sent for a cost that can never fit, either.",
				prints: `"RateLimit-Retry" header expected`,
			},
		},
		leftOut: []leftOut{{
			tests: []string{"TestCurrentWindowOffset", "TestLocalCounterWindowOffset"},
			why:   "They test where windows begin that all keys share. Here each key has windows of its own, which begin with its first request.",
		}},
	},
	{
		module: "github.com/throttled/throttled/v2", shim: "throttled",
		over:     "`TakeN` with `TokenBucket`, on a store of `storekit` over the store that the test makes, so that the test sets the clock",
		packages: []string{"."},
		theirs:   []string{"deprecated.go", "http.go", "store.go", "varyby.go", "store/deprecated.go", "store/memstore/memstore.go", "store/redigostore/redigostore.go"},
		run:      7,
		differ: []difference{{
			tests: []string{"TestRateLimitCustomPeriod", "TestRateLimitUpdateFailures", "TestRateLimitUpdateFailuresWithRetryLimitSetToTwo"},
			why:   "The clock of their store is in the year 1. `storekit` returns an error for a clock that is not in 1970 to 2115. After that, the tests go on with a clock in 1970. The text of the last one's error is another one, too.",
			changes: []change{
				{file: "rate_test.go", from: "\tfor i := 0; i < 27; i++ {\n", to: `
	if _, _, err := rl.RateLimitCtx(context.Background(), "bar", 1); err == nil {
		t.Error("a clock in the year 1 is accepted")
	}
	st.clock = time.Unix(0, 0)
	for i := 0; i < 27; i++ {
`},
				{file: "rate_test.go", from: "store: mst, failUpdates: true", to: "store: mst, failUpdates: true, clock: time.Unix(0, 0)", times: 2},
				{
					file: "rate_test.go",
					from: `assert.EqualError(t, err, "Failed to store updated rate limit data for key foo after 2 attempts")`,
					to:   `assert.ErrorContains(t, err, "nothing was written for key")`,
				},
			},
		}},
		leftOut: []leftOut{
			{
				tests: []string{"TestHTTPRateLimiter", "TestCustomHTTPRateLimiterHandlers"},
				why:   "A stub in the test decides, and no limiter.",
			},
			{
				tests: []string{"TestVaryBy"},
				why:   "It tests the text of keys that `VaryBy` makes. Here keys are made by functions.",
			},
			{
				tests: []string{
					"store/goredisstore.TestRedisStore", "store/goredisstore.v8.TestRedisStore", "store/goredisstore.v9.TestRedisStore",
					"store/memstore.TestMemStoreLRU", "store/memstore.TestMemStoreUnlimited", "store/redigostore.TestRedisStore",
				},
				why: "They test compare-and-swap of one number, without a limiter. A store of this library counts by itself; `storetest` is the suite for stores.",
			},
		},
	},
	{
		module: "github.com/sethvargo/go-limiter", shim: "go-limiter",
		over:     "`TakeLimits` with `FixedWindow`; in memory",
		packages: []string{"httplimit", "memorystore"},
		theirs:   []string{"limiter.go", "store.go", "httplimit/middleware.go", "internal/fasttime/fasttime.go", "internal/fasttime/fasttime_windows.go"},
		run:      5,
		leftOut: []leftOut{{
			tests: []string{"memorystore.TestBucketedLimiter_tick", "memorystore.TestBucketedLimiter_availableTokens"},
			why:   "They test private functions of the store.",
		}},
	},
	{
		module: "github.com/ulule/limiter/v3", shim: "ulule",
		over:     "`TakeLimits`, `Reset`, `Middleware` and `Check` with `FixedWindow`, `ClientIP`, `ParseLimit`; in memory and on Redis",
		packages: []string{".", "drivers/middleware/fasthttp", "drivers/middleware/gin", "drivers/middleware/stdlib", "drivers/store/memory", "drivers/store/redis"},
		theirs: []string{
			"defaults.go", "limiter.go", "options.go", "store.go",
			"drivers/middleware/fasthttp/middleware.go", "drivers/middleware/fasthttp/options.go", "drivers/store/tests/tests.go",
		},
		redis: true,
		run:   14,
		differ: []difference{
			{
				tests: []string{"drivers/store/memory.TestMemoryStoreSequentialAccess", "drivers/store/redis.TestRedisStoreSequentialAccess"},
				why:   "A denied request does not count. So a look at a key that is used up is the same before and after a denial.",
				changes: []change{{
					file: "drivers/store/tests/tests.go",
					from: "is.True(lctx.Reached)\n\n\t\tlctx, err = limiter.Reset(ctx, \"foo\")",
					to:   "is.False(lctx.Reached)\n\n\t\tlctx, err = limiter.Reset(ctx, \"foo\")",
				}},
			},
			{
				tests: []string{"drivers/middleware/stdlib.TestHTTPMiddleware", "drivers/middleware/gin.TestHTTPMiddleware"},
				why:   "The request of the test has no address. It gets 400, and an address for the rest of the test. There, all requests without an address share a counter.",
				changes: []change{
					{file: "drivers/middleware/stdlib/middleware_test.go", from: "\tsuccess := int64(10)\n", to: addressed("middleware")},
					{file: "drivers/middleware/gin/middleware_test.go", from: "\tsuccess := int64(10)\n", to: addressed("router")},
				},
			},
			{
				tests: []string{"TestGetIP", "TestGetIPKey"},
				why:   "Behind one trusted proxy, the client's address is the last one in X-Forwarded-For, which the proxy has added. There, it is the first one, which a client can write. Another field is read only if `ClientIP.Header` names it.",
				changes: []change{
					{file: "network_test.go", from: `net.ParseIP("6.6.6.6")`, to: `net.ParseIP("8.8.8.8")`},
					{file: "network_test.go", from: `net.ParseIP("9.9.9.9")`, to: `net.ParseIP("6.6.6.6")`},
					{file: "network_test.go", from: `expected: "6.6.6.6"`, to: `expected: "8.8.8.8"`},
					{file: "network_test.go", from: `expected: "9.9.9.9"`, to: `expected: "6.6.6.6"`},
				},
			},
			{
				tests: []string{"drivers/store/memory.TestCacheIncrementConcurrent"},
				why:   "Windows of another length are another counter. There, the length is that of the call that has opened the window.",
				changes: []change{{
					file: "drivers/store/memory/cache_test.go",
					from: "\tvalue, expire := cache.Get(key, (100 * time.Millisecond))\n",
					to:   "\tother, _ := cache.Get(key, 100*time.Millisecond)\n\tis.Zero(other)\n\tvalue, expire := cache.Get(key, time.Second)\n",
				}},
			},
		},
		leftOut: []leftOut{{
			tests: []string{"drivers/store/redis.TestRedisClientExpiration"},
			why:   "It tests how Redis expires keys, without a store.",
		}},
	},
	{
		module: "github.com/go-redis/redis_rate/v10", shim: "redis_rate",
		over:     "`TakeLimits`, `TakeUpTo` and `Reset` with `TokenBucket`; on Redis, through a Ring",
		packages: []string{"."},
		redis:    true,
		run:      6,
		differ: []difference{{
			tests: []string{"TestAllow", "TestAllowAtMost"},
			why:   "1,000 units never fit into a bucket of 10, so RetryAfter is `Never`. There, it is 99 s, and the units do not fit after that, either.",
			changes: []change{{
				file:  "rate_test.go",
				from:  "require.InDelta(t, res.RetryAfter, 99*time.Second, float64(time.Second))",
				to:    "require.Equal(t, time.Duration(1<<63-1), res.RetryAfter)",
				times: 2,
			}},
		}},
	},
}

// addressed is text for a test of ulule's: its request, which has no address, gets 400 from a
// handler, and then an address.
func addressed(handler string) string {
	return `
	denied := httptest.NewRecorder()
	` + handler + `.ServeHTTP(denied, request)
	is.Equal(http.StatusBadRequest, denied.Code)
	request.RemoteAddr = "192.0.2.1:1"
	success := int64(10)
`
}

// A row is a line of the table.
type row struct {
	name                                       string
	run, passed, expected, unexpected, leftOut int
}

// row returns what is expected of the suite.
func (s *suite) row() row {
	r := row{name: s.module, run: s.run, leftOut: len(s.omitted())}
	for _, d := range s.differ {
		r.expected += len(d.tests)
	}
	r.passed = r.run - r.expected
	return r
}

func tableOf(rows []row) string {
	var b strings.Builder
	b.WriteString("| tests of | run | passed | expected differences | unexpected | left out |\n|---|---|---|---|---|---|\n")
	for _, r := range rows {
		fmt.Fprintf(&b, "| %s | %d | %d | %d | %d | %d |\n", r.name, r.run, r.passed, r.expected, r.unexpected, r.leftOut)
	}
	return b.String()
}

var update = flag.Bool("update", false, "write docs/judges.md")

// TestSuitesPage checks that docs/judges.md is made of the table.
func TestSuitesPage(t *testing.T) {
	const file = "../docs/judges.md"
	want := suitesPage(t)
	if *update {
		require.NoError(t, os.WriteFile(file, []byte(want), 0o666))
	}
	got, err := os.ReadFile(file)
	require.NoError(t, err)
	require.Equal(t, want, string(got), "write the page again: cd interop && go test -run TestSuitesPage . -args -update")
}

func suitesPage(t *testing.T) string {
	t.Helper()
	mod, err := os.ReadFile("go.mod")
	require.NoError(t, err)
	var b strings.Builder
	b.WriteString(`# What do outside judges say?

The tests in [interop](../interop) judge this library by software that others have written.

## The tests of other libraries

Five other libraries have tests of their own. The command below runs them on this library: a shim has the names of the other library, and a limiter of this
one decides. The tests are read from the module cache when they run. They need ` + "`redis-server`" + `.

` + "```sh" + `
cd interop && go test -v -run TestSuites .
` + "```" + `

`)
	rows := make([]row, len(suites))
	for i := range suites {
		rows[i] = suites[i].row()
		version := regexp.MustCompile(regexp.QuoteMeta(rows[i].name) + ` (v\S+)`).FindSubmatch(mod)
		require.NotNil(t, version, rows[i].name)
		rows[i].name += " " + string(version[1])
	}
	b.WriteString(tableOf(rows))
	b.WriteString(`
- A subtest counts as a test, and a test with subtests does not.
- An expected difference is a test that fails, in the way that is written below, or a test in which an assertion says what is right here.
- The command fails if the result of any test is another one, also if a difference is no more, or if a library has a test that has neither run nor been left out.
- Benchmarks do not run.
- The shims are in ` + "`interop/testdata/shims`" + `. No shim counts.
`)
	for _, s := range suites {
		fmt.Fprintf(&b, "\n### %s\n\nThe shim is %s.\n", strings.TrimPrefix(s.module, "github.com/"), s.over)
		if len(s.theirs) > 0 {
			fmt.Fprintf(&b, "These files of the library are used as they are: `%s`.\n", strings.Join(s.theirs, "`, `"))
		}
		if len(s.differ) > 0 {
			b.WriteString("\n| expected difference | tests |\n|---|---|\n")
		}
		for _, d := range s.differ {
			fmt.Fprintf(&b, "| %s | `%s` |\n", d.why, strings.Join(d.tests, "`, `"))
		}
		if len(s.leftOut) > 0 {
			b.WriteString("\n| left out, because | tests |\n|---|---|\n")
		}
		for _, l := range s.leftOut {
			fmt.Fprintf(&b, "| %s | `%s` |\n", l.why, strings.Join(l.tests, "`, `"))
		}
	}
	b.WriteString(otherJudges)
	return b.String()
}

const otherJudges = `
## Other judges

| judge | what it checks | command |
|---|---|---|
| throttled's GCRA, golang.org/x/time/rate | ` + "`TokenBucket`" + ` gives the same answer to each of 100,000 calls, under one clock | ` + "`cd interop && go test -run TestBucketsDecideTheSame .`" + ` |
| hashicorp/go-retryablehttp | a client that waits for Retry-After needs one retry at most | ` + "`cd interop && go test -run TestClientThatWaitsForRetryAfterIsAdmitted .`" + ` |
| dunglas/httpsfv, a parser of structured fields | it reads back the names of policies and all numbers | ` + "`cd interop && go test -run 'TestPolicyNamesCanBeParsed|TestInFlightLimitsCanBeParsed' .`" + ` |
| npm's ratelimit-header-parser | it reads the fields of the older styles | ` + "`cd interop && go test -run TestNpmParserReadsEachStyle .`" + ` |
`
