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

// A Bouncer is a PgBouncer. Only on Linux there are any.
type Bouncer struct{}

func (*Server) Bouncer(int) *Bouncer { return nil }
func (*Bouncer) URL() string         { return "" }
func (*Bouncer) Start()              {}
func (*Bouncer) Kill()               {}

func (*Server) URL(role string) string { return "" }
func (*Server) Standby() *Server       { return nil }
func (*Server) Addr() string           { return "" }
func (*Server) Data() string           { return "" }
func (*Server) Kill()                  {}
func (*Server) Stop()                  {}
func (*Server) Restart(...string)      {}
func (*Server) Hang()                  {}
func (*Server) Continue()              {}

func (*Server) Dump(role string, args ...string) []byte { return nil }

// A Disk is a small file system in memory. Only on Linux there are any.
type Disk struct{ Path string }

func (*Server) Disk(string, int) *Disk { return nil }
func (*Server) WALDisk(int) *Disk      { return nil }
func (*Server) HasEnded() bool         { return true }
func (*Disk) Fill()                    {}
func (*Disk) Free()                    {}
