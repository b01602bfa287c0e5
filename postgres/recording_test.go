package postgres_test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ratelimit-go/ratelimit"
	"github.com/ratelimit-go/ratelimit/audit"
	"github.com/ratelimit-go/ratelimit/internal/engine"
	"github.com/ratelimit-go/ratelimit/internal/pgtest"
	"github.com/ratelimit-go/ratelimit/internal/redistest"
	"github.com/ratelimit-go/ratelimit/postgres"
	"github.com/ratelimit-go/ratelimit/ratelimittest"
	"github.com/ratelimit-go/ratelimit/storetest"
)

// This file tests the records that a store writes in the transaction of what they are about.

// alice is the context of a call by hand.
var alice = ratelimit.WithReason(ratelimit.WithActor(ctx, "alice"), "ticket 7")

// A recorded store is a store as a limiter calls it: with a context for the record.
type recorded struct {
	*postgres.Store
	trail *audit.Trail
}

func (s recorded) with(ctx context.Context, kind ratelimit.EventKind) context.Context {
	e := ratelimit.Event{Kind: kind, Time: time.Now(), Limiter: "test", Actor: "alice"}
	return engine.WithRecordable(ctx, ratelimit.Recordable{Auditor: s.trail, Event: e})
}

func (s recorded) Unwrap() ratelimit.Store { return s.Store }

func (s recorded) Take(ctx context.Context, key string, n int64, limits []ratelimit.Limit, results []ratelimit.Result) (ratelimit.Instant, error) {
	return s.Store.Take(s.with(ctx, 0), key, n, limits, results)
}

func (s recorded) TakeShared(ctx context.Context, r ratelimit.SharedRequest, results []ratelimit.Result) (ratelimit.SharedReply, error) {
	return s.Store.TakeShared(s.with(ctx, 0), r, results)
}

func (s recorded) TakePending(ctx context.Context, key string, n int64, pending []ratelimit.Pending, limits []ratelimit.Limit, results []ratelimit.Result) (ratelimit.Instant, error) {
	return s.Store.TakePending(s.with(ctx, 0), key, n, pending, limits, results)
}

func (s recorded) Adjust(ctx context.Context, key string, n int64, at ratelimit.Instant, limits []ratelimit.Limit) (int64, error) {
	return s.Store.Adjust(s.with(ctx, 0), key, n, at, limits)
}

func (s recorded) Reset(ctx context.Context, key string, limits []ratelimit.Limit) error {
	return s.Store.Reset(s.with(ctx, ratelimit.EventReset), key, limits)
}

func (s recorded) Block(ctx context.Context, key string, b ratelimit.Block, limits []ratelimit.Limit) error {
	return s.Store.Block(s.with(ctx, ratelimit.EventBlocked), key, b, limits)
}

// TestConformsWithAudit runs the suite for stores with a record of each decision, by a clock that
// the test sets.
func TestConformsWithAudit(t *testing.T) {
	server := migrated(t)
	clock := setClock(t, server)
	pool := newPool(t, server.URL(pgtest.Superuser))
	sink := newSink(t, pool)
	trail := newTrail(t, sink, nil)
	storetest.Run(t, func(t *testing.T, prefix string) ratelimit.Store {
		return recorded{newStore(t, pool, t.Name()+prefix, postgres.WithAudit(sink, true)), trail}
	}, storetest.Clock(clock.advance, time.Microsecond), storetest.WallClock(func() time.Time { return time.Unix(0, clock.now) }))
	require.Greater(t, len(kinds(t, connect(t, server.URL(pgtest.Superuser)))), 200, "the records")
}

