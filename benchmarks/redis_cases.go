package benchmarks

import (
	"slices"
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

// ServerCase is one benchmark on Redis or PostgreSQL.
type ServerCase struct {
	Case
	run func(b *testing.B, on *servers, l ServerLibrary)
}

// servers are the servers that the cases run on, as processes of their own.
type servers struct {
	server   *redistest.Server
	cluster  *redistest.Cluster // nil for the cases on PostgreSQL
	postgres *pgtest.Server     // nil for the others
}

// empty forgets what was counted in the row before.
func (on *servers) empty(b *testing.B) {
	on.server.Do("FLUSHALL")
	if on.cluster != nil {
		for _, node := range on.cluster.Nodes {
			node.Do("FLUSHALL")
		}
	}
	if on.postgres != nil {
		pool := on.target().pool("on")
		defer pool.Close()
		if _, err := pool.Exec(background, "TRUNCATE flat"); err != nil {
			b.Fatal(err)
		}
	}
}

// target returns the servers of the cases on PostgreSQL.
func (on *servers) target() target {
	where := onServer(on.server)
	where.postgres = on.postgres.URL(pgtest.Superuser)
	return where
}

// RedisCases are all benchmarks on Redis.
var RedisCases = []ServerCase{
	{Case: Case{Name: serial, Measures: slices.Concat([]Measure{
		{Group: OnRedis, Title: "one caller, µs", Unit: "us/op"},
		{Group: OnRedis, Title: "— by an EVALSHA of INCR, in turn with it", Unit: "x/evalsha"},
	}, processors(OnRedis), []Measure{sent(OnRedis)}), skip: []string{"incr-pipelined", wake, windowShared}}, run: serially},
	{Case: Case{Name: "redis-denied", Measures: []Measure{
		{Group: OnRedis, Title: "one caller, a key already denied, µs", Unit: "us/op"},
		{Group: OnRedis, Title: "— commands", Unit: "cmd/op"},
	}, skip: []string{"incr", evalsha, "incr-pipelined", "rueidis-incr", wake, windowShared}}, run: deniedSerially},
	{Case: Case{Name: "redis-spread", Measures: slices.Concat(perSecond(OnRedis, "64 callers, 10,000 keys, decisions/s"),
		processors(OnRedis), []Measure{sent(OnRedis)})}, run: many(64, manyKeys, plenty)},
	{Case: Case{Name: "redis-hot", Measures: slices.Concat(perSecond(OnRedis, "64 callers, one key, decisions/s"),
		processors(OnRedis), []Measure{sent(OnRedis)})}, run: many(64, 1, plenty)},
	{Case: Case{Name: "redis-spread-1000", Measures: append(perSecond(OnRedis, "1,000 callers, 10,000 keys, decisions/s"),
		Measure{Group: OnRedis, Title: "— p99 in ms", Unit: "ms/p99"})}, run: many(1000, manyKeys, plenty)},
	{Case: Case{Name: "redis-hot-1000", Measures: append(perSecond(OnRedis, "1,000 callers, one key, decisions/s"),
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
	{Case: Case{Name: "redis-near", only: fixed, Measures: []Measure{
		{Group: OnRedis, Title: "near cache, bytes of heap per key", Unit: "B/key"},
	}}, run: nearKeys},
	{Case: Case{Name: "cluster-spread", Measures: append(perSecond(OnCluster, "64 callers, 10,000 keys, decisions/s"), processors(OnCluster)...), skip: []string{wake}}, run: inCluster(64, manyKeys)},
	{Case: Case{Name: "cluster-hot", Measures: append(perSecond(OnCluster, "64 callers, one key, decisions/s"), processors(OnCluster)...), skip: []string{wake}}, run: inCluster(64, 1)},
}

// perSecond returns a measure of decisions per second.
func perSecond(g Group, title string) []Measure {
	return []Measure{{Group: g, Title: title, Unit: "op/s", Higher: true}}
}

// sent is a measure of commands.
func sent(g Group) Measure { return Measure{Group: g, Title: "— commands", Unit: "cmd/op"} }

// processors are the measures of processor time, which a caller and the servers spend on a decision.
func processors(g Group) []Measure {
	return []Measure{
		{Group: g, Title: "— processor time of the servers, µs", Unit: serverTime},
		{Group: g, Title: "— of the client, µs", Unit: "us-client/op"},
		{Group: g, Title: "— of both, µs", Unit: sumOfTimes},
	}
}

// These units are missing where a server does not report its processor time.
const (
	serverTime = "us-server/op"
	sumOfTimes = "us-cpu/op"
)

// ServerReports reports whether the measure comes from the server, and is missing if an old server does not report it.
func (m Measure) ServerReports() bool { return m.Unit == serverTime || m.Unit == sumOfTimes }

// ownCase returns a case that only some limits of this library can run.
func ownCase(g Group, only []string, name, title string) Case {
	return Case{Name: name, only: only, Measures: append(perSecond(g, title), sent(g))}
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

// serial is the name of the case of one caller.
const serial = "redis-serial"

const (
	manyKeys  = 10_000
	redisTurn = 100 * time.Millisecond
)

// serially times single decisions in turn with the floor, so that a slow moment of the
// machine affects both.
func serially(b *testing.B, on *servers, l ServerLibrary) {
	e := on.enter(b, l, onServer(on.server), plenty, 1)
	floor := on.enter(b, ServerLibrary{Library: Library{Name: evalsha, Kind: Floor}, open: openScript(incrScript)}, onServer(on.server), plenty, 1)
	inTurn(b, e, floor, "x/evalsha")
	e.counting(1, true)
	e.report()
}

// inTurn times single decisions in turn with another entrant, and reports the ratio.
func inTurn(b *testing.B, e, other *entrant, unit string) {
	e.ask(e.keys[0])
	other.ask(other.keys[0])
	const slice = redisTurn / 4
	var micros, ratios []float64
	for b.Loop() {
		for range 4 {
			t, o := e.decide(1, slice, true), other.decide(1, slice, true)
			e.turns = append(e.turns, t)
			micros, ratios = append(micros, t.micros()), append(ratios, t.micros()/o.micros())
		}
	}
	b.ReportMetric(Median(micros), "us/op")
	b.ReportMetric(Median(ratios), unit)
}

func deniedSerially(b *testing.B, on *servers, l ServerLibrary) {
	e := on.enter(b, l, onServer(on.server), single, 1)
	e.use()
	var micros []float64
	for b.Loop() {
		t := e.decide(1, redisTurn, false)
		e.turns, micros = append(e.turns, t), append(micros, t.micros())
	}
	b.ReportMetric(Median(micros), "us/op")
	e.counting(1, false)
	e.report()
}

func many(callers, n int, q quota) func(*testing.B, *servers, ServerLibrary) {
	return func(b *testing.B, on *servers, l ServerLibrary) {
		e := on.enter(b, l, onServer(on.server), q, n)
		e.timeMany(callers, true)
		if callers <= 64 {
			e.counting(callers, true)
		}
		e.report()
	}
}

// manyDenied times denials of n keys that have used up their limit, and are blocked if the
// quota has blocks.
func manyDenied(callers, n int, q quota) func(*testing.B, *servers, ServerLibrary) {
	return func(b *testing.B, on *servers, l ServerLibrary) {
		e := on.enter(b, l, onServer(on.server), q, n)
		e.use()
		e.timeMany(callers, false)
		e.counting(callers, false)
		e.report()
	}
}

func inCluster(callers, n int) func(*testing.B, *servers, ServerLibrary) {
	return func(b *testing.B, on *servers, l ServerLibrary) {
		e := on.enter(b, l, onCluster(on.cluster), plenty, n)
		e.timeMany(callers, true)
		e.report()
	}
}
