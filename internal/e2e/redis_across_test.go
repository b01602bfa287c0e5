package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
	"github.com/ratelimit-go/ratelimit/internal/redisscript"
	"github.com/ratelimit-go/ratelimit/internal/redistest"
)

// keyLoad has callers use up the limits of many keys, until it is stopped. It counts what each
// key is admitted.
type keyLoad struct {
	t        *testing.T
	keys     []string
	limits   func(key int) []Limit
	admitted []atomic.Int64
	calls    atomic.Int64
	refused  atomic.Int64 // calls that have failed and changed nothing
	unknown  atomic.Int64 // calls that have failed otherwise
	stop     atomic.Bool
	callers  sync.WaitGroup
}

func startLoad(t *testing.T, s *RedisStore, keys, callers int, limits func(key int) []Limit) *keyLoad {
	l := &keyLoad{t: t, limits: limits, admitted: make([]atomic.Int64, keys)}
	for k := range keys {
		l.keys = append(l.keys, fmt.Sprint("key", k))
	}
	for g := range callers {
		l.callers.Go(func() {
			for i := g * 37; !l.stop.Load(); i++ {
				k := i % keys
				limits := limits(k)
				results := make([]Result, len(limits))
				_, err := s.Take(ctx, l.keys[k], 1, limits, results)
				var e *RedisError
				switch {
				case err == nil:
					if admitted(results) {
						l.admitted[k].Add(1)
					}
				case errors.As(err, &e) && e.Unsent:
					l.refused.Add(1)
				default:
					l.unknown.Add(1)
				}
				l.calls.Add(1)
			}
		})
	}
	return l
}

func (l *keyLoad) awaitCalls(n int64) {
	n += l.calls.Load()
	require.Eventually(l.t, func() bool { return l.calls.Load() >= n }, time.Minute, time.Millisecond)
}

// end waits until each key has used up its limit, and requires that it got no more.
func (l *keyLoad) end(units int64) {
	l.t.Helper()
	require.Eventually(l.t, func() bool {
		for k := range l.admitted {
			if l.admitted[k].Load() < units {
				return false
			}
		}
		return true
	}, time.Minute, time.Millisecond)
	l.awaitCalls(int64(4 * len(l.keys)))
	l.stop.Store(true)
	l.callers.Wait()
	for k := range l.admitted {
		require.Equal(l.t, units, l.admitted[k].Load(), "%s under %v", l.keys[k], l.limits(k))
	}
}

// acrossSets are limits for n units: each kind alone, and several together.
func acrossSets(n int64) [][]Limit {
	return append(contestedSets(n),
		[]Limit{Daily(n, nil)}, []Limit{Monthly(n, 15, nil), SlidingWindow(n+7, time.Hour)},
		[]Limit{FixedWindow(n, time.Hour).Block(time.Hour)}, []Limit{SlidingWindow(n, 24*time.Hour).Block(time.Hour), FixedWindow(n+1, time.Hour)},
	)
}

// errorReplies returns how many error replies with a prefix the nodes of a cluster have sent.
func errorReplies(c *redistest.Cluster, prefix string) (n int) {
	for _, node := range c.Nodes {
		info := fmt.Sprint(node.Do("INFO", "errorstats"))
		if _, rest, ok := strings.Cut(info, "errorstat_"+prefix+":count="); ok {
			var count int
			fmt.Sscan(rest, &count)
			n += count
		}
	}
	return n
}

// scriptCalls returns how many scripts the nodes of a cluster have run.
func scriptCalls(c *redistest.Cluster) (n int64) {
	for _, node := range c.Nodes {
		n += node.Commands()["evalsha"]
	}
	return n
}

// TestAcrossSlots: limits of all kinds are exact, and calls for different slots share scripts.
func TestAcrossSlots(t *testing.T) {
	t.Parallel()
	c := redistest.StartCluster(t, redistest.ClusterOptions{})
	s := redisStore(t, c.Client(), "rl:", AcrossSlots())
	take(t, s, "first", 1, hour) // until now the client does not know the masters
	sets := acrossSets(20)
	before := scriptCalls(c)
	l := startLoad(t, s, 10*len(sets), 64, func(key int) []Limit { return sets[key%len(sets)] })
	for range 5 {
		l.awaitCalls(200)
		for _, node := range c.Nodes {
			node.Do("SCRIPT", "FLUSH")
		}
	}
	l.end(20)
	require.Zero(t, l.refused.Load()+l.unknown.Load())
	require.False(t, s.Stats().AcrossSlotsRefused)
	require.Less(t, float64(scriptCalls(c)-before), 0.9*float64(l.calls.Load()))
	require.Zero(t, errorReplies(c, "ELSEWHERE"))

	// A key that holds something else fails alone.
	c.Client().Set(ctx, "rl:{key0}:fixed-1h", "foreign", time.Hour)
	for _, limits := range [][]Limit{{hour}, {hour, SlidingWindow(5, time.Hour)}} {
		var both sync.WaitGroup
		for k := range 64 {
			both.Go(func() {
				err := takeErr(s, fmt.Sprint("key", k%32), 1, limits)
				if k%32 == 0 {
					require.ErrorContains(t, err, "holds something else than a counter")
				} else if err != nil {
					t.Error(err)
				}
			})
		}
		both.Wait()
	}
}