// TestCallsByHandAreRecordedOrNotDone makes calls by hand whose records cannot be written, for
// several reasons. They change nothing, in the database and in the process.
func TestCallsByHandAreRecordedOrNotDone(t *testing.T) {
	server := migrated(t)
	admin := withRoles(t, server)
	pool := newPool(t, server.URL("shop"))
	sink := newSink(t, pool)
	trail := newTrail(t, sink, nil)
	store := newStore(t, pool, "login", postgres.WithAudit(sink, false))
	limits := []ratelimit.Limit{ratelimit.FixedWindow(3, time.Hour).Block(2 * time.Hour)}
	limiter := newLimiter(t, store, limits, func(o *ratelimit.Options) { o.Observe, o.Audit, o.Timeout = trail.Observe, trail, 5*time.Second })
	take := func(key string) ratelimit.Decision {
		d, err := limiter.Take(ctx, key)
		require.NoError(t, err)
		return d
	}
	for range 4 {
		take("blocked")
	}
	take("used")
	for _, fault := range []struct {
		name, break_, repair, want string
	}{
		{"no table", "ALTER TABLE ratelimit.audit RENAME TO away", "ALTER TABLE ratelimit.away RENAME TO audit", "run postgres.Migrate"},
		{"no rights", "REVOKE EXECUTE ON FUNCTION ratelimit.write_recorded FROM ratelimit_application", "GRANT EXECUTE ON FUNCTION ratelimit.write_recorded TO ratelimit_application", "grant ratelimit_application"},
		{"refused", "ALTER TABLE ratelimit.audit ADD CONSTRAINT never CHECK (kind = 'none') NOT VALID", "ALTER TABLE ratelimit.audit DROP CONSTRAINT never", "violates check constraint"},
		{"locked", "", "", "lock timeout"},
		{"no server", "", "", ""},
	} {
		outer := t
		t.Run(fault.name, func(t *testing.T) {
			var lock pgx.Tx
			var err error
			switch fault.name {
			case "no server":
				admin.Close(ctx)
				server.Stop()
			case "locked":
				lock, err = connect(t, server.URL(pgtest.Superuser)).Begin(ctx)
				require.NoError(t, err)
				_, err = lock.Exec(ctx, "LOCK TABLE ratelimit.audit")
			default:
				_, err = admin.Exec(ctx, fault.break_)
			}
			require.NoError(t, err)
			assert.ErrorContains(t, limiter.Reset(alice, "blocked"), fault.want)
			assert.ErrorContains(t, limiter.Block(alice, "used", time.Hour), fault.want)
			assert.ErrorContains(t, limiter.Refund(alice, "used", 1), fault.want)
			assert.Error(t, limiter.Block(alice, "unknown", time.Hour))
			// The process has not changed either.
			for key, blocked := range map[string]bool{"blocked": true, "used": false, "unknown": false} {
				d, err := limiter.TakeN(ctx, key, 1)
				if err == nil {
					assert.Equal(t, blocked, d.Blocked, key)
				}
			}
			switch fault.name {
			case "no server":
				server.Restart()
				admin = connect(outer, server.URL(pgtest.Superuser))
			case "locked":
				require.NoError(t, lock.Rollback(ctx))
			default:
				_, err = admin.Exec(ctx, fault.repair)
				require.NoError(t, err)
			}
			decidesAgain(t, limiter)
			assert.True(t, take("blocked").Blocked)
			assert.False(t, take("unknown").Blocked)
			require.NoError(t, limiter.Reset(alice, "used"))
			require.NoError(t, limiter.Reset(alice, "unknown"))
			assert.EqualValues(t, 2, take("used").Remaining)
		})
	}
	require.NoError(t, limiter.Reset(alice, "blocked"))
	require.NoError(t, limiter.Block(alice, "unknown", time.Hour))
	require.NoError(t, limiter.Refund(alice, "used", 1))
	assert.False(t, take("blocked").Blocked)
	assert.True(t, take("unknown").Blocked)
	require.NoError(t, trail.Close())
	// Each call that was made has one record, and none of them is "intended".
	for kind, want := range map[string]int{"reset": 11, "blocked": 1, "refunded": 1} {
		var done, others int
		require.NoError(t, admin.QueryRow(ctx, "SELECT count(*) FILTER (WHERE outcome = 'done' AND actor = 'alice' AND reason = 'ticket 7'), count(*) FILTER (WHERE outcome <> 'done') FROM ratelimit.audit WHERE kind = $1", kind).Scan(&done, &others))
		assert.Equal(t, want, done, kind)
		assert.Zero(t, others, kind)
	}
}

// newRecorded returns a limiter with a record of each decision.
func newRecorded(t testing.TB, server *pgtest.Server, prefix string, limits []ratelimit.Limit, set func(*ratelimit.Options)) (*ratelimit.Limiter, *postgres.Store) {
	t.Helper()
	pool := newPool(t, server.URL(pgtest.Superuser))
	sink := newSink(t, pool)
	trail := newTrail(t, sink, nil)
	store := newStore(t, pool, prefix, postgres.WithAudit(sink, true))
	var registry ratelimit.Registry
	opts := ratelimit.Options{Limits: limits, Store: store, Observe: trail.Observe, Audit: trail, OnFailure: ratelimit.FailClosed, Timeout: 5 * time.Second}
	if set != nil {
		set(&opts)
	}
	limiter, err := registry.New("codes", opts)
	require.NoError(t, err)
	t.Cleanup(func() { limiter.Close() })
	return limiter, store
}

