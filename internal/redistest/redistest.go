// Package redistest runs real Redis servers for tests, alone, as a cluster or behind
// Sentinel, and a TCP proxy that injects faults on the way to them.
//
// All of them listen on free loopback ports and are gone when the test is. On Linux the
// servers also die with a test binary that is killed or panics. Where redis-server is
// not installed a test that asks for one is skipped, or fails if the environment
// variable RATELIMIT_REQUIRE_REDIS is set.
//
// What goes wrong in here ends the test with a Fatal. All methods may be called from any
// goroutine, but such a Fatal belongs on the test's own.
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

// patience bounds every wait for a server to do what it always does in the end. A busy
// machine may take its time; a broken one is found out.
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

// await calls try until it returns nil, and ends the test with the last error when
// patience is out.
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

// Ports lie below the range that operating systems take for outgoing connections, which
// starts at 32768 on Linux. In that range somebody's outgoing connection could take the
// port of a server that is down for a while, and a client that redials it could even
// connect to itself.
const (
	minPort   = 11000
	numPorts  = 5000
	lockAbove = 5000  // who listens there owns the port
	busAbove  = 10000 // where a cluster's node listens for others
)

// freePort returns a port that is free, as is its bus port. It is the test's until the
// test ends, also while nobody listens there: tests in other processes keep off it too.
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
