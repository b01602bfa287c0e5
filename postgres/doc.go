// Package postgres counts limits of package ratelimit in a PostgreSQL database, for several
// processes that share their limits. It is for services that have a database already, and
// for limits that must survive a crash.
//
//	conn, err := pgx.Connect(ctx, url) // with a role that may create a schema
//	…
//	err = postgres.Migrate(ctx, conn) // once, or at each start
//
//	pool, err := pgxpool.New(ctx, url)
//	…
//	store, err := postgres.NewStore(pool, "login")
//	…
//	defer store.Close()
//	login, err := ratelimit.New("login", ratelimit.Options{Limits: limits, Store: store})
//
// A [Store] counts all kinds of limits: the three algorithms, rolling windows, periods of a
// calendar, blocks and in-flight limits. Several limits are all or none. The server's clock
// decides, so the clocks of the processes make no difference. A limiter adds a timeout, a
// cache of denials, and Options.OnFailure for the time that the server is away.
//
// The server is PostgreSQL 14 or later, with the isolation level READ COMMITTED, which is the
// default. docs/postgres.md has how to choose, set up and watch it.
//
// # Roles
//
// The role that runs Migrate owns the schema ratelimit. If it may create roles, it makes two.
// ratelimit_application may count and write an audit trail: grant it to the role of each
// service. ratelimit_auditor may read the view ratelimit.standing, which shows what is counted
// for whom, and the table ratelimit.audit. Functions run
// with the rights of the owner, so no service can write to the tables.
//
// A prefix belongs to the role that counted under it first. Another role gets
// [ratelimit.ErrPrefixClaimed]. So give each service a role of its own, and the database
// keeps their counters apart.
//
// # Audit trail
//
// An [AuditSink] keeps the records of package audit in the database, where services can add
// records and not change them. With [WithAudit], a store writes records in the transaction of
// what they are about. docs/audit.md has the roles, for how long records are kept, and how to
// hand them over.
package postgres
