package postgres_test

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ratelimit-go/ratelimit"
	"github.com/ratelimit-go/ratelimit/audit"
	"github.com/ratelimit-go/ratelimit/internal/pgtest"
	"github.com/ratelimit-go/ratelimit/postgres"
)

// This file tests the audit trail in the database. recording_test.go has the records that a
// store writes by itself.

// newSink returns a sink of a pool.
func newSink(t testing.TB, pool *pgxpool.Pool) *postgres.AuditSink {
	t.Helper()
	sink, err := postgres.NewAuditSink(pool)
	require.NoError(t, err)
	return sink
}

// newTrail returns a trail of a sink, with the secrets in the database. It is closed when the
// test ends.
func newTrail(t testing.TB, sink *postgres.AuditSink, set func(*audit.Options)) *audit.Trail {
	t.Helper()
	opts := audit.Options{Sink: sink, Secrets: sink, Service: "shop", Instance: "web-1", Logger: slog.New(slog.DiscardHandler)}
	if set != nil {
		set(&opts)
	}
	trail, err := audit.New(opts)
	require.NoError(t, err)
	t.Cleanup(func() { trail.Close() })
	return trail
}

// withRoles makes a role shop of an application, a role auditor, and a role support that is both.
func withRoles(t testing.TB, server *pgtest.Server) *pgx.Conn {
	t.Helper()
	admin := connect(t, server.URL(pgtest.Superuser))
	_, err := admin.Exec(ctx, `CREATE ROLE shop LOGIN; GRANT ratelimit_application TO shop;
		CREATE ROLE auditor LOGIN; GRANT ratelimit_auditor TO auditor;
		CREATE ROLE support LOGIN; GRANT ratelimit_application, ratelimit_auditor TO support; CREATE ROLE stranger LOGIN`)
	require.NoError(t, err)
	return admin
}

// kinds returns the kinds, outcomes and counts of all records, in the order in which they were
// written. It leaves out outages of a store, which a process that stalls may cause.
func kinds(t testing.TB, conn *pgx.Conn) []string {
	t.Helper()
	rows, err := conn.Query(ctx, "SELECT concat_ws(' ', kind, outcome, nullif(count, 0)) FROM ratelimit.audit WHERE kind NOT LIKE 'store-%' ORDER BY id")
	require.NoError(t, err)
	all, err := pgx.CollectRows(rows, pgx.RowTo[string])
	require.NoError(t, err)
	return all
}

