package postgres_test

import (
	"context"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/ratelimit-go/ratelimit"
	"github.com/ratelimit-go/ratelimit/internal/pgtest"
	"github.com/ratelimit-go/ratelimit/postgres"
	"github.com/ratelimit-go/ratelimit/storetest"
)

// TestConforms runs the suite for stores on a real server, with the server's own clock.
func TestConforms(t *testing.T) {
	server := migrated(t)
	pool := newPool(t, server.URL(pgtest.Superuser))
	storetest.Run(t, func(t *testing.T, prefix string) ratelimit.Store {
		return newStore(t, pool, t.Name()+prefix)
	}, storetest.RealTime(1500*time.Millisecond, 150*time.Millisecond))
}

// migrated starts a server with the schema.
func migrated(t testing.TB, settings ...string) *pgtest.Server {
	t.Helper()
	server := pgtest.Start(t, settings...)
	migrate(t, server)
	return server
}

func migrate(t testing.TB, server *pgtest.Server) {
	t.Helper()
	conn := connect(t, server.URL(pgtest.Superuser))
	require.NoError(t, postgres.Migrate(context.Background(), conn))
}

func connect(t testing.TB, url string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(context.Background(), url)
	require.NoError(t, err)
	t.Cleanup(func() { conn.Close(context.Background()) })
	return conn
}

// newPool returns a pool of the server at an address. It is closed when the test ends.
func newPool(t testing.TB, url string, opts ...func(*pgxpool.Config)) *pgxpool.Pool {
	t.Helper()
	config, err := pgxpool.ParseConfig(url)
	require.NoError(t, err)
	config.MaxConns = 16
	for _, opt := range opts {
		opt(config)
	}
	pool, err := pgxpool.NewWithConfig(context.Background(), config)
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	return pool
}

// newStore returns a store that is closed when the test ends.
func newStore(t testing.TB, pool *pgxpool.Pool, prefix string, opts ...postgres.Option) *postgres.Store {
	t.Helper()
	store, err := postgres.NewStore(pool, prefix, opts...)
	require.NoError(t, err)
	t.Cleanup(func() { store.Close() })
	return store
}
