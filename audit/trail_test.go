package audit_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"github.com/ratelimit-go/ratelimit"
	"github.com/ratelimit-go/ratelimit/audit"
	"github.com/ratelimit-go/ratelimit/ratelimittest"
	"github.com/stretchr/testify/require"
)

// memory is a sink that keeps its records, and fails as a test says.
type memory struct {
	mu      sync.Mutex
	records []audit.Record
	durable int // calls
	err     error
	hang    chan struct{} // Write waits until it is closed
}

func (m *memory) Write(ctx context.Context, records []audit.Record, durable bool) error {
	m.mu.Lock()
	hang := m.hang
	m.mu.Unlock()
	if hang != nil {
		select {
		case <-hang:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.err != nil {
		return m.err
	}
	m.records = append(m.records, records...)
	if durable {
		m.durable++
	}
	return nil
}

func (m *memory) fail(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.err = err
}

// all returns the records so far, with their kinds and counts as text.
func (m *memory) all() (records []audit.Record, text string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, r := range m.records {
		text += fmt.Sprintf("%s%s %d\n", r.Kind, r.Outcome, r.Count)
	}
	return append(records, m.records...), text
}

// start returns a trail with a sink. The test closes it.
func start(t *testing.T, set func(*audit.Options)) (*audit.Trail, *memory) {
	t.Helper()
	sink := new(memory)
	opts := audit.Options{Sink: sink, Service: "shop", Instance: "web-1", Logger: slog.New(slog.DiscardHandler)}
	if set != nil {
		set(&opts)
	}
	trail, err := audit.New(opts)
	require.NoError(t, err)
	t.Cleanup(func() { trail.Close() })
	return trail, sink
}

func denial(limiter, key string) ratelimit.Event {
	return ratelimit.Event{
		Kind: ratelimit.EventDenied, Time: time.Now(), Limiter: limiter, Key: key, Policy: limiter, Units: 1,
		Limit: ratelimit.FixedWindow(5, time.Minute), Decision: ratelimit.Decision{Limit: ratelimit.FixedWindow(5, time.Minute), RetryAfter: 20 * time.Second},
	}
}

// A million denials of one key are one episode: two records.
func TestEpisode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		trail, sink := start(t, nil)
		began := time.Now().UTC()
		for i := range 1_000_000 {
			if i%1000 == 0 {
				time.Sleep(100 * time.Millisecond)
			}
			trail.Observe(t.Context(), denial("login", "203.0.113.7"))
		}
		last := time.Now().UTC()
		records, _ := sink.all()
		require.Len(t, records, 1)
		require.Equal(t, audit.Record{
			Kind: "denied", Time: began.Add(100 * time.Millisecond), Service: "shop", Instance: "web-1", Limiter: "login", Policy: "login",
			Limit: "5/1m fixed", Units: 1, Source: "store", Pseudonym: records[0].Pseudonym, Epoch: records[0].Epoch, Until: at(began.Add(20*time.Second + 100*time.Millisecond)),
		}, records[0])

		time.Sleep(5*time.Minute + time.Second)
		records, _ = sink.all()
		require.Len(t, records, 2)
		require.WithinDuration(t, last.Add(5*time.Minute), records[1].Time, time.Second)
		require.Equal(t, audit.Record{
			Kind: audit.Released, Time: records[1].Time, Service: "shop", Instance: "web-1", Limiter: "login", Policy: "login", Limit: "5/1m fixed",
			Units: 1_000_000, Count: 1_000_000, Source: "store", Pseudonym: records[0].Pseudonym, Epoch: records[0].Epoch,
			Since: at(records[0].Time), Until: at(last.Add(20 * time.Second)), Ended: "quiet",
		}, records[1])

		trail.Observe(t.Context(), denial("login", "203.0.113.7"))
		require.NoError(t, trail.Close())
		_, text := sink.all()
		require.Equal(t, "denied 0\nreleased 1000000\ndenied 0\nreleased 1\n", text)
	})
}

