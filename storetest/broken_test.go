package storetest

import (
	"context"
	"math"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ratelimit-go/ratelimit"
)

// TestBrokenStores runs the suite on stores that break one rule each, most of them
// as a library in the field does, and asks that the case meant for it notices.
func TestBrokenStores(t *testing.T) {
	for _, tc := range []struct {
		caught string // the case
		store  string
		breaks func(s *broken)
	}{
		{"limit", "admits one more than the limit", func(s *broken) { s.limits = oneMore }},
		{"concurrent", "looks first and takes then", func(s *broken) { s.take = lookThenTake }},
		{"concurrent-limits", "takes under one limit after the other and gives back", func(s *broken) { s.take = takeInTurn(true) }},
		{"all-or-none", "takes under one limit after the other", func(s *broken) { s.take = takeInTurn(false) }},
		{"denied", "charges what it denies", func(s *broken) { s.after = chargeDenied }},
		{"never", "tells a finite wait for what never fits", func(s *broken) { s.after = finiteNever }},
		{"never", "adds without a look at overflow", func(s *broken) { s.after = wrapAround }},
		{"look", "takes a unit when it is to look", func(s *broken) { s.take = lookTakes }},
		{"look-starts-no-window", "opens a window when it is to look", func(s *broken) { s.take = lookOpens }},
		{"fixed-window", "extends the window on every denial", func(s *broken) { s.after = extendOnDenial }},
		{"fixed-window", "opens windows on the clock", func(s *broken) { s.take = clockWindows }},
		{"sliding-window", "forgets the window before", func(s *broken) { s.limits = slidingAsFixed }},
		{"token-bucket", "refills all at once", func(s *broken) { s.limits = bucketAsFixed }},
		{"retry-after", "tells a wait that is a millisecond short", func(s *broken) { s.after = waitBy(-time.Millisecond) }},
		{"retry-after", "tells a wait that is a millisecond long", func(s *broken) { s.after = waitBy(time.Millisecond) }},
		{"expiry", "never lets go of a key that was adjusted", func(s *broken) { s.take, s.adjust = stuck() }},
		{"refund", "keeps a credit for a key without a counter", func(s *broken) { s.take, s.adjust = credit() }},
		{"late-refund", "gives back into whatever window is open", func(s *broken) { s.adjust = adjustNow }},
		{"charge", "does not charge above what is left", func(s *broken) { s.adjust = chargeIfFits }},
		{"charge", "says that it charged what it did not", func(s *broken) { s.adjust = chargeAll }},
		{"reset", "takes the key of a reset for a pattern", func(s *broken) { s.reset = resetPattern() }},
		{"changed-limit", "has n in the counter's name", func(s *broken) { s.key = func(k string, l ratelimit.Limit) string { return k + l.String() } }},
		{"identity", "has one counter for all windows", func(s *broken) { s.limits = oneWindow }},
		{"keys", "folds case", func(s *broken) { s.key = func(k string, _ ratelimit.Limit) string { return strings.ToLower(k) } }},
		{"keys", "cuts long keys", func(s *broken) { s.key = func(k string, _ ratelimit.Limit) string { return k[:min(len(k), 128)] } }},
		{"keys", "trims keys", func(s *broken) {
			s.key = func(k string, _ ratelimit.Limit) string { return strings.TrimSpace(k) + "." }
		}},
		{"prefixes", "puts the prefix before the key and nothing between", func(s *broken) { s.shared = true }},
		{"context", "does not look at the context", func(s *broken) { s.take = ignoreContext }},
		{"slices", "changes the slice of limits", func(s *broken) { s.limits = inPlace }},
	} {
		t.Run(tc.store, func(t *testing.T) {
			var c testCase
			for _, c = range cases {
				if c.name == tc.caught {
					break
				}
			}
			problems := c.run(t, config{window: time.Hour, sleep: time.Sleep, bubble: true},
				func(t *testing.T, prefix string) ratelimit.Store {
					s := &broken{prefix: prefix, name: t.Name() + prefix}
					if tc.breaks(s); s.shared {
						s.name = t.Name()
					}
					s.Store = newMemory(t, s.name)
					return s
				})
			if c.name != tc.caught || len(problems) == 0 {
				t.Errorf("case %q does not notice a store that %s", tc.caught, tc.store)
			}
			for _, p := range problems {
				t.Log(p)
			}
		})
	}
}

// broken is a sound store with a fault at one place.
type broken struct {
	ratelimit.Store // in memory
	prefix, name    string
	shared          bool

	key    func(string, ratelimit.Limit) string
	limits func([]ratelimit.Limit) []ratelimit.Limit
	take   func(s ratelimit.Store, ctx context.Context, key string, n int64, limits []ratelimit.Limit, results []ratelimit.Result) (ratelimit.Instant, error)
	after  func(s ratelimit.Store, key string, n int64, limits []ratelimit.Limit, results []ratelimit.Result)
	adjust func(s ratelimit.Store, ctx context.Context, key string, n int64, at ratelimit.Instant, limits []ratelimit.Limit) (int64, error)
	reset  func(s ratelimit.Store, key string, limits []ratelimit.Limit) bool
}

