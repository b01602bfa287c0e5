package benchmarks

import (
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/ratelimit-go/ratelimit/internal/pgtest"
	"github.com/ratelimit-go/ratelimit/internal/redistest"
)

const (
	OnRedis     Group = "Redis, one server"
	OnCluster   Group = "Redis, a cluster"
	RedisBlocks Group = "Redis, one server, limits with Block"

	RedisCalendars Group = "Redis, one server, calendar limits"
	RedisRolling   Group = "Redis, one server, rolling windows"
	RedisHolds     Group = "Redis, one server, in-flight limits"
)

// RedisCase is one benchmark on Redis or PostgreSQL.
type RedisCase struct {
	Case
	skip []string // the libraries that do not take part
	run  func(b *testing.B, on *servers, l RedisLibrary)
}

// servers are the servers that the cases run on.
type servers struct {
	server   *redistest.Server
	cluster  *redistest.Cluster // nil for the cases on PostgreSQL
	postgres *pgtest.Server     // nil for the others
}

// target returns the servers of the cases on PostgreSQL.
func (on *servers) target() target {
	where := onServer(on.server)
	where.postgres = on.postgres.URL(pgtest.Superuser)
	return where
}

// RedisCases are all benchmarks on Redis.
var RedisCases = []RedisCase{
	{Case: Case{Name: "redis-serial", Measures: []Measure{
		{Group: OnRedis, Title: "one caller, µs", Unit: "us/op", Goal: Goal{{Allocs, 8}}},
		{Group: OnRedis, Title: "— by an EVALSHA of INCR, in turn with it", Unit: "x/evalsha", Goal: Goal{{AtMost, 1.05}}},
		{Group: OnRedis, Title: "— commands", Unit: "cmd/op", Goal: Goal{{AtMost, 1}}},
	}}, run: serially, skip: []string{"incr-pipelined", wake}},
	{Case: Case{Name: "redis-denied", Measures: []Measure{
		{Group: OnRedis, Title: "one caller, a key already denied, µs", Unit: "us/op", Goal: Goal{{AtMost, 1}}},
		{Group: OnRedis, Title: "— commands", Unit: "cmd/op", Goal: Goal{{AtMost, 0}}},
	}}, run: deniedSerially, skip: []string{"incr", evalsha, "incr-pipelined", "rueidis-incr", wake}},
	{Case: Case{Name: "redis-spread", Measures: append(perSecond(OnRedis, "64 callers, 10,000 keys, decisions/s", 2.5),
		Measure{Group: OnRedis, Title: "— commands", Unit: "cmd/op", Goal: Goal{{AtMost, 1}}})}, run: many(64, manyKeys, plenty)},
	{Case: Case{Name: "redis-hot", Measures: append(perSecond(OnRedis, "64 callers, one key, decisions/s", 8),
		Measure{Group: OnRedis, Title: "— commands", Unit: "cmd/op", Goal: Goal{{AtMost, 1}}})}, run: many(64, 1, plenty)},
	{Case: Case{Name: "redis-spread-1000", Measures: append(perSecond(OnRedis, "1,000 callers, 10,000 keys, decisions/s", 0),
		Measure{Group: OnRedis, Title: "— p99 in ms", Unit: "ms/p99"})}, run: many(1000, manyKeys, plenty)},
	{Case: Case{Name: "redis-hot-1000", Measures: append(perSecond(OnRedis, "1,000 callers, one key, decisions/s", 0),
		Measure{Group: OnRedis, Title: "— p99 in ms", Unit: "ms/p99"})}, run: many(1000, 1, plenty)},
	{Case: blockCase("redis-block-spread", "64 callers, 10,000 keys, with Block, nothing blocked, decisions/s"), run: many(64, manyKeys, plenty.blocking())},
	{Case: blockCase("redis-block-without-spread", "— without Block"), run: many(64, manyKeys, plenty)},
	{Case: blockCase("redis-block-cached", "64 callers, 10,000 blocked keys, denied by the near cache, decisions/s"), run: manyDenied(64, manyKeys, single.blocking())},
	{Case: blockCase("redis-block-server", "64 callers, 10,000 blocked keys, denied by the server, decisions/s"), run: manyDenied(64, manyKeys, single.blocking().atServer())},
	{Case: blockCase("redis-block-without-server", "— denied without Block"), run: manyDenied(64, manyKeys, single.atServer())},
	{Case: calendarCase("redis-calendar-spread", "64 callers, 10,000 keys, under Daily, decisions/s"), run: many(64, manyKeys, plenty.daily())},
	{Case: calendarCase("redis-calendar-fixed-spread", "— under FixedWindow"), run: many(64, manyKeys, plenty)},
	{Case: calendarCase("redis-calendar-hot", "64 callers, one key, under Daily, decisions/s"), run: many(64, 1, plenty.daily())},
	{Case: calendarCase("redis-calendar-fixed-hot", "— one key, under FixedWindow"), run: many(64, 1, plenty)},
	{Case: rollingCase("redis-rolling-spread", "64 callers, 10,000 keys, 1,000 units per second, decisions/s"), run: many(64, manyKeys, thousand(time.Second, true))},
	{Case: rollingCase("redis-rolling-not-spread", "— with a fixed window"), run: many(64, manyKeys, thousand(time.Second, false))},
	{Case: rollingCase("redis-rolling-denied", "64 callers, 10,000 keys of 1 unit, denied by the server, decisions/s"), run: manyDenied(64, manyKeys, single.inAnyHour().atServer())},
	{Case: rollingCase("redis-rolling-not-denied", "— denied with a fixed window"), run: manyDenied(64, manyKeys, single.atServer())},
	{Case: rollingCase("redis-rolling-full", "64 callers, 64 keys of 1,000 units, denied by the server, decisions/s"), run: manyDenied(64, 64, thousand(time.Hour, true).atServer())},
	{Case: rollingCase("redis-rolling-not-full", "— denied with a fixed window"), run: manyDenied(64, 64, thousand(time.Hour, false).atServer())},
	{Case: Case{Name: "redis-inflight-serial", only: fixed, Measures: []Measure{
		{Group: RedisHolds, Title: "one caller, Acquire and release, µs", Unit: "us/op"},
		{Group: RedisHolds, Title: "— by a Take under FixedWindow, in turn with it", Unit: "x/take"},
		{Group: RedisHolds, Title: "— commands", Unit: "cmd/op"},
	}}, run: holdSerially},
	{Case: holdCase("redis-inflight-spread", "64 callers, 10,000 keys, Acquire and release, decisions/s"), run: many(64, manyKeys, plenty.holding())},
	{Case: holdCase("redis-inflight-not-spread", "— Take under FixedWindow"), run: many(64, manyKeys, plenty)},
	{Case: renewCase("redis-inflight-renew-key", "10,000 requests of one key in flight"), run: renew(1)},
	{Case: renewCase("redis-inflight-renew-keys", "10,000 requests of 10,000 keys in flight"), run: renew(manyKeys)},
	{Case: Case{Name: "cluster-spread", Measures: perSecond(OnCluster, "64 callers, 10,000 keys, decisions/s", 2.5)}, run: inCluster(64, manyKeys), skip: []string{wake}},
	{Case: Case{Name: "cluster-hot", Measures: perSecond(OnCluster, "64 callers, one key, decisions/s", 8)}, run: inCluster(64, 1), skip: []string{wake}},
}

