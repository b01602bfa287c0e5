package e2e_test

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"runtime/pprof"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
)

// TestFaultsKeepLimitsWithinBounds injects each fault into real servers while callers keep
// calling. It does not measure the machine: deadlines are generous.
func TestFaultsKeepLimitsWithinBounds(t *testing.T) {
	rows := runFaults(t, slices.Concat(faults, postgresFaults), 0)
	if *update && slowFaults && !t.Failed() {
		writeFaults(t, rows)
	}
}

// TestFaultsWithLeasesKeepLimitsWithinBounds does the same with leases.
func TestFaultsWithLeasesKeepLimitsWithinBounds(t *testing.T) {
	if !slowFaults {
		t.Skip("takes some seconds: set RATELIMIT_FAULTS=1")
	}
	runFaults(t, faults, 250*time.Millisecond)
}

// slowFaults reports whether to run the faults that take seconds.
var slowFaults = os.Getenv("RATELIMIT_FAULTS") != ""

// runFaults injects faults and returns their rows of the table.
func runFaults(t *testing.T, faults []*fault, lease time.Duration) []row {
	slots := make(chan struct{}, 4) // more faults at a time would only wait for processors
	var all sync.WaitGroup
	rows := make([]row, len(faults))
	for i, f := range faults {
		all.Go(func() {
			t.Run(f.id(), func(t *testing.T) {
				if f.slow && !slowFaults {
					t.Skip("takes some seconds: set RATELIMIT_FAULTS=1")
				}
				slots <- struct{}{}
				defer func() { <-slots }()
				pprof.Do(context.Background(), pprof.Labels("fault", t.Name()), func(context.Context) { rows[i] = f.run(t, lease) })
			})
		})
	}
	all.Wait()
	return rows
}

// fault is one way in which a store's servers fail.
type fault struct {
	name  string // in the table
	lasts time.Duration
	slow  bool // takes more than about a second
	on    FailurePolicy
	setup func(*stage)
	loss  loss
}

// loss is the part of the counters that the store has lost when it is back.
type loss string

const (
	lossNone   loss = "none"
	lossLatest loss = "the latest" // those not yet saved or replicated
	lossAll    loss = "all"
)

// id returns the name of a fault's test.
func (f *fault) id() string {
	return strings.NewReplacer(" ", "-", ",", "", "%", "", ":", "", "`", "").Replace(f.name + " " + f.on.String())
}

// stage is what a fault acts on. A fault's setup starts the servers and sets the fields.
type stage struct {
	*testing.T
	limits faultLimits
	blocks faultBlocks
	client redis.UniversalClient
	down   bool                    // the store is down from the start
	wrap   func(Store) Store       // of each limiter's RedisStore, if not nil
	store  func(name string) Store // of each limiter, if not nil: then there is no client
	close  func()                  // closes what store returned

	strike, mend, after func()

	dialed, open atomic.Int64                // connections
	refuse       atomic.Pointer[net.OpError] // the error of dialling, if it must fail
}

// dial makes a connection and counts it.
func (s *stage) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	if err := s.refuse.Load(); err != nil {
		return nil, err
	}
	conn, err := new(net.Dialer).DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	s.dialed.Add(1)
	s.open.Add(1)
	return &countedConn{Conn: conn, open: &s.open}, nil
}

// countedConn is a connection that is counted until it is closed.
type countedConn struct {
	net.Conn
	open *atomic.Int64
	once sync.Once
}

func (c *countedConn) Close() error {
	c.once.Do(func() { c.open.Add(-1) })
	return c.Conn.Close()
}

// connect makes a client of a single server or a proxy.
func (s *stage) connect(addr string, opts ...func(*redis.Options)) {
	o := &redis.Options{Addr: addr, Dialer: s.dial}
	for _, opt := range opts {
		opt(o)
	}
	s.client = redis.NewClient(o)
}

// row is the result of a fault.
type row struct {
	fault     *fault
	decisions int64
	errors    int64
	worst     time.Duration
	failed    uint64 // calls to the store
	over      int64  // units above the limits
	blocks    int64  // that have begun
	unblocked int64  // of these, the ones that the store does not have afterwards
	recovery  time.Duration
}

const (
	faultCallers = 64
	faultTimeout = 100 * time.Millisecond
	// faultPatience is how long the test waits for anything that must happen.
	faultPatience = 30 * time.Second
	// faultHangs is longer than any answer takes. While the machine gives the callers no
	// processor, answers take longer; see faultCalls.heldUp.
	faultHangs = 30 * faultTimeout
)

// faultLimits are four limiters on one client.
type faultLimits struct {
	few  *Limiter // 20 units a key: for keys that are used up, or half used, and hundreds of others
	hot  *Limiter // one key that many callers use up during the fault
	busy *Limiter // one key that is never used up
	ban  *Limiter // 20 units a key, and denials block: a key that is blocked before the fault, and others
}

