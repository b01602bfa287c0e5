package redisstore

import (
	"errors"
	"fmt"
	"net"
	"strings"

	"github.com/redis/go-redis/v9"

	"github.com/ratelimit-go/ratelimit/internal/engine"
	"github.com/ratelimit-go/ratelimit/internal/redisscript"
)

// Cause says where an [Error] comes from. This file has the errors of a store,
// and what each reply of a server means for later calls.
type Cause uint8

const (
	// Call: the call itself. Its context was done, or an argument is not valid.
	Call Cause = iota
	// Backend: the server, the client, or the network between them.
	Backend
	// Closed: the store has been closed.
	Closed
	// Claimed: the store refuses to count, because a limiter of another name
	// counts under its prefix.
	Claimed
)

// An Error is the error of every failed call of a [Store].
type Error struct {
	Cause  Cause
	Prefix string // of the store
	Fault  engine.Fault
	Err    error  // what went wrong; nil if the store was closed or its prefix is claimed
	Hint   string // what to do about it; may be empty
	Other  string // the limiter that has claimed the prefix
}

// Detail returns the error text without the store's name.
func (e *Error) Detail() string {
	switch {
	case e.Cause == Closed:
		return "the store has been closed"
	case e.Cause == Claimed:
		return fmt.Sprintf("a limiter of another name counts under this prefix: %q", e.Other)
	case e.Hint != "":
		return e.Err.Error() + ": " + e.Hint
	}
	return e.Err.Error()
}

func (e *Error) Error() string {
	return fmt.Sprintf("RedisStore (prefix %q): %s", e.Prefix, e.Detail())
}

func (e *Error) Unwrap() error { return e.Err }

// Fault implements [engine.Engine].
func (s *Store) Fault(err error) engine.Fault {
	var e *Error
	if errors.As(err, &e) {
		return e.Fault
	}
	return engine.Unknown
}

// explain returns an Error for what the server or the client has answered to a
// command with these keys.
func (s *Store) explain(err error, set *limitSet, keys []any) *Error {
	if i, ok := redisscript.Junk(err); ok {
		if i < 0 { // the hash with holds
			i = len(set.suffixes)
		}
		return s.notCounter(keys[i])
	}
	e := &Error{Cause: Backend, Prefix: s.prefix, Err: err}
	e.Fault, e.Hint = classify(err)
	return e
}

// notCounter returns the error of a call whose key does not hold a counter at
// Redis.
func (s *Store) notCounter(key any) *Error {
	return &Error{
		Cause: Backend, Prefix: s.prefix, Fault: engine.Key,
		Err:  fmt.Errorf("the key %q holds something else than a counter", key),
		Hint: "delete it, and keep what writes it off this prefix",
	}
}

// classify returns what an error of the client means, and what to do about it.
func classify(err error) (engine.Fault, string) {
	if isReply(err) {
		return classifyReply(err)
	}
	var op *net.OpError
	switch {
	case errors.Is(err, redis.ErrClosed): // so the command was not sent
		return engine.Closed, "it was closed before this store: close limiters and stores first, and then the client that they were lent"
	case errors.As(err, &op) && op.Op == "dial", errors.Is(err, redis.ErrPoolTimeout), errors.Is(err, redis.ErrPoolExhausted):
		return engine.Refused, ""
	}
	return engine.Unknown, ""
}

// isReply reports whether err is an error reply of the server.
func isReply(err error) bool {
	var reply redis.Error
	return errors.As(err, &reply)
}

// classifyReply returns what an error reply of the server means, and what to do
// about it.
func classifyReply(err error) (engine.Fault, string) {
	text, inScript := replyText(err)
	for _, r := range replies {
		if !strings.HasPrefix(text, r.prefix) {
			continue
		}
		if inScript && !r.firstWrite {
			return engine.Unknown, r.hint
		}
		return r.fault, r.hint
	}
	return engine.Unknown, ""
}

// replyText returns the text of an error reply, without what the server has put
// around it. It also reports whether a command that a script has called has
// failed with this error. Redis 7 writes
//
//	READONLY You can't write against a read only replica. script: 8f1c…, on @user_script:58.
//
// where Redis 6 writes
//
//	ERR Error running script (call to f_8f1c…): @user_script:58: @user_script: 58: -READONLY You can't …
func replyText(err error) (text string, inScript bool) {
	var reply redis.Error
	errors.As(err, &reply)
	text = strings.TrimPrefix(reply.Error(), "ERR ")
	const source = "@user_script:"
	i := strings.LastIndex(text, source)
	if i < 0 {
		return text, false
	}
	if strings.HasPrefix(text, "Error running script") {
		text = strings.TrimLeft(text[i+len(source):], " 0123456789:")
		text = strings.TrimPrefix(strings.TrimPrefix(text, "-"), "ERR ")
	}
	return text, true
}