func (s *broken) Prefix() string { return s.prefix }

func (s *broken) with(key string, limits []ratelimit.Limit) (string, []ratelimit.Limit) {
	if s.key != nil {
		key = s.key(key, limits[0])
	}
	if s.limits != nil {
		limits = s.limits(limits)
	}
	if s.shared {
		key = s.prefix + key
	}
	return key, limits
}

func (s *broken) Take(ctx context.Context, key string, n int64, limits []ratelimit.Limit, results []ratelimit.Result) (at ratelimit.Instant, err error) {
	key, limits = s.with(key, limits)
	if s.take != nil {
		at, err = s.take(s.Store, ctx, key, n, limits, results)
	} else {
		at, err = s.Store.Take(ctx, key, n, limits, results)
	}
	if s.after != nil {
		s.after(s.Store, key, n, limits, results)
	}
	return at, err
}

func (s *broken) Adjust(ctx context.Context, key string, n int64, at ratelimit.Instant, limits []ratelimit.Limit) (int64, error) {
	key, limits = s.with(key, limits)
	if s.adjust != nil {
		return s.adjust(s.Store, ctx, key, n, at, limits)
	}
	return s.Store.Adjust(ctx, key, n, at, limits)
}

func (s *broken) Reset(ctx context.Context, key string, limits []ratelimit.Limit) error {
	key, limits = s.with(key, limits)
	if s.reset != nil && s.reset(s.Store, key, limits) {
		return nil
	}
	return s.Store.Reset(ctx, key, limits)
}

var background = context.Background()

func each(change func(ratelimit.Limit) ratelimit.Limit) func([]ratelimit.Limit) []ratelimit.Limit {
	return func(limits []ratelimit.Limit) []ratelimit.Limit {
		changed := make([]ratelimit.Limit, len(limits))
		for i, l := range limits {
			changed[i] = change(l)
		}
		return changed
	}
}

var (
	oneMore = each(func(l ratelimit.Limit) ratelimit.Limit { return (&run{}).sameShape(l, l.N()+1) })

	slidingAsFixed = each(func(l ratelimit.Limit) ratelimit.Limit { return ratelimit.FixedWindow(l.N(), l.Window()) })
	bucketAsFixed  = each(func(l ratelimit.Limit) ratelimit.Limit { return ratelimit.FixedWindow(l.Burst(), l.Window()) })

	oneWindow = each(func(l ratelimit.Limit) ratelimit.Limit { return ratelimit.FixedWindow(l.N(), time.Hour) })
)

func inPlace(limits []ratelimit.Limit) []ratelimit.Limit {
	limits[0] = limits[0].Named("changed")
	return limits
}

func lookThenTake(s ratelimit.Store, ctx context.Context, key string, n int64, limits []ratelimit.Limit, results []ratelimit.Result) (ratelimit.Instant, error) {
	at, err := s.Take(ctx, key, 0, limits, results)
	if n > results[0].Remaining {
		return s.Take(ctx, key, n, limits, results)
	}
	runtime.Gosched()
	for range n { // what was seen to fit is taken, come what may
		s.Adjust(ctx, key, 1, at, limits)
	}
	return at, err
}

func takeInTurn(giveBack bool) func(ratelimit.Store, context.Context, string, int64, []ratelimit.Limit, []ratelimit.Result) (ratelimit.Instant, error) {
	return func(s ratelimit.Store, ctx context.Context, key string, n int64, limits []ratelimit.Limit, results []ratelimit.Result) (at ratelimit.Instant, err error) {
		for i := range limits {
			at, err = s.Take(ctx, key, n, limits[i:i+1], results[i:i+1])
			runtime.Gosched()
			if results[i].RetryAfter != 0 && giveBack && i > 0 {
				_, err = s.Adjust(ctx, key, -n-1, ratelimit.Now, limits[:i]) // and one too many
			}
		}
		return at, err
	}
}

func chargeDenied(s ratelimit.Store, key string, n int64, limits []ratelimit.Limit, results []ratelimit.Result) {
	if !admitted(results) {
		s.Adjust(background, key, n, ratelimit.Now, limits)
	}
}

func finiteNever(_ ratelimit.Store, _ string, _ int64, limits []ratelimit.Limit, results []ratelimit.Result) {
	for i := range results {
		results[i].RetryAfter = min(results[i].RetryAfter, limits[i].Window())
	}
}

func wrapAround(_ ratelimit.Store, _ string, n int64, _ []ratelimit.Limit, results []ratelimit.Result) {
	if n > math.MaxInt64/2 { // count + n came out negative, and so within the limit
		results[0].RetryAfter = 0
	}
}

func lookTakes(s ratelimit.Store, ctx context.Context, key string, n int64, limits []ratelimit.Limit, results []ratelimit.Result) (ratelimit.Instant, error) {
	return s.Take(ctx, key, max(n, 1), limits, results)
}

