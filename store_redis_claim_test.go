package ratelimit_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
	"github.com/ratelimit-go/ratelimit/internal/redistest"
)

// process is a process: a limiter with its own store.
type process struct {
	*Limiter
	store *RedisStore
	log   *syncBuffer
}

func newProcess(t *testing.T, client redis.UniversalClient, prefix, name string, limit Limit, opts ...RedisOption) *process {
	var reg Registry
	p := &process{store: redisStore(t, client, prefix, opts...), log: new(syncBuffer)}
	o := Options{
		Limits: []Limit{limit}, Store: p.store, Timeout: time.Minute, OnFailure: FailClosed, DenyRecheck: 1,
		Logger: slog.New(slog.NewTextHandler(p.log, nil)),
	}
	p.Limiter = Must(reg.New(name, o))
	p.log.Reset() // removes the line about the store
	t.Cleanup(func() { p.Close() })
	return p
}

// use takes a unit, and waits until the store's other calls have ended.
func (p *process) use(t *testing.T) error {
	t.Helper()
	err := takeErr(p.store, "k", 1, p.Limits())
	synctest.Wait()
	return err
}

var plenty = FixedWindow(1_000_000, 1000*time.Hour)

// TestRedisStoreKeepsARecordOfItsOwner checks that the record exists from the
// first use, and that the store looks at it now and then.
func TestRedisStoreKeepsARecordOfItsOwner(t *testing.T) {
	bubble(t, func(t *testing.T, m *miniredis.Miniredis, c *redis.Client) {
		sent := make(map[string]int)
		c.AddHook(redistest.Hook(func(ctx context.Context, cmd redis.Cmder, next redis.ProcessHook) error {
			if name := cmd.Name(); name != "hello" && name != "client" { // sent at the beginning of each connection
				sent[name]++ // this test never sends two commands at once
			}
			return next(ctx, cmd)
		}))
		p := newProcess(t, c, "rl:login:", "login", plenty)
		synctest.Wait()
		require.Empty(t, m.Keys(), "nothing is sent before it is used")
		require.NoError(t, p.use(t))
		require.Equal(t, time.Hour, m.TTL("rl:login:owner"))
		text, err := m.Get("rl:login:owner")
		require.NoError(t, err)
		var record struct {
			Limiter, Version string
			Limits           []string
		}
		require.NoError(t, json.Unmarshal([]byte(text), &record))
		require.Equal(t, "login", record.Limiter)
		require.Equal(t, []string{plenty.String()}, record.Limits)
		require.NotEmpty(t, record.Version)

		require.Equal(t, map[string]int{"evalsha": 1, "eval": 1, "set": 1}, sent)
		for range 1000 {
			require.NoError(t, p.use(t))
		}
		require.Equal(t, map[string]int{"evalsha": 1001, "eval": 1, "set": 1}, sent, "and it costs nothing more for a while")
		for range 100 { // ten hours
			time.Sleep(6 * time.Minute)
			require.NoError(t, p.use(t))
			require.Greater(t, m.TTL("rl:login:owner"), 30*time.Minute, "it does not expire while the limiter is used")
		}
		require.Equal(t, 1101, sent["evalsha"])
		require.LessOrEqual(t, sent["set"], 1+2*26)
		require.LessOrEqual(t, sent["get"], 26)
		time.Sleep(time.Hour)
		require.False(t, m.Exists("rl:login:owner"), "and goes when it is not")

		require.Zero(t, p.store.Stats().PrefixClaimed)
		require.Empty(t, p.log.String())
	})
}

func TestDecisionsDoNotWaitForTheOwnersRecord(t *testing.T) {
	bubble(t, func(t *testing.T, m *miniredis.Miniredis, c *redis.Client) {
		var mu sync.Mutex
		hanging := 0
		c.AddHook(redistest.Hook(func(ctx context.Context, cmd redis.Cmder, next redis.ProcessHook) error {
			if cmd.Name() == "set" || cmd.Name() == "get" {
				mu.Lock()
				hanging++
				mu.Unlock()
				time.Sleep(time.Second)
			}
			return next(ctx, cmd)
		}))
		p := newProcess(t, c, "rl:", "login", plenty)
		start := time.Now()
		for range 100 {
			_, err := p.Take(ctx, "k")
			require.NoError(t, err)
		}
		require.Zero(t, time.Since(start))
		synctest.Wait()
		require.Equal(t, 1, hanging, "there is one such command at a time")
	})
}