// TestEachDecisionIsRecorded makes all kinds of decisions, many of them at once.
func TestEachDecisionIsRecorded(t *testing.T) {
	server := migrated(t)
	admin := connect(t, server.URL(pgtest.Superuser))
	limits := []ratelimit.Limit{ratelimit.FixedWindow(5, time.Hour), ratelimit.FixedWindow(8, 24*time.Hour).Named("a day")}
	limiter, _ := newRecorded(t, server, "codes", limits, nil)
	var wg sync.WaitGroup
	for i := range 60 {
		wg.Go(func() {
			assert.NoError(t, patiently(func() error {
				_, err := limiter.Take(alice, fmt.Sprint("key", i%3))
				return err
			}))
		})
	}
	wg.Wait()
	count := func(condition string) (n int) {
		require.NoError(t, admin.QueryRow(ctx, "SELECT count(*) FROM ratelimit.audit WHERE limiter = 'codes' AND kind NOT LIKE 'store-%' AND "+condition).Scan(&n))
		return n
	}
	require.Equal(t, 15, count("kind = 'admitted' AND units = 1 AND pseudonym <> '' AND source = 'store' AND actor = 'alice'"))
	require.Equal(t, 45, count(`kind = 'denied' AND units = 1 AND "limit" = '5/1h fixed' AND policy = 'codes-1h' AND until > now() + interval '50 minutes'`))
	require.Equal(t, 60, count("true"), "the denials that observers get are not recorded again")
	for range 100 { // no denial is answered from a cache
		d, err := limiter.Take(ctx, "key0")
		require.NoError(t, err)
		require.Equal(t, ratelimit.SourceStore, d.Source)
	}
	require.Equal(t, 160, count("true"))

	_, err := limiter.TakeN(ctx, "key9", 0) // a look
	require.NoError(t, err)
	require.Equal(t, 160, count("true"))
	granted, _, err := limiter.TakeUpTo(ctx, "key9", 50)
	require.NoError(t, err)
	require.EqualValues(t, 5, granted)
	require.Equal(t, 1, count("kind = 'admitted' AND units = 5"))
	require.NoError(t, limiter.Refund(ctx, "key9", 2))
	require.Equal(t, 1, count("kind = 'refunded' AND units = 2 AND outcome IS NULL"))
	require.NoError(t, limiter.Refund(alice, "key9", 1))
	require.Equal(t, 1, count("kind = 'refunded' AND units = 1 AND outcome = 'done'"))
	_, err = limiter.TakeLimits(ctx, "key9", 9, ratelimit.FixedWindow(7, time.Minute).Named("small"))
	require.NoError(t, err)
	require.Equal(t, 1, count("kind = 'denied' AND policy = 'small' AND units = 9 AND until IS NULL"))
	require.Equal(t, 164, count("true"))

	// A request that costs more in the end.
	handler := limiter.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/dear" {
			assert.NoError(t, limiter.AddCost(r.Context(), 3))
		}
		w.WriteHeader(http.StatusNoContent)
	}))
	for _, path := range []string{"/dear", "/plain"} {
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, httptest.NewRequest("POST", path, nil))
		require.Equal(t, http.StatusNoContent, w.Code)
	}
	require.Equal(t, 1, count("kind = 'charged' AND units = 3"))
	require.Equal(t, 167, count("true"))
}

// TestLookOfASecondAgo makes the server take more than a second from look to write, twice. Then
// neither the counter nor the records are written, and both are made again.
func TestLookOfASecondAgo(t *testing.T) {
	server := migrated(t)
	conn := connect(t, server.URL(pgtest.Superuser))
	limiter, store := newRecorded(t, server, "codes", hourly, nil)
	_, err := conn.Exec(ctx, `CREATE SEQUENCE public.calls; ALTER FUNCTION ratelimit.write_recorded RENAME TO write_in_time;
		CREATE FUNCTION ratelimit.write_recorded(a text[], b bigint[], c int[], d bigint[], e bigint[], f bigint[], g text[], h bigint, i text, j int[],
			OUT r_o int[], OUT r_written bool) LANGUAGE sql AS
		'SELECT * FROM ratelimit.write_in_time(a, b, c, d, e, f, g, h - CASE WHEN nextval(''public.calls'') % 3 = 0 THEN 0 ELSE 2000000000 END, i, j)'`)
	require.NoError(t, err)
	for range 2 {
		_, err = limiter.TakeN(ctx, "key", 5) // a new row, and a row
		require.NoError(t, err)
	}
	_, err = limiter.TakeN(ctx, "key", hourly[0].N())
	require.NoError(t, err)
	require.EqualValues(t, 10, counted(t, store, "key"))
	require.Equal(t, []string{"admitted", "admitted", "denied"}, kinds(t, conn))
	var calls int
	require.NoError(t, conn.QueryRow(ctx, "SELECT last_value FROM public.calls").Scan(&calls))
	require.GreaterOrEqual(t, calls, 9)
	require.Zero(t, calls%3, "of each three, one has written")
}

