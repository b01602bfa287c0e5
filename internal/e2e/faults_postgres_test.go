package e2e_test

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
	"github.com/ratelimit-go/ratelimit/internal/pgtest"
	"github.com/ratelimit-go/ratelimit/internal/redistest"
	"github.com/ratelimit-go/ratelimit/postgres"
)

// postgresFaults are the rows of docs/faults.md about PostgreSQL, in the same order.
var postgresFaults = []*fault{
	{name: "PostgreSQL: killed, and started again", lasts: time.Second, slow: true, setup: postgresKilled(), loss: lossLatest},
	{name: "PostgreSQL with `Durable`: killed, and started again", lasts: time.Second, slow: true, setup: postgresKilled(postgres.Durable()), loss: lossNone},
	{name: "PostgreSQL: hung", lasts: 5 * time.Second, slow: true, setup: postgresHung, loss: lossNone},
	{name: "PostgreSQL: shut down, and started again", lasts: time.Second, slow: true, setup: postgresStopped, loss: lossNone},
	{name: "PostgreSQL: primary killed, standby promoted", lasts: 500 * time.Millisecond, slow: true, setup: postgresPromoted, loss: lossLatest},
	{name: "PostgreSQL: pg_terminate_backend, again and again", lasts: 100 * time.Millisecond, setup: postgresTerminated, loss: lossNone},
	{name: "PostgreSQL: replies lost", lasts: time.Second, slow: true, setup: postgresRepliesLost, loss: lossNone},
	{name: "PostgreSQL: LOCK TABLE by somebody else", lasts: 2 * time.Second, slow: true, setup: postgresLocked, loss: lossNone},
	{name: "PostgreSQL: read-only", lasts: 500 * time.Millisecond, setup: postgresReadOnly, loss: lossNone},
	{name: "PostgreSQL: the disk of the table is full", lasts: 500 * time.Millisecond, slow: true, setup: postgresTableFull, loss: lossNone},
	{name: "PostgreSQL: the disk of the WAL is full", lasts: time.Second, slow: true, setup: postgresWALFull, loss: lossLatest},
	{name: "PostgreSQL: no free connection", lasts: 500 * time.Millisecond, slow: true, setup: postgresNoConnections, loss: lossNone},
	{name: "PostgreSQL: password changed", lasts: 500 * time.Millisecond, slow: true, setup: postgresPasswordChanged, loss: lossNone},
	{name: "PostgreSQL: schema dropped", lasts: 500 * time.Millisecond, slow: true, setup: postgresDropped, loss: lossAll},
	{name: "PostgreSQL: PgBouncer killed, and started again", lasts: time.Second, slow: true, setup: postgresBouncer, loss: lossNone},
}

// connectPostgres makes the limiters count in the database at an address.
func (s *stage) connectPostgres(url string, set func(*pgxpool.Config), opts ...postgres.Option) {
	config, err := pgxpool.ParseConfig(url)
	require.NoError(s, err)
	config.MaxConns, config.ConnConfig.DialFunc = 32, s.dial
	if set != nil {
		set(config)
	}
	pool, err := pgxpool.NewWithConfig(ctx, config)
	require.NoError(s, err)
	var stores []*postgres.Store
	s.store = func(name string) Store {
		store, err := postgres.NewStore(pool, name, opts...)
		require.NoError(s, err)
		stores = append(stores, store)
		return store
	}
	s.close = func() {
		for _, store := range stores {
			store.Close()
		}
		pool.Close()
	}
}

// admin returns a function that runs statements as the superuser, whatever the fault is.
func (s *stage) admin(server *pgtest.Server) func(sql ...string) {
	conn, err := pgx.Connect(ctx, server.URL(pgtest.Superuser)+"&application_name=admin&default_transaction_read_only=off")
	require.NoError(s, err)
	s.Cleanup(func() { conn.Close(ctx) })
	return func(sql ...string) {
		for _, text := range sql {
			_, err := conn.Exec(ctx, text)
			require.NoError(s, err, text)
		}
	}
}

const terminateAll = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name <> 'admin' AND backend_type = 'client backend'"

func postgresKilled(opts ...postgres.Option) func(*stage) {
	return func(s *stage) {
		server := startPostgres(s.T)
		s.strike, s.mend = server.Kill, func() { server.Restart() }
		s.connectPostgres(server.URL(pgtest.Superuser), nil, opts...)
	}
}

func postgresHung(s *stage) {
	server := startPostgres(s.T)
	s.strike, s.mend = server.Hang, server.Continue
	s.connectPostgres(server.URL(pgtest.Superuser), nil)
}

func postgresStopped(s *stage) {
	server := startPostgres(s.T)
	s.strike, s.mend = server.Stop, func() { server.Restart() }
	s.connectPostgres(server.URL(pgtest.Superuser), nil)
}

func postgresPromoted(s *stage) {
	primary := startPostgres(s.T)
	standby := primary.Standby()
	s.strike = primary.Kill
	s.mend = func() { s.admin(standby)("SELECT pg_promote()") }
	s.connectPostgres(fmt.Sprintf("postgres://%s@%s,%s/postgres?sslmode=disable&target_session_attrs=read-write", pgtest.Superuser, primary.Addr(), standby.Addr()), nil)
}

