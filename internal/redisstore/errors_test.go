package redisstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/ratelimit-go/ratelimit/internal/clock"
	"github.com/ratelimit-go/ratelimit/internal/engine"
	"github.com/ratelimit-go/ratelimit/internal/redistest"
	"github.com/ratelimit-go/ratelimit/internal/rule"
)

var ctx = context.Background()

// reply is an error that a server has answered, as the client returns it.
type reply string

func (r reply) Error() string { return string(r) }
func (reply) RedisError()     {}

// raised returns how Redis 7 and Redis 6 reply if a command that a script has
// called fails. Redis 6 writes a dash before what the server itself has
// refused.
func raised(text string) []reply {
	return []reply{
		reply(text + " script: 8f1c2d, on @user_script:58."),
		reply("ERR Error running script (call to f_8f1c2d): @user_script:58: " + strings.TrimPrefix(text, "ERR ")),
		reply("ERR Error running script (call to f_8f1c2d): @user_script:58: @user_script: 58: -" + strings.TrimPrefix(text, "ERR ")),
	}
}

// TestReplies: a reply, what it means, what it means if a script has failed
// with it, and the hint.
func TestReplies(t *testing.T) {
	const unknown, refused, key = engine.Unknown, engine.Refused, engine.Key
	for _, tc := range []struct {
		text            string
		plain, inScript engine.Fault
		hint            string
	}{
		// The server looks at these before it runs a script.
		{"NOAUTH Authentication required.", refused, unknown, "password"},
		{"WRONGPASS invalid username-password pair or user is disabled.", refused, unknown, "user name and password"},
		{"NOPERM this user has no permissions to run the 'evalsha' command", refused, unknown, "let the client's user run"},
		{"NOPERM this user has no permissions to access one of the keys used as arguments", refused, unknown, "on the prefix's keys"},
		{"DENIED Redis is running in protected mode because protected mode is enabled", refused, unknown, "protected mode"},
		{"ERR DB index is out of range", refused, unknown, "another database number"},
		{"ERR max number of clients reached", refused, unknown, "maxclients"},
		{"ERR unknown command 'evalsha', with args beginning with: ", refused, unknown, "Redis 6.2"},
		{"NOSCRIPT No matching script. Please use EVAL.", refused, unknown, ""},
		{"LOADING Redis is loading the dataset in memory", refused, unknown, "reading its data"},
		{"MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.", refused, unknown, "has lost its master"},
		{"BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.", refused, unknown, "SCRIPT KILL"},
		{"BUSY Redis is busy running a module command.", refused, unknown, "runs for too long"},
		{"OOM not as Redis writes it", refused, unknown, "maxmemory"},

		// The server looks at these before the first write of a script, and not
		// after.
		{"READONLY You can't write against a read only replica.", refused, refused, "connect to the master"},
		{"OOM command not allowed when used memory > 'maxmemory'.", refused, refused, "maxmemory"},
		{"MISCONF Redis is configured to save RDB snapshots, but it's currently unable to persist to disk.", refused, refused, "cannot save its data"},
		{"MISCONF Errors writing to the AOF file: No space left on device", refused, refused, "cannot save its data"},
		{"NOREPLICAS Not enough good replicas to write.", refused, refused, "min-replicas-to-write"},
		{"ERR Can not execute the command on a stale replica", refused, refused, "has lost its master"},
		{"ERR Script attempted to execute a write command while the cluster is down and readonly", refused, refused, "serves no keys"},
		{"ERR Lua script attempted to execute a write command while the cluster is down and readonly", refused, refused, "serves no keys"},
		{"ERR Script killed by user with SCRIPT KILL...", refused, refused, "too long"},

		// A key, or its slot.
		{"MOVED 3999 127.0.0.1:6381", key, unknown, "redis.NewClusterClient"},
		{"ASK 3999 127.0.0.1:6381", key, unknown, "redis.NewClusterClient"},
		{"TRYAGAIN Multiple keys request during rehashing of slot", key, unknown, "slot is moving"},
		{"CROSSSLOT Keys in request don't hash to the same slot", key, unknown, "different slots"},
		{"CLUSTERDOWN Hash slot not served", key, unknown, "no master for the key's slot"},
		{"CLUSTERDOWN The cluster is down", refused, unknown, "serves no keys"},
		{"CLUSTERDOWN The cluster is down and only accepts read commands", refused, unknown, "serves no keys"},
		{"WRONGTYPE Operation against a key holding the wrong kind of value", key, unknown, "delete the key"},

		// A script may have written before it used what its user may not use.
		{"ERR The user executing the script can't run this command or subcommand", unknown, unknown, "let the client's user run"},
		{"ERR The user executing the script can't access at least one of the keys mentioned in the command arguments", unknown, unknown, "let the client's user run"},
		{"ERR ACL failure in script: User u has no permissions to run the 'set' command", unknown, unknown, "let the client's user run"},
		{"NOPERM ACL failure in script: User u has no permissions to run the 'set' command", refused, unknown, "let the client's user run"},

		// A script may have written before these, or a proxy has not waited for
		// a reply.
		{"ERR value is not an integer or out of range", unknown, unknown, ""},
		{"ERR invalid expire time in 'set' command", unknown, unknown, ""},
		{"ERR Script attempted to access a non local key in a cluster node", unknown, unknown, ""},
		{"ERR Connection timed out", unknown, unknown, ""},
		{"ERR upstream failure", unknown, unknown, ""},
		{"BUSYKEY Target key name already exists.", unknown, unknown, ""},
	} {
		check := func(err error, want engine.Fault) {
			t.Helper()
			fault, hint := classify(err)
			require.Equal(t, want, fault, err)
			require.Contains(t, hint, tc.hint, err)
			require.Equal(t, tc.hint == "", hint == "", err)
		}
		check(reply(tc.text), tc.plain)
		check(fmt.Errorf("node 3: %w", reply(tc.text)), tc.plain)
		for _, r := range raised(tc.text) {
			check(r, tc.inScript)
		}
	}
}

