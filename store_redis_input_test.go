package ratelimit_test

import (
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
)

// TestRedisStoreRefusesInvalidCalls checks that no script gets invalid arguments.
func TestRedisStoreRefusesInvalidCalls(t *testing.T) {
	s, err := NewRedisStore(redis.NewClient(&redis.Options{}), "rl:", nil)
	require.NoError(t, err)
	many := make([]Limit, 0, 9)
	for i := range 9 {
		many = append(many, FixedWindow(1, time.Duration(1+i)*time.Hour))
	}
	for name, take := range map[string]func() error{
		"negative": func() error { _, err := s.Take(ctx, "k", -1, []Limit{hour}, make([]Result, 1)); return err },
		"many":     func() error { _, err := s.Take(ctx, "k", 1, many, make([]Result, 9)); return err },
		"none":     func() error { _, err := s.Take(ctx, "k", 1, nil, nil); return err },
		"results":  func() error { _, err := s.Take(ctx, "k", 1, []Limit{hour}, nil); return err },
		"zero":     func() error { _, err := s.Take(ctx, "k", 1, []Limit{{}}, make([]Result, 1)); return err },
		"adjust":   func() error { _, err := s.Adjust(ctx, "k", 1, Now, []Limit{{}}); return err },
		"reset":    func() error { return s.Reset(ctx, "k", []Limit{{}}) },
	} {
		require.ErrorContains(t, take(), "want", name)
	}
}

func TestNewRedisStoreRefusesInvalidArguments(t *testing.T) {
	client := unreachableClient(t)
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

func TestLimiterCanBeMadeWhileRedisIsDown(t *testing.T) {
	var reg Registry
	defer reg.Close()
	l, err := reg.New("api", withRedis(unreachableClient(t), hour))
	require.NoError(t, err)
	_, err = l.Take(ctx, "k")
	var e *RedisError
	require.ErrorAs(t, err, &e)
	require.True(t, e.Unsent)
	require.ErrorContains(t, err, `ratelimit: limiter "api": RedisStore (prefix "rl:api:"): dial tcp 127.0.0.1:1: connect: connection refused`)
}
