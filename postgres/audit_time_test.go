package postgres_test

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ratelimit-go/ratelimit"
	"github.com/ratelimit-go/ratelimit/audit"
	"github.com/ratelimit-go/ratelimit/internal/pgtest"
	"github.com/ratelimit-go/ratelimit/postgres"
)

// This file tests what happens to an audit trail over months, by a clock that tests set.

const day = 24 * time.Hour

func partitions(t testing.TB, conn *pgx.Conn) string {
	t.Helper()
	var names string
	require.NoError(t, conn.QueryRow(ctx, "SELECT coalesce(string_agg(substr(c.relname, 7), ' ' ORDER BY c.relname), '') FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid WHERE i.inhparent = 'ratelimit.audit'::regclass").Scan(&names))
	return names
}

func reset(at time.Time) []audit.Record {
	return []audit.Record{{Kind: "reset", Time: at, Service: "shop", Actor: "alice"}}
}

// TestPartitions writes for two years. There is a partition for each month and for the next
// one, and they are dropped after their time.
func TestPartitions(t *testing.T) {
	server := migrated(t)
	clock := setClock(t, server) // 28 March 2026
	pool := newPool(t, server.URL(pgtest.Superuser))
	write := func(at time.Time) {
		t.Helper()
		require.NoError(t, newSink(t, pool).Write(ctx, reset(at), true)) // a new sink looks after partitions
	}
	write(time.Now())
	require.Equal(t, "2026_03 2026_04", partitions(t, clock.conn))
	// The clock of the writer makes no difference.
	for _, at := range []time.Time{{}, time.Unix(0, 0), time.Date(2500, 1, 1, 0, 0, 0, 0, time.UTC)} {
		write(at)
	}
	require.Equal(t, "2026_03 2026_04", partitions(t, clock.conn))

	for range 13 {
		clock.advance(30 * day)
		write(time.Now())
	}
	require.Equal(t, "2026_03 2026_04 2026_05 2026_06 2026_07 2026_08 2026_09 2026_10 2026_11 2026_12 2027_01 2027_02 2027_03 2027_04 2027_05", partitions(t, clock.conn))
	clock.advance(14 * day) // 5 May: March 2026 is 13 months ago
	write(time.Now())
	require.Equal(t, "2026_04 2026_05 2026_06 2026_07 2026_08 2026_09 2026_10 2026_11 2026_12 2027_01 2027_02 2027_03 2027_04 2027_05 2027_06", partitions(t, clock.conn))

	// A reader holds the next one up. Writers do not wait for that.
	clock.advance(31 * day)
	reader, err := connect(t, server.URL(pgtest.Superuser)).Begin(ctx)
	require.NoError(t, err)
	_, err = reader.Exec(ctx, "SELECT count(*) FROM ratelimit.audit")
	require.NoError(t, err)
	write(time.Now())
	require.True(t, strings.HasPrefix(partitions(t, clock.conn), "2026_04 ") && strings.HasSuffix(partitions(t, clock.conn), " 2027_07"), partitions(t, clock.conn))
	require.NoError(t, reader.Rollback(ctx))
	write(time.Now())
	require.True(t, strings.HasPrefix(partitions(t, clock.conn), "2026_05 "), partitions(t, clock.conn))

	// The owner decides for how long. A view keeps its own partition only.
	clock.exec("CREATE VIEW public.kept AS SELECT * FROM ratelimit.audit_2026_07")
	clock.exec("UPDATE ratelimit.audit_setting SET keep_months = 2")
	for range 20 { // each drops one
		write(time.Now())
	}
	require.Equal(t, "2026_07 2027_04 2027_05 2027_06 2027_07", partitions(t, clock.conn))
	clock.exec("DROP VIEW public.kept")
	clock.exec("UPDATE ratelimit.audit_setting SET keep_months = 2")
	write(time.Now())
	require.Equal(t, "2027_04 2027_05 2027_06 2027_07", partitions(t, clock.conn))

	// A clock that jumps ahead by years drops nothing, and writes in a month of its own.
	before := clock.now
	clock.advance(5 * 365 * day)
	write(time.Now())
	require.Equal(t, "2027_04 2027_05 2027_06 2027_07 2032_06 2032_07", partitions(t, clock.conn))
	clock.advance(time.Duration(before - clock.now))
	write(time.Now())
	require.Equal(t, "2027_04 2027_05 2027_06 2027_07 2032_06", partitions(t, clock.conn))
}

