package storetest

import (
	"testing"

	"github.com/ratelimit-go/ratelimit"
)

func newMemory(t *testing.T, prefix string) ratelimit.Store {
	s := ratelimit.Memory(t.Name() + prefix)
	t.Cleanup(func() { s.Close() })
	return s
}

func TestMemoryStore(t *testing.T) { Run(t, newMemory) }
