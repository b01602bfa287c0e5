// Package benchmarks compares this library with its rivals and with floors: code that
// does only what no library can avoid. It is a separate module, so that users of the
// library do not depend on its rivals.
//
//	go test -bench .        # check each library for exactness, then time it
//	go run ./cmd/report     # the same in several rounds, written to ../BENCHMARKS.md
package benchmarks

import (
	"cmp"
	"net"
	"net/http"
	"time"

	"github.com/ratelimit-go/ratelimit"
)

// Library is one of the compared libraries or floors.
type Library struct {
	Name   string
	Kind   Kind
	Module string // its path; empty for a part of this repository
	Setup  string // its configuration, for the report
	open   func(q quota, fields bool) subject
}

// Kind is the role of a Library in the comparison.
type Kind int

const (
	Ours Kind = iota
	Rival
	Floor
)

// Libraries are all compared libraries and floors, in the order in which they are timed.
var Libraries = []Library{
	{"fixed", Ours, "", "FixedWindow, default key and header fields (draft 10)", openInMemory(fixedWindow)},
	{sliding, Ours, "", "SlidingWindow, directly only", openInMemory(slidingWindow)},
	{"bucket", Ours, "", "TokenBucket, default key and header fields (draft 10)", openInMemory(tokenBucket)},
	{"go-limiter", Rival, "github.com/sethvargo/go-limiter", "memorystore, httplimit with IPKeyFunc", openGoLimiter},
	{"ulule", Rival, "github.com/ulule/limiter/v3", "memory.NewStore, stdlib middleware", openUlule},
	{"httprate", Rival, "github.com/go-chi/httprate", "LimitBy the address, local counter", openHTTPRate},
	{"throttled", Rival, "github.com/throttled/throttled/v2", "memstore without a maximum, VaryBy the address, 1,000 attempts to swap", openThrottled(false)},
	{"throttled-lru", Rival, "github.com/throttled/throttled/v2", "the same, memstore with a maximum of 2M keys", openThrottled(true)},
	{"x-time-mutex", Rival, "golang.org/x/time", "rate.Limiter in a map under a mutex; no header fields", openXTimeMutex},
	{"x-time-syncmap", Rival, "golang.org/x/time", "rate.Limiter in a sync.Map; no header fields", openXTimeSyncMap},
	{"tollbooth", Rival, "github.com/didip/tollbooth/v7", "by the address alone (SetIgnoreURL)", openTollbooth},
	{"xsync-cas", Floor, "github.com/puzpuzpuz/xsync/v4", "a lock-free map of words, changed by compare-and-swap", openXSyncFloor},
	{"sharded-map", Floor, "", "256 Go maps of words, each under a mutex", openShardedFloor},
	{"three-fields", Floor, "", "three header fields set, nothing counted; with fields off, nothing at all", openFieldsFloor},
}

// sliding is the name of this library's sliding window, which only some cases have.
const sliding = "sliding"

// maxKeys is the maximum for libraries that need one, unless the case sets another. It
// is above the number of inserted keys, so that no library is timed while it evicts.
const maxKeys = 2 << 20

// subject is a library set up for one case. A field is nil if the library does not have
// the feature.
type subject struct {
	// take asks for a unit. An error means that the answer is not what the case measures:
	// a call has failed, or a fallback has answered.
	take       func(key string) (admitted bool, err error)
	middleware func(next http.Handler) http.Handler
	stats      func() ratelimit.MemoryStats
	close      func()

	// audit returns why the decisions so far were not honest. keys are all keys that were
	// used, and admitted is how many of their units were admitted.
	audit func(keys []string, admitted int64) error
}

// quota is the limit of a case in terms that all libraries have. A window admits units,
// and a bucket holds units and gets one back after each refill.
type quota struct {
	units  int64
	window time.Duration
	refill time.Duration
	keys   int // the maximum number of keys; 0 means maxKeys

	// Settings that only this library has:
	block   time.Duration // how long a denial blocks a key; 0 means no blocks
	rolling bool          // a rolling window in place of the fixed one
	recheck time.Duration // Options.DenyRecheck
	wait    time.Duration // Options.MaxWait
	perDay  bool          // Daily instead of FixedWindow
	holds   bool          // InFlight instead of FixedWindow: a take is Acquire and release

	further int // further limits of this library, with longer windows

	two bool // two limits, all or none; only on PostgreSQL
}

// most returns the maximum number of keys.
func (q quota) most() int { return cmp.Or(q.keys, maxKeys) }

var (
	// plenty admits everything that a benchmark can ask for. Its buckets drain slowly
	// nevertheless: a library could drop a counter that is whole again by the next
	// request, and would not pay for it.
	plenty = quota{units: 1e9, window: time.Hour, refill: time.Second}
	// single denies every request after the first.
	single = quota{units: 1, window: time.Hour, refill: time.Hour}
)

// blocking returns the quota with blocks that last for the whole benchmark.
func (q quota) blocking() quota {
	q.block = 2 * time.Hour
	return q
}

// twice returns the quota with two limits.
func (q quota) twice() quota {
	q.two = true
	return q
}

// daily returns the quota with calendar days instead of windows.
func (q quota) daily() quota {
	q.perDay = true
	return q
}

// holding returns the quota with an in-flight limit that admits everything.
func (q quota) holding() quota {
	q.holds = true
	return q
}

// waiting returns the quota with requests that wait.
func (q quota) waiting() quota {
	q.wait = time.Second
	return q
}

// inAnyHour returns the quota with a rolling window instead of the fixed one.
func (q quota) inAnyHour() quota {
	q.rolling = true
	return q
}

// zoneOfNow returns a time zone of which the present day goes on for 12 hours at least, so
// that no benchmark sees a day end.
func zoneOfNow() *time.Location {
	if time.Now().UTC().Hour() < 12 {
		return time.UTC
	}
	return must(time.LoadLocation("Etc/GMT-12")) // 12 hours ahead of UTC
}

// atServer returns the quota with denials that the server decides.
func (q quota) atServer() quota {
	q.recheck = 1
	return q
}

// address is the key function for libraries that leave the key to their users. It
// returns the address without the port, which is the default key of other libraries.
func address(r *http.Request) (string, error) {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	return host, err
}

// must returns v. It panics on an error, for constructors that fail only on wrong
// settings.
func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}
