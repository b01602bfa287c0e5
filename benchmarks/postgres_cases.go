package benchmarks

import (
	"slices"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
)

// OnPostgres is the table of the cases on PostgreSQL.
const OnPostgres Group = "PostgreSQL, one server"

// PostgresCases are all benchmarks on PostgreSQL.
var PostgresCases = []RedisCase{
	{Case: Case{Name: "postgres-serial", only: except("durable", "upsert", "upsert-of-64"), Measures: []Measure{
		{Group: OnPostgres, Title: "one caller, µs", Unit: "us/op"},
		{Group: OnPostgres, Title: "— by an UPSERT, in turn with it", Unit: "x/upsert", Goal: Goal{{AtMost, 1.5}}},
	}}, run: onPostgresSerially},
	{Case: postgresCase("postgres-spread", "64 callers, 10,000 keys, decisions/s", 2.5), run: onPostgres(64, manyKeys, plenty)},
	{Case: postgresCase("postgres-spread-two", "64 callers, 10,000 keys, two limits all or none, decisions/s", 2), run: onPostgres(64, manyKeys, plenty.twice())},
	{Case: postgresCase("postgres-spread-256", "256 callers, 10,000 keys, decisions/s", 4), run: onPostgres(256, manyKeys, plenty)},
	{Case: postgresCase("postgres-hot", "64 callers, one key, decisions/s", 8), run: onPostgres(64, 1, plenty)},
	{Case: postgresCase("postgres-denied", "64 callers, 10,000 keys, denied by the server, decisions/s", 0), run: deniedOnPostgres, skip: []string{"upsert-of-64"}},
	{Case: durableCase("postgres-spread-durable", "64 callers, 10,000 keys, each waits for the disk, decisions/s", 3), run: onPostgres(64, manyKeys, plenty)},
	{Case: durableCase("postgres-hot-durable", "64 callers, one key, each waits for the disk, decisions/s", 10), run: onPostgres(64, 1, plenty)},
}

// except returns the names of the libraries on PostgreSQL without some.
func except(some ...string) (names []string) {
	for _, l := range PostgresLibraries {
		if !slices.Contains(some, l.Name) {
			names = append(names, l.Name)
		}
	}
	return names
}

func postgresCase(name, title string, times float64) Case {
	c := Case{Name: name, only: except("durable", "upsert", "select-1"), Measures: []Measure{
		{Group: OnPostgres, Title: title, Unit: "op/s", Higher: true},
		{Group: OnPostgres, Title: "— bytes of WAL", Unit: "WAL-B/op"},
	}}
	if times > 0 {
		c.Measures[0].Goal = Goal{{TimesRival, times}}
	}
	return c
}

// durableCase compares what waits for the disk with what does as well.
func durableCase(name, title string, times float64) Case {
	c := postgresCase(name, title, times)
	c.only = []string{"durable", "upsert"}
	return c
}

// onPostgresSerially times single decisions in turn with the UPSERT, as serially does on
// Redis.
func onPostgresSerially(b *testing.B, on *servers, l RedisLibrary) {
	where, all := on.target(), keys(1)
	s, upsert := l.open(where, plenty), openUpsert("off")(where, plenty)
	defer s.end()
	defer upsert.end()
	inTurn(b, l, s, upsert, all, "x/upsert")
}

func onPostgres(callers, n int, q quota) func(*testing.B, *servers, RedisLibrary) {
	return func(b *testing.B, on *servers, l RedisLibrary) {
		s, all := l.open(on.target(), q), keys(n)
		defer s.end()
		fill(all, func(key string) { s.take(key) })
		timeMany(b, l, s, callers, all, true)
		on.reportWAL(b, l, s, callers, all, true)
	}
}

// fill calls take for each key, from 64 goroutines, so that all rows exist.
func fill(all []string, take func(key string)) {
	var done sync.WaitGroup
	for some := range slices.Chunk(all, max(1, len(all)/64)) {
		done.Go(func() {
			for _, key := range some {
				take(key)
			}
		})
	}
	done.Wait()
}

// deniedOnPostgres times denials of keys that have used up their limit.
func deniedOnPostgres(b *testing.B, on *servers, l RedisLibrary) {
	s, all := l.open(on.target(), single.atServer()), keys(manyKeys)
	defer s.end()
	fill(all, func(key string) {
		for s.take(key) {
		}
	})
	timeMany(b, l, s, 64, all, false)
	on.reportWAL(b, l, s, 64, all, false)
}

// reportWAL reports how many bytes of WAL a decision writes. Since a checkpoint, each page was
// written in full already.
func (on *servers) reportWAL(b *testing.B, l RedisLibrary, s subject, callers int, all []string, want bool) {
	if l.Name == onRedis {
		return
	}
	conn := must(pgx.Connect(background, on.target().postgres))
	defer conn.Close(background)
	written := func() (bytes int64) {
		if err := conn.QueryRow(background, "SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn").Scan(&bytes); err != nil {
			b.Fatal(err)
		}
		return bytes
	}
	before := written()
	t := decide(s, callers, all, redisTurn, want)
	b.ReportMetric(float64(written()-before)/float64(t.done+t.failed), "WAL-B/op")
}
