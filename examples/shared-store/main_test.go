package main

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestSharedStore(t *testing.T) {
	var out strings.Builder
	require.NoError(t, run(&out))
	require.Regexp(t, `limiter "login" \(main.go:\d+\) and limiter "api" \(main.go:\d+\) share one MemoryStore`, out.String())
	require.Contains(t, out.String(), "a login is allowed: true, 4 left")
}