func at(t time.Time) *time.Time { return &t }

// A flood of keys is cut to 100 records per second and limiter, and the rest is counted.
func TestFloodOfKeys(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		trail, sink := start(t, nil)
		for i := range 30_000 {
			trail.Observe(t.Context(), denial("login", fmt.Sprint("key", i)))
		}
		blocked := denial("login", "another")
		blocked.Kind = ratelimit.EventBlocked
		trail.Observe(t.Context(), blocked)
		trail.Observe(t.Context(), denial("api", "key"))
		time.Sleep(1500 * time.Millisecond)
		records, text := sink.all()
		require.Len(t, records, 102)
		require.Equal(t, 101, strings.Count(text, "denied 0\n"))
		require.Equal(t, audit.Record{Kind: audit.Suppressed, Time: records[101].Time, Service: "shop", Instance: "web-1", Limiter: "login", Count: 29_901}, records[101])
	})
}

// There are at most 16,384 episodes. The oldest one ends if there are more.
func TestManyEpisodes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		trail, sink := start(t, nil)
		time.Sleep(500 * time.Millisecond) // between two ticks
		for i := range 16_384 {
			if i%90 == 0 {
				time.Sleep(time.Second)
			}
			trail.Observe(t.Context(), denial("login", fmt.Sprint("key", i)))
			trail.Observe(t.Context(), denial("login", "always"))
		}
		time.Sleep(time.Second)
		records, text := sink.all()
		require.Equal(t, 16_385, strings.Count(text, "denied 0\n"))
		var ended []string
		for _, r := range records {
			if r.Kind == audit.Released {
				ended = append(ended, r.Ended)
			}
		}
		require.Equal(t, []string{"evicted"}, ended)
		require.Zero(t, trail.Dropped())
	})
}

// Each day on which a key was denied has a record, however long its episode goes on. A limiter
// with more such keys than it may record in a second goes on with the episodes of the others.
func TestEachDayHasARecord(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		trail, sink := start(t, func(o *audit.Options) { o.PlainKeys = true })
		time.Sleep(22 * time.Hour)
		for range 3 * 24 * 60 {
			trail.Observe(t.Context(), denial("login", "203.0.113.7"))
			time.Sleep(time.Minute)
		}
		require.NoError(t, trail.Close())
		var began, ended []string
		counts := int64(0)
		records, _ := sink.all()
		for _, r := range records {
			if r.Kind == audit.Released {
				ended, counts = append(ended, r.Ended), counts+r.Count
			} else {
				began = append(began, r.Time.Format("2 15:04"))
			}
		}
		require.Equal(t, []string{"1 22:00", "2 00:00", "3 00:00", "4 00:00"}, began)
		require.Equal(t, []string{"day", "day", "day", "closed"}, ended)
		require.EqualValues(t, 3*24*60, counts)

		// Keys that a limiter may not record in a second go on with their episodes until it may.
		trail, sink = start(t, nil)
		deny := func(from, to int) {
			for i := from; i < to; i++ {
				trail.Observe(t.Context(), denial("login", fmt.Sprint("key ", i)))
			}
			time.Sleep(1100 * time.Millisecond)
		}
		time.Sleep(time.Until(time.Now().Truncate(24 * time.Hour).Add(24*time.Hour - 10*time.Second)))
		deny(0, 75)
		deny(75, 150)
		time.Sleep(10 * time.Second)
		for _, want := range []int{100, 150, 150} {
			deny(0, 150)
			records, text := sink.all()
			require.NotContains(t, text, "suppressed")
			days := 0
			for _, r := range records {
				if r.Ended == "day" {
					days++
				}
			}
			require.Equal(t, want, days)
		}
	})
}