func lookOpens(s ratelimit.Store, ctx context.Context, key string, n int64, limits []ratelimit.Limit, results []ratelimit.Result) (ratelimit.Instant, error) {
	if n == 0 {
		s.Adjust(ctx, key, 1, ratelimit.Now, limits)
	}
	return s.Take(ctx, key, n, limits, results)
}

func extendOnDenial(s ratelimit.Store, key string, _ int64, limits []ratelimit.Limit, results []ratelimit.Result) {
	if !admitted(results) {
		s.Reset(background, key, limits)
		s.Adjust(background, key, math.MaxInt64, ratelimit.Now, limits)
		s.Take(background, key, 1, limits, results)
	}
}

func clockWindows(s ratelimit.Store, ctx context.Context, key string, n int64, limits []ratelimit.Limit, results []ratelimit.Result) (ratelimit.Instant, error) {
	window := time.Now().Add(40 * time.Minute).Truncate(limits[0].Window())
	return s.Take(ctx, key+window.String(), n, limits, results)
}

func waitBy(d time.Duration) func(ratelimit.Store, string, int64, []ratelimit.Limit, []ratelimit.Result) {
	return func(_ ratelimit.Store, _ string, _ int64, _ []ratelimit.Limit, results []ratelimit.Result) {
		if results[0].RetryAfter > 0 {
			results[0].RetryAfter = max(1, results[0].RetryAfter+d)
		}
	}
}

func stuck() (
	func(ratelimit.Store, context.Context, string, int64, []ratelimit.Limit, []ratelimit.Result) (ratelimit.Instant, error),
	func(ratelimit.Store, context.Context, string, int64, ratelimit.Instant, []ratelimit.Limit) (int64, error),
) {
	adjusted := make(map[string]bool)
	take := func(s ratelimit.Store, ctx context.Context, key string, n int64, limits []ratelimit.Limit, results []ratelimit.Result) (ratelimit.Instant, error) {
		at, err := s.Take(ctx, key, n, limits, results)
		if adjusted[key] && results[0].ResetAfter == 0 { // a counter of -1 or so, without a TTL
			results[0] = ratelimit.Result{RetryAfter: time.Second, MoreAfter: time.Second, ResetAfter: time.Second}
		}
		return at, err
	}
	adjust := func(s ratelimit.Store, ctx context.Context, key string, n int64, at ratelimit.Instant, limits []ratelimit.Limit) (int64, error) {
		adjusted[key] = true
		return s.Adjust(ctx, key, n, at, limits)
	}
	return take, adjust
}

func credit() (
	func(ratelimit.Store, context.Context, string, int64, []ratelimit.Limit, []ratelimit.Result) (ratelimit.Instant, error),
	func(ratelimit.Store, context.Context, string, int64, ratelimit.Instant, []ratelimit.Limit) (int64, error),
) {
	var mu sync.Mutex
	credits := make(map[string]int64)
	take := func(s ratelimit.Store, ctx context.Context, key string, n int64, limits []ratelimit.Limit, results []ratelimit.Result) (ratelimit.Instant, error) {
		mu.Lock()
		defer mu.Unlock()
		if n > 0 && credits[key] >= n {
			credits[key] -= n
			return s.Take(ctx, key, 0, limits, results)
		}
		return s.Take(ctx, key, n, limits, results)
	}
	adjust := func(s ratelimit.Store, ctx context.Context, key string, n int64, at ratelimit.Instant, limits []ratelimit.Limit) (int64, error) {
		mu.Lock()
		defer mu.Unlock()
		credits[key] += max(0, -max(n, -1000))
		return s.Adjust(ctx, key, n, at, limits)
	}
	return take, adjust
}

func adjustNow(s ratelimit.Store, ctx context.Context, key string, n int64, _ ratelimit.Instant, limits []ratelimit.Limit) (int64, error) {
	return s.Adjust(ctx, key, n, ratelimit.Now, limits)
}

func chargeIfFits(s ratelimit.Store, ctx context.Context, key string, n int64, at ratelimit.Instant, limits []ratelimit.Limit) (int64, error) {
	if n < 0 {
		return s.Adjust(ctx, key, n, at, limits)
	}
	results := make([]ratelimit.Result, len(limits))
	if _, err := s.Take(ctx, key, n, limits, results); err != nil || !admitted(results) {
		return 0, err
	}
	return n, nil
}

func chargeAll(s ratelimit.Store, ctx context.Context, key string, n int64, at ratelimit.Instant, limits []ratelimit.Limit) (int64, error) {
	_, err := s.Adjust(ctx, key, n, at, limits)
	return max(0, n), err
}

func resetPattern() func(ratelimit.Store, string, []ratelimit.Limit) bool {
	return func(s ratelimit.Store, key string, limits []ratelimit.Limit) bool {
		if key != "*" {
			return false
		}
		for _, k := range []string{"*", "key", "key2"} {
			s.Reset(background, k, limits)
		}
		return true
	}
}

func ignoreContext(s ratelimit.Store, _ context.Context, key string, n int64, limits []ratelimit.Limit, results []ratelimit.Result) (ratelimit.Instant, error) {
	return s.Take(background, key, n, limits, results)
}
