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
var PostgresCases = []ServerCase{
	{Case: Case{Name: "postgres-serial", only: except("durable", "upsert", "upsert-of-64"), Measures: []Measure{
		{Group: OnPostgres, Title: "one caller, µs", Unit: "us/op"},
		{Group: OnPostgres, Title: "— by an UPSERT, in turn with it", Unit: "x/upsert"},
	}}, run: onPostgresSerially},
	{Case: postgresCase("postgres-spread", "64 callers, 10,000 keys, decisions/s"), run: onPostgres(64, manyKeys, plenty)},
	{Case: postgresCase("postgres-spread-two", "64 callers, 10,000 keys, two limits all or none, decisions/s"), run: onPostgres(64, manyKeys, plenty.twice())},
	{Case: postgresCase("postgres-spread-256", "256 callers, 10,000 keys, decisions/s"), run: onPostgres(256, manyKeys, plenty)},
	{Case: postgresCase("postgres-hot", "64 callers, one key, decisions/s"), run: onPostgres(64, 1, plenty)},
	{Case: postgresCase("postgres-denied", "64 callers, 10,000 keys, denied by the server, decisions/s", "upsert-of-64"), run: deniedOnPostgres},
	{Case: durableCase("postgres-spread-durable", "64 callers, 10,000 keys, each waits for the disk, decisions/s"), run: onPostgres(64, manyKeys, plenty)},
	{Case: durableCase("postgres-hot-durable", "64 callers, one key, each waits for the disk, decisions/s"), run: onPostgres(64, 1, plenty)},
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

func postgresCase(name, title string, skip ...string) Case {
	return Case{Name: name, only: except("durable", "upsert", "select-1"), skip: skip, Measures: []Measure{
		{Group: OnPostgres, Title: title, Unit: "op/s", Higher: true},
		{Group: OnPostgres, Title: "— bytes of WAL", Unit: "WAL-B/op"},
	}}
}

// durableCase compares what waits for the disk with what does as well.
func durableCase(name, title string) Case {
	c := postgresCase(name, title)
	c.only = []string{"durable", "upsert"}
	return c
}

// onPostgresSerially times single decisions in turn with the UPSERT, as serially does on
// Redis.
func onPostgresSerially(b *testing.B, on *servers, l ServerLibrary) {
	e := on.enter(b, l, on.of(l), plenty, 1)
	upsert := on.enter(b, ServerLibrary{Library: Library{Name: "upsert", Kind: Rival}, open: openUpsert("off")}, on.target(), plenty, 1)
	inTurn(b, e, upsert, "x/upsert")
	e.report()
}

// of returns the servers that a library counts on in the cases on PostgreSQL.
func (on *servers) of(l ServerLibrary) target {
	if l.Name == onRedis {
		return onServer(on.server)
	}
	return on.target()
}

func onPostgres(callers, n int, q quota) func(*testing.B, *servers, ServerLibrary) {
	return func(b *testing.B, on *servers, l ServerLibrary) {
		e := on.enter(b, l, on.of(l), q, n)
		e.once()
		e.timeMany(callers, true)
		e.reportWAL(callers, true)
		e.report()
	}
}

// once asks for a unit of each key, so that all rows exist.
func (e *entrant) once() {
	var mu sync.Mutex
	each(e.keys, func(key string) {
		var t turn
		ok, err := e.take(key)
		t.note(ok, err, true)
		mu.Lock()
		defer mu.Unlock()
		e.all.add(t)
	})
}

// deniedOnPostgres times denials of keys that have used up their limit.
func deniedOnPostgres(b *testing.B, on *servers, l ServerLibrary) {
	e := on.enter(b, l, on.of(l), single.atServer(), manyKeys)
	e.use()
	e.timeMany(64, false)
	e.reportWAL(64, false)
	e.report()
}

// reportWAL reports how many bytes of WAL a decision writes. Since a checkpoint, each page was
// written in full already.
func (e *entrant) reportWAL(callers int, want bool) {
	if e.Name == onRedis {
		return
	}
	conn := must(pgx.Connect(background, e.on.target().postgres))
	defer conn.Close(background)
	written := func() (bytes int64) {
		if err := conn.QueryRow(background, "SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn").Scan(&bytes); err != nil {
			e.b.Fatal(err)
		}
		return bytes
	}
	before := written()
	t := e.decide(callers, redisTurn, want)
	e.b.ReportMetric(float64(written()-before)/float64(t.done+t.failed), "WAL-B/op")
}
