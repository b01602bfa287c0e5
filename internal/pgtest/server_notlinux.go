//go:build !linux

package pgtest

import "testing"

// A Server is one PostgreSQL server. Only Linux has them here.
type Server struct{}

// Start skips the test.
func Start(t testing.TB, settings ...string) *Server {
	t.Helper()
	missing(t, "servers are only started on Linux")
	return nil
}
