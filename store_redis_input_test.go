package ratelimit_test

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

// nowhere is a client of a server that is not there.
func nowhere(t testing.TB) *redis.Client {
	return redisClient(t, "127.0.0.1:1", func(o *redis.Options) { o.MaxRetries, o.DialerRetries = -1, 1 })
}

func TestNewRedisStoreRefuses(t *testing.T) {
	client := nowhere(t)
	for _, tc := range []struct {
		what, prefix string
		client       redis.UniversalClient
		want         string
	}{
		{"nil client", "rl:", nil, `ratelimit: RedisStore "rl:": the client is nil: make one with redis.NewUniversalClient`},
		{"typed nil client", "rl:", (*redis.Client)(nil), `ratelimit: RedisStore "rl:": the client is nil`},
		{"nil cluster client", "rl:", (*redis.ClusterClient)(nil), `the client is nil`},
		{"nil ring", "rl:", (*redis.Ring)(nil), `the client is nil`},
		{"no prefix", "", client, `ratelimit: RedisStore "": its prefix is empty: use one such as "rl:login:"`},
		{"brace", "rl:{login}:", client, `ratelimit: RedisStore "rl:{login}:": its prefix has a brace, which would make a hash tag of it: use one such as "rl:login:"`},
		{"opening brace", "rl{", client, "has a brace"},
		{"closing brace", "rl}", client, "has a brace"},
		{"newline", "rl:\n", client, `its prefix "rl:\n" has a control or invisible character: use one such as`},
		{"NUL", "rl:\x00", client, "has a control or invisible character"},
		{"escape", "\x1b[31m", client, "has a control or invisible character"},
		{"zero width", "rl:\u200b", client, "has a control or invisible character"},
		{"no UTF-8", "rl:\xff", client, "is not valid UTF-8"},
		{"too long", strings.Repeat("p", 129), client, "is 129 bytes long: want at most 128"},
	} {
		s, err := NewRedisStore(tc.client, tc.prefix)
		require.Nil(t, s, tc.what)
		require.ErrorContains(t, err, tc.want, tc.what)
		require.NotContains(t, err.Error(), "\n", tc.what)
	}
}

func TestOptionsRedisRefuses(t *testing.T) {
	var reg Registry
	defer reg.Close()
	for _, tc := range []struct {
		what string
		opts Options
		want string
	}{
		{"with a store", Options{Redis: nowhere(t), Store: memory(t, "")}, "Options.Redis and Options.Store are both set"},
		{"nil client", Options{Redis: (*redis.Client)(nil)}, "Options.Redis is a nil *redis.Client: leave it out to count in memory"},
	} {
		tc.opts.Limits = []Limit{hour}
		_, err := reg.New("api", tc.opts)
		require.ErrorContains(t, err, `ratelimit: limiter "api": `, tc.what)
		require.ErrorContains(t, err, tc.want, tc.what)
	}
}

// TestRedisDownAtConstruction is no error.
func TestRedisDownAtConstruction(t *testing.T) {
	var reg Registry
	defer reg.Close()
	l, err := reg.New("api", withRedis(nowhere(t), hour))
	require.NoError(t, err)
	_, err = l.Take(ctx, "k")
	var e *RedisError
	require.ErrorAs(t, err, &e)
	require.True(t, e.Unsent)
	require.ErrorContains(t, err, `ratelimit: limiter "api": RedisStore (prefix "rl:api:"): dial tcp 127.0.0.1:1: connect: connection refused`)
}

// TestRedisCauses: the error and the log name what is wrong and what to do; no response does.
func TestRedisCauses(t *testing.T) {
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
			log := new(syncBuffer)
			for _, policy := range []FailurePolicy{FailClosed, FailOpen, FallbackLocal} {
				opts := withRedis(tc.client, hour)
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
				said := w.Body.String()
				for name, values := range w.Header() {
					said += name + strings.Join(values, "")
				}
				for _, word := range append(tc.want, "redis", "Redis", "rl:", "127.0.0.1") {
					require.NotContains(t, said, word)
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

// TestOptionsRedis: the limiter has a store of its own, and the client is only lent.
func TestOptionsRedis(t *testing.T) {
	client := redistest.Start(t).Client()
	var reg Registry
	defer reg.Close()
	api := Must(reg.New("api", withRedis(client, hour)))
	login := Must(reg.New("login", withRedis(client, hour))) // the seed bug: not to be written like this
	for range 5 {
		for _, l := range []*Limiter{api, login} {
			d, err := l.Take(ctx, "k")
			require.NoError(t, err)
			require.True(t, d.Allowed)
		}
	}
	require.Equal(t, "5", client.Get(ctx, "rl:api:{k}:fixed-1h").Val())
	require.Equal(t, "5", client.Get(ctx, "rl:login:{k}:fixed-1h").Val())
	odd := Must(reg.New(`a{b} "c"%`, withRedis(client, hour)))
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
	again := Must(reg.New("api", withRedis(client, hour)))
	d, err = again.TakeN(ctx, "k", 0)
	require.NoError(t, err)
	require.Zero(t, d.Remaining, "counters outlive limiters")
}

// TestReloadKeepsRedisCounters: a rebuilt limiter goes on where the old one was.
func TestReloadKeepsRedisCounters(t *testing.T) {
	client := redistest.Start(t).Client()
	var reg Registry
	defer reg.Close()
	shared := redisStore(t, client, "rl:shared:")
	build := func(r *Registry) error {
		_, err := r.New("own", withRedis(client, hour))
		if err == nil {
			_, err = r.New("given", with(shared))
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

func TestRedisConflicts(t *testing.T) {
	var reg Registry
	defer reg.Close()
	store := redisStore(t, nowhere(t), "rl:")
	Must(reg.New("api", with(store)))
	_, err := reg.New("login", with(store))
	require.ErrorIs(t, err, ErrStoreShared)
	require.Regexp(t, `^ratelimit: limiter "login" \(store_redis_input_test.go:\d+\) and limiter "api" \(store_redis_input_test.go:\d+\) `+
		`share one RedisStore \(prefix "rl:"\): a Store must not be shared across limiters; make a new RedisStore with a unique prefix for `+
		`each limiter \(the Redis client may be shared\)$`, err.Error())

	_, err = reg.New("login", with(redisStore(t, nowhere(t), "rl:")))
	require.ErrorIs(t, err, ErrPrefixShared)
	require.ErrorContains(t, err, `share the prefix "rl:"`)
	require.ErrorContains(t, err, "whatever client or server it comes with; give each limiter's RedisStore a unique prefix")

	_, err = reg.New("other", with(redisStore(t, nowhere(t), "rl:web:")))
	require.NoError(t, err)
	_, err = reg.New("web", withRedis(nowhere(t), hour))
	require.ErrorIs(t, err, ErrPrefixShared)
}
