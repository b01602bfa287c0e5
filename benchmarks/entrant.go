package benchmarks

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/ratelimit-go/ratelimit/internal/redistest"
)

// This file times a library on servers, and checks that what was timed is what the row
// says: each answer is the expected one, no call fails, and what was admitted is what the
// limit allows. A row that does not pass fails, and the report prints it as void.

// entrant is a library that is set up for a case on servers.
type entrant struct {
	subject
	ServerLibrary
	b     *testing.B
	on    *servers
	redis []*redistest.Server // that the library counts on; none for PostgreSQL
	meter []meter             // of these servers
	quota quota
	keys  []string // all keys that it is asked for
	turns []turn   // that were timed
	all   turn     // all decisions, timed or not
}

// enter sets up a library for a case of n keys. It is closed at the end of the row.
func (on *servers) enter(b *testing.B, l ServerLibrary, where target, q quota, n int) *entrant {
	e := &entrant{subject: l.open(where, q), ServerLibrary: l, b: b, on: on, quota: q, keys: keys(n)}
	b.Cleanup(e.end)
	switch {
	case where.cluster:
		e.redis = on.cluster.Nodes
	case where.postgres == "":
		e.redis = []*redistest.Server{on.server}
	}
	for _, s := range e.redis {
		m := meter{client: s.Client(func(o *redis.Options) { o.PoolSize = 1 })}
		b.Cleanup(func() { m.client.Close() })
		if err := m.apart(); err != nil {
			b.Fatal(err)
		}
		e.meter = append(e.meter, m)
	}
	return e
}

// ask asks for a unit without timing it, and returns whether it was admitted.
func (e *entrant) ask(key string) bool {
	var t turn
	ok, err := e.take(key)
	t.note(ok, err, ok)
	e.all.add(t)
	return ok
}

// use asks for units of all keys until none is left.
func (e *entrant) use() {
	var mu sync.Mutex
	each(e.keys, func(key string) {
		var t turn
		for ok := true; ok; {
			var err error
			ok, err = e.take(key)
			t.note(ok, err, ok)
			ok = ok && t.admitted <= e.quota.units // a library that never denies
		}
		mu.Lock()
		defer mu.Unlock()
		e.all.add(t)
	})
}

// turn is the result of the decisions that callers made within some time.
type turn struct {
	took     time.Duration
	done     int
	failed   int   // decisions that were not as expected
	why      error // of one of them
	admitted int64 // units
	mallocs  uint64
	waits    latencies
	client   time.Duration // processor time of this process
	server   time.Duration // processor time of the servers' main threads
}

// note adds a decision to the turn.
func (t *turn) note(admitted bool, err error, want bool) {
	if admitted {
		t.admitted++
	}
	if err == nil && admitted == want {
		t.done++
		return
	}
	if t.failed++; t.why == nil {
		t.why = unexpected(admitted, err)
	}
}

// unexpected says what is wrong with a decision that is not the expected one.
func unexpected(admitted bool, err error) error {
	switch {
	case err != nil:
		return err
	case admitted:
		return errors.New("a unit was admitted above the limit")
	}
	return errors.New("a unit that the limit allows was denied")
}

// add adds the decisions of another turn, not its times.
func (t *turn) add(other turn) {
	t.done, t.failed, t.admitted = t.done+other.done, t.failed+other.failed, t.admitted+other.admitted
	if t.why == nil {
		t.why = other.why
	}
}

func (t turn) perSecond() float64 { return float64(t.done) / t.took.Seconds() }

// micros returns the time of a decision in microseconds, if there was only one caller.
func (t turn) micros() float64 { return t.took.Seconds() * 1e6 / float64(t.done) }

// decide has callers ask for decisions during d, which should be as want says.
func (e *entrant) decide(callers int, d time.Duration, want bool) turn {
	runtime.GC() // collects the garbage of the previous library
	before := e.serverCPU()
	t := decide(e.subject, callers, e.keys, d, want)
	t.server = e.serverCPU() - before
	e.all.add(t)
	return t
}

