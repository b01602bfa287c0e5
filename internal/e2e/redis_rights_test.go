package e2e_test

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
	"github.com/ratelimit-go/ratelimit/internal/redistest"
)

// documentedUser returns the arguments of ACL SETUSER for a user of docs/production.md.
func documentedUser(t *testing.T, name string) (user []any) {
	page, err := os.ReadFile("../../docs/production.md")
	require.NoError(t, err)
	line := regexp.MustCompile(`(?m)^ACL SETUSER ` + name + ` .*$`).FindString(string(page))
	require.NotEmpty(t, line)
	for _, word := range strings.Fields(line) {
		user = append(user, word)
	}
	return user
}

// documentedPassword is the password of the users in docs/production.md.
const documentedPassword = "secret"

// setUser makes a user on some servers.
func setUser(user []any, servers ...*redistest.Server) {
	for _, s := range servers {
		s.Do(user...)
		s.Do("ACL", "LOG", "RESET")
	}
}

// refusals returns what the servers have refused a user.
func refusals(user string, servers ...*redistest.Server) (all []string) {
	for _, s := range servers {
		for _, entry := range s.Do("ACL", "LOG").([]any) {
			if e := fmt.Sprint(entry); strings.Contains(e, "username "+user+" ") {
				all = append(all, e)
			}
		}
	}
	return all
}

// callAll makes every kind of call that a store can make, from many goroutines.
func callAll(s *RedisStore) (err error) {
	var mu sync.Mutex
	failed := func(e error) {
		mu.Lock()
		defer mu.Unlock()
		if err == nil {
			err = e
		}
	}
	limits := append(algorithms(1000), FixedWindow(1000, time.Hour), SlidingWindow(1000, time.Hour))
	for range 10 {
		var wg sync.WaitGroup
		for i := range 32 {
			wg.Go(func() {
				key := fmt.Sprint("user:", i%16)
				failed(takeErr(s, key, 1, limits))
				_, e := s.Adjust(ctx, key, -1, Now, limits)
				failed(e)
				for _, call := range holdCalls(key, "process", time.Minute, limits...) {
					_, e := s.Hold(ctx, call, make([]Result, len(call.Limits)+1))
					failed(e)
				}
			})
		}
		wg.Wait()
		failed(s.Reset(ctx, "user:1", limits))
	}
	return err
}

// TestDocumentedRightsSuffice uses the users of docs/production.md. Redis refuses them nothing.
// Each of the rights for a Cluster and for sentinels is needed.
func TestDocumentedRightsSuffice(t *testing.T) {
	t.Parallel()
	limiter := documentedUser(t, "limiter")
	t.Run("server", func(t *testing.T) {
		t.Parallel()
		server := redistest.Start(t)
		client := server.Client(func(o *redis.Options) { o.Username, o.Password = "limiter", documentedPassword })
		setUser(limiter, server)
		require.NoError(t, callAll(redisStore(t, client, "rl:api:")))
		require.Empty(t, refusals("limiter", server))
	})
	t.Run("cluster", func(t *testing.T) {
		t.Parallel()
		c := redistest.StartCluster(t, redistest.ClusterOptions{})
		more := documentedUser(t, "limiter-of-a-cluster")
		extra := more[slices.Index(more, any("+pexpireat"))+1:]
		require.Len(t, extra, 2)
		require.Equal(t, limiter[3:], more[3:len(more)-len(extra)], "it begins with the rights for every server")
		as := func(name string, without any) error {
			user := slices.DeleteFunc(slices.Clone(more), func(right any) bool { return right == without })
			user[2] = name
			setUser(user, c.Nodes...)
			client := c.Client(func(o *redis.ClusterOptions) { o.Username, o.Password = name, documentedPassword })
			return callAll(redisStore(t, client, "rl:"+name+":"))
		}
		require.NoError(t, as("all", nil))
		require.Empty(t, refusals("all", c.Nodes...))
		for i, right := range extra {
			name := fmt.Sprint("without-", i)
			if err := as(name, right); err != nil {
				require.ErrorContains(t, err, "NOPERM")
				require.ErrorContains(t, err, "in a Cluster CLUSTER SLOTS and COMMAND")
			}
			require.NotEmpty(t, refusals(name, c.Nodes...), right)
		}
	})
	t.Run("sentinel", func(t *testing.T) {
		t.Parallel()
		setup := redistest.StartSentinel(t, redistest.SentinelOptions{Sentinels: 3})
		setUser(limiter, setup.Master, setup.Replica)
		user := documentedUser(t, "limiter-of-sentinels")
		as := func(name string, without any) {
			u := slices.DeleteFunc(slices.Clone(user), func(right any) bool { return right == without })
			u[2] = name
			setUser(u, setup.Sentinels...)
			client := setup.Client(func(o *redis.FailoverOptions) {
				o.Username, o.Password = "limiter", documentedPassword
				o.SentinelUsername, o.SentinelPassword = name, documentedPassword
			})
			if err := callAll(redisStore(t, client, "rl:"+name+":")); without == nil {
				require.NoError(t, err)
			}
		}
		as("all", nil)
		subscribed := regexp.MustCompile(`sub=2 .*user=all `)
		require.Eventually(t, func() bool { // the client subscribes to learn of a new master
			return slices.ContainsFunc(setup.Sentinels, func(s *redistest.Server) bool {
				return subscribed.MatchString(fmt.Sprint(s.Do("CLIENT", "LIST")))
			})
		}, time.Minute, time.Millisecond)
		require.Empty(t, refusals("all", setup.Sentinels...))
		for i, right := range user[slices.Index(user, any(">"+documentedPassword))+1:] {
			if right == "+ping" { // sent on connections that have been idle for seconds
				continue
			}
			name := fmt.Sprint("without-", i)
			as(name, right)
			require.Eventually(t, func() bool { return len(refusals(name, setup.Sentinels...)) > 0 }, time.Minute, time.Millisecond, right)
		}
		require.Empty(t, refusals("limiter", setup.Master, setup.Replica))
	})
}
