package postgres_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/ratelimit-go/ratelimit"
	"github.com/ratelimit-go/ratelimit/internal/pgtest"
	"github.com/ratelimit-go/ratelimit/internal/rule"
)

// A clock takes the place of the server's clock.
type clock struct {
	t    testing.TB
	conn *pgx.Conn
	now  int64
}

// setClock makes the schema of a server read the time from a table.
func setClock(t testing.TB, server *pgtest.Server) *clock {
	c := &clock{t: t, conn: connect(t, server.URL(pgtest.Superuser)), now: time.Date(2026, 3, 28, 22, 0, 0, 0, time.UTC).UnixNano()}
	c.exec("CREATE TABLE public.clock (now bigint)")
	c.exec("INSERT INTO public.clock VALUES ($1)", c.now)
	c.exec("CREATE OR REPLACE FUNCTION ratelimit.now() RETURNS bigint LANGUAGE sql VOLATILE AS 'SELECT now FROM public.clock'")
	return c
}

func (c *clock) exec(sql string, args ...any) {
	c.t.Helper()
	_, err := c.conn.Exec(context.Background(), sql, args...)
	require.NoError(c.t, err)
}

// advance moves the clock, also back.
func (c *clock) advance(d time.Duration) {
	c.t.Helper()
	c.now += int64(d)
	c.exec("UPDATE public.clock SET now = $1", c.now)
}

// A model counts by package rule alone: one state for each key and limit.
type model struct {
	states map[string]rule.State
	logs   map[string]*rule.Log
}

func ruleOf(l ratelimit.Limit, now int64) rule.Limit {
	r := rule.Limit{N: l.N(), Window: int64(l.Window())}
	switch l.Algorithm() {
	case "fixed":
		r.Kind = rule.Fixed
	case "sliding":
		r.Kind = rule.Sliding
	case "bucket":
		r.Kind, r.Burst = rule.Bucket, l.Burst()
	case "rolling":
		r.Kind = rule.Rolling
	case "calendar":
		begin, end, _ := l.Period(time.Unix(0, now))
		r.Kind, r.Number, r.Window, r.Burst = rule.Calendar, 1, int64(end.Sub(begin)), end.UnixNano()
	}
	return r
}

func counterOf(key string, l ratelimit.Limit) string {
	return fmt.Sprint(key, " ", l.Algorithm(), l.Window(), l.Calendar())
}

func (m *model) log(name string) *rule.Log {
	if m.logs[name] == nil {
		m.logs[name] = new(rule.Log)
	}
	return m.logs[name]
}

// ask returns the answers for n units, and whether all fit.
func (m *model) ask(key string, n, now int64, limits []ratelimit.Limit) (answers []rule.Answer, after []rule.State, fits bool) {
	fits = true
	for _, l := range limits {
		r, name := ruleOf(l, now), counterOf(key, l)
		var a rule.Answer
		s := m.states[name]
		if r.Kind == rule.Rolling {
			a = r.Ask(m.log(name), now, n)
		} else {
			s, a = r.Take(s, now, n)
		}
		answers, after, fits = append(answers, a), append(after, s), fits && a.Retry == 0
	}
	return answers, after, fits
}

func (m *model) take(key string, n, now int64, limits []ratelimit.Limit) ([]rule.Answer, bool) {
	answers, after, fits := m.ask(key, n, now, limits)
	for i, l := range limits {
		r, name := ruleOf(l, now), counterOf(key, l)
		if !fits && answers[i].Retry == 0 {
			again, states, _ := m.ask(key, 0, now, limits[i:i+1])
			answers[i], after[i] = again[0], states[0]
		}
		switch {
		case n == 0: // a look changes nothing
		case r.Kind != rule.Rolling:
			m.states[name] = after[i]
		case fits:
			r.Count(m.log(name), now, n)
		default:
			r.Repair(m.log(name), now)
		}
	}
	return answers, fits
}

func (m *model) upTo(key string, n, now int64, limits []ratelimit.Limit) int64 {
	answers, _, _ := m.ask(key, 0, now, limits)
	for _, a := range answers {
		n = min(n, a.Remaining)
	}
	return max(n, 1)
}

func (m *model) adjust(key string, n, at, now int64, limits []ratelimit.Limit) int64 {
	charged, age := max(0, n), now-max(0, min(at, now))
	for _, l := range limits {
		r, name := ruleOf(l, now), counterOf(key, l)
		if r.Kind == rule.Rolling {
			log := m.log(name).Clone()
			repairs := n != 0 && r.Repairs(&log, now)
			units, _ := r.AdjustLog(&log, now, n, at)
			if n > 0 {
				charged = min(charged, units)
			}
			if units > 0 || repairs { // otherwise units that have left stay in the log
				m.logs[name] = &log
			}
			continue
		}
		before := m.states[name]
		m.states[name] = r.Adjust(before, now, n, age)
		charged = min(charged, r.Charged(before, m.states[name], now))
	}
	return charged
}

// TestCountsLikeTheRules carries out random histories on a server whose clock the test sets,
// also back, and on a model that has nothing but package rule. All answers are the same.
func TestCountsLikeTheRules(t *testing.T) {
	server := migrated(t)
	clock := setClock(t, server)
	pool := newPool(t, server.URL(pgtest.Superuser))
	const histories, calls = 24, 250
	for h := range histories {
		t.Run(fmt.Sprint(h), func(t *testing.T) {
			history(t, clock, newStore(t, pool, fmt.Sprint("random ", h)), rand.New(rand.NewPCG(uint64(h), 7)), calls, h%3 == 0)
		})
	}
}