// A sink that fails delays nobody and loses nothing that fits into the queue. What does not
// fit is a gap.
func TestSinkThatFails(t *testing.T) {
	for name, set := range map[string]func(*memory, bool){
		"error": func(m *memory, fails bool) {
			m.fail(nil)
			if fails {
				m.fail(errors.New("no space left on device"))
			}
		},
		"hangs": func(m *memory, fails bool) {
			m.mu.Lock()
			defer m.mu.Unlock()
			if m.hang = nil; fails {
				m.hang = make(chan struct{})
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var log strings.Builder
				trail, sink := start(t, func(o *audit.Options) { o.Logger = slog.New(slog.NewTextHandler(&log, nil)) })
				set(sink, true)
				warning := ratelimit.Event{Kind: ratelimit.EventWarning, Limiter: "login", Code: ratelimit.CodeStoreFailed, Time: time.Now()}
				began := time.Now()
				for range 9000 {
					trail.Observe(t.Context(), warning)
				}
				require.Equal(t, began, time.Now())
				require.EqualValues(t, 9000-8192, trail.Dropped())
				time.Sleep(time.Minute)
				require.Error(t, trail.Record(t.Context(), ratelimit.Event{Kind: ratelimit.EventReset, Time: time.Now(), Limiter: "login", Key: "k", Actor: "alice"}))

				set(sink, false)
				time.Sleep(10 * time.Second)
				synctest.Wait()
				records, _ := sink.all()
				require.Len(t, records, 8193)
				gap := records[8192]
				require.Equal(t, audit.Record{Kind: audit.Gap, Time: gap.Time, Service: "shop", Instance: "web-1", Count: 9000 - 8192, Since: at(began.UTC())}, gap)
				require.Equal(t, 1, strings.Count(log.String(), "level=ERROR"))
				require.Equal(t, 1, strings.Count(log.String(), "level=INFO"))
			})
		})
	}
}

// With a limiter: calls of operators are recorded before and after, and what cannot be recorded
// is not done.
func TestCallsByHand(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		trail, sink := start(t, func(o *audit.Options) {
			o.PlainKeys = true
			o.Request = func(ctx context.Context) (string, string) { return "POST /login", "r-1" }
		})
		l := ratelimittest.New(t, ratelimit.Options{
			Limits: []ratelimit.Limit{ratelimit.FixedWindow(1, time.Hour).Block(2 * time.Hour)}, Observe: trail.Observe, Audit: trail,
		})
		ctx := ratelimit.WithReason(ratelimit.WithActor(t.Context(), "alice"), "ticket 7")
		for range 3 {
			_, err := l.Take(t.Context(), "key")
			require.NoError(t, err)
		}
		require.NoError(t, l.Reset(ctx, "key"))
		require.NoError(t, l.Block(ctx, "key", time.Minute))
		require.NoError(t, l.Refund(ctx, "key", 1))
		require.NoError(t, l.SetLimitsContext(ctx, ratelimit.FixedWindow(7, time.Hour)))
		sink.fail(errors.New("no space left on device"))
		require.ErrorContains(t, l.Reset(ctx, "key"), "no space left")
		d, err := l.Take(t.Context(), "key")
		require.NoError(t, err)
		require.True(t, d.Blocked, "the Reset has not happened")
		sink.fail(nil)
		require.NoError(t, trail.Close())
		require.Error(t, l.Reset(ctx, "key"), "the trail is closed")

		records, text := sink.all()
		require.Equal(t, `resetintended 0
blockedintended 0
refundedintended 0
limits-changedintended 0
denied 0
blocked 0
resetdone 0
released 2
blockeddone 0
refundeddone 0
limits-changeddone 0
denied 0
released 1
`, text)
		require.Equal(t, 4, sink.durable-1, "and one by Close")
		for _, r := range records[:4] {
			require.Equal(t, []string{"alice", "ticket 7", "POST /login", "r-1"}, []string{r.Actor, r.Reason, r.Route, r.RequestID})
		}
		require.Equal(t, "key", records[0].Key)
		require.Equal(t, "7/1h fixed", records[3].Limit)
		require.Equal(t, "reset", records[7].Ended)
		require.NotNil(t, records[5].Until)
		require.Equal(t, 2*time.Hour, records[5].Until.Sub(records[5].Time))
	})
}

