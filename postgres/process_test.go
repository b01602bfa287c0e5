package postgres_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"sync"
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

// This file has tests with several processes. A child is this test program again, with a task
// in an environment variable. It writes its tally to its standard output.

const taskVariable = "RATELIMIT_POSTGRES_TASK"

// A task is what a child does: 64 goroutines that take one unit at a time of random keys.
type task struct {
	URL, Prefix string
	Limits      []string
	Keys, Calls int // Calls is of each goroutine
	Audit       bool
}

// A tally is what a child has got.
type tally struct {
	Admitted map[string]int64 // by key
	Errors   []string
}

func TestMain(m *testing.M) {
	if text := os.Getenv(taskVariable); text != "" {
		var of task
		if err := json.Unmarshal([]byte(text), &of); err != nil {
			panic(err)
		}
		json.NewEncoder(os.Stdout).Encode(of.run())
		return
	}
	os.Exit(m.Run())
}

const goroutines = 64

// childName is the name of children for the server.
const childName = "child"

func (of task) run() (got tally) {
	ctx := context.Background()
	got.Admitted = make(map[string]int64)
	var limits []ratelimit.Limit
	for _, text := range of.Limits {
		limits = append(limits, parseLimit(text))
	}
	pool, err := pgxpool.New(ctx, of.URL+"&application_name="+childName)
	if err != nil {
		return tally{Errors: []string{err.Error()}}
	}
	defer pool.Close()
	options := ratelimit.Options{Limits: limits, OnFailure: ratelimit.FailClosed, Timeout: 30 * time.Second, Logger: slog.New(slog.DiscardHandler)}
	var with []postgres.Option
	if of.Audit {
		sink, err := postgres.NewAuditSink(pool)
		if err != nil {
			return tally{Errors: []string{err.Error()}}
		}
		trail, err := audit.New(audit.Options{Sink: sink, PlainKeys: true})
		if err != nil {
			return tally{Errors: []string{err.Error()}}
		}
		with, options.Audit, options.Observe = append(with, postgres.WithAudit(sink, true)), trail, trail.Observe
	}
	store, err := postgres.NewStore(pool, of.Prefix, with...)
	if err != nil {
		return tally{Errors: []string{err.Error()}}
	}
	defer store.Close()
	options.Store = store
	var registry ratelimit.Registry
	limiter, err := registry.New("exact", options)
	if err != nil {
		return tally{Errors: []string{err.Error()}}
	}
	inFlight := limits[0].Algorithm() == "inflight"
	var wg sync.WaitGroup
	var mu sync.Mutex
	for g := range goroutines {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(os.Getpid()), uint64(g)))
			for range of.Calls {
				key := fmt.Sprint("key", r.IntN(of.Keys))
				var d ratelimit.Decision
				err := patiently(func() (err error) {
					if inFlight {
						_, d, err = limiter.Acquire(ctx, key) // the process ends without a release
					} else {
						d, err = limiter.Take(ctx, key)
					}
					return err
				})
				mu.Lock()
				if err != nil {
					got.Errors = append(got.Errors, err.Error())
				} else if d.Allowed {
					got.Admitted[key]++
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return got
}

// start starts a child. The result waits for its tally.
func (of task) start(t *testing.T) (child *exec.Cmd, wait func() tally) {
	t.Helper()
	text, err := json.Marshal(of)
	require.NoError(t, err)
	program, err := os.Executable()
	require.NoError(t, err)
	child = exec.Command(program)
	child.Env = append(os.Environ(), taskVariable+"="+string(text))
	child.Stderr = os.Stderr
	out, err := child.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, child.Start())
	return child, func() (got tally) {
		text, _ := io.ReadAll(out)
		if child.Wait() == nil {
			require.NoError(t, json.Unmarshal(text, &got), "%s", text)
		}
		return got
	}
}

