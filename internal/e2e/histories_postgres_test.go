package e2e_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
	"github.com/ratelimit-go/ratelimit/internal/pgtest"
	"github.com/ratelimit-go/ratelimit/internal/redistest"
	"github.com/ratelimit-go/ratelimit/postgres"
)

// This file has the faults of PostgreSQL of which histories are recorded.

// rollingLimit is counted by a look and a write, and not by one statement.
var rollingLimit = []Limit{Rolling(20, time.Hour)}

var postgresScenarios = []scenario{
	{name: "no fault", limits: twoLimits, onFailure: FailClosed, refunds: true, setup: onPostgres(func(*run, *pgtest.Server) {})},
	{name: "no fault, rolling", limits: rollingLimit, onFailure: FailClosed, refunds: true, setup: onPostgres(func(*run, *pgtest.Server) {})},
	// Nothing that was answered is lost.
	{name: "killed, Durable", limits: twoLimits, onFailure: FailClosed, refunds: true, setup: onPostgres(killServer, postgres.Durable())},
	{name: "killed, Durable, rolling", limits: rollingLimit, onFailure: FailClosed, refunds: true, setup: onPostgres(killServer, postgres.Durable())},
	// Units of the last moments are lost, but no more than were counted.
	{name: "killed", limits: oneLimit, onFailure: FailClosed, refunds: true, setup: onPostgres(func(r *run, s *pgtest.Server) {
		r.lose(r.keys, oneLimit[0].N(), func() { killServer(r, s) })
	})},
	{name: "stopped and started again", limits: twoLimits, onFailure: FailClosed, refunds: true, setup: onPostgres(func(r *run, s *pgtest.Server) {
		s.Stop()
		r.awaitCalls(20)
		s.Restart()
	})},
	{name: "hung", slow: true, limits: twoLimits, timeout: 100 * time.Millisecond, onFailure: FailClosed, refunds: true, setup: onPostgres(func(r *run, s *pgtest.Server) {
		s.Hang()
		r.awaitCalls(20)
		s.Continue()
	})},
	{name: "connections terminated", limits: twoLimits, onFailure: FailClosed, refunds: true, setup: onPostgres(terminateBackends(5))},
	{name: "connections terminated, rolling", limits: rollingLimit, onFailure: FailClosed, refunds: true, setup: onPostgres(terminateBackends(5))},
	// Units that a process could not give back stay counted: a lease of each process.
	{name: "connections terminated, leases", limits: bigLimit, lease: 50 * time.Millisecond, onFailure: FailClosed, refunds: true, setup: func(t *testing.T) site {
		s := onPostgres(terminateBackends(1))(t)
		s.extra = historyProcesses * bigLimit[0].N() / 16
		return s
	}},
	{name: "replies lost", limits: twoLimits, onFailure: FailClosed, refunds: true, setup: onPostgresProxy(loseReplies)},
	{name: "replies lost, rolling", limits: rollingLimit, onFailure: FailClosed, refunds: true, setup: onPostgresProxy(loseReplies)},
	{name: "connections reset", limits: oneLimit, onFailure: FailClosed, refunds: true, setup: onPostgresProxy(resetConnections(0.1))},
	{name: "unreachable, FallbackLocal", slow: true, limits: oneLimit, onFailure: FallbackLocal, setup: onPostgresProxy(refuseConnections)},
	{name: "process with a lease killed", limits: bigLimit, lease: time.Second, onFailure: FailClosed, setup: func(t *testing.T) site {
		s := onPostgres(func(r *run, s *pgtest.Server) { killProcess(r, postgresURLEnv+"="+s.URL(pgtest.Superuser)) })(t)
		s.extra = bigLimit[0].N() / 16
		return s
	}},
	{name: "PgBouncer killed", limits: twoLimits, onFailure: FailClosed, refunds: true, setup: onBouncer},
	// With synchronous replication, nothing that was answered is lost.
	{name: "synchronous standby promoted, Durable", slow: true, limits: twoLimits, onFailure: FailClosed, refunds: true, setup: once(onStandby)},

	{name: "blocks, no fault", limits: withBlock, blocks: true, onFailure: FailClosed, refunds: true, setup: onPostgres(func(*run, *pgtest.Server) {})},
	{name: "blocks, killed, Durable", limits: withBlock, blocks: true, onFailure: FailClosed, refunds: true, setup: onPostgres(killServer, postgres.Durable())},
	{name: "blocks, connections terminated", limits: withBlock, blocks: true, onFailure: FailClosed, refunds: true, setup: onPostgres(terminateBackends(5))},
	{name: "blocks, replies lost", limits: withBlock, blocks: true, onFailure: FailClosed, refunds: true, setup: onPostgresProxy(loseReplies)},
}

// TestHistoriesOnPostgresFitTheModel is TestHistoriesFitTheModel on real PostgreSQL servers.
func TestHistoriesOnPostgresFitTheModel(t *testing.T) { checkHistories(t, postgresScenarios) }