func postgresTerminated(s *stage) {
	server := startPostgres(s.T)
	admin := s.admin(server)
	s.strike = func() {
		for range 20 {
			admin(terminateAll, "SELECT pg_sleep(0.01)")
		}
	}
	s.connectPostgres(server.URL(pgtest.Superuser), nil)
}

func postgresRepliesLost(s *stage) {
	server := startPostgres(s.T)
	proxy := redistest.NewProxy(s, server.Addr())
	s.strike, s.mend = func() { proxy.LoseReplies(true) }, func() { proxy.LoseReplies(false) }
	s.connectPostgres(strings.Replace(server.URL(pgtest.Superuser), server.Addr(), proxy.Addr, 1), nil)
}

func postgresLocked(s *stage) {
	server := startPostgres(s.T)
	admin := s.admin(server)
	s.strike, s.mend = func() { admin("BEGIN", "LOCK TABLE ratelimit.counter") }, func() { admin("ROLLBACK") }
	s.connectPostgres(server.URL(pgtest.Superuser), nil)
}

func postgresReadOnly(s *stage) {
	server := startPostgres(s.T)
	admin := s.admin(server)
	s.strike = func() { admin("ALTER SYSTEM SET default_transaction_read_only = on", "SELECT pg_reload_conf()") }
	s.mend = func() { admin("ALTER SYSTEM RESET default_transaction_read_only", "SELECT pg_reload_conf()") }
	s.connectPostgres(server.URL(pgtest.Superuser), nil)
}

// postgresTableFull moves the table to a disk of its own. Without the filling rows, there
// would be room for new keys on its last page.
func postgresTableFull(s *stage) {
	server := startPostgres(s.T)
	disk := server.Disk("table", 4<<20)
	admin := s.admin(server)
	admin("CREATE TABLESPACE small LOCATION '"+disk.Path+"'", "ALTER TABLE ratelimit.counter SET TABLESPACE small", "ALTER INDEX ratelimit.counter_pkey SET TABLESPACE small")
	s.strike = func() {
		disk.Fill()
		admin(`DO $$ BEGIN
			FOR i IN 1..10000 LOOP
				BEGIN
					INSERT INTO ratelimit.counter (ends, shape, g, key) VALUES (4000000000000000000, 0, 0, 'filler' || i);
				EXCEPTION WHEN disk_full THEN RETURN;
				END;
			END LOOP;
			RAISE EXCEPTION 'the disk is not full';
		END $$`)
	}
	s.mend = disk.Free
	s.connectPostgres(server.URL(pgtest.Superuser), nil)
}

// postgresWALFull moves the WAL to a disk of its own. A server that cannot write its WAL
// ends, and does not start before there is room.
func postgresWALFull(s *stage) {
	server := startPostgres(s.T)
	server.Stop()
	disk := server.WALDisk(64 << 20)
	server.Restart()
	conn, err := pgx.Connect(ctx, server.URL(pgtest.Superuser))
	require.NoError(s, err)
	s.strike = func() {
		disk.Fill()
		s.eventually("the server to end", func() bool {
			conn.Exec(ctx, "SELECT pg_switch_wal()")
			return server.HasEnded()
		})
	}
	s.mend = func() {
		disk.Free()
		server.Restart()
	}
	s.connectPostgres(server.URL(pgtest.Superuser), nil)
}

// application makes a role for an application.
func application(admin func(...string), role string) {
	admin("CREATE ROLE "+role+" LOGIN PASSWORD 'first'", "GRANT ratelimit_application TO "+role)
}

func postgresNoConnections(s *stage) {
	server := startPostgres(s.T)
	admin := s.admin(server)
	application(admin, "shop")
	s.strike = func() { admin("ALTER ROLE shop CONNECTION LIMIT 0", terminateAll) }
	s.mend = func() { admin("ALTER ROLE shop CONNECTION LIMIT -1") }
	s.connectPostgres(server.URL("shop"), nil)
}

func postgresPasswordChanged(s *stage) {
	server := startPostgres(s.T)
	admin := s.admin(server)
	application(admin, pgtest.WithPassword)
	var password atomic.Value
	password.Store("first")
	s.strike = func() { admin("ALTER ROLE "+pgtest.WithPassword+" PASSWORD 'second'", terminateAll) }
	s.mend = func() { password.Store("second") }
	s.connectPostgres(server.URL(pgtest.WithPassword), func(c *pgxpool.Config) {
		c.BeforeConnect = func(_ context.Context, c *pgx.ConnConfig) error {
			c.Password = password.Load().(string)
			return nil
		}
	})
}

func postgresDropped(s *stage) {
	server := startPostgres(s.T)
	conn, err := pgx.Connect(ctx, server.URL(pgtest.Superuser))
	require.NoError(s, err)
	s.Cleanup(func() { conn.Close(ctx) })
	s.strike = func() {
		s.eventually("the schema to be dropped", func() bool { // it may deadlock with callers
			_, err := conn.Exec(ctx, "DROP SCHEMA ratelimit CASCADE")
			return err == nil
		})
	}
	s.mend = func() { require.NoError(s, postgres.Migrate(ctx, conn)) }
	s.connectPostgres(server.URL(pgtest.Superuser), nil)
}

func postgresBouncer(s *stage) {
	bouncer := startPostgres(s.T).Bouncer(8)
	s.strike, s.mend = bouncer.Kill, bouncer.Start
	s.connectPostgres(bouncer.URL()+"&default_query_exec_mode=exec", nil)
}