// TestProcessesAdmitExactlyTheLimit lets four processes with 64 goroutines each take of keys
// that all of them use, in any order. Each key gets exactly its limit, and nothing fails.
func TestProcessesAdmitExactlyTheLimit(t *testing.T) {
	server := migrated(t)
	pool := newPool(t, server.URL(pgtest.Superuser))
	for _, tc := range []struct {
		name   string
		limits []string
		want   int64
	}{
		{"fixed", []string{"100/1h fixed"}, 100},
		{"sliding", []string{"100/1h sliding"}, 100},
		{"bucket", []string{"1/1000h bucket burst=100"}, 100},
		{"month", []string{"100/month calendar day=1 tz=UTC"}, 100},
		{"rolling", []string{"100/1h rolling"}, 100},
		{"block", []string{"100/1h fixed block=2h"}, 100},
		{"two", []string{"100/1h fixed", "1/1000h bucket burst=60"}, 60},
		{"four", []string{"100/1h fixed", "1/1000h bucket burst=60", "80/2h sliding", "70/3h fixed"}, 60},
		{"in flight", []string{"40/1h inflight"}, 40},
		{"audit", []string{"100/1h fixed", "1/1000h bucket burst=60"}, 60},
	} {
		t.Run(tc.name, func(t *testing.T) {
			of := task{URL: server.URL(pgtest.Superuser) + "&pool_max_conns=8", Prefix: tc.name, Limits: tc.limits, Keys: 10, Calls: 6, Audit: tc.name == "audit"}
			for of.Calls*goroutines*4 < of.Keys*int(tc.want)*3/2 {
				of.Calls++
			}
			var waits []func() tally
			for range 4 {
				_, wait := of.start(t)
				waits = append(waits, wait)
			}
			sum := make(map[string]int64)
			for _, wait := range waits {
				got := wait()
				assert.Empty(t, got.Errors)
				for key, n := range got.Admitted {
					sum[key] += n
				}
			}
			for key, n := range sum {
				assert.LessOrEqual(t, n, tc.want, key)
			}
			store := newStore(t, pool, tc.name)
			for i := range of.Keys {
				key := fmt.Sprint("key", i)
				if tc.name == "in flight" || tc.name == "block" {
					continue
				}
				// All or none: every limit has counted the units that were admitted.
				for _, text := range tc.limits {
					l := parseLimit(text)
					result := make([]ratelimit.Result, 1)
					_, err := store.Take(context.Background(), key, 0, []ratelimit.Limit{l}, result)
					require.NoError(t, err)
					assert.Equal(t, sum[key], l.Burst()-result[0].Remaining, "%s under %v", key, l)
				}
			}
			full := 0
			for _, n := range sum {
				if n == tc.want {
					full++
				}
			}
			assert.Positive(t, full, "no key has reached its limit, so the test shows nothing: %v", sum)
		})
	}
}

// TestKilledProcess kills processes in the middle of their calls. What they have taken stays
// counted, at most once, and the others go on.
func TestKilledProcess(t *testing.T) {
	server := migrated(t)
	of := task{URL: server.URL(pgtest.Superuser) + "&pool_max_conns=8", Prefix: "killed", Limits: []string{"100000000/1h fixed"}, Keys: 5, Calls: 40}
	_, wait := of.start(t)
	endless := of
	endless.Calls = 1_000_000
	pool := newPool(t, server.URL(pgtest.Superuser))
	store := newStore(t, pool, "killed")
	for range 3 {
		before := used(t, store, of)
		child, reap := endless.start(t)
		for used(t, store, of) < before+500 { // it counts
			time.Sleep(5 * time.Millisecond)
		}
		child.Process.Kill()
		reap()
	}
	got := wait()
	assert.Empty(t, got.Errors)
	admitted := int64(0)
	for _, n := range got.Admitted {
		admitted += n
	}
	assert.EqualValues(t, of.Calls*goroutines, admitted)
	assert.GreaterOrEqual(t, used(t, store, of), admitted)
	// No lock is left, and no key is stuck.
	awaitNoChild(t, connect(t, server.URL(pgtest.Superuser)))
	at := used(t, store, of)
	for i := range of.Keys {
		_, err := store.Take(context.Background(), fmt.Sprint("key", i), 1, []ratelimit.Limit{parseLimit(of.Limits[0])}, make([]ratelimit.Result, 1))
		require.NoError(t, err)
	}
	assert.Equal(t, at+int64(of.Keys), used(t, store, of))
}

// awaitNoChild waits until the statements that killed children have sent have ended, and the
// connections with them. A backend that is idle may still find such a statement.
func awaitNoChild(t *testing.T, conn *pgx.Conn) {
	t.Helper()
	require.Eventually(t, func() (none bool) {
		require.NoError(t, conn.QueryRow(context.Background(), "SELECT count(*) = 0 FROM pg_stat_activity WHERE application_name = $1", childName).Scan(&none))
		return none
	}, 20*time.Second, 5*time.Millisecond)
}

// used returns how many units are counted for all keys of a task.
func used(t *testing.T, store *postgres.Store, of task) (n int64) {
	t.Helper()
	l := parseLimit(of.Limits[0])
	for i := range of.Keys {
		result := make([]ratelimit.Result, 1)
		_, err := store.Take(context.Background(), fmt.Sprint("key", i), 0, []ratelimit.Limit{l}, result)
		require.NoError(t, err)
		n += l.N() - result[0].Remaining
	}
	return n
}

func parseLimit(text string) ratelimit.Limit {
	l, err := ratelimit.ParseLimit(text)
	if err != nil {
		panic(err)
	}
	return l
}