// TestRecordsInEachMode records decisions in each of pgx's modes, and with a session that writes times
// in another way.
func TestRecordsInEachMode(t *testing.T) {
	server := migrated(t)
	conn := connect(t, server.URL(pgtest.Superuser))
	for _, mode := range []pgx.QueryExecMode{pgx.QueryExecModeCacheStatement, pgx.QueryExecModeCacheDescribe, pgx.QueryExecModeDescribeExec, pgx.QueryExecModeExec, pgx.QueryExecModeSimpleProtocol} {
		t.Run(mode.String(), func(t *testing.T) {
			pool := newPool(t, server.URL(pgtest.Superuser), func(c *pgxpool.Config) {
				c.ConnConfig.DefaultQueryExecMode = mode
				c.ConnConfig.RuntimeParams["timezone"] = "Pacific/Kiritimati"
				if mode == pgx.QueryExecModeCacheStatement { // pgx reads text in one style only
					c.ConnConfig.RuntimeParams["datestyle"] = "SQL, DMY"
				}
			})
			sink := newSink(t, pool)
			trail := newTrail(t, sink, func(o *audit.Options) { o.PlainKeys, o.Service = true, mode.String() })
			store := newStore(t, pool, mode.String(), postgres.WithAudit(sink, true))
			limiter := newLimiter(t, store, []ratelimit.Limit{ratelimit.FixedWindow(2, time.Hour).Block(time.Hour), ratelimit.Rolling(3, time.Hour)}, func(o *ratelimit.Options) {
				o.Audit, o.Observe, o.OnFailure, o.Timeout = trail, trail.Observe, ratelimit.FailClosed, 5*time.Second
			})
			began := time.Now()
			for range 4 {
				_, err := limiter.Take(ctx, mode.String())
				require.NoError(t, err)
			}
			require.NoError(t, limiter.Reset(alice, mode.String()))
			found, err := sink.Read(ctx, audit.Query{Key: mode.String()})
			require.NoError(t, err)
			require.Len(t, found, 5)
			require.Equal(t, audit.Kind("reset"), found[0].Kind)
			require.Equal(t, audit.Kind("denied"), found[1].Kind)
			require.WithinDuration(t, began, found[1].Time, time.Minute)
			require.WithinDuration(t, began.Add(time.Hour), *found[1].Until, time.Minute)
			secrets, err := sink.Secrets(ctx, time.Time{})
			require.NoError(t, err)
			require.WithinDuration(t, began, secrets[0].Begins, time.Minute)
		})
	}
	var name string
	require.NoError(t, conn.QueryRow(ctx, "SELECT min(tableoid::regclass::text) FROM ratelimit.audit").Scan(&name))
	require.Equal(t, "ratelimit.audit_"+time.Now().UTC().Format("2006_01"), name)
}

