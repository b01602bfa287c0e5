package e2e_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
	"github.com/ratelimit-go/ratelimit/internal/redistest"
)

// acrossScenarios are faults of a Cluster whose limiters use AcrossSlots.
var acrossScenarios = []scenario{
	{name: "AcrossSlots, a slot moves there and back", limits: oneLimit, onFailure: FailClosed, refunds: true, setup: onClusterAcross(0, moveSlot)},
	{name: "AcrossSlots, a slot moves there and back, two limits", limits: twoLimits, onFailure: FailClosed, refunds: true, setup: onClusterAcross(0, moveSlot)},
	{name: "AcrossSlots, blocks, a slot moves there and back", limits: withBlock, blocks: true, onFailure: FailClosed, refunds: true, setup: onClusterAcross(0, moveSlot)},
	{name: "AcrossSlots, SCRIPT FLUSH", limits: oneLimit, onFailure: FailClosed, refunds: true, setup: onClusterAcross(0, func(r *run, c *redistest.Cluster) {
		for range 10 {
			for _, node := range c.Nodes {
				node.Do("SCRIPT", "FLUSH")
			}
			r.awaitCalls(10)
		}
	})},
	{name: "AcrossSlots, CLUSTER FAILOVER", slow: true, limits: twoLimits, onFailure: FailClosed, refunds: true, setup: once(onClusterAcross(1, failOver))},
	{name: "AcrossSlots, master killed", slow: true, lags: true, limits: bigLimit, onFailure: FailClosed, refunds: true, setup: onClusterAcross(1, killMaster)},
}

// TestHistoriesAcrossSlotsFitTheModel is TestHistoriesFitTheModel for AcrossSlots.
func TestHistoriesAcrossSlotsFitTheModel(t *testing.T) { checkHistories(t, acrossScenarios) }

// onClusterAcross is onCluster for AcrossSlots. All keys are of one master and of different slots.
// Round trips are slow and there are many callers, so that calls share commands.
func onClusterAcross(replicas int, strike func(*run, *redistest.Cluster)) func(t *testing.T) site {
	return func(t *testing.T) site {
		cluster := redistest.StartCluster(t, redistest.ClusterOptions{Replicas: replicas})
		hook := &acrossHook{delay: 2 * time.Millisecond}
		site := redisSite(nil, cluster.Client(), func(r *run) {
			strike(r, cluster)
			require.NotZero(r, hook.commands.Load(), "calls share commands")
		})
		site.options = func(r *run) Options {
			client := cluster.Client()
			client.AddHook(hook)
			o := redisOptions(nil, r.limits...)
			o.Store = redisStore(r, client, "rl:"+r.name+":", AcrossSlots())
			return o
		}
		site.workers = 6
		for i := 0; len(site.keys) < 5; i++ {
			if key := fmt.Sprint("k", i); cluster.Owner(cluster.Slot("{"+key+"}")) == cluster.Nodes[0] {
				site.keys = append(site.keys, key)
			}
		}
		return site
	}
}