// months returns in which months the records were written, by the server's clock.
func months(t testing.TB, conn *pgx.Conn) string {
	t.Helper()
	var all string
	require.NoError(t, conn.QueryRow(ctx, "SELECT string_agg(to_char(written AT TIME ZONE 'UTC', 'YYYY_MM'), ' ' ORDER BY id) FROM ratelimit.audit").Scan(&all))
	return all
}

// TestAuditClockAhead has a server's clock that is ahead, again and again. That drops few months
// too early, and never most of the trail.
func TestAuditClockAhead(t *testing.T) {
	server := migrated(t)
	clock := setClock(t, server) // 28 March 2026
	pool := newPool(t, server.URL(pgtest.Superuser))
	write := func(times int) {
		t.Helper()
		for range times {
			require.NoError(t, newSink(t, pool).Write(ctx, reset(time.Now()), true))
		}
	}
	write(1)
	for range 13 {
		clock.advance(30 * day)
		write(1)
	}
	first := func() string { return partitions(t, clock.conn)[:7] }
	require.Equal(t, "2026_03", first())
	right := clock.now // April 2027
	for _, tc := range []struct {
		ahead time.Duration
		first string // the oldest month that is left after many calls
	}{
		{60 * day, "2026_05"}, {5 * 365 * day, "2026_05"}, {5*365*day + 30*day, "2026_07"}, {5*365*day + 60*day, "2026_08"}, {50 * 365 * day, "2026_08"},
	} {
		clock.advance(tc.ahead)
		write(10)
		assert.Equal(t, tc.first, first(), "a clock that is ahead by %v", tc.ahead)
		clock.advance(time.Duration(right - clock.now))
		write(1)
	}
	clock.exec("SELECT ratelimit.audit_keep() FROM generate_series(1, 9)")
	require.NotContains(t, partitions(t, clock.conn), "2077_06", "it was empty")
}

// TestAuditClockBack sets a server's clock back. What is written then is not dropped when the
// clock is right again.
func TestAuditClockBack(t *testing.T) {
	server := migrated(t)
	clock := setClock(t, server) // 28 March 2026
	pool := newPool(t, server.URL(pgtest.Superuser))
	write := func() {
		t.Helper()
		for range 3 {
			require.NoError(t, newSink(t, pool).Write(ctx, reset(time.Now()), true))
		}
	}
	clock.exec("UPDATE ratelimit.audit_setting SET keep_months = 1")
	write()
	clock.advance(30 * day)
	write()
	for _, back := range []time.Duration{10 * 365 * day, 60 * day, 30 * day} {
		clock.advance(-back)
		write()
		clock.advance(back)
		write()
	}
	require.Equal(t, strings.Repeat("2026_03 ", 3)+strings.TrimSpace(strings.Repeat("2026_04 ", 21)), months(t, clock.conn))
	require.Equal(t, "2026_03 2026_04 2026_05", partitions(t, clock.conn))

	// A clock that was ahead for a while, and then is right, is no clock that was set back.
	clock.advance(400 * day)
	write()
	clock.advance(-400 * day)
	write()
	require.True(t, strings.HasSuffix(months(t, clock.conn), "2027_06 2027_06 2027_06 2026_04 2026_04 2026_04"), months(t, clock.conn))
}

