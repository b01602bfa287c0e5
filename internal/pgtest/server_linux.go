package pgtest

import (
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// A Server is one PostgreSQL server on a free loopback port, with its data in a temporary
// folder. Methods may be called from one goroutine at a time.
type Server struct {
	Port int // the same after a Restart

	t        testing.TB
	dir      string
	settings []string
	cmd      *exec.Cmd
	exited   chan struct{} // closed when the process has ended and been waited for
}

// Start starts a server and waits until it accepts connections. Settings are lines such as
// "fsync=on", in addition to the defaults here. The server is killed when the test ends.
//
// PostgreSQL refuses to run as root. Then the server runs as the user postgres or nobody.
func Start(t testing.TB, settings ...string) *Server {
	t.Helper()
	initdb := program(t, "initdb")
	s := newServer(t)
	out, err := s.command(initdb, "-D", s.data(), "-U", Superuser, "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync", "--no-instructions").CombinedOutput()
	if err != nil {
		t.Fatalf("pgtest: initdb: %v\n%s", err, out)
	}
	access := "host all " + WithPassword + " 127.0.0.1/32 scram-sha-256\nhost all all 127.0.0.1/32 trust\nhost replication all 127.0.0.1/32 trust\n"
	if err := os.WriteFile(filepath.Join(s.data(), "pg_hba.conf"), []byte(access), 0o644); err != nil {
		t.Fatalf("pgtest: %v", err)
	}
	s.settings = append([]string{
		"listen_addresses=127.0.0.1", "unix_socket_directories=", "fsync=off", "shared_buffers=64MB",
		"max_connections=200", "log_min_messages=warning", "log_min_error_statement=panic", "autovacuum=off", "max_wal_size=4GB",
	}, settings...)
	s.spawn()
	s.awaitReady()
	return s
}

// newServer returns a server with an empty folder.
func newServer(t testing.TB) *Server {
	t.Helper()
	dir, err := os.MkdirTemp("", "pgtest")
	if err != nil {
		t.Fatalf("pgtest: %v", err)
	}
	s := &Server{Port: freePort(t), t: t, dir: dir}
	t.Cleanup(func() {
		s.Kill()
		if t.Failed() {
			t.Logf("the server on port %d ended its log with:\n%s", s.Port, s.logTail())
		}
		os.RemoveAll(dir)
	})
	s.own(dir)
	return s
}

// Standby starts a hot standby of the server. It follows the server until the function
// pg_promote is called on it. The server is stopped while its data is copied: not every
// package of PostgreSQL has pg_basebackup.
func (s *Server) Standby() *Server {
	s.t.Helper()
	standby := newServer(s.t)
	s.Stop()
	if out, err := standby.command("cp", "-R", "-p", s.data(), standby.data()).CombinedOutput(); err != nil {
		s.t.Fatalf("pgtest: %v\n%s", err, out)
	}
	s.Restart()
	if err := os.WriteFile(filepath.Join(standby.data(), "standby.signal"), nil, 0o644); err != nil {
		s.t.Fatalf("pgtest: %v", err)
	}
	standby.settings = append(slices.Clone(s.settings), "primary_conninfo=host=127.0.0.1 user="+Superuser+" port="+strconv.Itoa(s.Port))
	standby.spawn()
	standby.awaitReady()
	return standby
}

// URL returns the address of the server for a role.
func (s *Server) URL(role string) string {
	return fmt.Sprintf("postgres://%s@127.0.0.1:%d/postgres?sslmode=disable", role, s.Port)
}

// Addr returns the server's host and port.
func (s *Server) Addr() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(s.Port)) }

// Kill kills the server and all of its processes at once, as if the machine had lost its
// power. What was not written to the disk by then may be lost.
func (s *Server) Kill() {
	if s.cmd == nil || s.HasEnded() {
		s.cmd = nil
		return
	}
	// The postmaster is stopped first, so that it starts no further processes.
	s.cmd.Process.Signal(syscall.SIGSTOP)
	children := s.children()
	for _, pid := range children {
		syscall.Kill(pid, syscall.SIGKILL)
	}
	s.cmd.Process.Kill()
	<-s.exited
	// A server does not start while a process of the last one has its shared memory.
	for deadline := time.Now().Add(10 * time.Second); slices.ContainsFunc(children, isRunning) && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond)
	}
	s.cmd = nil
}

// HasEnded reports whether the server has ended by itself.
func (s *Server) HasEnded() bool {
	select {
	case <-s.exited:
		return true
	default:
		return false
	}
}

// isRunning reports whether a process exists and is no zombie.
func isRunning(pid int) bool {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, state, _ := strings.Cut(string(text), ") ") // after its name
	return !strings.HasPrefix(state, "Z") && !strings.HasPrefix(state, "X")
}

// Stop shuts the server down. It ends all connections.
func (s *Server) Stop() {
	s.t.Helper()
	s.cmd.Process.Signal(syscall.SIGINT)
	select {
	case <-s.exited:
		s.cmd = nil
	case <-time.After(20 * time.Second):
		s.t.Fatalf("pgtest: the server does not stop\n%s", s.logTail())
	}
}

// Restart starts a server that was killed or stopped, and waits until it accepts
// connections. Further settings take the place of earlier ones.
func (s *Server) Restart(settings ...string) {
	s.t.Helper()
	s.settings = append(s.settings, settings...)
	s.spawn()
	s.awaitReady()
}

// Hang stops all processes of the server, so that it accepts connections and answers
// nothing.
func (s *Server) Hang() { s.signal(syscall.SIGSTOP) }

// Continue lets the processes go on after a Hang.
func (s *Server) Continue() { s.signal(syscall.SIGCONT) }