const (
	fewN, hotN = 20, 1500
	spreadKeys = 200
	banCost    = 10 // of a call of the limiter with blocks
)

// banned is the limit with blocks. A second block of a key would show in its duration.
var banned = FixedWindow(fewN, time.Hour).Block(3*time.Hour, 24*time.Hour)

// faultBlocks has the blocks that have begun, by key.
type faultBlocks struct {
	mu   sync.Mutex
	last map[string]time.Duration
}

// observe notes blocks.
func (b *faultBlocks) observe(_ context.Context, e Event) {
	if e.Kind != EventBlocked {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.last == nil {
		b.last = make(map[string]time.Duration)
	}
	b.last[e.Key] = max(b.last[e.Key], e.Duration)
}

func (l *faultLimits) all() []*Limiter { return []*Limiter{l.few, l.hot, l.busy, l.ban} }

func (l *faultLimits) stats() (sum RemoteStats) {
	for _, limiter := range l.all() {
		s := limiter.Stats().Remote
		sum.Failures += s.Failures
		sum.Fallback += s.Fallback
		sum.FailedOpen += s.FailedOpen
		sum.Owed += s.Owed
		sum.Forgotten += s.Forgotten
	}
	return sum
}

func (s *stage) newLimits(reg *Registry, on FailurePolicy, lease time.Duration) {
	limiter := func(name string, limit Limit) *Limiter {
		o := quiet(limit)
		o.Redis, o.Timeout, o.OnFailure, o.Lease, o.Key = s.client, faultTimeout, on, lease, HeaderKey("Key")
		if name == "ban" {
			o.Cost, o.Observe = func(*http.Request) int64 { return banCost }, s.blocks.observe
		}
		switch {
		case s.store != nil:
			o.Redis, o.Store = nil, s.store(name)
		case s.wrap != nil:
			o.Redis, o.Store = nil, s.wrap(redisStore(s, s.client, "rl:"+name+":"))
		}
		return Must(reg.New(name, o))
	}
	s.limits = faultLimits{
		few:  limiter("few", FixedWindow(fewN, time.Hour)),
		hot:  limiter("hot", FixedWindow(hotN, time.Hour)),
		busy: limiter("busy", TokenBucket(1_000_000_000, time.Second, 1_000_000_000)),
		ban:  limiter("ban", banned),
	}
}

// run injects a fault and checks everything that docs/faults.md says about it.
func (f *fault) run(t *testing.T, lease time.Duration) (r row) {
	s := &stage{T: t, strike: func() {}, mend: func() {}, after: func() {}}
	f.setup(s)
	goroutines := labelled(t)
	var reg Registry
	s.newLimits(&reg, f.on, lease)

	// Before the fault: one key is used up, one half used, one is in use.
	if s.down { // it is not known whether the first calls have been counted
		s.eventually("the breaker to open", func() bool {
			s.limits.few.Take(ctx, "first")
			return s.limits.few.Stats().Remote.BreakerOpen
		})
	}
	for _, take := range []struct {
		key string
		n   int64
	}{{"blocked", fewN}, {"half", fewN / 2}} {
		s.eventually("the first units to be taken", func() bool {
			// If the store has not answered in time, nobody knows whether it has counted the units.
			decided := func(d Decision) bool { return s.down || d.Source < SourceFallback }
			d, err := s.limits.few.TakeN(ctx, take.key, 0)
			if err == nil && decided(d) && d.Remaining > fewN-take.n {
				d, err = s.limits.few.TakeN(ctx, take.key, d.Remaining-(fewN-take.n))
			}
			return err == nil && decided(d) && d.Remaining == fewN-take.n
		})
	}
	if !s.down {
		s.eventually("a key to be blocked", func() bool {
			d, err := s.limits.ban.TakeN(ctx, "banned", banCost)
			return err == nil && d.Blocked
		})
		s.awaitStore()
	}
	callers := newFaultCallers(s)
	decisions := callers.decisions.Load
	s.eventually("callers to call", func() bool { return decisions() > 10*faultCallers })

	// During the fault and after it.
	s.strike()
	before := decisions()
	time.Sleep(f.lasts)
	s.eventually("decisions during the fault", func() bool { return decisions() > before+faultCallers })
	s.mend()
	mended := time.Now()
	s.awaitStore()
	r.recovery = time.Since(mended)
	if f.on == FallbackLocal {
		s.eventually("the store to know of all units", func() bool { return s.limits.stats().Owed == 0 })
	}
	callers.stop()
	s.after()

	stats := s.limits.stats()
	r.fault, r.decisions, r.errors, r.worst, r.failed = f, callers.decisions.Load(), callers.errors.Load(), time.Duration(callers.worst.Load()), stats.Failures
	require.Less(t, r.worst, faultHangs+callers.heldUp, "the slowest answer")
	require.Empty(t, callers.unexpectedAnswer(), "unexpected answers")
	if f.on == FailClosed {
		require.NotZero(t, r.errors)
	} else {
		require.Zero(t, r.errors, "callers that saw an error")
	}
	r.over = f.bounds(s, callers, stats)
	r.blocks, r.unblocked = f.blocked(s)
	if f.loss == lossNone {
		require.LessOrEqual(t, r.unblocked, int64(stats.Failures), "blocks whose command has failed")
	}

	// Afterwards: nothing is left.
	require.NoError(t, reg.Close())
	if s.close != nil {
		s.close()
	} else {
		require.NoError(t, s.client.Close())
	}
	s.eventually("connections to be closed", func() bool { return s.open.Load() == 0 })
	s.eventually("goroutines to end", func() bool { return labelled(t) <= goroutines })
	t.Logf("%+v, %d connections dialled", r, s.dialed.Load())
	return r
}

// bounds checks what was admitted, and returns how many units were above the limits. A key
// gets more than its limit only by calls that were in flight when the store failed: either their
// reply was lost, or they were decided without the store before the reply.
func (f *fault) bounds(s *stage, c *faultCalls, stats RemoteStats) (over int64) {
	t := s.T
	if f.on == FailOpen {
		return 0 // no bound
	}
	doubtful := int64(stats.Failures) + faultCallers
	limits := int64(1)
	if f.loss != lossNone {
		limits = 2
	}
	for key, n := range c.admitted() {
		limit, used, doubtful := int64(fewN), int64(0), doubtful
		if strings.HasPrefix(key, "ban") {
			doubtful *= banCost
		}
		switch key {
		case "hot":
			limit = hotN
		case "half":
			used = fewN / 2
		case "blocked":
			used = fewN
			if f.loss != lossAll {
				require.Zero(t, n, "a blocked key stays blocked")
			}
		case "banned":
			if s.down { // it was not blocked before
				break
			}
			used = fewN
			if f.loss != lossAll {
				require.Zero(t, n, "a block goes on")
			}
		}
		require.LessOrEqual(t, n, limits*limit-used+doubtful, key)
		if !strings.HasPrefix(key, "ban") { // the page has units of single calls
			over += max(0, n-(limit-used))
		}
	}
	if f.loss == lossNone {
		require.LessOrEqual(t, over, doubtful, "units above all limits")
	}
	return over
}

// reader returns another process's store of the limiter with blocks.
func (s *stage) reader() (store Store, end func()) {
	if s.store != nil {
		return s.store("ban"), func() {} // it ends with the others
	}
	r := redisStore(s, s.client, "rl:ban:")
	return r, func() { r.Close() }
}

// blocked checks the blocks that have begun, and returns how many there were, and how many
// of them another process does not find at the store.
func (f *fault) blocked(s *stage) (begun, missing int64) {
	store, end := s.reader()
	defer end()
	for key, lasts := range s.blocks.last {
		require.Equal(s, banned.Ladder()[0], lasts, "no key was blocked a second time: %s", key)
		results, _ := take(s, store, key, 0, banned)
		if begun++; !results[0].Blocked {
			missing++
			continue
		}
		require.LessOrEqual(s, results[0].MoreAfter, lasts, key)
	}
	require.NotZero(s, begun)
	return begun, missing
}

// awaitStore waits until the store decides again, about new keys and about the busy key.
func (s *stage) awaitStore() {
	s.Helper()
	for i, l := range []*Limiter{s.limits.few, s.limits.busy, s.limits.hot} {
		s.eventually("the store to decide", func() bool {
			key := fmt.Sprintf("probe %d %d", i, rand.Uint64())
			if l == s.limits.busy {
				key = "busy"
			}
			d, err := l.Take(ctx, key)
			return err == nil && (d.Source == SourceStore || d.Source == SourceLease)
		})
	}
}

// eventually waits until a condition holds. It ends the test if it takes too long.
func (s *stage) eventually(what string, ok func() bool) {
	s.Helper()
	for deadline := time.Now().Add(faultPatience); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			s.Fatalf("waited %v for %s: %+v", faultPatience, what, s.limits.statsOrNone())
		}
	}
}

