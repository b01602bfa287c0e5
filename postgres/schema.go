package postgres

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

var (
	//go:embed schema.sql
	schemaSQL string
	//go:embed audit.sql
	auditSQL string
	//go:embed grants.sql
	grantsSQL string
)

// schemaVersion is the version of the schema that this package needs. A schema with a higher
// version serves older programs, too.
const schemaVersion = 1

// leastServer is the oldest version of the server that the schema works on, as server_version_num.
const leastServer = 140000

// Migrate makes the schema ratelimit with the tables, functions, roles and the view that
// stores need, or brings it up to date. It may be called any number of times, also by
// several processes at once and while stores are in use. It deletes no counters.
//
// Call it with a role that may create a schema, such as the owner of the database. That role
// then owns the schema. The roles of applications need less: see the package comment.
//
// Migrate waits for a lock for as long as lock_timeout says, or for 30 seconds if it is 0.
//
// The server must be PostgreSQL 14 or later.
func Migrate(ctx context.Context, conn *pgx.Conn) error {
	if conn == nil {
		return fmt.Errorf("ratelimit: postgres.Migrate: the connection is nil: make one with pgx.Connect")
	}
	if err := migrate(ctx, conn); err != nil {
		_, hint := classify(err)
		var reply *pgconn.PgError
		if errors.As(err, &reply) && reply.Code == "55P03" {
			hint = "another session holds a lock on a table of the schema, or the advisory lock of Migrate: look for it in pg_locks and pg_stat_activity, or raise lock_timeout"
		}
		return fmt.Errorf("ratelimit: postgres.Migrate: %w%s", err, because(hint))
	}
	return nil
}

func migrate(ctx context.Context, conn *pgx.Conn) error {
	var server string
	if err := conn.QueryRow(ctx, "SHOW server_version_num").Scan(&server); err != nil {
		return err
	}
	if err := checkServer(server); err != nil {
		return err
	}
	var script strings.Builder
	// One migration at a time: CREATE OR REPLACE of one function by two sessions fails.
	script.WriteString("BEGIN; SET LOCAL client_min_messages = warning; SELECT set_config('lock_timeout', CASE current_setting('lock_timeout') WHEN '0' THEN '30s' ELSE current_setting('lock_timeout') END, true);\n")
	script.WriteString("SELECT pg_advisory_xact_lock(7234298374);\n")
	start := time.Now().Unix() - 1_700_000_000 // numbers of shapes in a schema that was dropped were lower
	strings.NewReplacer("{start}", strconv.FormatInt(start, 10), "{version}", strconv.Itoa(schemaVersion)).WriteString(&script, schemaSQL)
	for _, name := range takeNames() {
		script.WriteString(takeFunction(name))
	}
	script.WriteString(auditSQL)
	script.WriteString(grantsSQL)
	script.WriteString("COMMIT;")
	_, err := conn.PgConn().Exec(ctx, script.String()).ReadAll()
	if err != nil && !conn.IsClosed() {
		conn.PgConn().Exec(ctx, "ROLLBACK").ReadAll()
	}
	return err
}

// checkServer returns an error for a server that is too old, by its server_version_num.
func checkServer(number string) error {
	n, err := strconv.Atoi(number)
	if err != nil {
		return fmt.Errorf("the server's version number is %q: PostgreSQL 14 or later is needed", number)
	}
	if n < leastServer {
		return fmt.Errorf("the server is PostgreSQL %d: 14 or later is needed", n/10000)
	}
	return nil
}