// TestWhatRecordedDecisionsRefuse builds limiters that could decide without a record.
func TestWhatRecordedDecisionsRefuse(t *testing.T) {
	pool := newPool(t, "postgres://127.0.0.1:1/none")
	sink, other := newSink(t, pool), newSink(t, pool)
	trailOf := func(sink audit.Sink) *audit.Trail {
		trail, err := audit.New(audit.Options{Sink: sink})
		require.NoError(t, err)
		t.Cleanup(func() { trail.Close() })
		return trail
	}
	trail := trailOf(sink)
	_, err := postgres.NewAuditSink(nil)
	require.ErrorContains(t, err, "pgxpool.New")
	_, err = postgres.NewStore(pool, "p", postgres.WithAudit(nil, true))
	require.ErrorContains(t, err, "NewAuditSink")
	_, err = postgres.NewStore(newPool(t, "postgres://127.0.0.1:1/none"), "p", postgres.WithAudit(sink, true))
	require.ErrorContains(t, err, "another pool")

	five := ratelimit.FixedWindow(5, time.Hour)
	for _, tc := range []struct {
		name, want string
		all        bool
		set        func(*ratelimit.Options)
	}{
		{"all right", "", true, func(*ratelimit.Options) {}},
		{"no trail", "set it to an *audit.Trail", true, func(o *ratelimit.Options) { o.Audit = nil }},
		{"no trail for calls", "set it to an *audit.Trail", false, func(o *ratelimit.Options) { o.Audit = nil }},
		{"another auditor", "set it to an *audit.Trail", false, func(o *ratelimit.Options) { o.Audit = nobody{} }},
		{"another sink", "another sink", false, func(o *ratelimit.Options) { o.Audit = trailOf(other) }},
		{"a nil trail", "another sink", false, func(o *ratelimit.Options) { o.Audit = (*audit.Trail)(nil) }},
		{"fallback", "set FailClosed", true, func(o *ratelimit.Options) { o.OnFailure = ratelimit.FallbackLocal }},
		{"fallback for calls", "", false, func(o *ratelimit.Options) { o.OnFailure = ratelimit.FallbackLocal }},
		{"fail open", "set FailClosed", true, func(o *ratelimit.Options) { o.OnFailure = ratelimit.FailOpen }},
		{"lease", "Options.Lease", true, func(o *ratelimit.Options) { o.Lease = time.Second }},
		{"lease for calls", "", false, func(o *ratelimit.Options) { o.Lease = time.Second }},
		{"wait", "Options.MaxWait", true, func(o *ratelimit.Options) { o.MaxWait = time.Second }},
		{"shadow", "Options.Shadow", true, func(o *ratelimit.Options) { o.Shadow = true }},
		{"unlimited", "decides without the store", true, func(o *ratelimit.Options) { o.Limits = []ratelimit.Limit{ratelimit.Unlimited} }},
		{"deny", "decides without the store", true, func(o *ratelimit.Options) { o.Limits = []ratelimit.Limit{five, ratelimit.Deny} }},
		{"too fast", "above 1000 units per second", true, func(o *ratelimit.Options) {
			o.Limits = []ratelimit.Limit{ratelimit.TokenBucket(1001, time.Second, 5000)}
		}},
		{"fast enough", "", true, func(o *ratelimit.Options) { o.Limits = []ratelimit.Limit{ratelimit.FixedWindow(3_600_000, time.Hour)} }},
		{"in flight", "holds end without a decision", true, func(o *ratelimit.Options) { o.Limits = []ratelimit.Limit{ratelimit.InFlight(5, time.Minute)} }},
		{"wrapped", "implement RecordingStore in the wrapper", true, func(o *ratelimit.Options) { o.Store = wrapper{o.Store.(*postgres.Store)} }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			store := newStore(t, pool, "p", postgres.WithAudit(sink, tc.all))
			opts := ratelimit.Options{Limits: []ratelimit.Limit{five}, Store: store, Audit: trail, OnFailure: ratelimit.FailClosed}
			tc.set(&opts)
			var registry ratelimit.Registry
			limiter, err := registry.New("codes", opts)
			if tc.want != "" {
				require.ErrorContains(t, err, tc.want)
				return
			}
			require.NoError(t, err)
			defer limiter.Close()
			if tc.all {
				require.ErrorContains(t, limiter.SetLimits(ratelimit.Unlimited), "decides without the store")
				require.ErrorContains(t, limiter.SetLimits(ratelimit.FixedWindow(1001, time.Second)), "above 1000")
				_, err = limiter.TakeLimits(ctx, "key", 1, ratelimit.Deny)
				require.ErrorContains(t, err, "decides without the store")
			}
		})
	}
	// Calls past a limiter have no record.
	store := newStore(t, pool, "p", postgres.WithAudit(sink, true))
	_, err = takeOne(store, "key", hourly, time.Second)
	require.ErrorContains(t, err, "call it through a limiter")
	require.ErrorContains(t, store.Reset(ctx, "key", hourly), "call it through a limiter")
	require.ErrorContains(t, store.Block(ctx, "key", ratelimit.Block{Left: time.Hour}, hourly), "call it through a limiter")
	require.NoError(t, trail.Close())
}

// TestRecordsDoNotDeadlock makes new keys and changes old ones in many batches at once, which never
// wait for each other in a circle.
func TestRecordsDoNotDeadlock(t *testing.T) {
	server := migrated(t, "deadlock_timeout=50ms")
	limits := []ratelimit.Limit{ratelimit.FixedWindow(5, time.Hour), ratelimit.FixedWindow(8, 24*time.Hour).Named("a day")}
	var limiters []*ratelimit.Limiter
	for range 2 {
		limiter, _ := newRecorded(t, server, "codes", limits, nil)
		limiters = append(limiters, limiter)
	}
	for round := range 40 {
		var wg sync.WaitGroup
		for i := range 120 {
			wg.Go(func() {
				assert.NoError(t, patiently(func() error {
					_, err := limiters[i%2].Take(ctx, fmt.Sprint("key", round/2, i%5, i%3))
					return err
				}))
			})
		}
		wg.Wait()
	}
}

