package benchmarks

import (
	"strconv"
	"time"

	"github.com/redis/rueidis"
)

func (t target) rueidis() rueidis.Client {
	return must(rueidis.NewClient(rueidis.ClientOption{InitAddress: t.addrs}))
}

// rueidisWindow makes the same calls on the server as rueidislimiter. A window has one key
// for its units and one for its end. Denied units are counted, too.
var rueidisWindow = rueidis.NewLuaScript(`
local ends = tonumber(redis.call('GET', KEYS[2]))
if not ends or ends < tonumber(ARGV[3]) then
  ends = tonumber(ARGV[2])
  redis.call('SET', KEYS[1], 0, 'PXAT', ends + 1000)
  redis.call('SET', KEYS[2], ends, 'PXAT', ends + 1000)
end
return {redis.call('INCRBY', KEYS[1], tonumber(ARGV[1])), ends}
`)

func openRueidisScript(where target, q quota) subject {
	client := where.rueidis()
	return subject{
		take: func(key string) (bool, error) {
			now := time.Now()
			units := "rueidis:{" + key + "}"
			reply, err := rueidisWindow.Exec(background, client, []string{units, units + ":ex"}, []string{
				"1", strconv.FormatInt(now.Add(q.window).UnixMilli(), 10), strconv.FormatInt(now.UnixMilli(), 10),
			}).AsIntSlice()
			return err == nil && len(reply) == 2 && reply[0] <= q.units, err
		},
		close: client.Close,
	}
}

func openRueidisIncr(where target, _ quota) subject {
	client := where.rueidis()
	return subject{
		take: func(key string) (bool, error) {
			return succeeded(client.Do(background, client.B().Incr().Key(key).Build()).Error())
		},
		close: client.Close,
	}
}
