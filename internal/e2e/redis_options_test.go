package e2e_test

import (
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
	"github.com/ratelimit-go/ratelimit/internal/redistest"
)

// TestLimitersOnOneClientCountApart gives two limiters the same client. Each has its own store,
// which is closed with the limiter. The client stays open.
func TestLimitersOnOneClientCountApart(t *testing.T) {
	client := redistest.Start(t).Client()
	var reg Registry
	defer reg.Close()
	api := Must(reg.New("api", redisOptions(client, hour)))
	login := Must(reg.New("login", redisOptions(client, hour))) // this was once a shared store
	for range 5 {
		for _, l := range []*Limiter{api, login} {
			d, err := l.Take(ctx, "k")
			require.NoError(t, err)
			require.True(t, d.Allowed)
		}
	}
	require.Equal(t, "5", client.Get(ctx, "rl:api:{k}:fixed-1h").Val())
	require.Equal(t, "5", client.Get(ctx, "rl:login:{k}:fixed-1h").Val())
	odd := Must(reg.New(`a{b} "c"%`, redisOptions(client, hour)))
	_, err := odd.Take(ctx, "k")
	require.NoError(t, err)
	require.Equal(t, "1", client.Get(ctx, "rl:a%7Bb%7D%20%22c%22%25:{k}:fixed-1h").Val())

	require.NoError(t, api.Close())
	_, err = api.Take(ctx, "k")
	require.ErrorIs(t, err, ErrClosed)
	require.NoError(t, client.Ping(ctx).Err(), "the client is not closed")
	d, err := login.TakeN(ctx, "k", 0)
	require.NoError(t, err)
	require.Zero(t, d.Remaining)
	reopened := Must(reg.New("api", redisOptions(client, hour)))
	d, err = reopened.TakeN(ctx, "k", 0)
	require.NoError(t, err)
	require.Zero(t, d.Remaining, "counters outlive limiters")
}

// TestReloadKeepsRedisCounters reloads limiters that make their own store, and limiters with
// Options.Store.
func TestReloadKeepsRedisCounters(t *testing.T) {
	client := redistest.Start(t).Client()
	var reg Registry
	defer reg.Close()
	shared := redisStore(t, client, "rl:shared:")
	build := func(r *Registry) error {
		_, err := r.New("own", redisOptions(client, hour))
		if err == nil {
			_, err = r.New("given", Options{Limits: []Limit{hour}, Store: shared, Logger: slog.New(slog.DiscardHandler)})
		}
		return err
	}
	require.NoError(t, build(&reg))
	for range 3 {
		for _, name := range []string{"own", "given"} {
			l, _ := reg.Lookup(name)
			d, err := l.Take(ctx, "k")
			require.NoError(t, err)
			require.True(t, d.Allowed)
		}
		require.NoError(t, reg.Reload(build))
	}
	for _, l := range reg.All() {
		d, err := l.TakeN(ctx, "k", 0)
		require.NoError(t, err)
		require.EqualValues(t, 2, d.Remaining, l.Name())
	}
}

// TestReloadInAnOutageKeepsBlocks reloads while Redis is down. The next generation knows the same
// state of each key as the last one.
func TestReloadInAnOutageKeepsBlocks(t *testing.T) {
	server := redistest.Start(t)
	client := server.Client(refusing)
	var r Registry
	build := func(next *Registry) error {
		o := quiet(hour)
		o.Redis, o.Timeout = client, time.Minute
		_, err := next.New("login", o)
		return err
	}
	use := func(key string) (admitted int) {
		l, _ := r.Lookup("login")
		for range 10 {
			if d, err := l.Take(ctx, key); err == nil && d.Allowed {
				admitted++
			}
		}
		return admitted
	}
	require.NoError(t, r.Reload(build))
	t.Cleanup(func() { r.Close() })
	require.Equal(t, 5, use("blocked"))
	server.Kill()
	require.Equal(t, 0, use("blocked"))
	require.Equal(t, 5, use("new"))
	for range 3 {
		require.NoError(t, r.Reload(build))
		require.Equal(t, 0, use("blocked"))
		require.Equal(t, 0, use("new"))
	}
}