// TestAuditSettingBounds keeps records for as long as is allowed, and tries to exceed that.
func TestAuditSettingBounds(t *testing.T) {
	server := migrated(t)
	conn := connect(t, server.URL(pgtest.Superuser))
	for _, wrong := range []string{"keep_months = 0", "keep_months = 1201", "keep_months = 60000", "secret_days = 0", "secret_days = 36501"} {
		_, err := conn.Exec(ctx, "UPDATE ratelimit.audit_setting SET "+wrong)
		require.ErrorContains(t, err, "SQLSTATE 23514", wrong)
	}
	// A schema that was made before there was an upper bound.
	_, err := conn.Exec(ctx, "ALTER TABLE ratelimit.audit_setting DROP CONSTRAINT audit_setting_bounds; UPDATE ratelimit.audit_setting SET keep_months = 60000, secret_days = 2147483647")
	require.NoError(t, err)
	require.NoError(t, postgres.Migrate(ctx, conn))
	var keep, days int
	require.NoError(t, conn.QueryRow(ctx, "SELECT keep_months, secret_days FROM ratelimit.audit_setting").Scan(&keep, &days))
	require.Equal(t, []int{1200, 36500}, []int{keep, days})
	_, err = conn.Exec(ctx, "SELECT ratelimit.audit_partition(now() - interval '1 month')")
	require.NoError(t, err)
	pool := newPool(t, server.URL(pgtest.Superuser))
	for range 3 {
		require.NoError(t, newSink(t, pool).Write(ctx, reset(time.Now()), true))
		_, err = newSink(t, pool).Secrets(ctx, time.Time{})
		require.NoError(t, err)
	}
	require.Len(t, kinds(t, conn), 3)

	// Without its row, the defaults hold.
	_, err = conn.Exec(ctx, "DELETE FROM ratelimit.audit_setting")
	require.NoError(t, err)
	for range 2 {
		require.NoError(t, newSink(t, pool).Write(ctx, reset(time.Now()), true))
		secrets, err := newSink(t, pool).Secrets(ctx, time.Time{})
		require.NoError(t, err)
		require.Len(t, secrets, 1)
	}
}

// TestTableWithTheNameOfAPartition has a table in the way. The error says which one, and what to do.
func TestTableWithTheNameOfAPartition(t *testing.T) {
	server := migrated(t)
	clock := setClock(t, server) // 28 March 2026
	clock.exec("CREATE TABLE ratelimit.audit_2026_03 (LIKE ratelimit.audit)")
	sink := newSink(t, newPool(t, server.URL(pgtest.Superuser)))
	err := sink.Write(ctx, reset(time.Now()), true)
	const way = "ALTER TABLE ratelimit.audit ATTACH PARTITION ratelimit.audit_2026_03 FOR VALUES FROM ('2026-03-01 00:00:00+00') TO ('2026-04-01 00:00:00+00')"
	require.ErrorContains(t, err, "the table ratelimit.audit_2026_03 is not a partition")
	require.ErrorContains(t, err, way)
	clock.exec(way)
	require.NoError(t, sink.Write(ctx, reset(time.Now()), true))
}

// TestPartitionRace writes at the beginning of a month from many processes, while a store
// writes records of its decisions.
func TestPartitionRace(t *testing.T) {
	server := migrated(t)
	clock := setClock(t, server)
	limiter, _ := newRecorded(t, server, "race", hourly, nil)
	for range 3 {
		clock.exec("DO $$ DECLARE n regclass; BEGIN FOR n IN SELECT inhrelid::regclass FROM pg_inherits WHERE inhparent = 'ratelimit.audit'::regclass LOOP EXECUTE 'DROP TABLE ' || n; END LOOP; END $$")
		clock.advance(400 * day)
		var wg sync.WaitGroup
		for i := range 16 {
			sink := newSink(t, newPool(t, server.URL(pgtest.Superuser)))
			wg.Go(func() {
				assert.NoError(t, patiently(func() error { return sink.Write(ctx, reset(time.Now()), i%2 == 0) }))
			})
			wg.Go(func() {
				assert.NoError(t, patiently(func() error {
					_, err := limiter.Take(ctx, "key")
					return err
				}))
			})
		}
		wg.Wait()
		require.Len(t, kinds(t, clock.conn), 32)
	}
}