// TestOtherOwnerIsReportedOnce has a limiter with another name under the prefix.
// It goes on counting.
func TestOtherOwnerIsReportedOnce(t *testing.T) {
	bubble(t, func(t *testing.T, m *miniredis.Miniredis, c *redis.Client) {
		api := newProcess(t, c, "rl:", "api", plenty)
		require.NoError(t, api.use(t))
		login := newProcess(t, c, "rl:", "login", hour)
		require.NoError(t, login.use(t))
		require.EqualValues(t, 1, login.store.Stats().PrefixClaimed)
		require.Contains(t, login.log.String(), "level=ERROR")
		require.Contains(t, login.log.String(), "a limiter of another name counts under this limiter's prefix in another process")
		for _, part := range []string{"limiter=login", "prefix=rl:", "other=api", `other_limits="[1000000/1000h fixed]"`} {
			require.Contains(t, login.log.String(), part)
		}
		logged := login.log.String()
		for range 3 {
			time.Sleep(time.Minute)
			require.NoError(t, login.use(t))
		}
		require.EqualValues(t, 4, login.store.Stats().PrefixClaimed)
		require.Equal(t, logged, login.log.String(), "once")
		require.Empty(t, api.log.String())
		text, _ := m.Get("rl:owner")
		require.Contains(t, text, `"api"`, "the record stays its owner's")
	})
}

// TestOtherLimitsOfTheOwnerAreANotice has the same limiter with other limits, like
// in a rolling deploy.
func TestOtherLimitsOfTheOwnerAreANotice(t *testing.T) {
	bubble(t, func(t *testing.T, m *miniredis.Miniredis, c *redis.Client) {
		old := newProcess(t, c, "rl:", "api", plenty, RefuseSharedPrefix())
		require.NoError(t, old.use(t))
		same := newProcess(t, c, "rl:", "api", plenty)
		require.NoError(t, same.use(t))
		require.Empty(t, same.log.String())
		next := newProcess(t, c, "rl:", "api", hour, RefuseSharedPrefix())
		require.NoError(t, next.use(t))
		require.Contains(t, next.log.String(), "level=INFO")
		require.NotContains(t, next.log.String(), "level=ERROR")
		require.NotContains(t, next.log.String(), "level=WARN")
		require.Contains(t, next.log.String(), "as in a rolling deploy")
		require.Zero(t, next.store.Stats().PrefixClaimed)
		text, _ := m.Get("rl:owner")
		require.Contains(t, text, hour.String())
		require.NoError(t, old.use(t))

		// The record also follows a process that changes its limits.
		require.NoError(t, next.SetLimits(plenty))
		require.NoError(t, next.use(t))
		text, _ = m.Get("rl:owner")
		require.Contains(t, text, plenty.String())
	})
}

// TestRefuseSharedPrefixStopsTheSecondLimiter also checks that the second
// limiter counts when the first one is gone.
func TestRefuseSharedPrefixStopsTheSecondLimiter(t *testing.T) {
	bubble(t, func(t *testing.T, m *miniredis.Miniredis, c *redis.Client) {
		api := newProcess(t, c, "rl:", "api", plenty)
		require.NoError(t, api.use(t))
		login := newProcess(t, c, "rl:", "login", hour, RefuseSharedPrefix())
		require.NoError(t, login.use(t), "the first decision does not wait for the record")
		for range 3 {
			commands := m.CommandCount()
			err := login.use(t)
			require.ErrorIs(t, err, ErrPrefixClaimed)
			require.ErrorContains(t, err, `it is "api"; give each limiter a prefix of its own`)
			require.Equal(t, commands, m.CommandCount(), "and nothing is sent")
			require.ErrorIs(t, login.store.Reset(ctx, "k", []Limit{hour}), ErrPrefixClaimed)
			_, err = login.store.Adjust(ctx, "k", 1, Now, []Limit{hour})
			require.ErrorIs(t, err, ErrPrefixClaimed)
		}
		time.Sleep(time.Minute)
		require.Error(t, login.use(t))

		// After an error from Redis, the store must not count either.
		m.SetError("ERR broken")
		time.Sleep(time.Minute)
		require.ErrorIs(t, login.use(t), ErrPrefixClaimed)
		require.ErrorIs(t, login.use(t), ErrPrefixClaimed)
		m.SetError("")

		m.Del("rl:owner") // like an expiry
		time.Sleep(time.Minute)
		require.Error(t, login.use(t), "this one finds out")
		require.NoError(t, login.use(t))
		text, _ := m.Get("rl:owner")
		require.Contains(t, text, `"login"`)

		// Now the other limiter's statistics report it.
		time.Sleep(time.Hour - time.Minute)
		require.NoError(t, login.use(t))
		require.NoError(t, api.use(t))
		require.EqualValues(t, 1, api.store.Stats().PrefixClaimed)
	})
}

// TestForeignOwnersRecordIsReportedOnOneLine has a record that the library did
// not write. It must not break a log line.
func TestForeignOwnersRecordIsReportedOnOneLine(t *testing.T) {
	bubble(t, func(t *testing.T, m *miniredis.Miniredis, c *redis.Client) {
		require.NoError(t, m.Set("rl:owner", "junk\n"+string(make([]byte, 1<<20))))
		p := newProcess(t, c, "rl:", "login", hour)
		require.NoError(t, p.use(t))
		require.EqualValues(t, 1, p.store.Stats().PrefixClaimed)
		require.Contains(t, p.log.String(), "which is no record of this library")
		require.Less(t, len(p.log.String()), 2000)
		require.Equal(t, 1, bytes.Count([]byte(p.log.String()), []byte("\n")))

		m.Del("rl:owner")
		m.HSet("rl:owner", "f", "v") // reading it fails without an error, because decisions do not need it
		time.Sleep(time.Hour)
		require.NoError(t, p.use(t))
	})
}

