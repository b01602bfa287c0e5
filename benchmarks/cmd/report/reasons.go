package main

// This file has the reasons for missed goals: the only texts of the report that depend on its
// numbers. Look at them after each run. They are printed only beside a goal that is missed.
// The key is a case, or a case and a unit for one of its measures.
//
// A reason names what the time goes into. Without a reason, the report says that there is none.

const (
	hotReason = "the clock, the lock and two hashes are most of the time, before anything is counted. See " +
		"[docs/engine.md](docs/engine.md) for the rest, for what helped and for what was tried."
	spreadReason = "the fixed part is the same as for one hot key. The rest is time spent waiting for memory, and on two cores for cache lines " +
		"that the other core has written. A decision writes two cache lines, the shard's and the counter's. The floor that changes one " +
		"word writes one."
	redisHotReason = "callers of one key share a command, so most of the time is spent waking them up. The floor *wake-up* does only that, " +
		"and has both cores to itself."
	redisSpreadReason = "client and server share two cores, and both are busy all the time. The script reads a counter, its time to live and the " +
		"clock, and writes. The closest rivals make two calls instead of these four. They have no header fields that need the end of a window. " +
		"The floor *window-shared* makes the same calls in shared commands, and decides nothing."
	allowedReason = "most of the time goes into two structured fields and into the decision in the request's context. See " +
		"[docs/engine.md](docs/engine.md), and the floor for three plain fields."
	postgresReason = "client and server share two cores, and both are busy all the time. The server looks at each key, counts and answers. The floor " +
		"only adds, for callers that wait for nothing."
)

var reasons = map[string]string{
	"hot":          hotReason,
	"hot-denied":   hotReason,
	"hot-parallel": hotReason + " Two cores rarely contend for one lock.",
	"uniform":      spreadReason,
	"zipf":         spreadReason,
	"million": "a part of the time is growth. The table grows by a fifth at a time, to hold little unused memory, so each counter is copied about " +
		"five times on the way to a million.",
	"allowed":               allowedReason,
	"allowed-parallel":      allowedReason,
	"allowed-parallel-64MB": allowedReason,
	"denied":                "most of the time goes into the decision in the request's context, two structured fields and an error's body.",
	"plans":                 "the counters and limits of 1,000 plans do not fit into the fastest caches. Those of one plan do.",
	"limits": "each limit has a counter of its own, which is searched for, asked and written. The lock and the clock are shared already. See " +
		"[docs/engine.md](docs/engine.md) for what helped and what did not.",
	"limiters us/close": "the limiters have not been used for a while, so each one's memory is fetched first. That is two thirds of the time.",
	"limiters us/reload": "four fifths of the time are spent in New: options are read and checked, and the place of the call is looked up, for " +
		"errors. Replacing the limiters is a tenth.",
	"server": "most of the added time is net/http's own work on a response with header fields. Compare the floor: three fields, with nothing counted.",
	"expiry": "a shard whose keys have expired shrinks, and grows again with new keys. Both copy some thousand slots.",
	"expiry-half": "a shard whose keys have expired shrinks, and grows again with new keys, in steps of a fifth. Each step copies some " +
		"thousand slots. With this number of new keys, more than one decision in a thousand meets a step.",

	"redis-serial": "the script reads a counter, its time to live and the clock, and writes. A script of INCR only writes. The floor " +
		"*window-calls* makes the same calls, decides nothing and answers with one number. See " +
		"[docs/redis.md](docs/redis.md#what-a-key-costs-the-server) for what was tried.",
	"redis-spread": redisSpreadReason,
	"redis-spread us-server/op": "a key costs the server a part of an MGET, a PTTL, an INCRBY and the work in Lua; the floor *window-shared* has " +
		"all but the last. An answer needs the end of the window, " +
		"and only PTTL has it. A process that expects the end can be wrong after a Reset or an eviction, and the count does not show it. See " +
		"[docs/redis.md](docs/redis.md#what-a-key-costs-the-server) for each shortcut, what it would gain, and the test that it fails.",
	"redis-hot": redisHotReason,
	"redis-rolling-spread": "each caller works out its answer from the log in the reply, and the log is copied: for the server's clock, and for " +
		"this process's.",
	"redis-rolling-full": "each caller works out its answer from the log in the reply, and the log is copied: for the server's clock, and for " +
		"this process's.",
	"cluster-spread": "a command has keys of one slot only, so each key takes its own command. Running a script costs a server as much as the " +
		"script's work, and three servers and their clients share two cores. The floors make the same calls and decide nothing: *window-pipelined* " +
		"has a command for each key, and leaves out the client's search for the master; *window-shared* has the shape of AcrossSlots.",
	"cluster-hot": redisHotReason,

	"postgres-serial": "a statement for a batch has arrays and a larger plan than an UPSERT of one row. The rest is the way to the goroutine of the " +
		"batch and back, and the arrays.",
	"postgres-spread":         postgresReason,
	"postgres-spread-two":     postgresReason,
	"postgres-spread-256":     postgresReason,
	"postgres-hot":            postgresReason,
	"postgres-spread-durable": "callers wait for the disk in turn. Where the disk is fast, a rival's waits cost it little.",
}