// Without PlainKeys a record has neither the key nor the text of an error, which may have keys
// in it.
func TestPseudonyms(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		secrets, err := audit.OpenSecrets("", 90*24*time.Hour)
		require.NoError(t, err)
		const key = "203.0.113.7"
		var records []audit.Record
		for range 4 { // 4 months
			trail, sink := start(t, func(o *audit.Options) { o.Secrets = secrets })
			trail.Observe(t.Context(), denial("login", key))
			trail.Observe(t.Context(), ratelimit.Event{Kind: ratelimit.EventWarning, Time: time.Now(), Limiter: "login", Key: key, Err: errors.New("the record " + key)})
			require.NoError(t, trail.Close())
			month, _ := sink.all()
			records = append(records, month...)
			time.Sleep(30*24*time.Hour + time.Minute)
		}
		text, err := json.Marshal(records)
		require.NoError(t, err)
		require.NotContains(t, string(text), key)

		exist, err := secrets.Secrets(t.Context(), time.Now())
		require.NoError(t, err)
		found := map[string]bool{}
		for _, s := range exist {
			require.Less(t, time.Since(s.Begins), 90*24*time.Hour)
			found[s.Pseudonym(key)] = true
		}
		reader, err := audit.New(audit.Options{Sink: new(readable), Secrets: secrets})
		require.NoError(t, err)
		defer reader.Close()
		oldest := exist[len(exist)-1].Begins
		_, err = reader.Read(t.Context(), audit.Query{Key: key, To: oldest})
		require.ErrorContains(t, err, "their secrets were deleted")
		_, err = reader.Read(t.Context(), audit.Query{Key: key, To: oldest.Add(1)})
		require.NoError(t, err)
		_, err = reader.Read(t.Context(), audit.Query{To: oldest})
		require.NoError(t, err)

		epochs := map[string]bool{}
		for _, r := range records {
			epochs[r.Epoch] = true
			require.Equal(t, time.Since(r.Time) < 62*24*time.Hour, found[r.Pseudonym], "a record of %v", r.Time)
		}
		require.Len(t, epochs, 4)
	})
}

// A secret of a clock that was ahead is deleted in time, in memory and in a file.
func TestSecretsOfAClockThatWasAhead(t *testing.T) {
	const keep = 90 * 24 * time.Hour
	for _, file := range []string{"", filepath.Join(t.TempDir(), "secrets")} {
		secrets, err := audit.OpenSecrets(file, keep)
		require.NoError(t, err)
		now := time.Now()
		ahead, err := secrets.Secrets(t.Context(), now.AddDate(5, 0, 0))
		require.NoError(t, err)
		if file != "" { // another process, when the clock is right again
			secrets, err = audit.OpenSecrets(file, keep)
			require.NoError(t, err)
		}
		for day := range 91 {
			exist, err := secrets.Secrets(t.Context(), now.AddDate(0, 0, day))
			require.NoError(t, err)
			isThere := slices.ContainsFunc(exist, func(s audit.Secret) bool { return s.Epoch == ahead[0].Epoch })
			require.Equal(t, day < 90, isThere, "day %d", day)
			require.Equal(t, day < 30, exist[0].Epoch == ahead[0].Epoch, "day %d", day)
		}
	}
}

