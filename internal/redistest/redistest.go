// Package redistest runs real Redis servers for tests, alone, as a cluster or behind
// Sentinel. It also has a TCP proxy that injects faults between them and their
// clients.
//
// All of them listen on free loopback ports and end with the test. On Linux the servers
// also end with a test binary that is killed or panics. If redis-server is not
// installed, a test that asks for a server is skipped. It fails instead if the
// environment variable RATELIMIT_REQUIRE_REDIS is set.
//
// Errors in this package end the test with Fatal. All methods may be called from any
// goroutine, but a Fatal should happen on the test's own goroutine.
package redistest

import (
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"strconv"
	"testing"
	"time"
)

// patience bounds every wait for a server to do what it eventually does. It is long
// enough for a busy machine.
const patience = 60 * time.Second

// binary returns the path of redis-server, or ends the test.
func binary(t testing.TB) string {
	t.Helper()
	path, err := exec.LookPath("redis-server")
	if err == nil {
		return path
	}
	const reason = "redis-server is not installed: apt-get install redis-server"
	if os.Getenv("RATELIMIT_REQUIRE_REDIS") != "" {
		t.Fatal("redistest: " + reason)
	}
	t.Skip(reason)
	return ""
}

// await calls try until it returns nil. After the time in patience, it ends the
// test with the last error.
func await(t testing.TB, what string, try func() error) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for pause := 2 * time.Millisecond; ; pause = min(pause*3/2, 50*time.Millisecond) {
		err := try()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("redistest: waited %v for %s: %v", patience, what, err)
		}
		time.Sleep(pause)
	}
}

// Ports are below the range that operating systems use for outgoing connections, which
// starts at 32768 on Linux. In that range an outgoing connection could get the port of
// a server that is down for a while. A client that redials the server could even
// connect to itself.
const (
	minPort   = 11000
	numPorts  = 5000
	lockAbove = 5000  // the process that listens there owns the port
	busAbove  = 10000 // a cluster's node listens there for other nodes
)

// freePort returns a free port whose bus port is free, too. The test owns it until it
// ends, even if nothing listens there: tests in other processes do not use it.
func freePort(t testing.TB) int {
	t.Helper()
	for range 1000 {
		port := minPort + rand.IntN(numPorts)
		lock, err := net.Listen("tcp", address(port+lockAbove))
		if err != nil {
			continue
		}
		if !isFree(port) || !isFree(port+busAbove) {
			lock.Close()
			continue
		}
		t.Cleanup(func() { lock.Close() })
		return port
	}
	t.Fatalf("redistest: no free port from %d to %d", minPort, minPort+numPorts-1)
	return 0
}

func isFree(port int) bool {
	ln, err := net.Listen("tcp", address(port))
	if err != nil {
		return false
	}
	return ln.Close() == nil
}

func address(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }

// hostPort splits an address of this package for commands that take two arguments.
func hostPort(addr string) (host, port string) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		panic(fmt.Sprintf("redistest: %v", err))
	}
	return host, port
}