// TestSimilarNamesAndKeysCountApart gives limiters on one client names that begin the same way,
// and keys that look like each other's.
func TestSimilarNamesAndKeysCountApart(t *testing.T) {
	client := redistest.Start(t).Client()
	var reg Registry
	defer reg.Close()
	limiters := make(map[string]*Limiter)
	for _, name := range []string{"api", "api:login", "login", "{api}", "a b", "a%20b"} {
		limiters[name] = Must(reg.New(name, redisOptions(client, FixedWindow(3, time.Hour))))
	}
	admitted := 0
	for _, l := range limiters {
		for _, key := range []string{"login:k", "k", "}:k", "{k}"} {
			for range 4 {
				d, err := l.Take(ctx, key)
				require.NoError(t, err)
				if d.Allowed {
					admitted++
				}
			}
		}
	}
	require.Equal(t, len(limiters)*4*3, admitted)
}

// TestErrorsNameCauseAndRemedy checks that errors and the log name the cause and the remedy, and
// that no response does.
func TestErrorsNameCauseAndRemedy(t *testing.T) {
	locked := redistest.Start(t, "--requirepass", "secret")
	open := redistest.Start(t)
	replica := redistest.Start(t, "--replicaof", strings.ReplaceAll(open.Addr, ":", " "))
	require.Eventually(t, func() bool {
		return strings.Contains(replica.Do("INFO", "replication").(string), "master_link_status:up")
	}, time.Minute, time.Millisecond)
	open.Do("ACL", "SETUSER", "noeval", "on", ">pw", "~*", "+@all", "-@scripting")
	open.Do("ACL", "SETUSER", "nokeys", "on", ">pw", "~other:*", "+@all")
	open.Do("ACL", "SETUSER", "noset", "on", ">pw", "~*", "+@all", "-set")
	open.Do("ACL", "SETUSER", "nopttl", "on", ">pw", "~*", "+@all", "-pttl")
	full := redistest.Start(t, "--maxmemory", "1", "--maxmemory-policy", "noeviction")
	user := func(name string) func(*redis.Options) {
		return func(o *redis.Options) { o.Username, o.Password = name, "pw" }
	}
	for _, tc := range []struct {
		what   string
		client *redis.Client
		want   []string
	}{
		{"no password", locked.Client(), []string{"NOAUTH", "give the client the server's password"}},
		{"wrong password", locked.Client(func(o *redis.Options) { o.Password = "guess" }), []string{"WRONGPASS", "give the client the right user name and password"}},
		{"wrong database", open.Client(func(o *redis.Options) { o.DB = 99 }), []string{"DB index is out of range", "give the client another database number"}},
		{"replica", replica.Client(), []string{"READONLY", "connect to the master; this is a replica"}},
		{"no EVAL", open.Client(user("noeval")), []string{"NOPERM", "let the client's user run EVAL, EVALSHA, GET, MGET, SET"}},
		{"no keys", open.Client(user("nokeys")), []string{"NOPERM", "on the prefix's keys"}},
		{"no SET", open.Client(user("noset")), []string{"let the client's user run"}},
		{"no PTTL", open.Client(user("nopttl")), []string{"let the client's user run"}},
		{"no memory", full.Client(), []string{"OOM", "the server is at its maxmemory"}},
	} {
		t.Run(tc.what, func(t *testing.T) {
			var reg Registry
			defer reg.Close()
			log := new(logBuffer)
			for _, policy := range []FailurePolicy{FailClosed, FailOpen, FallbackLocal} {
				opts := redisOptions(tc.client, hour)
				opts.OnFailure, opts.Key, opts.Logger = policy, StaticKey("k"), slog.New(slog.NewTextHandler(log, nil))
				l := Must(reg.New(policy.String(), opts))
				w := httptest.NewRecorder()
				l.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {})).
					ServeHTTP(w, httptest.NewRequest("GET", "/", nil))
				if policy == FailClosed {
					require.Equal(t, http.StatusServiceUnavailable, w.Code)
				} else {
					require.Equal(t, http.StatusOK, w.Code)
				}
				response := w.Body.String()
				for name, values := range w.Header() {
					response += name + strings.Join(values, "")
				}
				for _, word := range append(tc.want, "redis", "Redis", "rl:", "127.0.0.1") {
					require.NotContains(t, response, word)
				}
				for _, want := range tc.want {
					require.Contains(t, log.String(), want)
				}
			}
			s := redisStore(t, tc.client, "rl:")
			err := takeErr(s, "k", 1, []Limit{hour})
			var e *RedisError
			require.ErrorAs(t, err, &e)
			require.NotEqual(t, strings.HasPrefix(tc.what, "no SET") || strings.HasPrefix(tc.what, "no PTTL"), e.Unsent, "a script may have written before that")
			for _, want := range tc.want {
				require.ErrorContains(t, err, want)
			}
			require.ErrorContains(t, err, `RedisStore (prefix "rl:"): `)
		})
	}
}
