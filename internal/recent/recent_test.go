package recent

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/ratelimit-go/ratelimit/internal/rule"
)

type value struct{ key int }

// keyed is a cache of values by key, with a hash that many keys share.
type keyed struct {
	Cache[*value]
	keysPerHash int
}

func (k *keyed) hash(key int) uint64 { return uint64(Hash(0).Add(uint64(key / k.keysPerHash))) }

func (k *keyed) find(key int) *value {
	v, _ := k.Find(k.hash(key), func(v *value) bool { return v.key == key })
	return v
}

func (k *keyed) put(key int, now int64, drop func(*value)) (v *value, unused int64) {
	return k.Put(k.hash(key), &value{key}, now, func(v *value) bool { return v.key == key }, drop)
}

// TestCacheFollowsItsModel puts and finds random keys. The cache is compared with a map of
// what was put and not dropped.
func TestCacheFollowsItsModel(t *testing.T) {
	for _, most := range []int{1, 2, 7, 64} {
		for _, keysPerHash := range []int{1, 5, 1 << 30} {
			k, r := &keyed{Cache[*value]{Most: most}, keysPerHash}, rand.New(rand.NewPCG(1, uint64(most)))
			require.Empty(t, k.All())
			model := make(map[int]*value)
			for now := range int64(3000) {
				key := r.IntN(1 + 2*most)
				require.True(t, k.find(key) == model[key])
				if r.IntN(2) == 0 {
					continue
				}
				was, full := model[key], len(model) == most
				dropped := 0
				v, unused := k.put(key, now, func(v *value) {
					dropped++
					require.Contains(t, k.All(), v, "it is still in the cache while drop runs")
					require.True(t, model[v.key] == v)
					delete(model, v.key)
				})
				if was != nil {
					require.True(t, v == was && unused == 0 && dropped == 0)
					continue
				}
				require.Equal(t, full, dropped == 1)
				require.Equal(t, full, unused > 0)
				model[key] = v
				require.Len(t, k.All(), len(model))
			}
		}
	}
}

// TestValuesInUseStay has values that are found again and again, while twice as many new
// ones as there is room for come, and some that are not.
func TestValuesInUseStay(t *testing.T) {
	k := &keyed{Cache[*value]{Most: 100}, 1}
	drop := func(v *value) { require.GreaterOrEqual(t, v.key, 50, "a value in use was dropped") }
	for key := range 100 {
		k.put(key, 0, drop)
	}
	for key := 100; key < 1000; key++ {
		for hot := range 50 {
			require.NotNil(t, k.find(hot))
		}
		k.put(key, 0, drop)
	}
}

// TestUnusedSaysForHowLong has a full cache of values that are no longer found.
func TestUnusedSaysForHowLong(t *testing.T) {
	k := &keyed{Cache[*value]{Most: 10}, 1}
	for key := range 10 {
		k.put(key, 1000, nil)
	}
	_, unused := k.put(10, 1500, func(*value) {})
	require.EqualValues(t, 500, unused)
	for key := range 11 {
		k.find(key)
	}
	_, unused = k.put(11, 9000, func(*value) {})
	require.EqualValues(t, 1, unused, "all were found: nobody knows how long ago")
}

// TestConcurrentUse finds and puts values in many goroutines. A value is never another
// key's, and as long as it is in the cache all callers get the same one.
func TestConcurrentUse(t *testing.T) {
	k := &keyed{Cache[*value]{Most: 64}, 3}
	var all sync.WaitGroup
	for g := range 8 {
		all.Go(func() {
			r := rand.New(rand.NewPCG(2, uint64(g)))
			for now := range int64(2000) {
				key := r.IntN(100)
				v := k.find(key)
				if v == nil {
					v, _ = k.put(key, now, func(*value) {})
				}
				if v.key != key {
					t.Errorf("the value of %d for %d", v.key, key)
				}
			}
		})
	}
	all.Wait()
	kept := make(map[int]bool)
	for _, v := range k.All() {
		require.False(t, kept[v.key], "two values of one key")
		kept[v.key] = true
		require.True(t, k.find(v.key) == v)
	}
	require.Len(t, kept, 64)
}

// TestHashesDiffer changes one thing at a time.
func TestHashesDiffer(t *testing.T) {
	seen := make(map[Hash]string)
	differs := func(h Hash, what string) {
		t.Helper()
		require.Empty(t, seen[h], "%s has the hash of another one", what)
		seen[h] = what
	}
	limit := rule.Limit{Kind: rule.Bucket, N: 5, Window: 60, Burst: 7}
	differs(0, "nothing")
	differs(Hash(0).AddLimit(&limit), "a limit")
	for i, change := range []func(l *rule.Limit){
		func(l *rule.Limit) { l.Kind = rule.Fixed }, func(l *rule.Limit) { l.N++ },
		func(l *rule.Limit) { l.Window++ }, func(l *rule.Limit) { l.Burst++ },
	} {
		other := limit
		change(&other)
		differs(Hash(0).AddLimit(&other), fmt.Sprint("change ", i))
		differs(Hash(0).AddLimit(&limit).AddLimit(&other), fmt.Sprint("two limits, change ", i))
	}
	differs(Hash(0).AddLimit(&limit).AddString("a"), "a name")
	differs(Hash(0).AddLimit(&limit).AddLadder(&rule.Ladder{N: 1, Rungs: [rule.MaxRungs]int64{9}}), "a ladder")
	differs(Hash(0).AddLimit(&limit).AddLadder(&rule.Ladder{N: 2, Rungs: [rule.MaxRungs]int64{9}}), "another ladder")
	require.Equal(t, Hash(0).AddLimit(&limit), Hash(0).AddLimit(&limit).AddString("").AddLadder(nil))

	// A calendar keeps its hash when its period changes.
	day := rule.Limit{Kind: rule.Calendar, Number: 3, N: 5, Window: 60}
	next := day
	next.Window, next.Burst = 61, 99
	require.Equal(t, Hash(0).AddLimit(&day), Hash(0).AddLimit(&next))
	next.Number = 4
	require.NotEqual(t, Hash(0).AddLimit(&day), Hash(0).AddLimit(&next))
}
