package redistest

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// MasterName is what the sentinels call the master that they watch.
const MasterName = "mymaster"

// A Sentinel is a master and a replica, watched by sentinels that make the replica a
// master when the master is gone.
type Sentinel struct {
	Master, Replica *Server // as they are at the start; see Current
	Sentinels       []*Server

	t testing.TB
}

// SentinelOptions are the settings of a Sentinel setup. The zero value means one
// sentinel, which decides alone.
type SentinelOptions struct {
	Sentinels int           // zero: 1; if there are more, most of them must agree
	DownAfter time.Duration // a master that has not answered for so long is replaced; zero: a minute, longer than an overloaded machine takes
	Args      []string      // more of redis-server's command line, for master and replica
}

// StartSentinel starts master, replica and sentinels, and waits until a failover
// could begin.
func StartSentinel(t testing.TB, o SentinelOptions) *Sentinel {
	t.Helper()
	n, down := max(o.Sentinels, 1), cmp.Or(o.DownAfter, time.Minute)
	master := launch(t, o.Args...)
	host, port := hostPort(master.Addr)
	replica := launch(t, append([]string{"--replicaof", host + " " + port}, o.Args...)...)
	s := &Sentinel{Master: master, Replica: replica, t: t}
	master.AwaitReady()
	replica.AwaitReady()
	await(t, "the replica to be in sync", func() error {
		fields, err := replica.info("replication")
		if status := fields["master_link_status"]; err == nil && status != "up" {
			err = errors.New("its link is " + status)
		}
		return err
	})
	for range n {
		s.Sentinels = append(s.Sentinels, launchSentinel(t, host, port, n/2+1, down))
	}
	for _, sentinel := range s.Sentinels {
		sentinel.AwaitReady()
	}
	for _, sentinel := range s.Sentinels {
		await(t, "sentinel to know the others", func() error {
			state, err := sentinel.watched()
			switch {
			case err != nil:
				return err
			case state["num-slaves"] != "1" || state["num-other-sentinels"] != fmt.Sprint(n-1):
				return fmt.Errorf("it knows %s replicas and %s other sentinels", state["num-slaves"], state["num-other-sentinels"])
			}
			return sentinel.canFailOver()
		})
	}
	return s
}

func launchSentinel(t testing.TB, host, port string, quorum int, downAfter time.Duration) *Server {
	t.Helper()
	return launchAs(t, func(own, dir string) []string {
		conf := strings.Join([]string{
			"port " + own,
			"bind 127.0.0.1",
			"dir " + dir,
			fmt.Sprintf("user %s on >%[1]s ~* &* +@all", admin),
			fmt.Sprintf("sentinel monitor %s %s %s %d", MasterName, host, port, quorum),
			fmt.Sprintf("sentinel down-after-milliseconds %s %d", MasterName, downAfter.Milliseconds()),
			"sentinel failover-timeout " + MasterName + " 3000",
			fmt.Sprintf("sentinel auth-user %s %s", MasterName, admin),
			fmt.Sprintf("sentinel auth-pass %s %s", MasterName, admin),
			"",
		}, "\n")
		file := filepath.Join(dir, "sentinel.conf") // Sentinel writes what it learns into it
		if err := os.WriteFile(file, []byte(conf), 0o600); err != nil {
			t.Fatalf("redistest: %v", err)
		}
		return []string{file, "--sentinel"}
	})
}

// watched returns what a sentinel knows about the master.
func (s *Server) watched() (map[string]string, error) {
	reply, err := s.do("SENTINEL", "MASTER", MasterName)
	if err != nil {
		return nil, err
	}
	return pairs(reply), nil
}

// canFailOver returns an error unless a sentinel has a replica that it would
// choose.
func (s *Server) canFailOver() error {
	reply, err := s.do("SENTINEL", "REPLICAS", MasterName)
	if err != nil {
		return err
	}
	replicas, _ := reply.([]any)
	for _, replica := range replicas {
		state := pairs(replica)
		if state["master-link-status"] == "ok" && state["flags"] == "slave" {
			return nil
		}
	}
	return fmt.Errorf("no replica to promote in %v", replicas)
}

func pairs(reply any) map[string]string {
	m := make(map[string]string)
	list, _ := reply.([]any)
	for i := 0; i+1 < len(list); i += 2 {
		m[fmt.Sprint(list[i])] = fmt.Sprint(list[i+1])
	}
	return m
}

// Client returns a client with go-redis's defaults that asks the sentinels for the
// master. It is closed when the test ends.
func (s *Sentinel) Client(opts ...func(*redis.FailoverOptions)) *redis.Client {
	o := &redis.FailoverOptions{MasterName: MasterName}
	for _, sentinel := range s.Sentinels {
		o.SentinelAddrs = append(o.SentinelAddrs, sentinel.Addr)
	}
	for _, opt := range opts {
		opt(o)
	}
	c := redis.NewFailoverClient(o)
	s.t.Cleanup(func() { c.Close() }) // the test may have closed it
	return c
}

// Current returns the server that the sentinels name as the master.
func (s *Sentinel) Current() *Server {
	s.t.Helper()
	state, err := s.Sentinels[0].watched()
	if err != nil {
		s.t.Fatalf("redistest: %v", err)
	}
	if _, port := hostPort(s.Replica.Addr); state["port"] == port {
		return s.Replica
	}
	return s.Master
}

// Failover makes the sentinels promote the other server at once, although the master is
// up. It waits until that is done. The old master continues as a second master, which
// still accepts writes and then loses them. The sentinels make it a replica about ten
// seconds later.
func (s *Sentinel) Failover() {
	s.t.Helper()
	next := s.other(s.Current())
	s.Sentinels[0].Do("SENTINEL", "FAILOVER", MasterName)
	s.AwaitPromoted(next)
}

func (s *Sentinel) other(one *Server) *Server {
	if one == s.Master {
		return s.Replica
	}
	return s.Master
}

// AwaitPromoted waits until the server is a master and all sentinels name it. Use it
// after Hang or Kill of the other server, with a short DownAfter.
func (s *Sentinel) AwaitPromoted(server *Server) {
	s.t.Helper()
	_, port := hostPort(server.Addr)
	await(s.t, server.Addr+" to be promoted", func() error {
		for _, sentinel := range s.Sentinels {
			state, err := sentinel.watched()
			if err == nil && state["port"] != port {
				err = errors.New("sentinel " + sentinel.Addr + " names another")
			}
			if err != nil {
				return err
			}
		}
		if !server.isMaster() {
			return errors.New("it is a replica")
		}
		return nil
	})
}
