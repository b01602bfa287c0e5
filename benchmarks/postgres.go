package benchmarks

import (
	"context"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/ratelimit-go/ratelimit/internal/pgtest"
	"github.com/ratelimit-go/ratelimit/postgres"
)

// PostgresLibraries are what is compared on a PostgreSQL server, in the order in which they
// are timed. There is no library for Go to compare with, so the rivals are the statements
// that others send, through the same driver.
var PostgresLibraries = []ServerLibrary{
	{Library{"fixed", Ours, "", "FixedWindow, postgres.NewStore, Timeout 3s as on Redis", nil}, openOnPostgres(fixedWindow), nil},
	{Library{"bucket", Ours, "", "TokenBucket, the same", nil}, openOnPostgres(tokenBucket), nil},
	{Library{"durable", Ours, "", "FixedWindow, the same with postgres.Durable", nil}, openOnPostgres(fixedWindow, postgres.Durable()), nil},
	{Library{onRedis, Ours, "", "FixedWindow, on Redis as in the tables above, with appendonly and appendfsync everysec", nil}, openOursOnRedis(fixedWindow, 0), nil},
	{Library{"upsert", Rival, "github.com/jackc/pgx/v5", "the statement of rate-limiter-flexible, an INSERT … ON CONFLICT DO UPDATE for each call, with synchronous_commit = on", nil}, openUpsert("on"), nil},
	{Library{"upsert-async", Rival, "github.com/jackc/pgx/v5", "the same with synchronous_commit = off, as this library without Durable", nil}, openUpsert("off"), nil},
	{Library{"for-update", Rival, "github.com/jackc/pgx/v5", "a transaction of SELECT … FOR UPDATE and UPDATE, with synchronous_commit = off", nil}, openForUpdate, nil},
	{Library{"upsert-of-64", Floor, "github.com/jackc/pgx/v5", "64 keys in one UPSERT, whose callers wait for nothing, with synchronous_commit = off", nil}, openUpsertOf64, nil},
	{Library{"select-1", Floor, "github.com/jackc/pgx/v5", "SELECT 1, one by one", nil}, openSelect1, nil},
}

// onRedis is the name of this library on Redis.
const onRedis = "on-redis"

// PostgresConnections is the maximum number of connections of each pool.
const PostgresConnections = 32

// pool returns a pool of connections to the server with a setting of synchronous_commit.
func (t target) pool(synchronousCommit string) *pgxpool.Pool {
	config := must(pgxpool.ParseConfig(t.postgres))
	config.MaxConns = PostgresConnections
	config.ConnConfig.RuntimeParams["synchronous_commit"] = synchronousCommit
	return must(pgxpool.NewWithConfig(background, config))
}

// flat is the table of the rivals: a row for each key of a limit.
const flat = `CREATE TABLE IF NOT EXISTS flat (key text COLLATE "C" PRIMARY KEY, points bigint NOT NULL, expire bigint) WITH (fillfactor = 70)`

// upsert is the statement of rate-limiter-flexible, which counts denied calls, too.
const upsert = `INSERT INTO flat VALUES ($1, 1, $2) ON CONFLICT (key) DO UPDATE SET
	points = CASE WHEN flat.expire <= $3 THEN 1 ELSE flat.points + 1 END,
	expire = CASE WHEN flat.expire <= $3 THEN $2 ELSE flat.expire END RETURNING points`

func openUpsert(synchronousCommit string) func(target, quota) subject {
	return func(where target, q quota) subject {
		pool := where.pool(synchronousCommit)
		one := func(key string) (bool, error) {
			now := time.Now().UnixMilli()
			var points int64
			err := pool.QueryRow(background, upsert, key, now+q.window.Milliseconds(), now).Scan(&points)
			return err == nil && points <= q.units, err
		}
		return subject{take: q.each(one), close: pool.Close}
	}
}

// each asks for a unit of each limit: a statement has one.
func (q quota) each(take func(key string) (bool, error)) func(key string) (bool, error) {
	if !q.two {
		return take
	}
	return func(key string) (bool, error) {
		if ok, err := take(key); !ok {
			return false, err
		}
		return take("second " + key)
	}
}

// openForUpdate locks the row, looks at it, and writes it. The row is made beforehand.
func openForUpdate(where target, q quota) subject {
	pool := where.pool("off")
	var known sync.Map
	one := func(key string) (bool, error) {
		if _, ok := known.Load(key); !ok {
			if _, err := pool.Exec(background, `INSERT INTO flat VALUES ($1, 0, $2) ON CONFLICT (key) DO NOTHING`, key, time.Now().Add(q.window).UnixMilli()); err != nil {
				return false, err
			}
			known.Store(key, true)
		}
		var admitted bool
		err := pgx.BeginFunc(background, pool, func(tx pgx.Tx) error {
			var points, expire int64
			if err := tx.QueryRow(background, `SELECT points, expire FROM flat WHERE key = $1 FOR UPDATE`, key).Scan(&points, &expire); err != nil {
				return err
			}
			if now := time.Now(); expire <= now.UnixMilli() {
				points, expire = 0, now.Add(q.window).UnixMilli()
			}
			if points >= q.units {
				return nil
			}
			admitted = true
			_, err := tx.Exec(background, `UPDATE flat SET points = $2, expire = $3 WHERE key = $1`, key, points+1, expire)
			return err
		})
		return err == nil && admitted, err
	}
	return subject{take: q.each(one), close: pool.Close}
}

func openUpsertOf64(where target, q quota) subject {
	const upserts = `INSERT INTO flat SELECT k, n, $3 FROM unnest($1::text[], $2::bigint[]) u(k, n) ORDER BY k COLLATE "C" ON CONFLICT (key) DO UPDATE SET
		points = CASE WHEN flat.expire <= $4 THEN excluded.points ELSE flat.points + excluded.points END,
		expire = CASE WHEN flat.expire <= $4 THEN $3 ELSE flat.expire END RETURNING points`
	pool := where.pool("off")
	type batch struct {
		units map[string]int64
		n     int
	}
	batches := sync.Pool{New: func() any { return &batch{units: make(map[string]int64)} }}
	one := func(key string) (bool, error) {
		b := batches.Get().(*batch)
		defer batches.Put(b)
		b.units[key]++
		if b.n++; b.n < 64 {
			return true, nil
		}
		keys, units := make([]string, 0, 64), make([]int64, 0, 64)
		for key, n := range b.units {
			keys, units = append(keys, key), append(units, n)
		}
		clear(b.units)
		b.n = 0
		now := time.Now().UnixMilli()
		rows, err := pool.Query(background, upserts, keys, units, now+q.window.Milliseconds(), now)
		if err != nil {
			return false, err
		}
		rows.Close()
		return succeeded(rows.Err())
	}
	return subject{take: q.each(one), close: pool.Close}
}

func openSelect1(where target, _ quota) subject {
	pool := where.pool("on")
	return subject{
		take: func(string) (bool, error) {
			var n int
			return succeeded(pool.QueryRow(background, "SELECT 1").Scan(&n))
		},
		close: pool.Close,
	}
}

// migrate makes the tables of this library and of the rivals.
func migrate(server *pgtest.Server) error {
	ctx, cancel := context.WithTimeout(background, time.Minute)
	defer cancel()
	conn, err := pgx.Connect(ctx, server.URL(pgtest.Superuser))
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	if err := postgres.Migrate(ctx, conn); err != nil {
		return err
	}
	_, err = conn.Exec(ctx, flat)
	return err
}
