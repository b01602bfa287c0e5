//go:build !linux

package pgtest

import "testing"

// A Server is one PostgreSQL server. Only on Linux there are any.
type Server struct{ Port int }

// Start skips the test, so no other method is ever called.
func Start(t testing.TB, settings ...string) *Server {
	t.Helper()
	missing(t, "servers are only started on Linux")
	return nil
}

func (*Server) URL(role string) string { return "" }
func (*Server) Standby() *Server       { return nil }
func (*Server) Addr() string           { return "" }
func (*Server) Kill()                  {}
func (*Server) Stop()                  {}
func (*Server) Restart(...string)      {}
func (*Server) Hang()                  {}
func (*Server) Continue()              {}