// decide has callers ask for decisions during d. Each caller asks for its next decision as
// soon as it has the last one.
func decide(s subject, callers int, keys []string, d time.Duration, want bool) (t turn) {
	each := make([]turn, callers)
	for i := range each {
		each[i].waits = make(latencies, 0, 1+1_000_000/callers)
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	cpu, _ := ownCPU()
	begin := time.Now()
	var wg sync.WaitGroup
	for i := range each {
		wg.Go(func() {
			t := &each[i]
			// Callers start far apart. Otherwise they would compete for each key.
			at := len(keys) / callers * i
			for last := time.Since(begin); last < d; {
				ok, err := s.take(keys[at%len(keys)])
				t.note(ok, err, want)
				at++
				now := time.Since(begin)
				if len(t.waits) < cap(t.waits) {
					t.waits = append(t.waits, uint32(now-last))
				}
				last = now
			}
		})
	}
	wg.Wait()
	t.took = time.Since(begin)
	t.client, _ = ownCPU()
	t.client -= cpu
	runtime.ReadMemStats(&after)
	t.mallocs = after.Mallocs - before.Mallocs
	for _, e := range each {
		t.add(e)
		t.waits = append(t.waits, e.waits...)
	}
	slices.Sort(t.waits)
	return t
}

// timeMany times the decisions of many callers.
func (e *entrant) timeMany(callers int, want bool) {
	e.decide(callers, redisTurn, want) // makes keys and connections
	for e.b.Loop() {
		e.turns = append(e.turns, e.decide(callers, redisTurn, want))
	}
}

// counting reports how many commands a decision sends.
func (e *entrant) counting(callers int, want bool) {
	e.b.ReportMetric(e.commands(callers, want), "cmd/op")
}

func (e *entrant) commands(callers int, want bool) float64 {
	e.on.server.ResetStats()
	t := e.decide(callers, redisTurn/4, want)
	sent := e.sent
	if sent == nil {
		sent = sentScripts
	}
	return float64(sent(e.on.server.Commands())) / float64(t.done+t.failed)
}

// report reports the turns, and fails the row if it is void.
func (e *entrant) report() {
	if err := e.check(); err != nil {
		e.b.Fatal(err)
	}
	var allocs, rates, waits, server, client, both []float64
	for _, t := range e.turns {
		allocs = append(allocs, float64(t.mallocs)/float64(t.done))
		rates, waits = append(rates, t.perSecond()), append(waits, t.waits.quantile(0.99)/1e3)
		server, client = append(server, t.micro(t.server)), append(client, t.micro(t.client))
		both = append(both, t.micro(t.server+t.client))
	}
	e.b.ReportAllocs()
	e.b.ReportMetric(0, "ns/op")
	e.b.ReportMetric(0, "B/op")
	e.b.ReportMetric(Median(allocs), "allocs/op")
	e.b.ReportMetric(Median(rates), "op/s")
	e.b.ReportMetric(Median(waits), "ms/p99")
	_, known := ownCPU()
	if known {
		e.b.ReportMetric(Median(client), "us-client/op")
	}
	if e.serversKnown() {
		e.b.ReportMetric(Median(server), "us-server/op")
		if known {
			e.b.ReportMetric(Median(both), "us-cpu/op")
		}
	}
}

// micro returns the processor time of a decision in microseconds.
func (t turn) micro(cpu time.Duration) float64 { return cpu.Seconds() * 1e6 / float64(t.done) }

// check returns why the row is void, or nil.
func (e *entrant) check() error {
	if e.all.failed > 0 {
		return fmt.Errorf("%d of %d decisions were wrong: %w", e.all.failed, e.all.done+e.all.failed, e.all.why)
	}
	if e.Kind == Floor {
		return nil // it has no limit
	}
	// Rolling windows, and windows that are short, give units back in the meantime.
	allowed := e.quota.units * int64(len(e.keys))
	if e.quota.window >= time.Hour && (e.all.admitted > allowed || e.quota.units <= 1000 && e.all.admitted < allowed) {
		return fmt.Errorf("%d units were admitted, and the limit allows %d", e.all.admitted, allowed)
	}
	if e.audit == nil {
		return nil
	}
	return e.audit(e.keys, e.all.admitted)
}

// meter reads the processor time of a Redis server, over one connection.
type meter struct{ client *redis.Client }

func (m meter) info(section string) map[string]string {
	fields := make(map[string]string)
	for line := range strings.Lines(must(m.client.Info(context.Background(), section).Result())) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), ":"); ok {
			fields[name] = value
		}
	}
	return fields
}

// apart returns an error unless the server is another process than this one. Otherwise the
// processor times of both would be one.
func (m meter) apart() error {
	if pid := m.info("server")["process_id"]; pid == "" || pid == strconv.Itoa(os.Getpid()) {
		return fmt.Errorf("the server is not a process of its own: its process id is %q", pid)
	}
	return nil
}

// cpu returns the processor time of the server's main thread, which runs all commands. It
// returns NaN if the server does not report it, as before Redis 7.
func (m meter) cpu() float64 {
	fields := m.info("cpu")
	seconds := 0.0
	for _, name := range []string{"used_cpu_user_main_thread", "used_cpu_sys_main_thread"} {
		s, err := strconv.ParseFloat(fields[name], 64)
		if err != nil {
			return math.NaN()
		}
		seconds += s
	}
	return seconds
}

// serverCPU returns the processor time of all servers, or 0 if it is not known.
func (e *entrant) serverCPU() time.Duration {
	seconds := 0.0
	for _, m := range e.meter {
		seconds += m.cpu()
	}
	if math.IsNaN(seconds) {
		return 0
	}
	return time.Duration(seconds * float64(time.Second))
}

// serversKnown reports whether serverCPU is known.
func (e *entrant) serversKnown() bool {
	return len(e.meter) > 0 && !slices.ContainsFunc(e.meter, func(m meter) bool { return math.IsNaN(m.cpu()) })
}
