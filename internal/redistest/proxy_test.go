package redistest_test

import (
	"bufio"
	"context"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/ratelimit-go/ratelimit/internal/redistest"
)

// echo runs a server that answers each line with its name and the line.
func echo(t *testing.T, name string) (addr string, requests chan string) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { ln.Close() })
	requests = make(chan string, 100)
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				lines := bufio.NewScanner(conn)
				for lines.Scan() {
					requests <- lines.Text()
					conn.Write([]byte(name + lines.Text() + "\n"))
				}
			}()
		}
	}()
	return ln.Addr().String(), requests
}

func dial(t *testing.T, addr string) *net.TCPConn {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	require.NoError(t, err)
	t.Cleanup(func() { conn.Close() })
	return conn.(*net.TCPConn)
}

// ask sends a line and returns the answer, if it arrives in time.
func ask(conn net.Conn, line string, within time.Duration) (string, error) {
	conn.SetDeadline(time.Now().Add(within))
	if _, err := conn.Write([]byte(line + "\n")); err != nil {
		return "", err
	}
	return bufio.NewReader(conn).ReadString('\n')
}

const (
	soon     = 100 * time.Millisecond // long enough that an answer which must not arrive would most likely have arrived
	patience = 30 * time.Second       // reached by broken code only
)

func requireAnswer(t *testing.T, conn net.Conn, line, want string) {
	t.Helper()
	got, err := ask(conn, line, patience)
	require.NoError(t, err)
	require.Equal(t, want+"\n", got)
}

// requireEnd requires that a connection has ended, and is not just silent.
func requireEnd(t *testing.T, conn net.Conn) {
	t.Helper()
	_, err := ask(conn, "x", patience)
	require.Error(t, err)
	require.NotErrorIs(t, err, os.ErrDeadlineExceeded)
}

func TestProxy(t *testing.T) {
	t.Parallel()
	addr, _ := echo(t, "one ")
	p := redistest.NewProxy(t, addr)
	conn := dial(t, p.Addr)
	requireAnswer(t, conn, "a", "one a")
	require.Equal(t, 1, p.Open())
	require.EqualValues(t, 1, p.Accepted())

	other, _ := echo(t, "two ")
	p.Retarget(other)
	requireAnswer(t, conn, "b", "one b")
	requireAnswer(t, dial(t, p.Addr), "c", "two c")
	require.Equal(t, 2, p.Open())

	conn.Close()
	require.Eventually(t, func() bool { return p.Open() == 1 }, patience, time.Millisecond)
	require.EqualValues(t, 2, p.Accepted())
}

func TestProxyLatency(t *testing.T) {
	t.Parallel()
	addr, _ := echo(t, "")
	p := redistest.NewProxy(t, addr)
	conn := dial(t, p.Addr)
	p.Latency(50 * time.Millisecond)
	start := time.Now()
	requireAnswer(t, conn, "a", "a")
	require.GreaterOrEqual(t, time.Since(start), 100*time.Millisecond, "once each way")
	p.Latency(time.Hour)
	_, err := ask(conn, "b", soon)
	require.ErrorIs(t, err, os.ErrDeadlineExceeded)
}

func TestProxyResets(t *testing.T) {
	t.Parallel()
	addr, requests := echo(t, "")
	p := redistest.NewProxy(t, addr)
	p.ResetRate(1)
	requireEnd(t, dial(t, p.Addr))
	require.Empty(t, requests, "the request was lost")
	p.ResetRate(0)
	conn := dial(t, p.Addr)
	requireAnswer(t, conn, "a", "a")
	p.Cut()
	requireEnd(t, conn)
	require.Zero(t, p.Open())
	requireAnswer(t, dial(t, p.Addr), "b", "b")
}

func TestProxyLoseReplies(t *testing.T) {
	t.Parallel()
	addr, requests := echo(t, "")
	p := redistest.NewProxy(t, addr)
	p.LoseReplies(true)
	conn := dial(t, p.Addr)
	_, err := ask(conn, "a", soon)
	require.ErrorIs(t, err, os.ErrDeadlineExceeded)
	require.Equal(t, "a", <-requests)
	p.LoseReplies(false)
	requireEnd(t, conn)
	requireAnswer(t, dial(t, p.Addr), "b", "b")
}

