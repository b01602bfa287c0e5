package ratelimit_test

import (
	"strings"
	"testing"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
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