// TestAuditTrail keeps a trail of a limiter, as an application, and reads it as support does.
func TestAuditTrail(t *testing.T) {
	server := migrated(t)
	admin := withRoles(t, server)
	pool := newPool(t, server.URL("shop"))
	trail := newTrail(t, newSink(t, pool), func(o *audit.Options) {
		o.Request = func(context.Context) (route, id string) { return "POST /login", "r-1" }
	})
	limit := ratelimit.FixedWindow(2, time.Hour)
	limiter := newLimiter(t, newStore(t, pool, "login"), []ratelimit.Limit{limit}, func(o *ratelimit.Options) {
		o.Observe, o.Audit, o.Timeout = trail.Observe, trail, 5*time.Second
	})
	began := time.Now()
	for range 6 {
		_, err := limiter.Take(ctx, "203.0.113.7")
		require.NoError(t, err)
	}
	by := ratelimit.WithReason(ratelimit.WithActor(ctx, "alice"), "ticket 7")
	require.NoError(t, limiter.Reset(by, "203.0.113.7"))
	require.NoError(t, trail.Close())
	all := kinds(t, admin)
	require.ElementsMatch(t, []string{"reset intended", "denied", "reset done", "released 4"}, all)
	require.Less(t, slices.Index(all, "reset intended"), slices.Index(all, "reset done"))

	var writer string
	var written, at time.Time
	require.NoError(t, admin.QueryRow(ctx, "SELECT writer, written, time FROM ratelimit.audit WHERE kind = 'denied'").Scan(&writer, &written, &at))
	require.Equal(t, "shop", writer)
	require.WithinRange(t, written, began.Add(-time.Second), time.Now().Add(time.Second))

	support := newTrail(t, newSink(t, newPool(t, server.URL("support"))), nil)
	found, err := support.Read(ctx, audit.Query{Key: "203.0.113.7", Limiter: "test"})
	require.NoError(t, err)
	require.Len(t, found, 4)
	// Those of the same instant are in the order in which they were written.
	require.True(t, slices.IsSortedFunc(found, func(a, b audit.Record) int { return b.Time.Compare(a.Time) }))
	i := slices.IndexFunc(found, func(r audit.Record) bool { return r.Kind == "denied" })
	denied := found[i]
	require.Equal(t, audit.Record{
		Kind: "denied", Time: denied.Time, Service: "shop", Instance: "web-1", Limiter: "test", Policy: "test", Limit: "2/1h fixed", Units: 1, Source: "store",
		Pseudonym: denied.Pseudonym, Epoch: denied.Epoch, Until: denied.Until, Route: "POST /login", RequestID: "r-1",
	}, denied)
	require.WithinDuration(t, began.Add(time.Hour), *denied.Until, time.Minute)
	for _, tc := range []struct {
		query audit.Query
		want  int
	}{
		{audit.Query{}, 4}, {audit.Query{Most: 3}, 3}, {audit.Query{Key: "203.0.113.8"}, 0}, {audit.Query{Actor: "alice"}, 2}, {audit.Query{Kind: audit.Released}, 1},
		{audit.Query{From: began.Add(-time.Minute), To: time.Now().Add(time.Minute)}, 4}, {audit.Query{From: time.Now().Add(time.Minute)}, 0}, {audit.Query{To: began.Add(-time.Minute)}, 0},
		{audit.Query{Limiter: "'; DROP TABLE ratelimit.audit; --"}, 0},
	} {
		found, err := support.Read(ctx, tc.query)
		require.NoError(t, err)
		require.Len(t, found, tc.want, "%+v", tc.query)
	}
	_, err = newTrail(t, newSink(t, pool), nil).Read(ctx, audit.Query{})
	require.ErrorContains(t, err, "grant ratelimit_auditor")
}

