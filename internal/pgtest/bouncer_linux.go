package pgtest

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"
)

// A Bouncer is a PgBouncer in transaction mode, in front of a server.
type Bouncer struct {
	server *Server
	port   int
	cmd    *exec.Cmd
}

// Bouncer starts a PgBouncer that lends its clients at most conns connections of the server.
// It is killed when the test ends. A test is skipped, or fails, if there is none on the machine.
func (s *Server) Bouncer(conns int) *Bouncer {
	s.t.Helper()
	if _, err := exec.LookPath("pgbouncer"); err != nil {
		missing(s.t, "pgbouncer is not installed: on Debian, apt-get install pgbouncer")
	}
	b := &Bouncer{server: s, port: freePort(s.t)}
	config := fmt.Sprintf("[databases]\npostgres = host=127.0.0.1 port=%d user=%s\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = %d\n"+
		"unix_socket_dir =\nauth_type = any\npool_mode = transaction\ndefault_pool_size = %d\nmax_client_conn = 500\nlog_connections = 0\nlog_disconnections = 0\n",
		s.Port, Superuser, b.port, conns)
	if err := os.WriteFile(b.config(), []byte(config), 0o644); err != nil {
		s.t.Fatalf("pgtest: %v", err)
	}
	b.Start()
	s.t.Cleanup(b.Kill)
	return b
}

func (b *Bouncer) config() string {
	return filepath.Join(b.server.dir, fmt.Sprintf("pgbouncer-%d.ini", b.port))
}

// URL returns the address of the PgBouncer.
func (b *Bouncer) URL() string {
	return fmt.Sprintf("postgres://%s@127.0.0.1:%d/postgres?sslmode=disable", Superuser, b.port)
}

// Start starts a PgBouncer that was killed, and waits until it accepts connections.
func (b *Bouncer) Start() {
	t := b.server.t
	t.Helper()
	path, err := exec.LookPath("pgbouncer")
	if err != nil {
		t.Fatalf("pgtest: %v", err)
	}
	b.cmd = b.server.command(path, "-q", b.config())
	if err := b.cmd.Start(); err != nil {
		t.Fatalf("pgtest: %v", err)
	}
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if conn, err := net.Dial("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(b.port))); err == nil {
			conn.Close()
			return
		}
	}
	t.Fatal("pgtest: the PgBouncer is not ready after 10 s")
}

// Kill kills the PgBouncer. Its clients lose their connections.
func (b *Bouncer) Kill() {
	if b.cmd != nil {
		b.cmd.Process.Kill()
		b.cmd.Wait()
		b.cmd = nil
	}
}