// compareWithRecords compares the counter of each key with the records of its decisions.
func compareWithRecords(t *testing.T, conn *pgx.Conn) (admitted, denied int64) {
	t.Helper()
	var wrong int
	require.NoError(t, conn.QueryRow(ctx, `WITH recorded AS (
		SELECT key, sum(CASE kind WHEN 'admitted' THEN units WHEN 'charged' THEN units WHEN 'refunded' THEN -units ELSE 0 END) AS units,
			count(*) FILTER (WHERE kind = 'admitted') AS admitted, count(*) FILTER (WHERE kind = 'denied') AS denied
		FROM ratelimit.audit WHERE key IS NOT NULL GROUP BY key)
		SELECT count(*) FILTER (WHERE r.units IS DISTINCT FROM s.units AND coalesce(r.units, 0) + coalesce(s.units, 0) > 0), coalesce(sum(r.admitted), 0), coalesce(sum(r.denied), 0)
		FROM recorded r FULL JOIN ratelimit.standing s ON s.key = r.key`).Scan(&wrong, &admitted, &denied))
	require.Zero(t, wrong, "keys whose counter is not what their records say")
	return admitted, denied
}

// TestKilledBetweenDecisionAndRecord kills processes again and again. Each decision has its
// record, and each record its decision.
func TestKilledBetweenDecisionAndRecord(t *testing.T) {
	server := migrated(t)
	conn := connect(t, server.URL(pgtest.Superuser))
	of := task{URL: server.URL(pgtest.Superuser) + "&pool_max_conns=8", Prefix: "killed", Limits: []string{"150/1h fixed"}, Keys: 20, Calls: 1_000_000, Audit: true}
	last := int64(0)
	for i := range 12 {
		child, reap := of.start(t)
		for records := last; records < last+200+int64(i)*37; { // it decides
			time.Sleep(time.Duration(1+i%5) * time.Millisecond)
			require.NoError(t, conn.QueryRow(ctx, "SELECT count(*) FROM ratelimit.audit").Scan(&records))
		}
		child.Process.Kill()
		reap()
		awaitNoChild(t, conn)
		admitted, denied := compareWithRecords(t, conn)
		require.Greater(t, admitted+denied, last)
		last = admitted + denied
	}
	admitted, denied := compareWithRecords(t, conn)
	t.Logf("%d admitted, %d denied", admitted, denied)
}

// TestKilledServerKeepsRecords kills the server again and again while callers decide. Every
// decision that a caller has got has its record after that.
func TestKilledServerKeepsRecords(t *testing.T) {
	server := migrated(t, "fsync=on")
	pool := newPool(t, server.URL(pgtest.Superuser))
	sink := newSink(t, pool)
	trail := newTrail(t, sink, func(o *audit.Options) { o.PlainKeys = true })
	limiter := newLimiter(t, newStore(t, pool, "killed", postgres.WithAudit(sink, true)), []ratelimit.Limit{ratelimit.FixedWindow(500, time.Hour)}, func(o *ratelimit.Options) {
		o.Audit, o.Observe, o.OnFailure, o.Timeout = trail, trail.Observe, ratelimit.FailClosed, time.Second
	})
	var admitted, denied atomic.Int64
	for range 4 {
		stop, callers := atomic.Bool{}, sync.WaitGroup{}
		for c := range 16 {
			callers.Go(func() {
				for i := 0; !stop.Load(); i++ {
					d, err := limiter.Take(ctx, fmt.Sprint("key", (c+i)%3))
					switch {
					case err != nil:
						time.Sleep(time.Millisecond)
					case d.Allowed:
						admitted.Add(1)
					default:
						denied.Add(1)
					}
				}
			})
		}
		for at := admitted.Load() + denied.Load(); admitted.Load()+denied.Load() < at+400; {
			time.Sleep(time.Millisecond)
		}
		server.Kill()
		stop.Store(true)
		callers.Wait()
		server.Restart()
		conn := connect(t, server.URL(pgtest.Superuser))
		recordedAdmitted, recordedDenied := compareWithRecords(t, conn)
		require.GreaterOrEqual(t, recordedAdmitted, admitted.Load())
		require.GreaterOrEqual(t, recordedDenied, denied.Load())
		t.Logf("%d admitted and %d denied, %d and %d recorded", admitted.Load(), denied.Load(), recordedAdmitted, recordedDenied)
		admitted.Store(recordedAdmitted)
		denied.Store(recordedDenied)
		decidesAgain(t, limiter)
		recordedAdmitted, recordedDenied = compareWithRecords(t, conn)
		admitted.Store(recordedAdmitted)
		denied.Store(recordedDenied)
	}
}

