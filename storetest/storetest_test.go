package storetest

import (
	"net/url"
	"path/filepath"
	"testing"
	"time"

	"github.com/ratelimit-go/ratelimit"
)

func newMemory(t *testing.T, prefix string) ratelimit.Store {
	s := ratelimit.Memory(t.Name() + prefix)
	t.Cleanup(func() { s.Close() })
	return s
}

func TestMemoryStore(t *testing.T) { Run(t, newMemory) }

func TestMemoryStoreWithSnapshots(t *testing.T) {
	dir := t.TempDir()
	Run(t, func(t *testing.T, prefix string) ratelimit.Store {
		name := t.Name() + prefix
		s, err := ratelimit.NewMemoryStore(name, ratelimit.MemoryOptions{
			SnapshotFile: filepath.Join(dir, url.PathEscape(name)), SnapshotEvery: time.Hour,
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.Close() })
		return s
	})
}