// TestAuditSecrets makes pseudonyms for a year, in two processes.
func TestAuditSecrets(t *testing.T) {
	server := migrated(t)
	clock := setClock(t, server)
	withRoles(t, server)
	secretsOf := func() []audit.Secret {
		t.Helper()
		secrets, err := newSink(t, newPool(t, server.URL("shop"))).Secrets(ctx, time.Time{})
		require.NoError(t, err)
		return secrets
	}
	first := secretsOf()
	require.Len(t, first, 1)
	require.Len(t, first[0].Bytes, 32)
	require.Equal(t, "20260328-", first[0].Epoch[:9])
	require.Equal(t, first, secretsOf(), "another process has the same")
	clock.advance(30*day - time.Second)
	require.Equal(t, first, secretsOf())

	// Both begin the next epoch at once.
	clock.advance(time.Second)
	var mu sync.Mutex
	var wg sync.WaitGroup
	all := map[string]bool{}
	for range 16 {
		sink := newSink(t, newPool(t, server.URL("shop")))
		wg.Go(func() {
			secrets, err := sink.Secrets(ctx, time.Time{})
			assert.NoError(t, err)
			mu.Lock()
			defer mu.Unlock()
			all[fmt.Sprint(secrets)] = true
		})
	}
	wg.Wait()
	delete(all, fmt.Sprint(first)) // what the others go on with if the maker of the new secret stalls
	require.Len(t, all, 1)
	second := secretsOf()
	require.Len(t, second, 2)
	require.Equal(t, first[0], second[1])

	for range 12 {
		clock.advance(30 * day)
		secrets := secretsOf()
		require.LessOrEqual(t, len(secrets), 3)
		for _, s := range secrets {
			require.Less(t, clock.now-s.Begins.UnixNano(), int64(90*day))
		}
	}
	var rows int
	require.NoError(t, clock.conn.QueryRow(ctx, "SELECT count(*) FROM ratelimit.audit_secret").Scan(&rows))
	require.Equal(t, 3, rows)

	// A sink asks only once a minute, and before a secret is over.
	sink := newSink(t, newPool(t, server.URL("shop")))
	cached, err := sink.Secrets(ctx, time.Time{})
	require.NoError(t, err)
	clock.exec("REVOKE EXECUTE ON FUNCTION ratelimit.audit_secrets FROM ratelimit_application")
	again, err := sink.Secrets(ctx, time.Time{})
	require.NoError(t, err)
	require.Equal(t, cached, again)
	_, err = newSink(t, newPool(t, server.URL("shop"))).Secrets(ctx, time.Time{})
	require.ErrorContains(t, err, "grant ratelimit_application")
}

// TestSecretOfTheFuture has a clock that was ahead when a secret began. When the clock is right, the secret
// ends as any other one does.
func TestSecretOfTheFuture(t *testing.T) {
	server := migrated(t)
	clock := setClock(t, server)
	pool := newPool(t, server.URL(pgtest.Superuser))
	newest := func() audit.Secret {
		t.Helper()
		secrets, err := newSink(t, pool).Secrets(ctx, time.Time{})
		require.NoError(t, err)
		require.LessOrEqual(t, len(secrets), 3)
		return secrets[0]
	}
	newest()
	clock.advance(5 * 365 * day)
	future := newest()
	clock.advance(-5 * 365 * day)
	now := newest()
	require.Equal(t, future.Epoch, now.Epoch, "its pseudonyms can be found")
	require.Equal(t, clock.now, now.Begins.UnixNano())
	clock.advance(30*day - time.Second)
	require.Equal(t, now, newest())
	clock.advance(time.Second)
	require.NotEqual(t, now.Epoch, newest().Epoch)
	clock.advance(60 * day)
	newest()
	var left bool
	require.NoError(t, clock.conn.QueryRow(ctx, "SELECT count(*) > 0 FROM ratelimit.audit_secret WHERE epoch = $1", now.Epoch).Scan(&left))
	require.False(t, left)

	// A clock that is set by less than an hour changes nothing.
	before := newest()
	clock.advance(-59 * time.Minute)
	require.Equal(t, before, newest())
}

