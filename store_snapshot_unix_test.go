//go:build unix && !solaris && !aix

package ratelimit_test

import (
	"os"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
)

// TestSnapshotRefusesPipes uses pipes as the file and as the lock. Opening one
// must not hang.
func TestSnapshotRefusesPipes(t *testing.T) {
	for suffix, want := range map[string]string{
		"":      "it is a named pipe, and not a regular file: name a regular file",
		".lock": ".lock is a named pipe, and not the lock that belongs there: remove it",
	} {
		opts := inFile(t)
		pipe := opts.SnapshotFile + suffix
		if err := syscall.Mkfifo(pipe, 0o600); err != nil {
			t.Skipf("no pipes here: %v", err)
		}
		opts.SnapshotSetAside = true
		s, err := NewMemoryStore(t.Name(), opts)
		require.Nil(t, s)
		memErrorNames(t, err, opts.SnapshotFile, want)
		require.NoError(t, os.Remove(pipe))
		memStore(t, opts).Close()
	}
}