// TestLostAnswersKeepRecords drops the answers of statements. What callers do not know is in the
// counter and in the records, or in neither.
func TestLostAnswersKeepRecords(t *testing.T) {
	server := migrated(t)
	proxy := redistest.NewProxy(t, server.Addr())
	pool := newPool(t, "postgres://postgres@"+proxy.Addr+"/postgres?sslmode=disable")
	sink := newSink(t, pool)
	trail := newTrail(t, sink, func(o *audit.Options) { o.PlainKeys = true })
	limiter := newLimiter(t, newStore(t, pool, "lost", postgres.WithAudit(sink, true)), hourly, func(o *ratelimit.Options) {
		o.Audit, o.OnFailure, o.Timeout = trail, ratelimit.FailClosed, 200*time.Millisecond
	})
	decidesAgain(t, limiter)
	conn := connect(t, server.URL(pgtest.Superuser))
	for range 2 {
		proxy.LoseReplies(true)
		for range 3 {
			_, err := limiter.Take(ctx, "key")
			assert.Error(t, err)
		}
		cancelled, cancel := context.WithCancel(ctx)
		var wg sync.WaitGroup
		wg.Go(func() { limiter.Take(cancelled, "key") })
		wg.Go(func() { assert.Error(t, limiter.Reset(alice, "another")) })
		cancel()
		wg.Wait()
		proxy.LoseReplies(false)
		decidesAgain(t, limiter)
		admitted, _ := compareWithRecords(t, conn)
		require.Positive(t, admitted)
	}
}

// TestCallerThatLeavesIsRecorded cancels callers that wait for a row. Their units come back
// with a record.
func TestCallerThatLeavesIsRecorded(t *testing.T) {
	server := migrated(t)
	pool := newPool(t, server.URL(pgtest.Superuser))
	sink := newSink(t, pool)
	trail := newTrail(t, sink, func(o *audit.Options) { o.PlainKeys = true })
	limiter := newLimiter(t, newStore(t, pool, "left", postgres.WithAudit(sink, true)), hourly, func(o *ratelimit.Options) {
		o.Audit, o.OnFailure, o.Timeout = trail, ratelimit.FailClosed, 5*time.Second
	})
	_, err := limiter.Take(ctx, "key")
	require.NoError(t, err)
	conn := connect(t, server.URL(pgtest.Superuser))
	_, err = conn.Exec(ctx, "ALTER FUNCTION ratelimit.audit_write SET lock_timeout = '1min'") // the caller leaves first
	require.NoError(t, err)
	lock, err := connect(t, server.URL(pgtest.Superuser)).Begin(ctx)
	require.NoError(t, err)
	_, err = lock.Exec(ctx, "LOCK TABLE ratelimit.audit IN SHARE MODE")
	require.NoError(t, err)
	leaves, leave := context.WithCancel(ctx)
	done := make(chan error)
	go func() { _, err := limiter.TakeN(leaves, "key", 7); done <- err }()
	require.Eventually(t, func() (waits bool) {
		require.NoError(t, conn.QueryRow(ctx, "SELECT count(*) > 0 FROM pg_stat_activity WHERE wait_event_type = 'Lock'").Scan(&waits))
		return waits
	}, 5*time.Second, time.Millisecond)
	leave()
	require.ErrorIs(t, <-done, context.Canceled)
	require.NoError(t, lock.Rollback(ctx))
	require.Eventually(t, func() bool { return slices.Equal(kinds(t, conn), []string{"admitted", "admitted", "refunded"}) }, 20*time.Second, 5*time.Millisecond)
	compareWithRecords(t, conn)
}

