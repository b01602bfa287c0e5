package postgres_test

import (
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ratelimit-go/ratelimit"
	"github.com/ratelimit-go/ratelimit/audit"
	"github.com/ratelimit-go/ratelimit/internal/pgtest"
	"github.com/ratelimit-go/ratelimit/postgres"
)

// TestAuditDiskIsFull fills up the disk of the records. Only root can mount a small one. Calls
// by hand and recorded decisions then change nothing, and other decisions go on.
func TestAuditDiskIsFull(t *testing.T) {
	server := migrated(t)
	dir, err := os.MkdirTemp("", "auditdisk")
	require.NoError(t, err)
	t.Cleanup(func() { os.Remove(dir) })
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=4m,mode=755"); err != nil {
		t.Skipf("a small disk cannot be mounted: %v", err)
	}
	t.Cleanup(func() {
		server.Kill()
		require.NoError(t, syscall.Unmount(dir, 0))
	})
	info, err := os.Stat(server.Data())
	require.NoError(t, err)
	require.NoError(t, os.Chown(dir, int(info.Sys().(*syscall.Stat_t).Uid), -1))

	admin := connect(t, server.URL(pgtest.Superuser))
	pool := newPool(t, server.URL(pgtest.Superuser))
	sink := newSink(t, pool)
	require.NoError(t, sink.Write(ctx, reset(time.Now()), true))
	_, err = admin.Exec(ctx, fmt.Sprintf("CREATE TABLESPACE small LOCATION '%s'", dir))
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
	for _, size := range []int{1000, 1} {
		batch := make([]audit.Record, 100)
		for i := range batch {
			batch[i] = audit.Record{Kind: "filler", Time: time.Now(), Reason: strings.Repeat("x", size)}
		}
		for err = nil; err == nil; {
			err = sink.Write(ctx, batch, true)
		}
		require.ErrorContains(t, err, "disk is full")
	}
	for err = nil; err == nil; { // until the last page is full, too
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

	require.NoError(t, syscall.Mount("", dir, "", syscall.MS_REMOUNT, "size=64m"))
	require.NoError(t, login.Reset(alice, "blocked"))
	d, err = login.Take(ctx, "blocked")
	require.NoError(t, err)
	require.True(t, d.Allowed)
	decidesAgain(t, codes)
}