// perSecond returns a measure of decisions per second. The goal is times times the best
// rival's value; there is none if times is 0.
func perSecond(g Group, title string, times float64) []Measure {
	goal := Goal{{Allocs, 8}}
	if times > 0 {
		goal = Goal{{TimesRival, times}, {Allocs, 8}}
	}
	return []Measure{{Group: g, Title: title, Unit: "op/s", Goal: goal, Higher: true}}
}

// Has reports whether l takes part in c.
func (c RedisCase) Has(l RedisLibrary) bool {
	if l.Name == across && c.Measures[0].Group != OnCluster {
		return false
	}
	return !slices.Contains(c.skip, l.Name) && (c.only == nil || slices.Contains(c.only, l.Name))
}

// ownCase returns a case that only some limits of this library can run.
func ownCase(g Group, only []string, name, title string) Case {
	return Case{Name: name, only: only, Measures: append(perSecond(g, title, 0), Measure{Group: g, Title: "— commands", Unit: "cmd/op"})}
}

func blockCase(name, title string) Case    { return ownCase(RedisBlocks, ours, name, title) }
func calendarCase(name, title string) Case { return ownCase(RedisCalendars, fixed, name, title) }
func rollingCase(name, title string) Case  { return ownCase(RedisRolling, fixed, name, title) }