// TestClientErrors: errors that are not replies.
func TestClientErrors(t *testing.T) {
	for _, tc := range []struct {
		err  error
		want engine.Fault
		hint string
	}{
		{&net.OpError{Op: "dial", Err: errors.New("connection refused")}, engine.Refused, ""},
		{&net.OpError{Op: "read", Err: errors.New("connection reset by peer")}, engine.Unknown, ""},
		{&net.OpError{Op: "read", Err: net.ErrClosed}, engine.Unknown, ""},
		{io.EOF, engine.Unknown, ""},
		{redis.ErrPoolTimeout, engine.Refused, ""},
		{redis.ErrPoolExhausted, engine.Refused, ""},
		{fmt.Errorf("node 3: %w", redis.ErrClosed), engine.Closed, "it was closed before this store"},
	} {
		fault, hint := classify(tc.err)
		require.Equal(t, tc.want, fault, tc.err)
		require.True(t, strings.HasPrefix(hint, tc.hint), hint)
	}
}

// hourly is a limit, and takeOne takes a unit of key under it.
var (
	hourly = &engine.Limits{Rules: []rule.Limit{{Kind: rule.Fixed, N: 5, Window: int64(time.Hour)}}}
	both   = &engine.Limits{Rules: append(hourly.Rules[:1:1], rule.Limit{Kind: rule.Sliding, N: 5, Window: int64(time.Hour)})}
)

func takeOne(s *Store, key string, limits *engine.Limits) error {
	_, err := s.Take(ctx, engine.Request{Key: key, Units: 1, Limits: limits, Now: clock.Now()}, make([]rule.Answer, len(limits.Rules)))
	return err
}

// requireFault checks how the store classifies an error that begins with text.
func requireFault(t *testing.T, s *Store, err error, want engine.Fault, text string) {
	t.Helper()
	require.ErrorContains(t, err, ": "+text)
	require.Equal(t, want, s.Fault(err), err)
}

// TestClosed: a store that was closed, and one whose client was closed, say so,
// and do not blame the server.
func TestClosed(t *testing.T) {
	server := redistest.Start(t)
	client := server.Client()
	s := New(client, "rl:", Options{})
	require.NoError(t, takeOne(s, "k", hourly))
	client.Close()
	requireFault(t, s, takeOne(s, "k", hourly), engine.Closed, "redis: client is closed: it was closed before this store: close limiters and stores first")
	s.Close()
	requireFault(t, s, takeOne(s, "k", hourly), engine.Closed, "the store has been closed")

	cluster := redis.NewClusterClient(&redis.ClusterOptions{Addrs: []string{server.Addr}})
	cluster.Close()
	ring := redis.NewRing(&redis.RingOptions{Addrs: map[string]string{"a": server.Addr}})
	ring.Close()
	for _, client := range []redis.UniversalClient{cluster, ring} {
		s := New(client, "rl:", Options{})
		requireFault(t, s, takeOne(s, "k", hourly), engine.Closed, "redis: client is closed")
		s.Close()
	}
}

