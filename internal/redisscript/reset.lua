-- Forgets counters. It is a script because a DEL of several keys cannot share a round
-- trip with other commands in a cluster. Returns how many there were.

return {redis.call('DEL', unpack(KEYS))}