// TestAuditRights tries each statement as each role.
func TestAuditRights(t *testing.T) {
	server := migrated(t)
	admin := withRoles(t, server)
	trail := newTrail(t, newSink(t, newPool(t, server.URL("shop"))), nil)
	require.NoError(t, trail.Record(ctx, ratelimit.Event{Kind: ratelimit.EventReset, Time: time.Now(), Key: "key"}))
	var partition string
	require.NoError(t, admin.QueryRow(ctx, "SELECT min(inhrelid::regclass::text) FROM pg_inherits WHERE inhparent = 'ratelimit.audit'::regclass").Scan(&partition))
	roles := map[string]*pgx.Conn{}
	for _, role := range []string{"shop", "auditor", "stranger"} {
		roles[role] = connect(t, server.URL(role))
	}
	const write = `SELECT ratelimit.audit_write('[{"kind":"reset","time":"2001-01-01T00:00:00Z","writer":"alice","written":"2001-01-01T00:00:00Z","id":7}]', NULL, NULL, false)`
	for _, tc := range []struct{ sql, may string }{
		{write, "shop"},
		{"SELECT ratelimit.audit_secrets()", "shop"},
		{"SELECT ratelimit.audit_keep()", "shop"},
		{"SELECT ratelimit.audit_partition('1999-01-01')", ""},
		{"SELECT * FROM ratelimit.audit", "auditor"},
		{"SELECT * FROM " + partition, "auditor"},
		{"COPY (SELECT * FROM ratelimit.audit) TO STDOUT", "auditor"},
		{"INSERT INTO ratelimit.audit (id, written, writer, time, kind) VALUES (1, now(), 'alice', now(), 'reset')", ""},
		{"INSERT INTO " + partition + " (id, written, writer, time, kind) VALUES (1, now(), 'alice', now(), 'reset')", ""},
		{"UPDATE ratelimit.audit SET kind = 'denied'", ""},
		{"UPDATE " + partition + " SET kind = 'denied'", ""},
		{"DELETE FROM ratelimit.audit", ""},
		{"DELETE FROM " + partition, ""},
		{"TRUNCATE ratelimit.audit", ""},
		{"DROP TABLE " + partition, ""},
		{"ALTER TABLE ratelimit.audit DETACH PARTITION " + partition, ""},
		{"SELECT * FROM ratelimit.audit_secret", ""},
		{"DELETE FROM ratelimit.audit_secret", ""},
		{"SELECT * FROM ratelimit.audit_setting", ""},
		{"UPDATE ratelimit.audit_setting SET keep_months = 1", ""},
		{"SELECT setval('ratelimit.audit_id', 1)", ""},
	} {
		for role, conn := range roles {
			_, err := conn.Exec(ctx, tc.sql)
			if role == tc.may {
				assert.NoError(t, err, "%s: %s", role, tc.sql)
			} else {
				assert.ErrorContains(t, err, "SQLSTATE 42501", "%s: %s", role, tc.sql)
			}
		}
	}
	// The writer cannot say who it is or when it is.
	var forged int
	require.NoError(t, admin.QueryRow(ctx, "SELECT count(*) FROM ratelimit.audit WHERE writer <> 'shop' OR written < now() - interval '1 hour' OR id = 7").Scan(&forged))
	require.Zero(t, forged)
	require.Len(t, kinds(t, admin), 2)
}

// TestDefaultPrivileges migrates where each new object is granted to a role for reports. That
// role has no rights in the schema, also on partitions that are made later. A right that was granted by hand
// stays.
func TestDefaultPrivileges(t *testing.T) {
	server := pgtest.Start(t)
	admin := connect(t, server.URL(pgtest.Superuser))
	_, err := admin.Exec(ctx, `CREATE ROLE report LOGIN; CREATE ROLE "Odd ""role" LOGIN; CREATE ROLE by_hand LOGIN;
		ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO report, "Odd ""role", PUBLIC; ALTER DEFAULT PRIVILEGES GRANT ALL ON SEQUENCES TO report;
		ALTER DEFAULT PRIVILEGES GRANT USAGE ON SCHEMAS TO report, by_hand; ALTER DEFAULT PRIVILEGES GRANT EXECUTE ON FUNCTIONS TO report WITH GRANT OPTION`)
	require.NoError(t, err)
	require.NoError(t, postgres.Migrate(ctx, admin))
	sink := newSink(t, newPool(t, server.URL(pgtest.Superuser)))
	require.NoError(t, sink.Write(ctx, reset(time.Now()), true))
	_, err = admin.Exec(ctx, "GRANT SELECT ON ratelimit.audit, ratelimit.audit_secret TO by_hand")
	require.NoError(t, err)
	left := func() string {
		t.Helper()
		var left string
		require.NoError(t, admin.QueryRow(ctx, `SELECT coalesce(string_agg(DISTINCT o.name || ' ' || a.grantee::regrole, ', '), '') FROM (
			SELECT oid::regclass::text, relowner, relacl FROM pg_class WHERE relnamespace = 'ratelimit'::regnamespace
			UNION ALL SELECT oid::regprocedure::text, proowner, proacl FROM pg_proc WHERE pronamespace = 'ratelimit'::regnamespace) o(name, owner, acl), aclexplode(o.acl) a
			WHERE a.grantee NOT IN (o.owner, 'ratelimit_application'::regrole, 'ratelimit_auditor'::regrole)`).Scan(&left))
		return left
	}
	require.Equal(t, "ratelimit.audit by_hand, ratelimit.audit_secret by_hand", left())
	require.NoError(t, postgres.Migrate(ctx, admin))
	require.Equal(t, "ratelimit.audit by_hand", left())
	for _, sql := range []string{
		"SELECT secret FROM ratelimit.audit_secret", "SELECT ratelimit.audit_secrets()", "SELECT ratelimit.audit_partition(now() + '5 years')",
		"UPDATE ratelimit.audit_setting SET keep_months = 1", "DELETE FROM ratelimit.audit", "SELECT FROM ratelimit.audit_" + time.Now().UTC().Format("2006_01"),
	} {
		_, err := connect(t, server.URL("report")).Exec(ctx, sql)
		require.ErrorContains(t, err, "SQLSTATE 42501", sql)
	}
}

