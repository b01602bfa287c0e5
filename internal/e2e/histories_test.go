package e2e_test

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
)

// This file records what limiters that share a store do during a fault, and has
// each key's history checked against the model in histories_model_test.go. The
// faults are in histories_faults_test.go and histories_postgres_test.go.

// modelSeeds is how many histories are recorded of each fault, if it is set.
var modelSeeds, _ = strconv.Atoi(os.Getenv("RATELIMIT_MODEL_SEEDS"))

// scenario is a fault, and the limiters that it affects.
type scenario struct {
	name      string
	slow      bool // takes more than about a second
	lags      bool // its excess depends on how far a replica lags behind: only with RATELIMIT_MODEL_SEEDS
	limits    []Limit
	lease     time.Duration
	timeout   time.Duration // zero: as long as it takes
	onFailure FailurePolicy
	refunds   bool // whether workers also give units back
	blocks    bool // the limit has Block; workers also reset keys and block them by hand
	setup     func(t *testing.T) site
}

// site is a setup of servers on which a scenario's histories are recorded, one after
// the other. Their limiters have different names, and so different counters.
type site struct {
	options func(*run) Options // of the limiter of one process
	reader  func(*run) Store   // not affected by the fault
	// readBlock returns what the store has counted for a key under a limit with Block. While
	// there is a block, a look does not show the units.
	readBlock func(r *run, key string) (units int64, blocked bool, rung int)
	unsent    func(error) bool // whether a call with this error has changed nothing
	strike    func(*run)       // the fault
	once      bool             // the fault cannot happen again
	keys      []string         // nil: a, b and c
	workers   int              // of each process; zero: historyWorkers
	extra     int64            // units that may be counted in the end without being admitted
}

// redisSite returns a site of which client returns the client of a process, and which
// reader reads without being affected by the fault.
func redisSite(client func() redis.UniversalClient, reader redis.UniversalClient, strike func(*run)) site {
	return site{
		options:   func(r *run) Options { return redisOptions(client(), r.limits...) },
		reader:    func(r *run) Store { return redisStore(r, reader, "rl:"+r.name+":") },
		readBlock: func(r *run, key string) (int64, bool, int) { return readRedisBlock(r, reader, key) },
		unsent:    unsentToRedis,
		strike:    strike,
	}
}

func unsentToRedis(err error) bool {
	var e *RedisError
	return errors.As(err, &e) && e.Unsent
}

// run is one history while it is recorded.
type run struct {
	*testing.T
	scenario
	site
	name  string // of the limiters
	rng   *rand.Rand
	keys  []string
	model keyModel

	start    time.Time
	finished atomic.Int64 // operations that have ended
	calls    sync.RWMutex // held for reading during each call
	mu       sync.Mutex
	history  map[string][]porcupine.Operation // by key
}

// The size of a history.
const (
	historyProcesses = 3
	historyWorkers   = 2   // of each process
	callsBefore      = 30  // at least, before the fault
	callsAfter       = 150 // at least, after it
)

// TestHistoriesFitTheModel records histories of several processes on a real Redis
// during faults. Porcupine finds an order of their calls that the model allows.
func TestHistoriesFitTheModel(t *testing.T) { checkHistories(t, scenarios) }

// checkHistories records histories of all scenarios, and checks them.
func checkHistories(t *testing.T, scenarios []scenario) {
	for _, s := range scenarios {
		t.Run(strings.NewReplacer(" ", "-", ",", "").Replace(s.name), func(t *testing.T) {
			if s.lags && modelSeeds == 0 {
				t.Skip("wants a machine that does nothing else: set RATELIMIT_MODEL_SEEDS=3")
			}
			if s.slow && !slowFaults {
				t.Skip("takes some seconds: set RATELIMIT_FAULTS=1")
			}
			t.Parallel()
			site := s.setup(t)
			began, operations, seeds := time.Now(), 0, histories()
			if site.once {
				seeds = 1
			}
			for seed := range seeds {
				r := &run{T: t, scenario: s, site: site, keys: []string{"a", "b", "c"}, start: time.Now()}
				if site.keys != nil {
					r.keys = site.keys
				}
				r.name = fmt.Sprint("seed", seed)
				r.rng = rand.New(rand.NewPCG(uint64(seed), uint64(len(s.name))))
				r.record()
				operations += r.check()
			}
			t.Logf("%d histories, %d operations, %v", seeds, operations, time.Since(began).Round(time.Millisecond))
		})
	}
}