// startPostgres starts a server with the schema.
func startPostgres(t *testing.T) *pgtest.Server {
	t.Helper()
	server := pgtest.Start(t)
	conn, err := pgx.Connect(ctx, server.URL(pgtest.Superuser))
	require.NoError(t, err)
	defer conn.Close(ctx)
	require.NoError(t, postgres.Migrate(ctx, conn))
	return server
}

// postgresSite returns a site whose processes connect to the first address, and whose reader
// to the second one.
func postgresSite(t *testing.T, url, reader string, strike func(*run), opts ...postgres.Option) site {
	pool := func(url string, conns int) *pgxpool.Pool {
		p, err := pgxpool.New(ctx, fmt.Sprintf("%s&pool_max_conns=%d", url, conns))
		require.NoError(t, err)
		t.Cleanup(p.Close)
		return p
	}
	processes, readers := pool(url, 16*historyProcesses), pool(reader, 2)
	store := func(r *run, pool *pgxpool.Pool) Store {
		s, err := postgres.NewStore(pool, r.name, opts...)
		require.NoError(r, err)
		t.Cleanup(func() { s.Close() })
		return s
	}
	return site{
		options: func(r *run) Options {
			o := redisOptions(nil, r.limits...)
			o.Store = store(r, processes)
			return o
		},
		reader: func(r *run) Store {
			readers.Reset() // the fault may have ended its connections
			return store(r, readers)
		},
		readBlock: func(r *run, key string) (units int64, blocked bool, rung int) {
			err := readers.QueryRow(ctx, `SELECT c.a1, b IS NOT NULL, coalesce((b ->> 1)::int, 0)
				FROM ratelimit.counter c JOIN ratelimit.prefix p ON c.key = p.id || ':' || $2
				CROSS JOIN LATERAL (SELECT c.more -> 'counters' -> 'fixed-1h' -> 'block') m(b) WHERE p.prefix = $1`, r.name, key).Scan(&units, &blocked, &rung)
			require.NoError(r, err)
			return units, blocked, rung
		},
		unsent: unsentToPostgres,
		strike: strike,
	}
}

func unsentToPostgres(err error) bool { return new(postgres.Store).Fault(err) != FaultUnknown }

// onPostgres returns the setup of a fault of a single server.
func onPostgres(strike func(*run, *pgtest.Server), opts ...postgres.Option) func(t *testing.T) site {
	return func(t *testing.T) site {
		server := startPostgres(t)
		url := server.URL(pgtest.Superuser)
		return postgresSite(t, url, url, func(r *run) { strike(r, server) }, opts...)
	}
}

// onPostgresProxy returns the setup of a fault of the network in front of a single server.
func onPostgresProxy(strike func(*run, *redistest.Proxy)) func(t *testing.T) site {
	return func(t *testing.T) site {
		server := startPostgres(t)
		proxy := redistest.NewProxy(t, server.Addr())
		url := strings.Replace(server.URL(pgtest.Superuser), server.Addr(), proxy.Addr, 1)
		return postgresSite(t, url, server.URL(pgtest.Superuser), func(r *run) { strike(r, proxy) })
	}
}

// killServer kills the server while calls are under way, and starts it again.
func killServer(r *run, s *pgtest.Server) {
	s.Kill()
	r.awaitCalls(20)
	s.Restart()
}

// terminateBackends returns a fault that ends the connections of all clients, some times.
func terminateBackends(times int) func(*run, *pgtest.Server) {
	return func(r *run, s *pgtest.Server) {
		admin, err := pgx.Connect(ctx, s.URL(pgtest.Superuser))
		require.NoError(r, err)
		defer admin.Close(ctx)
		for range times {
			_, err := admin.Exec(ctx, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'")
			require.NoError(r, err)
			r.awaitCalls(20)
		}
	}
}

// onBouncer is the setup in which a PgBouncer in transaction mode is killed.
func onBouncer(t *testing.T) site {
	server := startPostgres(t)
	bouncer := server.Bouncer(3)
	return postgresSite(t, bouncer.URL()+"&default_query_exec_mode=exec", server.URL(pgtest.Superuser), func(r *run) {
		bouncer.Kill()
		r.awaitCalls(20)
		bouncer.Start()
	})
}

// onStandby is the setup in which the primary of a synchronous standby is killed, and the
// standby promoted.
func onStandby(t *testing.T) site {
	primary := startPostgres(t)
	standby := primary.Standby()
	primary.Stop()
	primary.Restart("synchronous_standby_names=*")
	url := fmt.Sprintf("postgres://%s@%s,%s/postgres?sslmode=disable&target_session_attrs=read-write", pgtest.Superuser, primary.Addr(), standby.Addr())
	return postgresSite(t, url, standby.URL(pgtest.Superuser), func(r *run) {
		primary.Kill()
		admin, err := pgx.Connect(ctx, standby.URL(pgtest.Superuser))
		require.NoError(r, err)
		defer admin.Close(ctx)
		_, err = admin.Exec(ctx, "SELECT pg_promote()")
		require.NoError(r, err)
	}, postgres.Durable())
}
