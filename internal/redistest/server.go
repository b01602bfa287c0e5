package redistest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"
)

// A Server is one redis-server process.
type Server struct {
	Addr string // host:port; the same after a Restart
	Dir  string // the working directory, with its files and its log

	t    testing.TB
	args []string

	mu   sync.Mutex
	proc *process // the latest; never nil once launched
}

// A process is one run of redis-server.
type process struct {
	*exec.Cmd
	exited chan struct{} // closed when it has ended and been waited for
}

// admin is a user that every server has in addition to the default user. So the
// helpers here still work after a test has changed the password or the permissions of
// the default user.
const admin = "redistest"

// Start starts one server without persistence, and waits until it answers. args
// are further arguments of redis-server's command line, such as "--requirepass",
// "secret".
func Start(t testing.TB, args ...string) *Server {
	t.Helper()
	s := launch(t, args...)
	s.AwaitReady()
	return s
}

// launch is Start without the wait.
func launch(t testing.TB, args ...string) *Server {
	t.Helper()
	common := []string{
		"--save", "", "--appendonly", "no",
		"--repl-diskless-sync-delay", "0", // a replica is there at once, not after 5 s,
		"--repl-ping-replica-period", "1", // and counted as one after 1 s, not 10
		"--user", admin, "on", ">" + admin, "~*", "&*", "+@all",
	}
	return launchAs(t, func(port, dir string) []string {
		return append(append([]string{"--port", port, "--bind", "127.0.0.1", "--dir", dir}, common...), args...)
	})
}

// launchAs starts a server on a free port and returns before it answers.
func launchAs(t testing.TB, args func(port, dir string) []string) *Server {
	t.Helper()
	binary(t)
	s := &Server{Addr: address(freePort(t)), Dir: t.TempDir(), t: t}
	_, port := hostPort(s.Addr)
	s.args = args(port, s.Dir)
	s.spawn(s.args)
	t.Cleanup(func() {
		s.Kill()
		if t.Failed() {
			t.Logf("redis-server %s ended its log with:\n%s", s.Addr, s.logTail())
		}
	})
	return s
}

// spawn starts the process, with a new log, and does not wait for it. A
// goroutine waits for its end.
func (s *Server) spawn(args []string) {
	s.t.Helper()
	log, err := os.Create(s.logFile())
	if err != nil {
		s.t.Fatalf("redistest: %v", err)
	}
	defer log.Close() // the process has its own descriptor
	p := &process{Cmd: exec.Command(binary(s.t), args...), exited: make(chan struct{})}
	p.Dir, p.Stdout, p.Stderr, p.SysProcAttr = s.Dir, log, log, dieWithParent()
	if err := p.Start(); err != nil {
		s.t.Fatalf("redistest: %v", err)
	}
	go func() {
		p.Wait() // the log says how it ended
		close(p.exited)
	}()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.proc = p
}

func (s *Server) process() *process {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.proc
}

// AwaitReady waits until the server answers and is not loading.
func (s *Server) AwaitReady() {
	s.t.Helper()
	s.awaitUp(func(ctx context.Context, c *redis.Client) error { return c.Ping(ctx).Err() })
}

// awaitUp waits until this server answers and passes the check. If another process has
// the port, awaitUp tries again, because that process may end.
func (s *Server) awaitUp(check func(context.Context, *redis.Client) error) {
	s.t.Helper()
	await(s.t, "redis-server "+s.Addr, func() error {
		p := s.process()
		select {
		case <-p.exited:
			if log := s.logTail(); !strings.Contains(log, "Address already in use") {
				s.t.Fatalf("redistest: redis-server %s has ended: %s", s.Addr, log)
			}
			s.spawn(p.Args[1:])
			return errors.New("the port is in use")
		default:
		}
		conn, err := net.DialTimeout("tcp", s.Addr, time.Second) // go-redis would log a failure
		if err != nil {
			return err
		}
		conn.Close()
		return s.asAdmin(func(ctx context.Context, c *redis.Client) error {
			info, err := c.InfoMap(ctx, "server").Result()
			if err != nil {
				return err
			}
			if pid := info["Server"]["process_id"]; pid != fmt.Sprint(p.Process.Pid) {
				return fmt.Errorf("process %s has the port", pid)
			}
			return check(ctx, c)
		})
	})
}

// Client returns a client with go-redis's defaults, closed when the test ends.
func (s *Server) Client(opts ...func(*redis.Options)) *redis.Client {
	return Client(s.t, s.Addr, opts...)
}

// Kill ends the process with SIGKILL, even if it hangs, and waits for its end. Without
// persistence, its data is lost.
func (s *Server) Kill() {
	p := s.process()
	p.Process.Kill() // an error means that it has ended
	<-p.exited
}

// Restart kills the process if it runs, and starts it again on the same port, with the
// same arguments and directory. It returns when the server answers.
func (s *Server) Restart() {
	s.t.Helper()
	s.Kill()
	s.spawn(s.args)
	s.AwaitReady()
}

// Running reports whether the process exists, even if it hangs.
func (s *Server) Running() bool {
	select {
	case <-s.process().exited:
		return false
	default:
		return true
	}
}

// Hang stops the process with SIGSTOP. The kernel still accepts and keeps
// connections, but nothing is answered until Continue.
func (s *Server) Hang() {
	s.t.Helper()
	p := s.process()
	if err := p.Process.Signal(sigStop); err != nil {
		s.t.Fatalf("redistest: hang %s: %v", s.Addr, err)
	}
	await(s.t, s.Addr+" to stop", func() error {
		if !s.Running() || isStopped(p.Process.Pid) {
			return nil
		}
		return errors.New("still running")
	})
}

// Continue undoes Hang. Commands that were sent in the meantime are then
// executed.
func (s *Server) Continue() {
	s.t.Helper()
	if err := s.process().Process.Signal(sigContinue); err != nil {
		s.t.Fatalf("redistest: continue %s: %v", s.Addr, err)
	}
}

// Pid returns the process id, which changes with a Restart.
func (s *Server) Pid() int { return s.process().Process.Pid }

func (s *Server) logFile() string { return filepath.Join(s.Dir, "redis.log") }

func (s *Server) logTail() string {
	log, err := os.ReadFile(s.logFile())
	if err != nil {
		return err.Error()
	}
	return string(log[max(0, len(log)-2000):])
}

// asAdmin runs f with a new client for the admin user, which has one connection and
// sends nothing twice. It closes the client afterwards.
func (s *Server) asAdmin(f func(context.Context, *redis.Client) error) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	c := redis.NewClient(&redis.Options{
		Addr: s.Addr, Username: admin, Password: admin, Protocol: 2, DisableIdentity: true,
		PoolSize: 1, MaxRetries: -1, DialerRetries: 1, ReadTimeout: patience,
		MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
	})
	defer c.Close()
	return f(ctx, c)
}