// statsOrNone returns the sum of the limiters' statistics, or nothing before they are made.
func (l *faultLimits) statsOrNone() (s RemoteStats) {
	if l.few != nil {
		s = l.stats()
	}
	return s
}

// faultCalls are callers that keep calling, and their results.
type faultCalls struct {
	limits             faultLimits
	done               chan struct{}
	running            sync.WaitGroup
	decisions, errors  atomic.Int64
	worst              atomic.Int64
	heldUp             time.Duration // by how much a sleep took longer, at most; to be read after stop
	blocked, half, hot atomic.Int64  // admitted
	banned             atomic.Int64
	spread, bans       [spreadKeys]atomic.Int64
	mu                 sync.Mutex
	unexpected         string
}

func newFaultCallers(s *stage) *faultCalls {
	c := &faultCalls{limits: s.limits, done: make(chan struct{})}
	for i := range faultCallers {
		take := c.take
		if i%4 == 0 {
			take = c.serve
		}
		c.running.Go(func() {
			for {
				select {
				case <-c.done:
					return
				case <-time.After(time.Duration(10+rand.IntN(20)) * time.Millisecond):
					c.call(take)
				}
			}
		})
	}
	c.running.Go(func() {
		const nap = 5 * time.Millisecond
		for began := time.Now(); ; began = time.Now() {
			select {
			case <-c.done:
				return
			case <-time.After(nap):
				c.heldUp = max(c.heldUp, time.Since(began)-nap)
			}
		}
	})
	return c
}