// TestSecretsWaitForNobody has sessions that hold what they can get hold of. Others get their secrets.
func TestSecretsWaitForNobody(t *testing.T) {
	server := migrated(t)
	clock := setClock(t, server)
	admin := withRoles(t, server)
	stranger, idle := connect(t, server.URL("stranger")), connect(t, server.URL("shop"))
	_, err := stranger.Exec(ctx, "SELECT pg_advisory_lock(id) FROM generate_series(7234298370, 7234298380) id")
	require.NoError(t, err)
	_, err = stranger.Exec(ctx, "SET lock_timeout = '1s'; LOCK TABLE ratelimit.audit_secret")
	require.ErrorContains(t, err, "permission denied")
	secretsOf := func() ([]audit.Secret, error) {
		return newSink(t, newPool(t, server.URL("shop"))).Secrets(ctx, time.Time{})
	}
	first, err := secretsOf()
	require.NoError(t, err)

	// A service that does not end its transaction, if there is nothing to change, and when it has
	// begun the next secret.
	for _, age := range []time.Duration{0, 30 * day} {
		clock.advance(age)
		_, err = idle.Exec(ctx, "BEGIN; SELECT ratelimit.audit_secrets()")
		require.NoError(t, err)
		again, err := secretsOf()
		require.NoError(t, err)
		require.Equal(t, first, again)
		_, err = idle.Exec(ctx, "COMMIT")
		require.NoError(t, err)
	}
	again, err := secretsOf()
	require.NoError(t, err)
	require.Len(t, again, 2)

	// If no secret is left, there must be a new one, and only one session can make it.
	clock.advance(100 * day)
	tx, err := admin.Begin(ctx)
	require.NoError(t, err)
	_, err = tx.Exec(ctx, "LOCK TABLE ratelimit.audit_secret IN SHARE UPDATE EXCLUSIVE MODE")
	require.NoError(t, err)
	_, err = secretsOf()
	require.ErrorContains(t, err, "a lock is held for more than a second")
	require.NoError(t, tx.Rollback(ctx))
	again, err = secretsOf()
	require.NoError(t, err)
	require.Len(t, again, 1)
}

// TestDeletedSecret looks for a secret in all files of the server, and tries to find out
// whose records there are.
func TestDeletedSecret(t *testing.T) {
	server := migrated(t)
	clock := setClock(t, server)
	pool := newPool(t, server.URL(pgtest.Superuser))
	const address = "203.0.113.7"
	write := func() {
		trail := newTrail(t, newSink(t, pool), nil)
		trail.Observe(ctx, ratelimit.Event{Kind: ratelimit.EventDenied, Time: time.Now(), Limiter: "login", Key: address})
		require.NoError(t, trail.Record(ratelimit.WithActor(ctx, "alice"), ratelimit.Event{Kind: ratelimit.EventReset, Time: time.Now(), Limiter: "login", Key: address}))
		require.NoError(t, trail.Close())
	}
	write()
	secrets, err := newSink(t, pool).Secrets(ctx, time.Time{})
	require.NoError(t, err)
	secret := secrets[0]
	pseudonym := []byte(secret.Pseudonym(address))
	// holds returns how many files of the server hold a text, apart from the WAL.
	holds := func(text []byte) (files int) {
		clock.exec("CHECKPOINT")
		require.NoError(t, filepath.WalkDir(server.Data(), func(name string, e fs.DirEntry, err error) error {
			switch {
			case err != nil: // a file that is gone by now
			case e.IsDir() && e.Name() == "pg_wal":
				return fs.SkipDir
			case e.Type().IsRegular():
				if content, err := os.ReadFile(name); err == nil && bytes.Contains(content, text) {
					files++
				}
			}
			return nil
		}))
		return files
	}
	clock.exec("ANALYZE")
	require.Positive(t, holds(secret.Bytes))
	require.Positive(t, holds(pseudonym))
	support := newTrail(t, newSink(t, pool), nil)
	found, err := support.Read(ctx, audit.Query{Key: address})
	require.NoError(t, err)
	require.Len(t, found, 3)

	reader, err := connect(t, server.URL(pgtest.Superuser)).Begin(ctx)
	require.NoError(t, err)
	_, err = reader.Exec(ctx, "SELECT count(*) FROM ratelimit.audit_secret")
	require.NoError(t, err)
	clock.advance(90 * day)
	left, err := newSink(t, pool).Secrets(ctx, time.Time{})
	require.NoError(t, err, "it does not wait for a reader for long")
	require.Len(t, left, 1)
	require.NotEqual(t, secret.Epoch, left[0].Epoch)
	require.NoError(t, reader.Rollback(ctx))
	_, err = newSink(t, pool).Secrets(ctx, time.Time{})
	require.NoError(t, err)

	require.Zero(t, holds(secret.Bytes), "files with the secret")
	require.Positive(t, holds(pseudonym), "the records are still there")
	require.Zero(t, holds([]byte(address)))
	found, err = newTrail(t, newSink(t, pool), nil).Read(ctx, audit.Query{Key: address})
	require.NoError(t, err)
	require.Empty(t, found)
}