// holdCase returns a case about holds. It has no goal.
func holdCase(name, title string) Case {
	return Case{Name: name, only: fixed, Measures: []Measure{
		{Group: RedisHolds, Title: title, Unit: "op/s", Higher: true}, {Group: RedisHolds, Title: "— commands", Unit: "cmd/op"},
	}}
}

// renewCase returns a case about the renewal of holds.
func renewCase(name, title string) Case {
	return Case{Name: name, only: fixed, Measures: []Measure{
		{Group: RedisHolds, Title: title + ": time to renew all holds once, ms", Unit: "ms/round"},
		{Group: RedisHolds, Title: "— the server's processor time for that, ms", Unit: "ms-cpu/round"},
		{Group: RedisHolds, Title: "— a Take of another limiter during that time, median in µs", Unit: "us/p50"},
		{Group: RedisHolds, Title: "— without these requests, median in µs", Unit: "us/p50-without"},
		{Group: RedisHolds, Title: "— a Take of another limiter during that time, p99 in µs", Unit: "us/p99"},
		{Group: RedisHolds, Title: "— without these requests, p99 in µs", Unit: "us/p99-without"},
	}}
}

const (
	manyKeys  = 10_000
	redisTurn = 100 * time.Millisecond
)

// turn is the result of the decisions that callers made within some time.
type turn struct {
	took    time.Duration
	done    int
	failed  int // or denied
	mallocs uint64
	waits   latencies
}

func (t turn) perSecond() float64 { return float64(t.done) / t.took.Seconds() }

// micros returns the time of a decision in microseconds, if there was only one caller.
func (t turn) micros() float64 { return t.took.Seconds() * 1e6 / float64(t.done) }

