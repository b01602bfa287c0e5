//go:build linux || darwin

package audit_test

import (
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ratelimit-go/ratelimit"
	"github.com/ratelimit-go/ratelimit/audit"
	"github.com/stretchr/testify/require"
)

// On a full disk, no line is written in part, calls of operators fail, and what is missing is
// a gap when there is room again. A limit on the size of files takes the place of the disk.
func TestFullDisk(t *testing.T) {
	if name := os.Getenv("RATELIMIT_AUDIT_FULL"); name != "" {
		fillUp(t, name)
		return
	}
	name := filepath.Join(t.TempDir(), "audit.jsonl")
	cmd := exec.Command(os.Args[0], "-test.run=^TestFullDisk$")
	cmd.Env = append(os.Environ(), "RATELIMIT_AUDIT_FULL="+name)
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	kinds := strings.Fields(kindsIn(t, name))
	require.Len(t, kinds, 8192+3)
	require.Equal(t, []string{"gap", "reset"}, kinds[len(kinds)-2:])
}

func fillUp(t *testing.T, name string) {
	signal.Ignore(syscall.SIGXFSZ) // so that writing is an error
	var limit syscall.Rlimit
	require.NoError(t, syscall.Getrlimit(syscall.RLIMIT_FSIZE, &limit))
	f := openFile(t, name)
	trail, err := audit.New(audit.Options{Sink: f, Service: "shop", Instance: "web-1", Logger: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	reset := ratelimit.Event{Kind: ratelimit.EventReset, Time: time.Now(), Limiter: "login", Key: "key", Actor: "alice"}
	require.NoError(t, trail.Record(t.Context(), reset))
	info, err := os.Stat(name)
	require.NoError(t, err)
	full := limit
	full.Cur = uint64(info.Size()) + 100 // half a line
	require.NoError(t, syscall.Setrlimit(syscall.RLIMIT_FSIZE, &full))
	for range 10_000 {
		trail.Observe(t.Context(), ratelimit.Event{Kind: ratelimit.EventWarning, Time: time.Now(), Limiter: "login", Code: ratelimit.CodeStoreFailed})
	}
	for range 3 {
		require.ErrorIs(t, trail.Record(t.Context(), reset), syscall.EFBIG)
	}
	require.Equal(t, "reset", kindsIn(t, name))
	require.NoError(t, syscall.Setrlimit(syscall.RLIMIT_FSIZE, &limit))
	require.NoError(t, trail.Close())
	write(t, f, "reset")
	require.EqualValues(t, 10_000-8192, trail.Dropped())
}