// history carries out one history. If usual is set, the limits are always the same and none
// is a rolling window, so rows keep everything. Then the clock may be set back by days.
func history(t *testing.T, clock *clock, store ratelimit.SharedStore, r *rand.Rand, calls int, usual bool) {
	ctx, m := context.Background(), &model{states: map[string]rule.State{}, logs: map[string]*rule.Log{}}
	berlin, err := time.LoadLocation("Europe/Berlin")
	require.NoError(t, err)
	among := func(n ...int64) int64 { return n[r.IntN(len(n))] }
	windows := []time.Duration{time.Millisecond, 70 * time.Millisecond, time.Second, time.Hour, 24 * time.Hour, 50 * 365 * 24 * time.Hour}
	units := func() int64 {
		return among(1, 2, 3, 5, 10, 1000, 1_000_000, 1<<40, rule.MaxUnits, 1+r.Int64N(100), 1+r.Int64N(rule.MaxUnits))
	}
	pick := func() ratelimit.Limit {
		w := windows[r.IntN(len(windows))]
		for {
			n := units()
			switch r.IntN(7) {
			case 0:
				return ratelimit.FixedWindow(n, w)
			case 1, 2:
				return ratelimit.SlidingWindow(n, w)
			case 3:
				if usual {
					continue
				}
				return ratelimit.Rolling(min(n, 12), w)
			case 4:
				return []ratelimit.Limit{ratelimit.Daily(n, berlin), ratelimit.Weekly(n, time.Monday, nil), ratelimit.Monthly(n, 31, berlin)}[r.IntN(3)]
			default:
				burst := units()
				if float64(burst)/float64(n)*float64(w) < float64(rule.MaxSpan)*0.99 {
					return ratelimit.TokenBucket(n, w, burst)
				}
			}
		}
	}
	// Each history has a few sets of limits, as a limiter with plans, whose counters overlap.
	var pool []ratelimit.Limit
	for range 4 {
		pool = append(pool, pick())
	}
	var sets [][]ratelimit.Limit
	plans, most := 3, 4
	if usual {
		plans, most = 1, 3
	}
	for range plans {
		var set []ratelimit.Limit
		for _, i := range r.Perm(len(pool))[:1+r.IntN(most)] {
			l := pool[i]
			if r.IntN(3) == 0 && l.Algorithm() == "fixed" { // another N is the same counter
				l = ratelimit.FixedWindow(units(), l.Window())
			}
			clash := false
			for _, o := range set {
				clash = clash || counterOf("", o) == counterOf("", l)
			}
			if !clash {
				set = append(set, l)
			}
		}
		sets = append(sets, set)
	}
	instants, latest := []ratelimit.Instant{ratelimit.Now, 0}, clock.now
	for range calls {
		key, limits := fmt.Sprint("key", r.IntN(2)), sets[r.IntN(len(sets))]
		span := int64(limits[0].Window())
		step := among(0, 0, 0, 1, 999, 1000, r.Int64N(span), span-1, span, span+1, 2*span-1, 2*span, r.Int64N(3*span/2))
		if r.IntN(12) == 0 { // what has ended is kept for a minute
			step = max(-step, latest-int64(time.Minute)+1-clock.now)
			if usual {
				step = -r.Int64N(int64(72 * time.Hour))
			}
		}
		if clock.now+step < time.Date(2090, 1, 1, 0, 0, 0, 0, time.UTC).UnixNano() {
			clock.advance(time.Duration(step))
		}
		latest = max(latest, clock.now)
		now := clock.now
		n := among(0, 1, 1, 1, 2, 3, limits[0].Burst(), limits[0].Burst()/2, limits[0].Burst()+1, units())
		switch r.IntN(10) {
		case 0:
			at := instants[r.IntN(len(instants))]
			move := among(-1, 1) * n
			charged, err := store.Adjust(ctx, key, move, at, limits)
			require.NoError(t, err)
			require.Equal(t, m.adjust(key, move, int64(at), now, limits), charged, "Adjust(%s, %d, %d, %v) at %d", key, move, at, limits, now)
		case 1:
			if r.IntN(3) == 0 {
				require.NoError(t, store.Reset(ctx, key, limits))
				for _, l := range limits {
					delete(m.states, counterOf(key, l))
					delete(m.logs, counterOf(key, l))
				}
			}
		case 2:
			n = max(n, 1)
			results := make([]ratelimit.Result, len(limits))
			reply, err := store.TakeShared(ctx, ratelimit.SharedRequest{Key: key, Units: n, UpTo: true, Limits: limits}, results)
			require.NoError(t, err)
			most := m.upTo(key, n, now, limits)
			answers, fits := m.take(key, most, now, limits)
			want := int64(0)
			if fits {
				want = most
			}
			require.Equal(t, want, reply.Granted, "up to %d units of %s under %v at %d", n, key, limits, now)
			same(t, answers, results, "up to %d units of %s under %v at %d", n, key, limits, now)
		default:
			results := make([]ratelimit.Result, len(limits))
			at, err := store.Take(ctx, key, n, limits, results)
			require.NoError(t, err)
			before := fmt.Sprint(m.states)
			answers, _ := m.take(key, n, now, limits)
			same(t, answers, results, "%d units of %s under %v at %d: %s", n, key, limits, now, before)
			instants = append(instants, at)
		}
	}
}

func same(t *testing.T, want []rule.Answer, got []ratelimit.Result, what string, args ...any) {
	t.Helper()
	for i, a := range want {
		r := ratelimit.Result{Remaining: a.Remaining, RetryAfter: time.Duration(a.Retry), MoreAfter: time.Duration(a.More), ResetAfter: time.Duration(a.Reset)}
		require.Equal(t, r, got[i], "result %d of %s", i, fmt.Sprintf(what, args...))
	}
}