// No secret outlives its time in another file: one that a killed process has left, or the
// target of a link.
func TestSecretsLeaveNoFileBehind(t *testing.T) {
	dir := t.TempDir()
	file, link := filepath.Join(dir, "secrets"), filepath.Join(dir, "link")
	require.NoError(t, os.WriteFile(file, []byte("[]"), 0o600))
	require.NoError(t, os.WriteFile(file+".new.123", []byte("[]"), 0o600))
	require.NoError(t, os.WriteFile(file+".new.txt", []byte("mine"), 0o600))
	require.NoError(t, os.Symlink(file, link))
	secrets, err := audit.OpenSecrets(link, 24*time.Hour)
	require.NoError(t, err)
	now := time.Now()
	for day := range 3 {
		_, err = secrets.Secrets(t.Context(), now.AddDate(0, 0, day))
		require.NoError(t, err)
	}
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	require.Equal(t, []string{"link", "secrets", "secrets.lock", "secrets.new.txt"}, names)
	lock, err := os.ReadFile(file + ".lock")
	require.NoError(t, err)
	require.Empty(t, lock)
	target, err := os.Readlink(link)
	require.NoError(t, err)
	require.Equal(t, file, target, "the link is still one")
}

func TestSecretsThatAreNone(t *testing.T) {
	file := filepath.Join(t.TempDir(), "secrets")
	require.NoError(t, os.WriteFile(file, []byte(`[{"epoch":"a","begins":"2026-01-01T00:00:00Z","secret":"AA=="}]`), 0o600))
	_, err := audit.OpenSecrets(file, 24*time.Hour)
	require.ErrorContains(t, err, "has a secret of 1 bytes, and not of 32")
}

// Clients cannot fill the trail with texts of their own.
func TestLongTexts(t *testing.T) {
	long := strings.Repeat("\xff", 1<<20)
	for _, plain := range []bool{false, true} {
		trail, sink := start(t, func(o *audit.Options) {
			o.PlainKeys = plain
			o.Request = func(context.Context) (string, string) { return long, long }
		})
		e := denial("login", long)
		e.Actor, e.Reason, e.Err = long, long, errors.New(long)
		trail.Observe(t.Context(), e)
		require.NoError(t, trail.Record(t.Context(), e))
		require.NoError(t, trail.Close())
		records, _ := sink.all()
		require.Len(t, records, 3)
		for _, r := range records {
			for _, text := range []string{r.Actor, r.Reason, r.Route, r.RequestID, r.Key, r.Error} {
				require.LessOrEqual(t, len(text), 1024)
				require.True(t, utf8.ValidString(text))
			}
			require.Contains(t, r.Reason, "... sha256:")
			if plain {
				require.True(t, (&audit.Query{Key: long}).Matches(&r), "the key is found")
				require.False(t, (&audit.Query{Key: long + "x"}).Matches(&r))
			}
		}
	}
}

// A function that panics costs a record its route, and no record.
func TestRequestThatPanics(t *testing.T) {
	var log strings.Builder
	trail, sink := start(t, func(o *audit.Options) {
		o.Request = func(context.Context) (string, string) { panic("no request") }
		o.Logger = slog.New(slog.NewTextHandler(&log, nil))
	})
	trail.Observe(t.Context(), denial("login", "ada"))
	require.NoError(t, trail.Record(t.Context(), ratelimit.Event{Kind: ratelimit.EventReset, Limiter: "login", Key: "ada"}))
	require.NoError(t, trail.Close())
	require.NoError(t, trail.Close())
	records, _ := sink.all()
	require.Len(t, records, 3)
	require.Equal(t, 1, strings.Count(log.String(), "has panicked"))
}

// readable is a sink that can be read.
type readable struct{ memory }

func (*readable) Read(context.Context, audit.Query) ([]audit.Record, error) { return nil, nil }

// A query for pseudonyms finds their records, and no others.
func TestQueryForPseudonyms(t *testing.T) {
	for _, test := range []struct {
		q    audit.Query
		want string // of the records a, b and the plain key c
	}{
		{audit.Query{}, "abc"},
		{audit.Query{Pseudonyms: []string{"a"}}, "a"},
		{audit.Query{Key: "c"}, "c"},
		{audit.Query{Key: "c", Pseudonyms: []string{"b"}}, "bc"},
		{audit.Query{Key: "a"}, ""},
	} {
		got := ""
		for _, r := range []audit.Record{{Pseudonym: "a"}, {Pseudonym: "b"}, {Key: "c"}} {
			if test.q.Matches(&r) {
				got += r.Pseudonym + r.Key
			}
		}
		require.Equal(t, test.want, got, "%+v", test.q)
	}
}

