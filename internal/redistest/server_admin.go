package redistest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
)

// Do sends one command on its own connection and returns the reply: an int64, a
// string, nil or a []any of these. It uses the admin user, so it works whatever a test
// has done to the default user. An error reply ends the test.
func (s *Server) Do(args ...any) any {
	s.t.Helper()
	reply, err := s.do(args...)
	if err != nil {
		s.t.Fatalf("redistest: %s: %v: %v", s.Addr, args, err)
	}
	return reply
}

// do is Do with the error returned. A nil reply is not an error.
func (s *Server) do(args ...any) (reply any, err error) {
	err = s.asAdmin(func(ctx context.Context, c *redis.Client) error {
		reply, err = c.Do(ctx, args...).Result()
		if errors.Is(err, redis.Nil) {
			return nil
		}
		return err
	})
	return reply, err
}

// info returns the fields of a section of INFO.
func (s *Server) info(section string) (map[string]string, error) {
	reply, err := s.do("INFO", section)
	if err != nil {
		return nil, err
	}
	fields := make(map[string]string)
	for line := range strings.Lines(fmt.Sprint(reply)) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), ":"); ok {
			fields[name] = value
		}
	}
	return fields, nil
}

func (s *Server) mustInfo(section string) map[string]string {
	s.t.Helper()
	fields, err := s.info(section)
	if err != nil {
		s.t.Fatalf("redistest: %s: INFO %s: %v", s.Addr, section, err)
	}
	return fields
}

// Commands returns how often each command was called since the start or ResetStats. The
// name is in lower case, such as "evalsha", and a subcommand is written as "config|get".
// The counts include the calls of this package, such as hello and info.
func (s *Server) Commands() map[string]int64 {
	s.t.Helper()
	calls := make(map[string]int64)
	for name, stats := range s.mustInfo("commandstats") {
		name, ok := strings.CutPrefix(name, "cmdstat_")
		if !ok {
			continue
		}
		n, _, _ := strings.Cut(strings.TrimPrefix(stats, "calls="), ",")
		calls[name] = s.number(n)
	}
	return calls
}

// ResetStats sets the counts of Commands to zero.
func (s *Server) ResetStats() {
	s.t.Helper()
	s.Do("CONFIG", "RESETSTAT")
}

// Connections returns the number of connected clients. Sentinels and slot migrations are
// clients too; the connection that asks is not counted.
func (s *Server) Connections() int {
	s.t.Helper()
	return int(s.number(s.mustInfo("clients")["connected_clients"])) - 1
}

func (s *Server) isMaster() bool {
	s.t.Helper()
	return s.mustInfo("replication")["role"] == "master"
}

func (s *Server) number(text string) int64 {
	s.t.Helper()
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		s.t.Fatalf("redistest: %s: %v", s.Addr, err)
	}
	return n
}

// RestartLoading saves the data and restarts the server. It returns when the server
// answers that it is loading, which it does for about d. After that its data is back. To
// make loading slow, it puts ballast into database 15, which the nodes of a cluster do
// not have. The ballast expires a minute later.
func (s *Server) RestartLoading(d time.Duration) {
	s.t.Helper()
	const ballast = 1000
	s.Do("EVAL", `redis.call("SELECT", 15)
		for i = 1, tonumber(ARGV[1]) do redis.call("SET", i, string.rep("x", 64), "PX", ARGV[2]) end`,
		0, ballast, (d + time.Minute).Milliseconds())
	keys := int64(ballast)
	for name, stats := range s.mustInfo("keyspace") {
		if n, _, _ := strings.Cut(strings.TrimPrefix(stats, "keys="), ","); name != "db15" {
			keys += s.number(n)
		}
	}
	s.Do("SAVE")
	s.Kill()
	// While loading, the server answers clients between keys, after this many
	// bytes of the file.
	s.spawn(append(slices.Clip(s.args),
		"--key-load-delay", fmt.Sprint(d.Microseconds()/keys),
		"--loading-process-events-interval-bytes", "1024"))
	s.awaitUp(func(ctx context.Context, c *redis.Client) error {
		err := c.Ping(ctx).Err()
		if err == nil {
			s.t.Fatalf("redistest: %s had loaded its data before it could be asked: use more than %v", s.Addr, d)
		}
		if strings.HasPrefix(err.Error(), "LOADING") {
			return nil
		}
		return err
	})
	// The server has opened the file. Remove it, so that the next restart
	// begins without data.
	if err := os.Remove(s.dumpFile()); err != nil {
		s.t.Fatalf("redistest: %v", err)
	}
}

// FailSaves makes every snapshot fail as on a full disk, so that the server refuses
// writes with MISCONF, or undoes that. It waits until writes are refused, or
// accepted again.
func (s *Server) FailSaves(fail bool) {
	s.t.Helper()
	save, want, err := "", "ok", os.RemoveAll(s.dumpFile())
	if fail {
		// The snapshot cannot be renamed to a directory's name; this holds for root too.
		save, want, err = "3600 1", "err", errors.Join(err, os.Mkdir(s.dumpFile(), 0o700))
	}
	if err != nil {
		s.t.Fatalf("redistest: %v", err)
	}
	s.Do("CONFIG", "SET", "save", save)
	s.Do("BGSAVE")
	await(s.t, "a snapshot to end with "+want, func() error {
		fields, err := s.info("persistence")
		if got := fields["rdb_last_bgsave_status"]; err == nil && (got != want || fields["rdb_bgsave_in_progress"] != "0") {
			err = errors.New("it has not, last was " + got)
		}
		return err
	})
	if !fail {
		if err := os.RemoveAll(s.dumpFile()); err != nil {
			s.t.Fatalf("redistest: %v", err)
		}
	}
}

func (s *Server) dumpFile() string { return filepath.Join(s.Dir, "dump.rdb") }