// histories returns how many histories of each scenario to record.
func histories() int {
	switch {
	case modelSeeds > 0:
		return modelSeeds
	case !slowFaults:
		return 1
	}
	return 2
}

// record has the workers call their limiters, and the fault happen in between.
func (r *run) record() {
	r.history = make(map[string][]porcupine.Operation)
	r.model = keyModel{leases: r.lease > 0, fallback: r.onFailure == FallbackLocal, blocks: r.blocks}
	for _, l := range r.limits {
		r.model.limits = append(r.model.limits, l.Burst())
	}
	var stop atomic.Bool
	var working sync.WaitGroup
	var limiters []*Limiter
	keys := slices.Clone(r.keys) // a fault may add more
	for id := range historyProcesses {
		o := r.options(r)
		o.Lease, o.OnFailure = r.lease, r.onFailure
		if r.timeout > 0 {
			o.Timeout = r.timeout
		}
		if r.blocks {
			o.DenyRecheck = 5 * time.Millisecond // the near cache denies, too
		}
		p := newHistoryProcess(newLimiter(r, r.name, o), id, r.scenario, r.unsent)
		limiters = append(limiters, p.Limiter)
		for range r.workersOfEach() {
			rng := rand.New(rand.NewPCG(r.rng.Uint64(), 0))
			working.Go(func() {
				for !stop.Load() {
					pause := time.Duration(rng.IntN(2000)) * time.Microsecond
					r.calls.RLock()
					v := r.call(p, keys[rng.IntN(len(keys))], rng)
					r.calls.RUnlock()
					if v == unsent {
						pause *= 10 // otherwise most calls of the history would change nothing
					}
					time.Sleep(pause)
				}
			})
		}
	}
	r.awaitCalls(callsBefore)
	r.strike(r)
	r.awaitCalls(callsAfter)
	for _, l := range limiters { // a limiter that nobody calls does not find out that the store is back
		require.Eventually(r, func() bool { return l.Stats().Remote.Owed == 0 }, time.Minute, time.Millisecond, "debts of an outage are paid")
	}
	stop.Store(true)
	working.Wait()
	for _, l := range limiters {
		require.NoError(r, l.Close())
	}
	r.read()
}

// now returns the instant in the history.
func (r *run) now() int64 { return int64(time.Since(r.start)) }

// awaitCalls waits until n more calls have ended.
func (r *run) awaitCalls(n int64) {
	r.Helper()
	n += r.finished.Load()
	require.Eventually(r, func() bool { return r.finished.Load() >= n }, time.Minute, time.Millisecond)
}

// add adds an operation that has ended just now.
func (r *run) add(key string, o operation, out outcome, call int64) {
	end := r.now()
	r.mu.Lock()
	r.history[key] = append(r.history[key], porcupine.Operation{ClientId: o.process, Input: o, Output: out, Call: call, Return: end})
	r.mu.Unlock()
	r.finished.Add(1)
}

// lose adds to some keys' histories that the store loses at most most units while fault
// runs, or everything if most is negative.
func (r *run) lose(keys []string, most int64, fault func()) {
	call := r.now()
	fault()
	for _, key := range keys {
		r.add(key, operation{action: actLose, most: most}, outcome{verdict: done}, call)
	}
}

// inFlight is the most units that calls of all workers have in flight at the same
// instant. It is what a master that is killed may have confirmed and not replicated:
// Redis sends the replies and the replication stream of one round of its event loop
// together, and a worker waits for its reply before it makes the next call.
func (r *run) inFlight() int64 { return int64(historyProcesses * r.workersOfEach() * maxTaken) }

func (r *run) workersOfEach() int { return cmp.Or(r.workers, historyWorkers) }

// call makes a call of a process, adds it to the history, and returns how it ended.
func (r *run) call(p *historyProcess, key string, rng *rand.Rand) verdict {
	o := p.next(key, rng)
	call := r.now()
	asked := p.asks(key, call)
	known := p.knownAt(key)
	out := p.do(key, o)
	if out.verdict == cached {
		// It was true when the store last answered this process about the key, or later.
		call = min(call, known, p.knownAt(key))
	}
	if o.action == actBlock {
		p.blocked(key, out.verdict, r.now())
	}
	answers := o.action == actTake || o.action == actBlock
	p.learn(key, asked, answers && (out.verdict == done || out.verdict == denied), r.now())
	r.add(key, o, out, call)
	return out.verdict
}