func TestProxyBlackhole(t *testing.T) {
	t.Parallel()
	addr, requests := echo(t, "")
	p := redistest.NewProxy(t, addr)
	before := dial(t, p.Addr)
	requireAnswer(t, before, "a", "a")
	<-requests

	p.Blackhole(true)
	during := dial(t, p.Addr)
	for _, conn := range []net.Conn{before, during} {
		_, err := ask(conn, "b", soon)
		require.ErrorIs(t, err, os.ErrDeadlineExceeded)
	}
	require.Eventually(t, func() bool { return p.Open() == 2 }, patience, time.Millisecond)
	require.Empty(t, requests)

	p.Blackhole(false)
	before.SetDeadline(time.Now().Add(patience))
	line, err := bufio.NewReader(before).ReadString('\n')
	require.NoError(t, err)
	require.Equal(t, "b\n", line, "it arrives late")
	requireEnd(t, during)
}

func TestProxyRefuse(t *testing.T) {
	t.Parallel()
	addr, _ := echo(t, "")
	p := redistest.NewProxy(t, addr)
	conn := dial(t, p.Addr)
	requireAnswer(t, conn, "a", "a")
	p.Refuse(true)
	p.Refuse(true)
	requireEnd(t, conn)
	_, err := net.Dial("tcp", p.Addr)
	require.Error(t, err)
	require.EqualValues(t, 1, p.Accepted())
	p.Refuse(false)
	requireAnswer(t, dial(t, p.Addr), "b", "b")
}

// TestProxyWithoutTarget: a connection to a target that is not there ends.
func TestProxyWithoutTarget(t *testing.T) {
	t.Parallel()
	other := redistest.NewProxy(t, "") // its port is kept
	other.Refuse(true)
	p := redistest.NewProxy(t, other.Addr)
	if conn, err := net.Dial("tcp", p.Addr); err == nil { // otherwise the connection has ended already
		defer conn.Close()
		requireEnd(t, conn)
	}
	require.Eventually(t, func() bool { return p.Accepted() == 1 && p.Open() == 0 }, patience, time.Millisecond)
}

// TestProxyLoad: faults can be switched under load, and everything works after them.
func TestProxyLoad(t *testing.T) {
	t.Parallel()
	s := redistest.Start(t)
	p := redistest.NewProxy(t, s.Addr)
	c := s.Client(once, func(o *redis.Options) {
		o.Addr = p.Addr
		o.DialTimeout, o.ReadTimeout = soon, soon
	})
	ctx, stop := context.WithCancel(t.Context())
	var sent, failed atomic.Int64
	var clients sync.WaitGroup
	for range 16 {
		clients.Go(func() {
			for ctx.Err() == nil {
				if c.Incr(ctx, "n").Err() != nil {
					failed.Add(1)
				}
				sent.Add(1)
			}
		})
	}
	for _, fault := range []struct{ on, off func() }{
		{func() { p.Latency(time.Millisecond) }, func() { p.Latency(0) }},
		{func() { p.ResetRate(0.1) }, func() { p.ResetRate(0) }},
		{func() { p.LoseReplies(true) }, func() { p.LoseReplies(false) }},
		{func() { p.Blackhole(true) }, func() { p.Blackhole(false) }},
		{func() { p.Refuse(true) }, func() { p.Refuse(false) }},
		{func() { p.Cut() }, func() {}},
	} {
		fault.on()
		before := sent.Load()
		require.Eventually(t, func() bool { return sent.Load() > before+50 }, patience, time.Millisecond)
		fault.off()
	}
	stop()
	clients.Wait()
	require.NotZero(t, failed.Load())
	// A pool whose dials were refused often continues to fail until its own probe
	// succeeds, once a second.
	require.Eventually(t, func() bool { return c.Incr(t.Context(), "n").Err() == nil }, patience, 10*time.Millisecond)
	require.NoError(t, c.Close())
	require.Eventually(t, func() bool { return p.Open() == 0 && s.Connections() == 0 }, patience, time.Millisecond)
}