const (
	permissions = "let the client's user run EVAL, EVALSHA, GET, MGET, SET, INCRBY, DEL, PTTL and TIME, and for in-flight limits HGETALL, HSET, HDEL and PEXPIREAT, on the prefix's keys, " +
		"and in a Cluster CLUSTER SLOTS and COMMAND; docs/production.md has what a Sentinel asks for"
	notCluster  = "this is a node of a Cluster: make the client with redis.NewClusterClient, or with IsClusterMode: true"
	noMemory    = "the server is at its maxmemory: raise it; to let it evict would unblock keys"
	noMaster    = "the replica has lost its master"
	clusterDown = "the cluster has lost so many of its masters that it serves no keys"
)

// replies lists the errors of a server for which it is known whether the
// command was carried out. Prefixes are without "ERR ". With the faults Refused
// and Key it was not carried out: the server checks all of this before it runs
// a script. Any other error may come from a proxy that has not waited for the
// server's reply, and is Unknown.
//
// An error in a script is Unknown, too, because the script may have written
// before. But some errors are only returned for the first write of a script,
// because a script that has written must not stop halfway. (In Redis 7, see
// scriptVerifyWriteCommandAllow and scriptVerifyOOM in script.c. Before that,
// the causes of these errors do not change while a script runs.)
var replies = []struct {
	prefix     string
	fault      engine.Fault
	firstWrite bool // also if a script has failed with it
	hint       string
}{
	{"NOAUTH", engine.Refused, false, "give the client the server's password"},
	{"WRONGPASS", engine.Refused, false, "give the client the right user name and password"},
	{"NOPERM", engine.Refused, false, permissions},
	{"The user executing the script can't run this command", engine.Unknown, false, permissions},
	{"The user executing the script can't access", engine.Unknown, false, permissions},
	{"ACL failure in script", engine.Unknown, false, permissions}, // since Redis 7.2
	{"DENIED", engine.Refused, false, "the server is in protected mode: give it a password, or make it listen on its own host only"},
	{"DB index is out of range", engine.Refused, false, "give the client another database number"},
	{"max number of clients reached", engine.Refused, false, "raise the server's maxclients, or lower the client's PoolSize"},
	{"unknown command", engine.Refused, false, "Redis 6.2 or later is needed, with scripting"},
	{"NOSCRIPT", engine.Refused, false, ""},

	{"READONLY", engine.Refused, true, "connect to the master; this is a replica"},
	{"OOM command not allowed", engine.Refused, true, noMemory},
	{"OOM", engine.Refused, false, noMemory},
	{"MISCONF", engine.Refused, true, "the server cannot save its data, and so takes no writes"},
	{"NOREPLICAS", engine.Refused, true, "the master has fewer replicas than its min-replicas-to-write"},
	{"LOADING", engine.Refused, false, "the server is reading its data"},
	{"MASTERDOWN", engine.Refused, false, noMaster},
	{"Can not execute the command on a stale replica", engine.Refused, true, noMaster}, // the first command of a script
	{"BUSY ", engine.Refused, false, "another script on the server runs for too long: SCRIPT KILL ends it, unless it has written"},
	{"Script killed by user", engine.Refused, true, "it ran for too long"}, // a script that has written is UNKILLABLE

	// A slot of a Cluster holds a part of the keys.
	{"MOVED", engine.Key, false, notCluster},
	{"ASK", engine.Key, false, notCluster},
	{"TRYAGAIN", engine.Key, false, "the key's slot is moving to another master, which does not have all of the key's counters yet"},
	{"CROSSSLOT", engine.Key, false, "the counters of one key are in different slots: is there a proxy that changes keys?"},
	{"CLUSTERDOWN Hash slot not served", engine.Key, false, "the cluster has no master for the key's slot"},
	{"CLUSTERDOWN", engine.Refused, false, clusterDown},
	{"Script attempted to execute a write command while the cluster is down", engine.Refused, true, clusterDown},
	{"Lua script attempted to execute a write command while the cluster is down", engine.Refused, true, clusterDown}, // before Redis 7

	{"WRONGTYPE", engine.Key, false, "delete the key, and keep what writes it off this prefix"},
}
