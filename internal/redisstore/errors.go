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

// Cause says where an [Error] comes from.
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

// An Error is what every failed call of a [Store] returns.
type Error struct {
	Cause  Cause
	Prefix string // of the store
	Fault  engine.Fault
	Err    error  // what went wrong; nil if the store was closed or its prefix is claimed
	Hint   string // what to do about it; may be empty
	Other  string // the limiter that has claimed the prefix
}

// Detail is the text without the store's name.
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

// explain makes an Error of what the server or the client has answered to a
// command with these keys.
func (s *Store) explain(err error, keys []any) *Error {
	if i, ok := redisscript.Junk(err); ok {
		return s.notCounter(keys[i])
	}
	e := &Error{Cause: Backend, Prefix: s.prefix, Err: err}
	switch {
	case errors.Is(err, redis.ErrClosed):
		e.Fault, e.Hint = engine.Closed, "close the limiter before its client"
	case changedNothing(err):
		e.Fault = engine.Refused
	}
	for _, h := range hints {
		if redis.HasErrorPrefix(err, h.prefix) {
			e.Hint = h.hint
			break
		}
	}
	return e
}

// notCounter is the error of a call whose key holds something else at Redis.
func (s *Store) notCounter(key any) *Error {
	return &Error{
		Cause: Backend, Prefix: s.prefix, Fault: engine.Key,
		Err:  fmt.Errorf("the key %q holds something else than a counter", key),
		Hint: "delete it, and keep what writes it off this prefix",
	}
}

// changedNothing reports whether a failed command has certainly left Redis as it
// was: the server has refused it before any write of a script, or there was no
// connection to send it on.
func changedNothing(err error) bool {
	if isReply(err) { // a script may have written before it used a command that its user has no right to
		return !strings.Contains(err.Error(), "The user executing the script")
	}
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "dial" || errors.Is(err, redis.ErrPoolTimeout)
}

// isReply reports whether err is what the server has answered.
func isReply(err error) bool {
	var reply redis.Error
	return errors.As(err, &reply)
}

const permissions = "let the client's user run EVAL, EVALSHA, GET, MGET, SET, INCRBY, DEL, PTTL and TIME on the prefix's keys, " +
	"and in a Cluster CLUSTER SLOTS and COMMAND; docs/production.md has what a Sentinel asks for"

const notCluster = "this is a node of a Cluster: make the client with redis.NewClusterClient, or with IsClusterMode: true"

// The prefixes are without "ERR ".
var hints = []struct{ prefix, hint string }{
	{"NOAUTH", "give the client the server's password"},
	{"WRONGPASS", "give the client the right user name and password"},
	{"NOPERM", permissions},
	{"The user executing the script can't run this command", permissions},
	{"The user executing the script can't access", permissions},
	{"MOVED", notCluster},
	{"ASK", notCluster},
	{"READONLY", "connect to the master; this is a replica"},
	{"OOM", "the server is at its maxmemory: raise it; to let it evict would unblock keys"},
	{"MISCONF", "the server cannot save its data, and so takes no writes"},
	{"LOADING", "the server is reading its data"},
	{"MASTERDOWN", "the replica has lost its master"},
	{"CLUSTERDOWN", "the cluster has no master for the key's slot"},
	{"DB index is out of range", "give the client another database number"},
	{"unknown command", "Redis 6.2 or later is needed, with scripting"},
}