// TestServerReplies: replies of a real server, in states that it is brought
// into.
func TestServerReplies(t *testing.T) {
	server := redistest.Start(t)
	client := server.Client()
	s := New(client, "rl:", Options{})
	defer s.Close()
	require.NoError(t, takeOne(s, "k", hourly))

	set := func(name, value string) { server.Do("CONFIG", "SET", name, value) }
	set("min-replicas-to-write", "1")
	requireFault(t, s, takeOne(s, "k", hourly), engine.Refused, "NOREPLICAS")
	set("min-replicas-to-write", "0")
	server.FailSaves(true)
	requireFault(t, s, takeOne(s, "k", hourly), engine.Refused, "MISCONF")
	server.FailSaves(false)
	set("maxmemory", "1")
	requireFault(t, s, takeOne(s, "k", both), engine.Refused, "OOM")
	set("maxmemory", "0")
	server.Do("ACL", "SETUSER", "noset", "on", ">pw", "~*", "+@all", "-set")
	noSet := New(server.Client(func(o *redis.Options) { o.Username, o.Password = "noset", "pw" }), "rl:", Options{})
	defer noSet.Close()
	requireFault(t, noSet, takeOne(noSet, "new", hourly), engine.Unknown, "ERR The user executing the script can't run")

	// A script that runs for too long, and is killed.
	set("lua-time-limit", "1")
	killed := make(chan error)
	go func() {
		killed <- server.Client(func(o *redis.Options) { o.ReadTimeout, o.MaxRetries = time.Minute, -1 }).Eval(ctx, "while true do end", nil).Err()
	}()
	require.Eventually(t, func() bool { return takeOne(s, "k", hourly) != nil }, time.Minute, time.Millisecond)
	requireFault(t, s, takeOne(s, "k", hourly), engine.Refused, "BUSY")
	server.Do("SCRIPT", "KILL")
	var err error = s.explain(<-killed, nil, nil)
	requireFault(t, s, err, engine.Refused, "ERR Script killed by user")
	require.NoError(t, takeOne(s, "third", hourly))

	// What a script's own commands fail with may come after a write.
	err = s.explain(client.Eval(ctx, "redis.call('SET', KEYS[1], 1) return redis.call('LPUSH', KEYS[1], 1)", []string{"x"}).Err(), nil, nil)
	requireFault(t, s, err, engine.Unknown, "WRONGTYPE")

	set("replica-serve-stale-data", "no")
	server.Do("REPLICAOF", "127.0.0.1", "1") // which is not there
	requireFault(t, s, takeOne(s, "k", hourly), engine.Refused, "MASTERDOWN")
	set("replica-serve-stale-data", "yes")
	requireFault(t, s, takeOne(s, "another", hourly), engine.Refused, "READONLY") // "k" may be used up, and a denial writes nothing
}

// TestClusterReplies: replies of a real Cluster, some about a slot and some
// about all.
func TestClusterReplies(t *testing.T) {
	c := redistest.StartCluster(t, redistest.ClusterOptions{})
	s := New(c.Client(func(o *redis.ClusterOptions) { o.MaxRedirects = 1 }), "rl:", Options{})
	defer s.Close()
	require.NoError(t, takeOne(s, "k", both))
	slot := c.Slot("rl:{k}:any")
	owner := c.Owner(slot)
	other := c.Nodes[0]
	if other == owner {
		other = c.Nodes[1]
	}

	m := c.BeginMigration(slot, other)
	m.MoveKeys(1)
	requireFault(t, s, takeOne(s, "k", both), engine.Key, "TRYAGAIN")
	require.NoError(t, takeOne(s, "other", both))
	m.MoveKeys(1)
	m.Finish()
	require.NoError(t, takeOne(s, "k", both))

	node := New(owner.Client(), "rl:", Options{})
	defer node.Close()
	requireFault(t, node, takeOne(node, "k", hourly), engine.Key, "MOVED")
	var err error = s.explain(owner.Client().Eval(ctx, "return 1", []string{"a", "b"}).Err(), nil, nil)
	requireFault(t, s, err, engine.Key, "CROSSSLOT")

	for _, n := range c.Nodes {
		n.Do("CLUSTER", "DELSLOTS", slot)
	}
	requireFault(t, s, takeOne(s, "k", hourly), engine.Key, "CLUSTERDOWN Hash slot not served")
	for _, n := range c.Nodes {
		n.Do("CONFIG", "SET", "cluster-require-full-coverage", "yes")
		n.Do("CLUSTER", "DELSLOTS", (slot+1)%16384) // another one, so that it takes effect
	}
	require.Eventually(t, func() bool { return takeOne(s, "other", hourly) != nil }, time.Minute, time.Millisecond)
	requireFault(t, s, takeOne(s, "other", hourly), engine.Refused, "CLUSTERDOWN The cluster is down")
	for _, n := range c.Nodes {
		n.Do("CONFIG", "SET", "cluster-allow-reads-when-down", "yes")
	}
	requireFault(t, s, takeOne(s, "new", hourly), engine.Refused, "ERR Script attempted to execute a write command while the cluster is down")
}