func (c *faultCalls) stop() {
	close(c.done)
	c.running.Wait()
}

// call makes one call for some key.
func (c *faultCalls) call(take func(l *Limiter, key string) (admitted, failed bool)) {
	l, key, count := c.limits.few, "", (*atomic.Int64)(nil)
	switch i := rand.IntN(9); i {
	case 0:
		key, count = "blocked", &c.blocked
	case 1:
		key, count = "half", &c.half
	case 2, 3:
		l, key, count = c.limits.hot, "hot", &c.hot
	case 4:
		l, key, count = c.limits.busy, "busy", new(atomic.Int64)
	case 5:
		l = c.limits.ban
		if i = rand.IntN(spreadKeys); i < spreadKeys/10 {
			key, count = "banned", &c.banned
		} else {
			key, count = "ban"+strconv.Itoa(i), &c.bans[i]
		}
	default:
		i = rand.IntN(spreadKeys)
		key, count = "key"+strconv.Itoa(i), &c.spread[i]
	}
	start := time.Now()
	admitted, failed := take(l, key)
	took := int64(time.Since(start))
	for old := c.worst.Load(); took > old && !c.worst.CompareAndSwap(old, took); old = c.worst.Load() {
	}
	c.decisions.Add(1)
	if failed {
		c.errors.Add(1)
	} else if admitted {
		count.Add(1)
	}
}

func (c *faultCalls) take(l *Limiter, key string) (admitted, failed bool) {
	n := int64(1)
	if l == c.limits.ban {
		n = banCost
	}
	d, err := l.TakeN(ctx, key, n)
	return d.Allowed, err != nil
}

func (c *faultCalls) serve(l *Limiter, key string) (admitted, failed bool) {
	r := httptest.NewRequest("GET", "/", nil)
	r.Header.Set("Key", key)
	w := httptest.NewRecorder()
	l.Middleware(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { admitted = true })).ServeHTTP(w, r)
	ok := w.Code == http.StatusOK && admitted && w.Header().Get("RateLimit") != "" ||
		w.Code == http.StatusTooManyRequests && !admitted && w.Header().Get("Retry-After") != "" ||
		w.Code == http.StatusServiceUnavailable && !admitted && w.Header().Get("Retry-After") == "1" && w.Body.String() == "Service Unavailable"
	if !ok {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.unexpected = fmt.Sprintf("%d %v %s", w.Code, w.Header(), w.Body)
	}
	return admitted, w.Code == http.StatusServiceUnavailable
}

func (c *faultCalls) unexpectedAnswer() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.unexpected
}

func (c *faultCalls) admitted() map[string]int64 {
	m := map[string]int64{"blocked": c.blocked.Load(), "half": c.half.Load(), "hot": c.hot.Load()}
	m["banned"] = banCost * c.banned.Load()
	for i := range c.spread {
		m["key"+strconv.Itoa(i)] = c.spread[i].Load()
		m["ban"+strconv.Itoa(i)] = banCost * c.bans[i].Load()
	}
	return m
}

var labelledGoroutines = regexp.MustCompile(`(?m)^(\d+) @.*\n# labels: \{"fault":"([^"]*)"`)

// labelled returns the number of goroutines that this test has started, directly or not.
func labelled(t *testing.T) (n int) {
	var b bytes.Buffer
	require.NoError(t, pprof.Lookup("goroutine").WriteTo(&b, 1))
	for _, m := range labelledGoroutines.FindAllStringSubmatch(b.String(), -1) {
		if m[2] == t.Name() {
			count, _ := strconv.Atoi(m[1])
			n += count
		}
	}
	return n
}
