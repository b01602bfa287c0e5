package nearcache

import (
	"fmt"
	"testing"

	"github.com/ratelimit-go/ratelimit/internal/rule"
)

func BenchmarkDenied(b *testing.B) {
	for _, n := range []int{1, 2, MaxLimits} {
		for _, keys := range []int{1, 40_000} {
			c := New(NewMemory((1<<16)*n*8/7), 1<<20)
			var limits []rule.Limit
			for i := range n {
				limits = append(limits, rule.Limit{Kind: rule.Kind(1 + i%2), N: 5, Window: hour + int64(i)})
			}
			store, answers := newRemote(hour), make([]rule.Answer, n)
			names := make([]string, keys)
			for round := range 8 {
				for i := range names {
					if names[i] = fmt.Sprintf("198.51.%08d", i); round == 0 {
						store.take(names[i], 5, hour, limits)
					}
					if deny, _, _ := c.Denied(names[i], 1, hour, -1, limits, answers); !deny {
						c.Learn(names[i], store.take(names[i], 1, hour, limits))
					}
				}
			}
			b.Run(fmt.Sprintf("%d limits/%d keys", n, keys), func(b *testing.B) {
				missed := 0
				for i := range b.N {
					if deny, _, _ := c.Denied(names[i%keys], 1, hour, -1, limits, answers); !deny {
						missed++
					}
				}
				b.ReportMetric(float64(missed)/float64(b.N), "missed/op")
			})
			b.Run(fmt.Sprintf("%d limits/%d keys/unknown", n, keys), func(b *testing.B) {
				for range b.N {
					c.Denied("nobody", 1, hour, -1, limits, answers)
				}
			})
		}
	}
}

func BenchmarkLearn(b *testing.B) {
	c, store := newCache(), newRemote(hour)
	reply := store.take("key", 1, hour, []rule.Limit{fixed(9, hour)})
	for range b.N {
		reply.At++
		c.Learn("key", reply)
	}
}