// decide has callers ask for decisions during d. Each caller asks for its next decision as
// soon as it has the last one.
func decide(s subject, callers int, keys []string, d time.Duration, want bool) (t turn) {
	runtime.GC() // collects the garbage of the previous library
	each := make([]turn, callers)
	for i := range each {
		each[i].waits = make(latencies, 0, 1+1_000_000/callers)
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	begin := time.Now()
	var wg sync.WaitGroup
	for i := range each {
		wg.Go(func() {
			t := &each[i]
			// Callers start far apart. Otherwise they would compete for each key.
			at := len(keys) / callers * i
			for last := time.Since(begin); last < d; {
				if s.take(keys[at%len(keys)]) == want {
					t.done++
				} else {
					t.failed++
				}
				at++
				now := time.Since(begin)
				if len(t.waits) < cap(t.waits) {
					t.waits = append(t.waits, uint32(now-last))
				}
				last = now
			}
		})
	}
	wg.Wait()
	t.took = time.Since(begin)
	runtime.ReadMemStats(&after)
	t.mallocs = after.Mallocs - before.Mallocs
	for _, e := range each {
		t.done, t.failed, t.waits = t.done+e.done, t.failed+e.failed, append(t.waits, e.waits...)
	}
	slices.Sort(t.waits)
	return t
}

// report reports the turns. It fails if this library did not get the decisions that it
// should get. For other libraries, it only counts the decisions that they did get.
func report(b *testing.B, l RedisLibrary, turns []turn) {
	var allocs, rates, waits []float64
	for _, t := range turns {
		if l.Kind == Ours && t.failed > 0 {
			b.Errorf("%d of %d decisions were not as expected", t.failed, t.done+t.failed)
		}
		allocs = append(allocs, float64(t.mallocs)/float64(t.done))
		rates, waits = append(rates, t.perSecond()), append(waits, t.waits.quantile(0.99)/1e3)
	}
	b.ReportAllocs()
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(0, "B/op")
	b.ReportMetric(Median(allocs), "allocs/op")
	b.ReportMetric(Median(rates), "op/s")
	b.ReportMetric(Median(waits), "ms/p99")
}

// serially times single decisions in turn with the floor, so that a slow moment of the
// machine affects both.
func serially(b *testing.B, on *servers, l RedisLibrary) {
	where, all := onServer(on.server), keys(1)
	s, floor := l.open(where, plenty), openEvalsha(where, plenty)
	defer s.end()
	defer floor.end()
	inTurn(b, l, s, floor, all, "x/evalsha")
	b.ReportMetric(commands(on.server, l, s, 1, all, true), "cmd/op")
}

// inTurn times single decisions in turn with another library, and reports the ratio.
func inTurn(b *testing.B, l RedisLibrary, s, other subject, all []string, unit string) {
	s.take(all[0])
	other.take("other")
	const slice = redisTurn / 4
	var turns []turn
	var micros, ratios []float64
	for b.Loop() {
		for range 4 {
			t := decide(s, 1, all, slice, true)
			o := decide(other, 1, []string{"other"}, slice, true)
			turns, micros, ratios = append(turns, t), append(micros, t.micros()), append(ratios, t.micros()/o.micros())
		}
	}
	report(b, l, turns)
	b.ReportMetric(Median(micros), "us/op")
	b.ReportMetric(Median(ratios), unit)
}

func deniedSerially(b *testing.B, on *servers, l RedisLibrary) {
	all := keys(1)
	s := l.open(onServer(on.server), single)
	defer s.end()
	s.take(all[0])
	var turns []turn
	var micros []float64
	for b.Loop() {
		t := decide(s, 1, all, redisTurn, false)
		turns, micros = append(turns, t), append(micros, t.micros())
	}
	report(b, l, turns)
	b.ReportMetric(Median(micros), "us/op")
	b.ReportMetric(commands(on.server, l, s, 1, all, false), "cmd/op")
}

// commands returns the number of commands that a decision sends.
func commands(server *redistest.Server, l RedisLibrary, s subject, callers int, all []string, want bool) float64 {
	server.ResetStats()
	t := decide(s, callers, all, redisTurn/4, want)
	sent := l.sent
	if sent == nil {
		sent = sentScripts
	}
	return float64(sent(server.Commands())) / float64(t.done+t.failed)
}

func many(callers, n int, q quota) func(*testing.B, *servers, RedisLibrary) {
	return func(b *testing.B, on *servers, l RedisLibrary) {
		s, all := l.open(onServer(on.server), q), keys(n)
		defer s.end()
		timeMany(b, l, s, callers, all, true)
		if callers <= 64 {
			b.ReportMetric(commands(on.server, l, s, callers, all, true), "cmd/op")
		}
	}
}

// manyDenied times denials of n keys that have used up their limit, and are blocked if the
// quota has blocks.
func manyDenied(callers, n int, q quota) func(*testing.B, *servers, RedisLibrary) {
	return func(b *testing.B, on *servers, l RedisLibrary) {
		s, all := l.open(onServer(on.server), q), keys(n)
		defer s.end()
		for _, k := range all {
			for s.take(k) {
			}
		}
		timeMany(b, l, s, callers, all, false)
		b.ReportMetric(commands(on.server, l, s, callers, all, false), "cmd/op")
	}
}

func inCluster(callers, n int) func(*testing.B, *servers, RedisLibrary) {
	return func(b *testing.B, on *servers, l RedisLibrary) {
		s, all := l.open(onCluster(on.cluster), plenty), keys(n)
		defer s.end()
		timeMany(b, l, s, callers, all, true)
	}
}

func timeMany(b *testing.B, l RedisLibrary, s subject, callers int, all []string, want bool) {
	decide(s, callers, all, redisTurn, want) // makes keys and connections
	var turns []turn
	for b.Loop() {
		turns = append(turns, decide(s, callers, all, redisTurn, want))
	}
	report(b, l, turns)
}