// read adds what the store has counted in the end.
func (r *run) read() {
	s := r.reader(r)
	for _, key := range r.keys {
		call, out := r.now(), outcome{verdict: done}
		if r.blocks {
			var blocked bool
			if out.counted[0], blocked, out.rung = r.readBlock(r, key); blocked {
				out.block = firstBlock // or one by hand
			}
			r.add(key, operation{action: actRead, most: r.extra}, out, call)
			continue
		}
		results, _ := take(r, s, key, 0, r.limits...)
		for i, result := range results {
			out.counted[i] = r.limits[i].Burst() - result.Remaining
		}
		r.add(key, operation{action: actRead, most: r.extra}, out, call)
	}
}

// readRedisBlock is readBlock for Redis.
func readRedisBlock(r *run, client redis.UniversalClient, key string) (units int64, blocked bool, rung int) {
	value, err := client.Get(ctx, "rl:"+r.name+":{"+key+"}:fixed-1h").Result()
	if err == redis.Nil {
		return 0, false, 0
	}
	require.NoError(r, err)
	state, rest, blocked := strings.Cut(value, " !")
	if !blocked {
		_, err = fmt.Sscan(value, &units)
	} else {
		var opened, ends, lasts int64
		_, err = fmt.Sscan(state, &opened, &units)
		require.NoError(r, err, value)
		_, err = fmt.Sscan(rest, &ends, &lasts, &rung)
	}
	require.NoError(r, err, value)
	return units, blocked, rung
}

// check has each key's history checked, and returns how many operations they have.
func (r *run) check() (operations int) {
	verdicts := make(map[verdict]int)
	for key, history := range r.history {
		operations += len(history)
		for _, o := range history {
			verdicts[o.Output.(outcome).verdict]++
		}
		if result := r.model.check(history); result != porcupine.Ok {
			r.show(key, history)
			r.Errorf("%s, key %s: porcupine says %s about %d operations; the last one is %+v: %+v",
				r.name, key, result, len(history), history[len(history)-1].Input, history[len(history)-1].Output)
		}
	}
	r.Logf("%s: %d operations: %v", r.name, operations, verdicts)
	return operations
}

// show logs a history that the model does not allow. It also writes porcupine's picture
// of it, which shows how far the model allows it.
func (r *run) show(key string, history []porcupine.Operation) {
	slices.SortFunc(history, func(a, b porcupine.Operation) int { return cmp.Compare(a.Call, b.Call) })
	for _, o := range history {
		r.Logf("%9d to %9d us: %+v: %+v", o.Call/1000, o.Return/1000, o.Input, o.Output)
	}
	_, info := porcupine.CheckOperationsVerbose(r.model.porcupine(), history, time.Minute)
	if dir := os.Getenv("RATELIMIT_MODEL_PICTURES"); dir != "" {
		file := fmt.Sprintf("%s/%s-%s-%s.html", dir, strings.ReplaceAll(r.T.Name(), "/", "-"), r.name, key)
		require.NoError(r, porcupine.VisualizePath(r.model.porcupine(), info, file))
	}
}

// historyProcess is a limiter, with the knowledge of its process. Limiters in different
// registries share no counters, like limiters in different processes.
type historyProcess struct {
	*Limiter
	id      int
	refunds bool
	blocks  bool
	unsent  func(error) bool
	// coarse: the model does not check denials and what is left.
	coarse bool

	mu       sync.Mutex
	admitted map[string]int64     // units that have not been given back, by key
	asked    map[string][]*asking // calls that may have taught this process what it knows of a key
	// doubtful has keys that this process has blocked by hand, and the store may not have.
	// The value is when the call has ended.
	doubtful map[string]int64
}

func newHistoryProcess(l *Limiter, id int, s scenario, unsent func(error) bool) *historyProcess {
	return &historyProcess{
		Limiter: l, id: id, unsent: unsent, refunds: s.refunds, blocks: s.blocks, doubtful: make(map[string]int64), coarse: s.lease > 0 || s.onFailure == FallbackLocal,
		admitted: make(map[string]int64), asked: make(map[string][]*asking),
	}
}

