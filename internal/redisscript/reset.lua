-- Reset deletes counters: the next take of their keys starts from zero.
--
-- Reset is this file alone. It is a script because a Reset can share a pipeline
-- with other calls, and a cluster's client refuses a DEL there if it learns
-- from the server that DEL is for several shards: NewDynamicResolver of
-- go-redis.
--
--   KEYS   the counters
--   ARGV   none
--   reply  how many of them there were
--
-- Expects no locals. It does not count; TestRedisStoreAgreesWithMemoryStore resets keys
-- between random operations on a store at Redis and on one in memory, which
-- counts by internal/rule.

return {redis.call('DEL', unpack(KEYS))}