func TestStoreWithoutALimiterClaimsNoPrefix(t *testing.T) {
	bubble(t, func(t *testing.T, m *miniredis.Miniredis, c *redis.Client) {
		s := redisStore(t, c, "rl:", RefuseSharedPrefix())
		take(t, s, "k", 1, hour)
		synctest.Wait()
		require.Equal(t, []string{"rl:{k}:fixed-1h"}, m.Keys())
	})
}

// TestNoKeyReachesTheOwnersRecord uses keys that are named like the record, or that
// try to close the braces around a key.
func TestNoKeyReachesTheOwnersRecord(t *testing.T) {
	bubble(t, func(t *testing.T, m *miniredis.Miniredis, c *redis.Client) {
		p := newProcess(t, c, "rl:", "login", hour)
		require.NoError(t, p.use(t))
		record, err := m.Get("rl:owner")
		require.NoError(t, err)
		for _, key := range []string{"owner", "rl:owner", ":owner", "}owner", "}:owner", "{owner}", "{}owner", "x}:owner\x00", "*"} {
			decide(t, p.Limiter, key, 3)
			require.NoError(t, p.Refund(ctx, key, 1))
			require.EqualValues(t, 3, leftOf(t, p.Limiter, key), key)
			require.NoError(t, p.Reset(ctx, key))
			require.EqualValues(t, 5, leftOf(t, p.Limiter, key), key)
			after, err := m.Get("rl:owner")
			require.NoError(t, err, key)
			require.Equal(t, record, after, key)
		}
	})
}

// TestHookThatPanicsBesideDecisions has a hook of the client that panics once for the owner's
// record, and once for the key by which a store finds out whether all keys are on one server.
// Both are sent again, and the panics are logged.
func TestHookThatPanicsBesideDecisions(t *testing.T) {
	bubble(t, func(t *testing.T, m *miniredis.Miniredis, c *redis.Client) {
		var mu sync.Mutex
		sent := make(map[string]int)
		c.AddHook(redistest.Hook(func(ctx context.Context, cmd redis.Cmder, next redis.ProcessHook) error {
			if cmd.Name() == "set" {
				key := cmd.Args()[1].(string)
				mu.Lock()
				sent[key]++
				first := sent[key] == 1
				mu.Unlock()
				if first {
					panic("a bug of the hook")
				}
			}
			return next(ctx, cmd)
		}))
		p := newProcess(t, c, "rl:", "login", plenty)
		for range 2 {
			require.NoError(t, p.use(t))
			for range 3 { // rounds, of which at least one has a batch of several calls
				var callers sync.WaitGroup
				for key := range 64 {
					callers.Go(func() { assert.NoError(t, takeErr(p.store, fmt.Sprint(key), 1, p.Limits())) })
				}
				callers.Wait()
				synctest.Wait()
			}
			time.Sleep(2 * time.Minute) // the record is sent again after a minute
		}
		mu.Lock()
		defer mu.Unlock()
		require.Equal(t, map[string]int{"rl:owner": 2, "rl:place": 2}, sent)
		require.Equal(t, 1, strings.Count(p.log.String(), "panic: a bug of the hook"), "once a minute")
		require.Contains(t, p.log.String(), "code=store-failed")
		require.Equal(t, 2, int(p.Stats().Warnings[CodeStoreFailed]))
	})
}

// TestLoggerThatPanicsAtAnotherOwner has a logger that panics when a store finds its prefix in
// use, or other limits. The store goes on looking at the record.
func TestLoggerThatPanicsAtAnotherOwner(t *testing.T) {
	for code, name := range map[Code]string{CodePrefixClaimed: "login", CodeOtherLimits: "api"} {
		bubble(t, func(t *testing.T, m *miniredis.Miniredis, c *redis.Client) {
			require.NoError(t, newProcess(t, c, "rl:", "api", plenty).use(t))
			log, seen := &logged{panics: panicAt(code, CodeStoreFailed)}, new(recorder)
			o := withRedis(nil, hour)
			o.Store, o.Logger, o.Observe = redisStore(t, c, "rl:"), log.logger(), seen.observe
			l := Must(new(Registry).New(name, o))
			defer l.Close()
			decide(t, l, "k", 1)
			synctest.Wait()
			require.Equal(t, []Code{code, CodeStoreFailed}, log.codes())
			require.Equal(t, code, seen.of(EventWarning)[0].Code)

			m.Del("rl:owner")
			time.Sleep(2 * time.Minute)
			decide(t, l, "k", 1)
			synctest.Wait()
			require.True(t, m.Exists("rl:owner"), "it was looked at after a minute")
		})
	}
}
