package storetest

import (
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ratelimit-go/ratelimit"
)

func newMemory(t *testing.T, prefix string) ratelimit.Store {
	s := ratelimit.Memory(t.Name() + prefix)
	t.Cleanup(func() { s.Close() })
	return s
}

// TestCasesNameTheirRules checks what a failure reports, and that all rules that a store
// alone can keep are checked.
func TestCasesNameTheirRules(t *testing.T) {
	names, checked := map[string]bool{}, map[int]bool{}
	for _, c := range cases {
		if names[c.name] || c.rule == "" || len(c.rules) == 0 || !slices.IsSorted(c.rules) {
			t.Errorf("case %q: it needs a name of its own, a rule in words, and its numbers in order: %v", c.name, c)
		}
		names[c.name] = true
		for _, number := range c.rules {
			checked[number] = true
		}
	}
	for _, number := range []int{1, 2, 3, 4, 5, 6, 7, 8, 9, 14, 16, 19} {
		if !checked[number] {
			t.Errorf("no case checks rule %d", number)
		}
	}
	for want, c := range map[string]testCase{
		"rule 3: it holds":      {rules: []int{3}, rule: "it holds"},
		"rules 3, 14: it holds": {rules: []int{3, 14}, rule: "it holds"},
	} {
		if got := c.String(); got != want {
			t.Errorf("a failure reports %q, want %q", got, want)
		}
	}
}

// TestConnectingTakesNoTimeOfACase runs the cases that wait on stores whose first call takes
// most of a window.
func TestConnectingTakesNoTimeOfACase(t *testing.T) {
	for _, c := range cases {
		if !c.waits {
			continue
		}
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				for _, p := range c.run(t, onOwnClock(), onServer(func(s *reference) {
					var connecting sync.Once
					s.beforeTake(func(*call) { connecting.Do(func() { time.Sleep(time.Second) }) })
				}, slowCall)) {
					t.Error(p)
				}
			})
		})
	}
}

// TestSlowCallsAreReported checks that a case that fails says so if calls took longer than
// the slack.
func TestSlowCallsAreReported(t *testing.T) {
	i := slices.IndexFunc(cases, func(c testCase) bool { return c.name == "fixed-window" })
	broken := otherLimits(func(l ratelimit.Limit) ratelimit.Limit { return withN(l, l.N()+1) })
	for delay, want := range map[time.Duration]bool{400 * time.Millisecond: true, 100 * time.Millisecond: false} {
		synctest.Test(t, func(t *testing.T) {
			found := cases[i].run(t, onOwnClock(), onServer(broken, delay))
			says := slices.ContainsFunc(found, func(p string) bool {
				return strings.HasPrefix(p, "a call took "+delay.String()+", which is longer than the slack of 150ms")
			})
			if len(found) == 0 || says != want {
				t.Errorf("with calls of %v: %q", delay, found)
			}
		})
	}
}

// TestLateCasesRunAgain holds up a case in its first runs: in a call, or when it wakes up. It
// passes if a later run is in time. A store that is wrong or slow in each run fails.
func TestLateCasesRunAgain(t *testing.T) {
	i := slices.IndexFunc(cases, func(c testCase) bool { return c.name == "fixed-window" })
	const stall = 400 * time.Millisecond
	for _, test := range []struct {
		late     string
		lateRuns int // how many of the first runs are held up
		broken   bool
		runs     int
		fails    bool
	}{
		{"call", 0, false, 1, false},
		{"call", 0, true, 1, true},
		{"call", 1, false, 2, false},
		{"call", 1, true, 2, true},
		{"call", 2, false, 3, false},
		{"call", 9, false, 3, true},
		{"wake-up", 0, true, 1, true},
		{"wake-up", 1, false, 2, false},
		{"wake-up", 2, false, 3, false},
		{"wake-up", 9, false, 3, true},
	} {
		synctest.Test(t, func(t *testing.T) {
			runs, takes, sleeps := 0, 0, 0
			cfg := onOwnClock()
			cfg.advance = func(d time.Duration) {
				if sleeps++; test.late == "wake-up" && sleeps == 2 && runs <= test.lateRuns {
					d += stall
				}
				time.Sleep(d)
			}
			found := cases[i].run(t, cfg, onServer(func(s *reference) {
				runs++
				takes, sleeps = 0, 0
				s.beforeTake(func(c *call) {
					if c.n == 0 {
						return // connect looks, too
					}
					if takes++; test.late == "call" && takes == 3 && runs <= test.lateRuns {
						time.Sleep(stall)
					}
				})
				if test.broken {
					otherLimits(func(l ratelimit.Limit) ratelimit.Limit { return withN(l, l.N()+1) })(s)
				}
			}, slowCall))
			reported := slices.ContainsFunc(found, func(p string) bool { return strings.HasPrefix(p, "a call took ") })
			if runs != test.runs || (len(found) > 0) != test.fails || reported != (test.lateRuns >= test.runs) {
				t.Errorf("%+v: %d runs, and the last one found %q", test, runs, found)
			}
		})
	}
}

func TestMemoryStore(t *testing.T) { Run(t, newMemory) }

func TestMemoryStoreWithSnapshots(t *testing.T) {
	dir := t.TempDir()
	Run(t, func(t *testing.T, prefix string) ratelimit.Store {
		name := t.Name() + prefix
		s, err := ratelimit.NewMemoryStore(name, ratelimit.MemoryOptions{
			SnapshotFile: filepath.Join(dir, url.PathEscape(name)), SnapshotEvery: time.Hour,
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.Close() })
		return s
	})
}