func TestNew(t *testing.T) {
	_, err := audit.New(audit.Options{})
	require.ErrorContains(t, err, "Options.Sink is nil")
	_, err = audit.OpenSecrets("", time.Hour)
	require.ErrorContains(t, err, "at least 3h")
	_, err = audit.New(audit.Options{Sink: new(memory), Secrets: noSecrets{}})
	require.ErrorContains(t, err, "has returned none")
	trail, _ := start(t, nil)
	_, err = trail.Read(t.Context(), audit.Query{})
	require.ErrorContains(t, err, "cannot be read")
}

type noSecrets struct{}

func (noSecrets) Secrets(context.Context, time.Time) ([]audit.Secret, error) { return nil, nil }

// panicky panics in place of a sink, of secrets and of a logger, as a test says.
type panicky struct {
	memory
	panics atomic.Bool
	logs   atomic.Int64
}

func (p *panicky) maybe() {
	if p.panics.Load() {
		panic("a bug")
	}
}

func (p *panicky) Write(ctx context.Context, records []audit.Record, durable bool) error {
	p.maybe()
	return p.memory.Write(ctx, records, durable)
}

func (p *panicky) Secrets(ctx context.Context, now time.Time) ([]audit.Secret, error) {
	p.maybe()
	return []audit.Secret{{Epoch: "1", Begins: now, Bytes: make([]byte, 32)}}, nil
}

func (p *panicky) Enabled(context.Context, slog.Level) bool { return true }
func (p *panicky) WithAttrs([]slog.Attr) slog.Handler       { return p }
func (p *panicky) WithGroup(string) slog.Handler            { return p }
func (p *panicky) Handle(context.Context, slog.Record) error {
	p.logs.Add(1)
	p.maybe()
	return nil
}

// A sink, secrets or a logger that panic fail: that is logged once, and records wait.
func TestPanicsOfTheSinkLoseNothing(t *testing.T) {
	for name, set := range map[string]func(*audit.Options, *panicky){
		"sink":    func(o *audit.Options, p *panicky) { o.Sink = p },
		"secrets": func(o *audit.Options, p *panicky) { o.Secrets = p },
		"all":     func(o *audit.Options, p *panicky) { o.Sink, o.Secrets, o.Logger = p, p, slog.New(p) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var log strings.Builder
				p := new(panicky)
				trail, sink := start(t, func(o *audit.Options) {
					o.Logger = slog.New(slog.NewTextHandler(&log, nil))
					set(o, p)
				})
				p.panics.Store(true)
				trail.Observe(t.Context(), denial("login", "ada"))
				time.Sleep(time.Minute)
				p.panics.Store(false)
				time.Sleep(10 * time.Second)
				trail.Observe(t.Context(), denial("login", "eve"))
				time.Sleep(10 * time.Second)
				synctest.Wait()
				require.Zero(t, trail.Dropped())
				if name == "all" {
					require.EqualValues(t, 2, p.logs.Load())
				} else {
					require.Equal(t, 1, strings.Count(log.String(), "level=ERROR"))
					require.Contains(t, log.String(), "panic: a bug")
					require.Equal(t, 1, strings.Count(log.String(), "level=INFO"))
				}
				p.panics.Store(name == "sink")
				require.Equal(t, name == "sink", trail.Close() != nil, "what is left cannot be written")
				_, text := p.all()
				if name == "secrets" {
					_, text = sink.all()
				}
				require.Equal(t, 2, strings.Count(text, "denied 0\n"), text)
			})
		})
	}
}