func (s *Server) signal(sig syscall.Signal) {
	for _, pid := range append([]int{s.cmd.Process.Pid}, s.children()...) {
		syscall.Kill(pid, sig)
	}
}

// children returns the processes that the postmaster has started.
func (s *Server) children() (pids []int) {
	pid := s.cmd.Process.Pid
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	for _, field := range strings.Fields(string(text)) {
		if n, err := strconv.Atoi(field); err == nil {
			pids = append(pids, n)
		}
	}
	return pids
}

// Data returns the folder with all files of the server.
func (s *Server) Data() string { return s.data() }

// Dump returns what pg_dump prints for a role. A test is skipped if RATELIMIT_POSTGRES_BIN has
// none.
func (s *Server) Dump(role string, args ...string) []byte {
	s.t.Helper()
	if dir := os.Getenv("RATELIMIT_POSTGRES_BIN"); dir != "" {
		if _, err := os.Stat(filepath.Join(dir, "pg_dump")); err != nil {
			s.t.Skipf("pgtest: %v", err)
		}
	}
	out, err := exec.Command(program(s.t, "pg_dump"), append(args, s.URL(role))...).CombinedOutput()
	if err != nil {
		s.t.Fatalf("pgtest: pg_dump: %v\n%s", err, out)
	}
	return out
}

func (s *Server) data() string { return filepath.Join(s.dir, "data") }
func (s *Server) log() string  { return filepath.Join(s.dir, "log") }

// spawn starts the process and does not wait for it.
func (s *Server) spawn() {
	s.t.Helper()
	args := []string{"-D", s.data(), "-p", strconv.Itoa(s.Port)}
	for _, setting := range s.settings {
		args = append(args, "-c", setting)
	}
	log, err := os.OpenFile(s.log(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		s.t.Fatalf("pgtest: %v", err)
	}
	defer log.Close() // the process has its own descriptor
	cmd, exited := s.command(program(s.t, "postgres"), args...), make(chan struct{})
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		s.t.Fatalf("pgtest: %v", err)
	}
	go func() {
		cmd.Wait() // the log says how it ended
		close(exited)
	}()
	s.cmd, s.exited = cmd, exited
}

// awaitReady waits until the server lets clients in.
func (s *Server) awaitReady() {
	s.t.Helper()
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		select {
		case <-s.exited:
			s.t.Fatalf("pgtest: the server has ended\n%s", s.logTail())
		default:
		}
		if s.isReady() {
			return
		}
	}
	s.t.Fatalf("pgtest: the server is not ready after 30 s\n%s", s.logTail())
}

// isReady reports whether the server lets a client in, and answers it within a second. It
// does the work of pg_isready, which not every package of PostgreSQL has.
func (s *Server) isReady() bool {
	conn, err := net.DialTimeout("tcp", s.Addr(), time.Second)
	if err != nil {
		return false
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(time.Second))
	hello := binary.BigEndian.AppendUint32(nil, 3<<16) // the version of the protocol
	hello = append(hello, "user\x00"+Superuser+"\x00database\x00postgres\x00\x00"...)
	conn.Write(append(binary.BigEndian.AppendUint32(nil, uint32(4+len(hello))), hello...))
	var kind [1]byte // of the answer: R for authentication, E for an error
	_, err = conn.Read(kind[:])
	return err == nil && kind[0] == 'R'
}

func (s *Server) logTail() string {
	text, _ := os.ReadFile(s.log())
	return string(text[max(0, len(text)-4000):])
}

// command returns a command that runs as a user whom PostgreSQL accepts, and that the
// kernel kills if the test's process ends.
func (s *Server) command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(name, args...)
	cmd.Dir = s.dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Credential: credential()}
	return cmd
}

// own gives a folder to the user of the server.
func (s *Server) own(dir string) {
	s.t.Helper()
	err := os.Chmod(dir, 0o755)
	if c := credential(); err == nil && c != nil {
		err = os.Chown(dir, int(c.Uid), int(c.Gid))
	}
	if err != nil {
		s.t.Fatalf("pgtest: %v", err)
	}
}

// credential returns the user of a server, or nil if the tests do not run as root.
var credential = sync.OnceValue(func() *syscall.Credential {
	if os.Geteuid() != 0 {
		return nil
	}
	for _, name := range []string{"postgres", "nobody"} {
		if u, err := user.Lookup(name); err == nil {
			uid, _ := strconv.Atoi(u.Uid)
			gid, _ := strconv.Atoi(u.Gid)
			return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
		}
	}
	return nil
})

// program returns the path of a program of PostgreSQL: in the folder RATELIMIT_POSTGRES_BIN
// if that is set, and otherwise of the newest one on the machine.
func program(t testing.TB, name string) string {
	t.Helper()
	if dir := os.Getenv("RATELIMIT_POSTGRES_BIN"); dir != "" {
		path := filepath.Join(dir, name)
		if _, err := os.Stat(path); err != nil {
			t.Fatalf("pgtest: RATELIMIT_POSTGRES_BIN is %s: want the absolute path of a folder with %s: %v", dir, name, err)
		}
		return path
	}
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/" + name)
	slices.SortFunc(found, func(a, b string) int { return version(a) - version(b) })
	if len(found) > 0 {
		return found[len(found)-1]
	}
	path, err := exec.LookPath(name)
	if err != nil {
		missing(t, name+" is not installed: on Debian, apt-get install postgresql")
	}
	return path
}

// version returns the version in a path such as /usr/lib/postgresql/15/bin/postgres.
func version(path string) int {
	n, _ := strconv.Atoi(filepath.Base(filepath.Dir(filepath.Dir(path))))
	return n
}

func freePort(t testing.TB) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatalf("pgtest: %v", err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}