// TestHandOver dumps the partition of a month, as an auditor.
func TestHandOver(t *testing.T) {
	server := migrated(t)
	clock := setClock(t, server)
	withRoles(t, server)
	sink := newSink(t, newPool(t, server.URL("shop")))
	trail := newTrail(t, sink, nil)
	for i := range 2 {
		require.NoError(t, trail.Record(ratelimit.WithActor(ctx, "alice"), ratelimit.Event{Kind: ratelimit.EventReset, Time: time.Now(), Actor: fmt.Sprint("alice", i), Key: "203.0.113.7"}))
		clock.advance(30 * day)
	}
	dump := string(server.Dump("auditor", "--data-only", "--table=ratelimit.audit_2026_03"))
	require.Contains(t, dump, "COPY ratelimit.audit_2026_03")
	require.Contains(t, dump, "alice0")
	require.NotContains(t, dump, "alice1")
	require.NotContains(t, dump, "203.0.113.7")

	// It can be read on another server, with the table of another Migrate.
	other := migrated(t)
	conn := connect(t, other.URL(pgtest.Superuser))
	_, err := conn.Exec(ctx, "CREATE TABLE ratelimit.audit_2026_03 (LIKE ratelimit.audit)")
	require.NoError(t, err)
	rows := dump[strings.Index(dump, "FROM stdin;\n")+len("FROM stdin;\n"):]
	rows = rows[:strings.Index(rows, "\\.")]
	columns := dump[strings.Index(dump, "COPY "):strings.Index(dump, " FROM stdin;")]
	_, err = conn.PgConn().CopyFrom(ctx, strings.NewReader(rows), columns+" FROM stdin")
	require.NoError(t, err)
	var actor string
	require.NoError(t, conn.QueryRow(ctx, "SELECT actor FROM ratelimit.audit_2026_03").Scan(&actor))
	require.Equal(t, "alice0", actor)
}

// TestMigrateKeepsTheTrail migrates again, also if the roles were made later.
func TestMigrateKeepsTheTrail(t *testing.T) {
	server := migrated(t)
	admin := withRoles(t, server)
	sink := newSink(t, newPool(t, server.URL("shop")))
	require.NoError(t, sink.Write(ctx, reset(time.Now()), true))
	before, err := sink.Secrets(ctx, time.Time{})
	require.NoError(t, err)
	_, err = admin.Exec(ctx, "UPDATE ratelimit.audit_setting SET keep_months = 24; DROP OWNED BY ratelimit_auditor")
	require.NoError(t, err)
	_, err = connect(t, server.URL("auditor")).Exec(ctx, "SELECT * FROM ratelimit.audit")
	require.ErrorContains(t, err, "permission denied")
	require.NoError(t, postgres.Migrate(ctx, admin))
	_, err = connect(t, server.URL("auditor")).Exec(ctx, "SELECT * FROM "+"ratelimit.audit_"+time.Now().UTC().Format("2006_01"))
	require.NoError(t, err)
	require.Equal(t, []string{"reset"}, kinds(t, admin))
	after, err := newSink(t, newPool(t, server.URL("shop"))).Secrets(ctx, time.Time{})
	require.NoError(t, err)
	require.Equal(t, before, after)
	var months int
	require.NoError(t, admin.QueryRow(ctx, "SELECT keep_months FROM ratelimit.audit_setting").Scan(&months))
	require.Equal(t, 24, months)
}

// TestMigrateWaitsForALimitedTime has a stranger with the advisory lock of Migrate.
func TestMigrateWaitsForALimitedTime(t *testing.T) {
	server := migrated(t)
	withRoles(t, server)
	stranger, admin := connect(t, server.URL("stranger")), connect(t, server.URL(pgtest.Superuser))
	_, err := stranger.Exec(ctx, "SELECT pg_advisory_lock(7234298374)")
	require.NoError(t, err)
	_, err = admin.Exec(ctx, "SET lock_timeout = '100ms'")
	require.NoError(t, err)
	err = postgres.Migrate(ctx, admin)
	require.ErrorContains(t, err, "pg_locks")
	require.ErrorContains(t, err, "raise lock_timeout")
	_, err = stranger.Exec(ctx, "SELECT pg_advisory_unlock(7234298374)")
	require.NoError(t, err)
	require.NoError(t, postgres.Migrate(ctx, admin))
}