// next returns the next call of a worker. It only gives back units that were admitted
// in this process.
func (p *historyProcess) next(key string, rng *rand.Rand) operation {
	o := operation{action: actTake, process: p.id, units: rng.Int64N(maxTaken + 1)}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.blocks {
		switch rng.IntN(16) {
		case 0:
			o.action, o.units = actBlock, 0
			p.doubtful[key] = math.MaxInt64
			return o
		case 1, 2:
			o.action, o.units = actReset, 0
			return o
		}
	}
	if p.refunds && o.units > 0 && p.admitted[key] >= o.units && rng.IntN(3) == 0 {
		p.admitted[key] -= o.units
		o.action = actRefund
	}
	return o
}

// do makes a call and returns its outcome.
func (p *historyProcess) do(key string, o operation) outcome {
	if o.action == actRefund {
		return outcome{verdict: p.verdictOf(p.Refund(ctx, key, o.units))}
	}
	switch o.action {
	case actReset:
		return outcome{verdict: p.verdictOf(p.Reset(ctx, key))}
	case actBlock:
		return outcome{verdict: p.verdictOf(p.Block(ctx, key, blockSpans[byHand]))}
	}
	d, err := p.TakeN(ctx, key, o.units)
	out := outcome{verdict: p.verdictOf(err), remaining: -1}
	if err != nil {
		return out
	}
	switch {
	case !d.Allowed && p.coarse:
		out.verdict = anything
	case d.Source == SourceCache:
		out.verdict = cached
	case d.Source == SourceLease:
		out.verdict = leased
	case d.Source == SourceFallback:
		out.verdict = local
	case !d.Allowed:
		out.verdict = denied
	}
	if d.Source == SourceStore && !p.coarse {
		out.remaining = d.Remaining
	}
	if p.blocks && d.Blocked {
		out.block = firstBlock
		if !d.Allowed {
			out.block = blockOf(d.RetryAfter)
		}
	}
	if out.verdict == cached && p.isDoubtful(key) {
		out.verdict = anything
	}
	if d.Allowed {
		p.mu.Lock()
		p.admitted[key] += o.units
		p.mu.Unlock()
	}
	return out
}

// verdictOf returns the verdict of a call that ended with an error.
func (p *historyProcess) verdictOf(err error) verdict {
	switch {
	case err == nil:
		return done
	case p.unsent(err), strings.Contains(err.Error(), "asked only now and then"): // the breaker is open
		return unsent
	}
	return unknown
}

// asking is a call that has asked the store about a key.
type asking struct{ start, end int64 } // end is math.MaxInt64 until the answer is here

// asks notes that a call begins.
func (p *historyProcess) asks(key string, now int64) *asking {
	p.mu.Lock()
	defer p.mu.Unlock()
	a := &asking{start: now, end: math.MaxInt64}
	p.asked[key] = append(p.asked[key], a)
	return a
}

// knownAt returns an instant that is not later than the one at which what this process
// knows of a key was true at the store: 0 if it knows nothing.
//
// Answers may arrive in another order than the one in which the store gave them. One that
// is older than what is known can add a denial to it. So the latest call that was answered
// does not decide: the earliest one does whose answer was not here when that call began.
func (p *historyProcess) knownAt(key string) (earliest int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	answered := false
	for _, a := range p.asked[key] {
		answered = answered || a.end < math.MaxInt64
	}
	if !answered {
		return 0
	}
	earliest = math.MaxInt64
	for _, a := range p.asked[key] {
		earliest = min(earliest, a.start)
	}
	return earliest
}

// learn notes that a call has ended, and whether the store has answered with what is
// counted. It forgets the calls whose answers were here before the latest answered
// call began.
func (p *historyProcess) learn(key string, ended *asking, answered bool, now int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if answered {
		ended.end = now
		if since, ok := p.doubtful[key]; ok && since < ended.start {
			delete(p.doubtful, key)
		}
	}
	var latest int64
	for _, a := range p.asked[key] {
		if a.end < math.MaxInt64 {
			latest = max(latest, a.start)
		}
	}
	p.asked[key] = slices.DeleteFunc(p.asked[key], func(a *asking) bool {
		return a == ended && !answered || a.end < latest
	})
}

// blocked notes that a block by hand has ended at an instant. A block that the store has
// not confirmed is in force in this process until the store answers about the key.
func (p *historyProcess) blocked(key string, v verdict, now int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.doubtful[key] = now
	if v == done {
		delete(p.doubtful, key)
	}
}

// isDoubtful reports whether this process may deny a key that is not blocked at the store.
func (p *historyProcess) isDoubtful(key string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	_, ok := p.doubtful[key]
	return ok
}