// TestHostileRecords writes texts and times that the server cannot hold, together with others.
func TestHostileRecords(t *testing.T) {
	long := strings.Repeat("x", 1<<20)
	server := pgtest.Start(t)
	for _, encoding := range []string{"UTF8", "LATIN1", "SQL_ASCII"} {
		t.Run(encoding, func(t *testing.T) {
			admin := connect(t, server.URL(pgtest.Superuser))
			_, err := admin.Exec(ctx, fmt.Sprintf("CREATE DATABASE %s ENCODING '%[1]s' TEMPLATE template0", encoding))
			require.NoError(t, err)
			url := strings.Replace(server.URL(pgtest.Superuser), "/postgres?", "/"+strings.ToLower(encoding)+"?", 1)
			conn := connect(t, url)
			require.NoError(t, postgres.Migrate(ctx, conn))
			sink := newSink(t, newPool(t, url))
			at := time.Date(2026, 11, 29, 10, 0, 0, 0, time.UTC)
			year0, year10000 := time.Date(-4000, 1, 1, 0, 0, 0, 0, time.UTC), time.Date(292277026596, 12, 4, 15, 30, 8, 0, time.UTC)
			texts := []string{"a\x00b", "\xff\xfe", "é", "Жук", "𝄞", long, long + "y", strings.Repeat("é", 5000), `\u0000`, `"}]`, "'; DROP TABLE ratelimit.audit; --", "\r\n\t\x1b[31m", "plain"}
			var records []audit.Record
			for _, s := range texts {
				records = append(records, audit.Record{Kind: "reset", Time: at, Service: s, Instance: s, Limiter: s, Actor: s, Reason: s, Outcome: audit.Done, Pseudonym: s, Epoch: s, Key: s,
					Policy: s, Limit: s, Source: s, Ended: s, Code: s, Error: s, Route: s, RequestID: s})
			}
			records = append(records, audit.Record{Kind: "odd", Time: year0, Since: &year0, Until: &year10000}, audit.Record{Kind: "odd", Time: year10000, Units: -1 << 63, Count: 1<<63 - 1}, audit.Record{})
			require.NoError(t, sink.Write(ctx, records, true))
			found, err := sink.Read(ctx, audit.Query{Most: 1000})
			require.NoError(t, err)
			require.Len(t, found, len(records))
			distinct := map[string]bool{}
			for _, r := range found {
				if r.Kind == "reset" {
					distinct[r.Actor] = true
					require.Equal(t, r.Actor, r.Key)
					require.LessOrEqual(t, len(r.Actor), 1024)
				}
			}
			require.Len(t, distinct, len(texts))
			require.Contains(t, distinct, "plain")
			require.Contains(t, distinct, `"a\x00b"`)
			if encoding == "UTF8" {
				require.Contains(t, distinct, "Жук")
				for _, s := range texts {
					if len(s) < 1024 {
						found, err := sink.Read(ctx, audit.Query{Key: s})
						require.NoError(t, err)
						require.Len(t, found, 1, "%q", s)
					}
				}
			}
			found, err = sink.Read(ctx, audit.Query{Key: long})
			require.NoError(t, err)
			require.Len(t, found, 1)
		})
	}
}
