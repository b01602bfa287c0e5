package postgres

import (
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/puddle/v2"

	"github.com/ratelimit-go/ratelimit"
)

// This file has the errors of a store, and what an error of the server or the driver means
// for the calls that follow.

// A storeError is the error of a call that has failed.
type storeError struct {
	prefix string
	fault  ratelimit.Fault
	err    error
	hint   string // what to do about it; may be empty
}

func (e *storeError) Error() string {
	return fmt.Sprintf("ratelimit: postgres.Store (prefix %q): %s%s", e.prefix, strings.TrimPrefix(e.err.Error(), "ratelimit: "), because(e.hint))
}

func (e *storeError) Unwrap() error { return e.err }

func because(hint string) string {
	if hint == "" {
		return ""
	}
	return ": " + hint
}

// Fault implements [ratelimit.RemoteStore]. After Close it is FaultRefused.
func (s *Store) Fault(err error) ratelimit.Fault {
	var e *storeError
	if errors.As(err, &e) {
		return e.fault
	}
	return ratelimit.FaultUnknown
}

func (s *Store) fail(fault ratelimit.Fault, err error, hint string) error {
	return &storeError{prefix: s.prefix, fault: fault, err: err, hint: hint}
}

// callError is the error of a call that is not valid. Nothing was sent.
func (s *Store) callError(format string, args ...any) error {
	return s.fail(ratelimit.FaultUnknown, fmt.Errorf(format, args...), "")
}

// explain returns the error of a call for an error of the driver. answered means that the
// server had begun to answer before.
func (s *Store) explain(err error, answered bool) error {
	fault, hint := classify(err)
	if answered {
		fault = ratelimit.FaultUnknown
	}
	var reply *pgconn.PgError
	if errors.As(err, &reply) && reply.Code == codeOwner {
		err = fmt.Errorf("%w: %s", ratelimit.ErrPrefixClaimed, reply.Message)
	}
	if errors.Is(err, errPoolClosed) {
		err = fmt.Errorf("%w: its pool was closed before it", ratelimit.ErrStoreClosed)
		hint = "close limiters and stores first, and then the pool that they were lent"
	}
	return s.fail(fault, err, hint)
}

var errPoolClosed = puddle.ErrClosedPool

// isSchema reports whether an error says that the schema is not what it was.
func isSchema(err error) bool {
	var reply *pgconn.PgError
	if !errors.As(err, &reply) {
		return false
	}
	switch reply.Code {
	case "3F000", "42883", "42P01", "42703", "42501":
		return true
	}
	return false
}

// SQLSTATEs of the schema's own errors.
const (
	codeOwner  = "RL001"
	codeOldSQL = "RL003"
)

// classify returns what an error of the driver means, and what to do about it.
func classify(err error) (ratelimit.Fault, string) {
	var reply *pgconn.PgError
	var connect *pgconn.ConnectError
	switch {
	case errors.As(err, &reply):
		// The server has answered with an error, so the statement was rolled back.
		for _, c := range codes {
			if strings.HasPrefix(reply.Code, c.prefix) {
				return ratelimit.FaultRefused, c.hint
			}
		}
		return ratelimit.FaultRefused, ""
	case errors.As(err, &connect):
		return ratelimit.FaultRefused, "is the server running, and is its address right in the pool's configuration?"
	case errors.Is(err, errPoolClosed), errors.Is(err, errNoConnection), pgconn.SafeToRetry(err):
		return ratelimit.FaultRefused, ""
	}
	return ratelimit.FaultUnknown, ""
}

// errNoConnection wraps the error of a pool that has no connection in time.
var errNoConnection = errors.New("no connection in time: all of the pool's are in use, or the server does not answer")

const (
	migrateHint   = "run postgres.Migrate with a role that may create the schema ratelimit"
	isolationHint = "ALTER ROLE … SET default_transaction_isolation = 'read committed', and set no other one in the pool's configuration"
	lockHint      = "look for LOCK TABLE, or for a transaction that stays open, in pg_stat_activity"
	rightsHint    = "grant ratelimit_application to the role, or USAGE on the schema ratelimit and EXECUTE on its functions"
)

// codes lists the SQLSTATEs, or what they begin with, about which there is something to say.
var codes = []struct{ prefix, hint string }{
	{codeOwner, "give each service its own prefix; if the role was renamed or replaced: UPDATE ratelimit.prefix SET owner = 'role' WHERE prefix = '…'"},
	{codeOldSQL, migrateHint},
	{"3F000", migrateHint}, // no such schema
	{"42883", migrateHint}, // no such function
	{"42P01", migrateHint}, // no such table
	{"42703", migrateHint}, // no such column
	{"42501", rightsHint},
	{"28", "check the role, its password and pg_hba.conf"},
	{"3D000", "the database does not exist: check the name in the pool's configuration"},
	{"25006", "the server only reads: connect to the primary, with target_session_attrs=read-write"},
	{"40001", isolationHint},
	{"55P03", "a lock is held for more than a second: " + lockHint},
	{"57014", "the statement was cancelled, by statement_timeout or pg_cancel_backend"},
	{"53300", "the server has no free connection: raise max_connections, or lower the pool's MaxConns"},
	{"53100", "the server's disk is full"},
}