// TestAcrossMovingSlots moves 40 slots while callers use up the limits of their keys. The client
// has to find out each time. Each key gets exactly its limit.
func TestAcrossMovingSlots(t *testing.T) {
	t.Parallel()
	c := redistest.StartCluster(t, redistest.ClusterOptions{})
	s := redisStore(t, c.Client(), "rl:", AcrossSlots())
	sets := [][]Limit{{FixedWindow(120, time.Hour)}, {TokenBucket(120, 1000*time.Hour, 120)}, {SlidingWindow(120, 1000*time.Hour), FixedWindow(123, time.Hour)}, {Rolling(120, time.Hour)}}
	l := startLoad(t, s, 200, 24, func(key int) []Limit { return sets[key%len(sets)] })
	l.awaitCalls(200)
	for i := range 40 {
		slot := c.Slot("rl:{" + l.keys[i*5] + "}:any")
		to := c.Nodes[0]
		if c.Owner(slot) == to {
			to = c.Nodes[1]
		}
		m := c.BeginMigration(slot, to)
		l.awaitCalls(20)
		for m.MoveKeys(1) > 0 {
			if i%4 == 0 {
				l.awaitCalls(20)
			}
		}
		m.Finish()
	}
	l.end(120)
	require.NotZero(t, errorReplies(c, "ELSEWHERE"))
	require.Zero(t, l.unknown.Load())
	require.False(t, s.Stats().AcrossSlotsRefused)
	t.Log(l.calls.Load(), "calls,", l.refused.Load(), "were refused,", errorReplies(c, "ELSEWHERE"), "scripts found a key elsewhere")
}

// TestAcrossFailover has replicas take over while callers use up limits. A demoted master
// refuses all keys, and nothing is lost: it runs no command until its replica has taken over.
func TestAcrossFailover(t *testing.T) {
	if !slowFaults {
		t.Skip("takes some seconds: set RATELIMIT_FAULTS=1")
	}
	t.Parallel()
	c := redistest.StartCluster(t, redistest.ClusterOptions{Replicas: 1})
	s := redisStore(t, c.Client(), "rl:", AcrossSlots())
	const units = 4000
	l := startLoad(t, s, 60, 32, func(key int) []Limit { return []Limit{FixedWindow(units, time.Hour)} })
	l.awaitCalls(200)
	takeOver(t, c, 0, c.Nodes[3]) // from the first master
	l.awaitCalls(2000)
	l.end(units)
	require.Zero(t, l.unknown.Load())
}

// acrossHook is a hook for the commands of AcrossSlots, whose keys are not declared. It counts
// them, and may answer them in place of the server.
type acrossHook struct {
	commands atomic.Int64
	answer   redis.Error   // nil: the server answers
	delay    time.Duration // of each round trip
}

// errorReply is an error that a server has answered.
type errorReply string

func (r errorReply) Error() string { return string(r) }
func (errorReply) RedisError()     {}

// answers reports whether the hook has answered a command.
func (h *acrossHook) answers(cmd redis.Cmder) bool {
	if !strings.HasPrefix(cmd.Name(), "eval") || fmt.Sprint(cmd.Args()[2]) != "0" {
		return false
	}
	h.commands.Add(1)
	if h.answer == nil {
		return false
	}
	cmd.SetErr(h.answer)
	return true
}

func (*acrossHook) DialHook(next redis.DialHook) redis.DialHook { return next }

func (h *acrossHook) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		if h.answers(cmd) {
			return h.answer
		}
		defer time.Sleep(h.delay)
		return next(ctx, cmd)
	}
}

func (h *acrossHook) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		var others []redis.Cmder
		for _, cmd := range cmds {
			if !h.answers(cmd) {
				others = append(others, cmd)
			}
		}
		defer time.Sleep(h.delay)
		return next(ctx, others)
	}
}

