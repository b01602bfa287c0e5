package benchmarks

import (
	"context"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/ratelimit-go/ratelimit/internal/redistest"
)

// ServerLibrary is a Library that is compared on servers: on Redis or on PostgreSQL.
type ServerLibrary struct {
	Library
	open func(where target, q quota) subject

	// sent returns how many commands the client has sent, from the numbers of INFO
	// commandstats, which include the calls that scripts make. If it is nil, the
	// commands that run a script are counted.
	sent func(calls map[string]int64) int64
}

// RedisLibraries are all compared libraries and floors, in the order in which they are
// timed.
var RedisLibraries = []ServerLibrary{
	{Library{"fixed", Ours, "", "FixedWindow, Options.Redis with ContextTimeoutEnabled, Timeout 3s as in go-redis", nil}, openOursOnRedis(fixedWindow, 0), nil},
	{Library{"bucket", Ours, "", "TokenBucket, Options.Redis with ContextTimeoutEnabled, Timeout 3s as in go-redis", nil}, openOursOnRedis(tokenBucket, 0), nil},
	{Library{"leased", Ours, "", "FixedWindow, the same with Lease 250ms", nil}, openOursOnRedis(fixedWindow, 250*time.Millisecond), nil},
	{Library{across, Ours, "", "FixedWindow, a RedisStore with AcrossSlots; the rest as above", nil}, openAcross, nil},
	{Library{"ulule", Rival, "github.com/ulule/limiter/v3", "drivers/store/redis", nil}, openUluleOnRedis(false), nil},
	{Library{"ulule-auto", Rival, "github.com/ulule/limiter/v3", "the same over go-redis AutoPipeline, which is experimental", nil}, openUluleOnRedis(true), nil},
	{Library{"redis_rate", Rival, "github.com/go-redis/redis_rate/v10", "Allow, burst and rate apart", nil}, openRedisRate, nil},
	{Library{"throttled", Rival, "github.com/throttled/throttled/v2", "goredisstore.v9, 1,000 attempts to swap", nil}, openThrottledOnRedis, sentByThrottled},
	{Library{"rueidis-script", Rival, "github.com/redis/rueidis", "a script with the calls of rueidislimiter: GET and INCRBY on two keys, by the client's clock", nil}, openRueidisScript, nil},
	{Library{"incr", Floor, "github.com/redis/go-redis/v9", "INCR, one by one", nil}, openIncr, sentIncrs},
	{Library{evalsha, Floor, "github.com/redis/go-redis/v9", "EVALSHA of a script that is an INCR, one by one", nil}, openScript(incrScript), nil},
	{Library{"incr-pipelined", Floor, "github.com/redis/go-redis/v9", "INCR, 64 in a pipeline, whose callers wait for nothing", nil}, openIncrPipelined, sentIncrs},
	{Library{"rueidis-incr", Floor, "github.com/redis/rueidis", "INCR, which rueidis pipelines", nil}, openRueidisIncr, sentIncrs},
	{Library{windowCalls, Floor, "github.com/redis/go-redis/v9", "EVALSHA of a script with the calls of a fixed window, MGET, PTTL, TIME and INCRBY, one by one", nil}, openScript(windowScript), nil},
	{Library{windowPipelined, Floor, "github.com/redis/go-redis/v9", "the same calls; callers of a master share a round trip, with an EVALSHA for each key", nil}, openWindowPipelined, nil},
	{Library{windowShared, Floor, "github.com/redis/go-redis/v9", "the same calls; callers of a master share an EVALSHA", nil}, openWindowShared, nil},
	{Library{wake, Floor, "", "nothing is sent: a goroutine answers all who wait for it, by a channel each", nil}, openWake, func(map[string]int64) int64 { return 0 }},
}

// target has the servers that a library may count on.
type target struct {
	addrs    []string
	cluster  bool
	postgres string // the URL of a PostgreSQL server
}

func onServer(s *redistest.Server) target { return target{addrs: []string{s.Addr}} }

func onCluster(c *redistest.Cluster) target { return target{addrs: c.Addrs(), cluster: true} }

// goRedis returns a client with a connection for each of 64 callers. For libraries whose
// callers use a connection each, that is a little better than the default of ten per core.
func (t target) goRedis(set ...func(*redis.UniversalOptions)) redis.UniversalClient {
	o := &redis.UniversalOptions{Addrs: t.addrs, IsClusterMode: t.cluster, PoolSize: RedisConnections}
	for _, f := range set {
		f(o)
	}
	return redis.NewUniversalClient(o)
}

// RedisConnections is the maximum number of connections of each go-redis client.
const RedisConnections = 64

var background = context.Background()

func sentScripts(calls map[string]int64) int64 { return calls["evalsha"] + calls["eval"] }
func sentIncrs(calls map[string]int64) int64   { return calls["incr"] }