// TestDeadDatabaseLeavesGaps observes a limiter in memory while the database of the trail hangs, and
// while it is gone.
func TestDeadDatabaseLeavesGaps(t *testing.T) {
	server := migrated(t)
	trail := newTrail(t, newSink(t, newPool(t, server.URL(pgtest.Superuser))), nil)
	limiter := ratelimittest.New(t, ratelimit.Options{Limits: []ratelimit.Limit{ratelimit.FixedWindow(1, time.Hour)}, Observe: trail.Observe})
	began := time.Now()
	for name, do := range map[string][2]func(){
		"hung": {server.Hang, server.Continue}, "stopped": {server.Stop, func() { server.Restart() }},
	} {
		t.Run(name, func(t *testing.T) {
			do[0]()
			before := trail.Dropped()
			for i := range 9000 {
				_, err := limiter.Take(ctx, fmt.Sprint(name, i/2))
				require.NoError(t, err)
				trail.Observe(ctx, ratelimit.Event{Kind: ratelimit.EventWarning, Time: time.Now(), Limiter: "test", Code: ratelimit.CodeStoreFailed})
			}
			require.Greater(t, trail.Dropped(), before)
			do[1]()
		})
	}
	require.Less(t, time.Since(began), time.Minute, "18,000 decisions; each would have waited for 5 s")
	conn := connect(t, server.URL(pgtest.Superuser))
	require.Eventually(t, func() bool {
		var missing uint64
		require.NoError(t, conn.QueryRow(ctx, "SELECT coalesce(sum(count), 0) FROM ratelimit.audit WHERE kind = 'gap'").Scan(&missing))
		return missing == trail.Dropped()
	}, 30*time.Second, 50*time.Millisecond)
}

// TestAuditDiskIsFull fills up the disk of the records. Calls by hand and recorded decisions then
// change nothing, and other decisions go on.
func TestAuditDiskIsFull(t *testing.T) {
	server := migrated(t)
	disk := server.Disk("audit", 4<<20)
	admin := connect(t, server.URL(pgtest.Superuser))
	pool := newPool(t, server.URL(pgtest.Superuser))
	sink := newSink(t, pool)
	require.NoError(t, sink.Write(ctx, reset(time.Now()), true))
	_, err := admin.Exec(ctx, fmt.Sprintf("CREATE TABLESPACE small LOCATION '%s'", disk.Path))
	require.NoError(t, err)
	_, err = admin.Exec(ctx, "ALTER TABLE ratelimit.audit_"+time.Now().UTC().Format("2006_01")+" SET TABLESPACE small")
	require.NoError(t, err)

	trail := newTrail(t, sink, nil)
	limits := []ratelimit.Limit{ratelimit.FixedWindow(2, time.Hour).Block(2 * time.Hour)}
	login := newLimiter(t, newStore(t, pool, "login", postgres.WithAudit(sink, false)), limits, func(o *ratelimit.Options) {
		o.Audit, o.Observe, o.Timeout = trail, trail.Observe, 5*time.Second
	})
	codesStore := newStore(t, pool, "codes", postgres.WithAudit(sink, true))
	codes := newLimiter(t, codesStore, hourly, func(o *ratelimit.Options) {
		o.Audit, o.Observe, o.Timeout, o.OnFailure = trail, trail.Observe, 5*time.Second, ratelimit.FailClosed
	})
	for range 3 {
		_, err := login.Take(ctx, "blocked")
		require.NoError(t, err)
	}
	disk.Fill()
	for err = nil; err == nil; { // until the last page is full
		err = login.Reset(alice, "nobody")
	}
	require.ErrorContains(t, err, "disk is full")

	require.ErrorContains(t, login.Reset(alice, "blocked"), "disk is full")
	d, err := login.Take(ctx, "blocked")
	require.NoError(t, err)
	require.True(t, d.Blocked)
	require.ErrorContains(t, login.Block(alice, "free", time.Hour), "disk is full")
	d, err = login.Take(ctx, "free")
	require.NoError(t, err)
	require.True(t, d.Allowed)
	require.Equal(t, ratelimit.SourceStore, d.Source)
	_, err = codes.Take(ctx, "key")
	require.ErrorContains(t, err, "disk is full")
	require.Zero(t, counted(t, codesStore, "key"))

	disk.Free()
	require.NoError(t, login.Reset(alice, "blocked"))
	d, err = login.Take(ctx, "blocked")
	require.NoError(t, err)
	require.True(t, d.Allowed)
	decidesAgain(t, codes)
}

type nobody struct{}

func (nobody) Record(context.Context, ratelimit.Event) error { return nil }

// A wrapper hands on some methods only.
type wrapper struct{ inside *postgres.Store }

func (w wrapper) Prefix() string          { return w.inside.Prefix() }
func (w wrapper) Unwrap() ratelimit.Store { return w.inside }
func (w wrapper) Take(ctx context.Context, key string, n int64, limits []ratelimit.Limit, results []ratelimit.Result) (ratelimit.Instant, error) {
	return w.inside.Take(ctx, key, n, limits, results)
}
func (w wrapper) Adjust(ctx context.Context, key string, n int64, at ratelimit.Instant, limits []ratelimit.Limit) (int64, error) {
	return w.inside.Adjust(ctx, key, n, at, limits)
}
func (w wrapper) Reset(ctx context.Context, key string, limits []ratelimit.Limit) error {
	return w.inside.Reset(ctx, key, limits)
}
