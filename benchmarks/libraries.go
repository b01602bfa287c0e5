// Package benchmarks measures this library beside its rivals and beside floors:
// code that does only what none of them can avoid. It is a module of its own so
// that nobody who uses the library depends on its rivals.
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

// Library is one of the things that are compared.
type Library struct {
	Name   string
	Kind   Kind
	Module string // its path; empty for what is part of this module
	Setup  string // the configuration it was given, for the report
	open   func(q quota, fields bool) subject
}

// Kind tells what a Library is there for.
type Kind int

const (
	Ours Kind = iota
	Rival
	Floor
)

// Libraries are all that is compared, in the order in which they are timed.
var Libraries = []Library{
	{"fixed", Ours, "", "FixedWindow, default key and header fields (draft 10)", openFixed},
	{"bucket", Ours, "", "TokenBucket, default key and header fields (draft 10)", openBucket},
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

// maxKeys is given to libraries that want a maximum, unless the case is about that:
// above all that is inserted, so that nobody is timed while evicting.
const maxKeys = 2 << 20

// subject is a library set up for one case. What it does not have is nil.
type subject struct {
	take       func(key string) bool
	middleware func(next http.Handler) http.Handler
	stats      func() ratelimit.MemoryStats
	close      func()
}

// quota is the limit of a case in terms that all libraries have: windows admit
// so many units, and buckets hold as many and get one back after each refill.
type quota struct {
	units  int64
	window time.Duration
	refill time.Duration
	keys   int // the maximum, if not maxKeys
}

// most is the maximum of keys.
func (q quota) most() int { return cmp.Or(q.keys, maxKeys) }

var (
	// plenty admits whatever a benchmark can ask for. Buckets drain slowly even
	// so, because a counter that is whole again by the next request could be
	// dropped and would cost nothing.
	plenty = quota{units: 1e9, window: time.Hour, refill: time.Second}
	// single denies from the second request on.
	single = quota{units: 1, window: time.Hour, refill: time.Hour}
)

// address is the key of a request for libraries that leave that to their users:
// the address without its port, which is what the others take by themselves.
func address(r *http.Request) (string, error) {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	return host, err
}

// must is for constructors that fail only on settings that are wrong.
func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}
