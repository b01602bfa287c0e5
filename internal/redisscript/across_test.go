package redisscript_test

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/redis/go-redis/v9"

	"github.com/ratelimit-go/ratelimit/internal/redisscript"
	"github.com/ratelimit-go/ratelimit/internal/rule"
)

// clusterShim puts a Cluster's checks in front of the commands of a script. A key begins with
// its slot, one letter, and the arguments of the test, at the end, say where the slots are:
// "here", "gone" or "moving". With "last" set, keys of a moving slot are looked for in the
// slot that was used last, as Redis 7.4 and later do.
const clusterShim = `
local slots, last, used = cjson.decode(table.remove(ARGV)), table.remove(ARGV) == 'last', nil
local redis = (function(real)
  local writes = {SET = true, INCRBY = true, DEL = true}
  local function refusal(name, ...)
    local slot
    for _, key in ipairs(name == 'TIME' and {} or name == 'MGET' and {...} or {(...)}) do
      local of = string.sub(key, 1, 1)
      if slot and slot ~= of then return "Command 'mget' in script attempted to access keys that don't hash to the same slot" end
      slot = of
      local found = real.call('EXISTS', key) == 1
      if last and used and used ~= slot then found = false end
      if slots[slot] == 'gone' or slots[slot] == 'moving' and not found then
        return 'ERR Script attempted to access a non local key in a cluster node'
      end
    end
    used = slot
    if writes[name] then real.call('INCR', 'writes') end
  end
  return {
    call = function(...)
      local text = refusal(...)
      if text then error(text) end
      return real.call(...)
    end,
    pcall = function(...)
      local text = refusal(...)
      if text then return {err = text} end
      return real.pcall(...)
    end,
    error_reply = real.error_reply,
  }
end)(redis)
`

// TestTakeAcrossMovingSlots: in random states of slots and keys, the script decides all takes, or
// writes nothing and names the keys that are not served. It never ends with another error.
func TestTakeAcrossMovingSlots(t *testing.T) {
	script := redis.NewScript(clusterShim + redisscript.TakeAcross.Text.(string))
	for name, client := range map[string]func(testing.TB) *redis.Client{"server": server, "gopher-lua": mini} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, ctx := client(t), context.Background()
			r := rand.New(rand.NewPCG(rand.Uint64(), 1))
			decided, elsewhere := 0, 0
			for range 600 {
				c.FlushDB(ctx)
				limits := [][]rule.Limit{
					{{Kind: rule.Fixed, N: 2, Window: 3_600_000_000}},
					{{Kind: rule.Bucket, N: 2, Window: 3_600_000_000, Burst: 2}},
					{{Kind: rule.Sliding, N: 2, Window: 3_600_000_000}, {Kind: rule.Fixed, N: 3, Window: 3_600_000_000}},
				}[r.IntN(3)]
				states := map[string]string{}
				for _, slot := range []string{"a", "b", "c"} {
					states[slot] = []string{"here", "here", "here", "moving", "moving", "gone"}[r.IntN(6)]
				}
				var keys, args []any
				gone := map[int]bool{} // by take: a key that every server refuses
				takes := 1 + r.IntN(5)
				for i := range takes {
					slot := string("abc"[r.IntN(3)])
					missing := r.IntN(2) == 0
					for j, l := range limits {
						key := fmt.Sprint(slot, i, "-", j)
						keys = append(keys, key)
						if !missing || r.IntN(4) == 0 {
							value := "1"
							if l.Kind != rule.Fixed {
								value = "1700000000000000 1 0"
							}
							c.Set(ctx, key, value, 1_000_000_000_000)
						} else {
							gone[i] = gone[i] || states[slot] == "moving"
						}
						gone[i] = gone[i] || states[slot] == "gone"
					}
				}
				last := r.IntN(2) == 0
				args = append([]any{len(keys)}, keys...)
				for _, l := range limits {
					args = append(args, redisscript.Args(l, redisscript.Periods{}, nil)...)
				}
				look := "any"
				if last {
					look = "last"
				}
				args = append(args, look, fmt.Sprintf(`{"a":%q,"b":%q,"c":%q}`, states["a"], states["b"], states["c"]))
				err := script.Run(ctx, c, nil, args...).Err()
				writes, _ := c.Get(ctx, "writes").Int()
				switch {
				case err == nil:
					decided++
					if slices.Contains(slices.Collect(maps.Values(gone)), true) || writes == 0 {
						t.Fatalf("decided with %d writes: %v, %v, gone %v", writes, keys, states, gone)
					}
				default:
					elsewhere++
					named, why, ok := redisscript.Elsewhere(err)
					if !ok || !strings.Contains(why, "non local key") || writes != 0 {
						t.Fatalf("%v, %d writes: %v, %v, last %v", err, writes, keys, states, last)
					}
					for i := range takes {
						is := slices.ContainsFunc(named, func(key int) bool { return key/len(limits) == i })
						if gone[i] && !is || is && !gone[i] && !last {
							t.Fatalf("take %d: %v: %v, %v, last %v", i, err, keys, states, last)
						}
					}
				}
			}
			if decided < 50 || elsewhere < 50 {
				t.Errorf("%d decided, %d elsewhere", decided, elsewhere)
			}
		})
	}
}
