package e2e_test

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
	"github.com/ratelimit-go/ratelimit/postgres"
)

// historyNameEnv is the environment variable with the name of a child process's
// limiter.
const historyNameEnv = "RATELIMIT_E2E_HISTORY"

// postgresURLEnv is the environment variable with the address of a child process's
// PostgreSQL server. Without it, the process counts at a Redis.
const postgresURLEnv = "RATELIMIT_E2E_POSTGRES"

// childCall is a line that a child process prints before a call, without a verdict,
// and after it.
type childCall struct {
	Key     string
	Units   int64
	Began   int64 // in Unix nanoseconds
	Verdict verdict
}

// ownKey is a key that only the child process uses. Its other key is contested, and
// may be used up before the process has a lease.
const ownKey = "own"

// killProcess starts a process that takes leased units, too, and kills it. Its last
// call may have been carried out. server is an environment variable with the address.
func killProcess(r *run, server string) {
	r.keys = append(r.keys, ownKey)
	c := startChild(r.T, "history", server, historyNameEnv+"="+r.name)
	var call childCall
	calls, held := 0, 0
	for line := range c.lines {
		call = childCall{}
		require.NoError(r, json.Unmarshal([]byte(line), &call), line)
		if call.Verdict == "" {
			continue
		}
		r.addChildCall(call)
		if call.Verdict == leased {
			held++
		}
		if calls++; calls == 160 {
			c.Process.Kill()
		}
	}
	require.NotZero(r, held, "the process had a lease")
	if call.Verdict == "" {
		call.Verdict = unknown
		r.addChildCall(call)
	}
}

// addChildCall adds a call of the child process. The call ended before its line arrived.
func (r *run) addChildCall(call childCall) {
	o := operation{action: actTake, process: historyProcesses, units: call.Units}
	r.add(call.Key, o, outcome{verdict: call.Verdict, remaining: -1}, call.Began-r.start.UnixNano())
}

// takeUntilKilled is the role of the child process.
func takeUntilKilled() error {
	o, isUnsent := redisOptions(nil, bigLimit...), unsentToRedis
	if url := os.Getenv(postgresURLEnv); url != "" {
		pool, err := pgxpool.New(ctx, url)
		if err != nil {
			return err
		}
		if o.Store, err = postgres.NewStore(pool, os.Getenv(historyNameEnv)); err != nil {
			return err
		}
		isUnsent = unsentToPostgres
	} else {
		o.Redis = redis.NewClient(&redis.Options{Addr: os.Getenv(redisAddrEnv)})
	}
	o.Lease = time.Second
	l, err := New(os.Getenv(historyNameEnv), o)
	if err != nil {
		return err
	}
	p := newHistoryProcess(l, historyProcesses, scenario{lease: o.Lease}, isUnsent)
	lines := json.NewEncoder(os.Stdout)
	for {
		units := rand.Int64N(2)
		call := childCall{Key: [...]string{"a", ownKey}[rand.IntN(2)], Units: units, Began: time.Now().UnixNano()}
		if err := lines.Encode(call); err != nil {
			return fmt.Errorf("nobody reads: %w", err)
		}
		call.Verdict = p.do(call.Key, operation{action: actTake, units: units}).verdict
		if err := lines.Encode(call); err != nil {
			return fmt.Errorf("nobody reads: %w", err)
		}
	}
}