// TestAcrossSlotsRefused: a server does not let scripts use keys that they have not declared. The
// store goes on with a command for each key, and says so once.
func TestAcrossSlotsRefused(t *testing.T) {
	t.Parallel()
	c := redistest.StartCluster(t, redistest.ClusterOptions{})
	for i, with := range []errorReply{
		"ELSEWHERE 1 1: ERR Script attempted to access keys that do not hash to the same slot",
		"ERR eval/evalsha number of keys can't be zero",
	} {
		client := c.Client()
		hook := &acrossHook{answer: with}
		client.AddHook(hook)
		s := redisStore(t, client, fmt.Sprint("rl:", i, ":"), AcrossSlots())
		o := quiet(hour)
		o.Store = s
		l := newLimiter(t, fmt.Sprint("api", i), o)
		take(t, s, "first", 1, hour)
		load := startLoad(t, s, 50, 64, func(int) []Limit { return []Limit{FixedWindow(20, time.Hour)} })
		load.end(20)
		require.NotZero(t, hook.commands.Load())
		require.True(t, s.Stats().AcrossSlotsRefused)
		if i == 0 { // the script has said that it has changed nothing, and so the calls are sent again
			require.Zero(t, load.unknown.Load())
		}
		before := hook.commands.Load()
		again := startLoad(t, s, 50, 64, func(int) []Limit { return []Limit{SlidingWindow(20, time.Hour)} })
		again.end(20)
		require.Equal(t, before, hook.commands.Load(), "no more are sent")
		require.Eventually(t, func() bool { return l.Stats().Warnings[CodeAcrossSlotsRefused] == 1 }, time.Minute, time.Millisecond)
	}
}

// TestServersRefuseUndeclaredKeysThatAreElsewhere: what AcrossSlots relies on. A script that uses
// a key that it has not declared is refused where a command with this key would be
// redirected, and TakeAcross has then changed nothing.
func TestServersRefuseUndeclaredKeysThatAreElsewhere(t *testing.T) {
	t.Parallel()
	c := redistest.StartCluster(t, redistest.ClusterOptions{Replicas: 1})
	master, other, replica := c.Nodes[0], c.Nodes[1], c.Nodes[3]
	var own []string // keys of master, of different slots
	var gone string  // a key of another master
	for i := 0; len(own) < 4 || gone == ""; i++ {
		key := fmt.Sprintf("rl:{%d}:fixed-1h", i)
		switch c.Owner(c.Slot(key)) {
		case master:
			own = append(own, key)
		case other:
			gone = key
		}
	}
	run := func(node *redistest.Server, keys ...string) error {
		args := []any{len(keys)}
		for _, key := range keys {
			args = append(args, key)
		}
		return node.Client().Eval(ctx, redisscript.TakeAcross.Text.(string), nil, append(args, "f", "5", "3600000000")...).Err()
	}
	requireElsewhere := func(err error, want ...int) {
		t.Helper()
		keys, why, ok := redisscript.Elsewhere(err)
		require.True(t, ok, err)
		require.Equal(t, want, slices.Compact(keys))
		require.Contains(t, why, "non local key")
	}
	units := func(key string) any { return master.Do("GET", key) }

	require.NoError(t, run(master, own...))
	requireElsewhere(run(master, own[0], gone, own[1]), 1)
	requireElsewhere(run(other, gone, own[0]), 1)
	m := c.BeginMigration(c.Slot(own[0]), other)
	require.NoError(t, run(master, own[1], own[0], own[2]), "it is still here")
	requireElsewhere(run(other, own[0], gone), 0)
	m.MoveKeys(1)
	requireElsewhere(run(master, own[1], own[0], own[2]), 1)
	requireElsewhere(run(other, own[0], gone), 0) // without ASKING, also where it has arrived
	m.Finish()
	requireElsewhere(run(master, own[0], own[1]), 0)
	require.NoError(t, run(other, own[0], gone))
	requireElsewhere(run(replica, own[1], own[2]), 0, 1, 0)

	// A connection that may read from a replica gets further, to the first write.
	reading := replica.Client()
	require.NoError(t, reading.Watch(ctx, func(tx *redis.Tx) error {
		require.NoError(t, tx.ReadOnly(ctx).Err())
		err := tx.Eval(ctx, redisscript.TakeAcross.Text.(string), nil, 1, own[1], "f", "5", "3600000000").Err()
		require.ErrorContains(t, err, "READONLY")
		return nil
	}))
	require.Equal(t, []any{"2", "2", "1"}, []any{units(own[1]), units(own[2]), units(own[3])})
}
