package ratelimit_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
)

func TestInvalidOptionsAreRefused(t *testing.T) {
	valid := quiet(hour)
	change := func(f func(*Options)) Options { o := valid; f(&o); return o }
	var reg Registry
	tiny, err := NewMemoryStore(t.Name(), MemoryOptions{MaxKeys: 2})
	require.NoError(t, err)
	defer tiny.Close()
	closed := Memory(t.Name() + "closed")
	closed.Close()
	for _, tc := range []struct {
		name string
		opts Options
		want string
	}{
		{"", valid, "its name is empty"},
		{"a\nb", valid, `its name "a\nb" has a control or invisible character`},
		{"a\u200bb", valid, "has a control or invisible character"},
		{"a\xff", valid, "is not valid UTF-8"},
		{strings.Repeat("x", 129), valid, "its name is 129 bytes long: want at most 128"},
		{"x", Options{}, "Options.Limits: there is none: give at least one"},
		{"x", quiet(Limit{}), "Options.Limits: number 1 (no limit): it is the zero Limit"},
		{"x", quiet(hour, FixedWindow(0, time.Hour)), "Options.Limits: number 2 (0/1h fixed): it allows 0 units: want 1 to"},
		{"x", quiet(FixedWindow(-1, time.Hour)), "it allows -1 units"},
		{"x", quiet(SlidingWindow(1, 0)), "its window is 0s: want 1ms to"},
		{"x", quiet(SlidingWindow(1, -time.Second)), "its window is -1s"},
		{"x", quiet(TokenBucket(1, time.Second, 0)), "its burst is 0 units"},
		{"x", quiet(hour, FixedWindow(7, time.Hour)), "numbers 1 (5/1h fixed) and 2 (7/1h fixed) have the same algorithm and window"},
		{"x", quiet(hour.Named("a"), SlidingWindow(1, time.Hour).Named("a")), `both go by the name "a"`},
		{"x", quiet(hour.Named("x-1m"), SlidingWindow(1, time.Minute)), `both go by the name "x-1m"`},
		{"x", quiet(hour.Named("a\tb")), `its name "a\tb" has a control`},
		{"x", quiet(windows(9)...), "Options.Limits: there are 9: want at most 8"},
		{"x", change(func(o *Options) { o.Store = (*MemoryStore)(nil) }), "Options.Store is a nil *ratelimit.MemoryStore"},
		{"x", change(func(o *Options) { o.Store = &fakeStore{} }), "the prefix of Options.Store is empty"},
		{"x", change(func(o *Options) { o.Store = &fakeStore{prefix: "a\x00"} }), "has a control or invisible character"},
		{"x", change(func(o *Options) { o.Store = byValue{f: func() {}} }), "Options.Store is a ratelimit_test.byValue, which cannot be told from another one"},
		{"x", change(func(o *Options) { o.Store = new(MemoryStore) }), "Options.Store is a MemoryStore made by hand"},
		{"x", change(func(o *Options) { o.Store, o.Limits = tiny, windows(3) }), "with room for 2 counters, and one key needs 3: raise MemoryOptions.MaxKeys"},
		{"x", change(func(o *Options) { o.Store = closed }), "which has been closed: get it again"},
		{"x", change(func(o *Options) { o.Silence = []Code{"shaddow"} }), `Options.Silence has "shaddow", which is no code`},
		{"x", change(func(o *Options) { o.Key = ClientIP{Header: "X-Real-IP"}.Key }), `Options.Key: ClientIP.Header is "X-Real-IP", and no proxy is trusted to write it`},
		{"x", change(func(o *Options) { o.Key = JoinKeys(ClientIP{IPv4Prefix: 33}.Key) }), "Options.Key: ClientIP.IPv4Prefix is 33"},
		{"x", change(func(o *Options) { o.Key = FirstKey() }), "has no functions"},
		{"x", change(func(o *Options) { o.Key = FirstKey(PatternKey, nil) }), "function 2 of FirstKey is nil"},
		{"x", change(func(o *Options) { o.Denied = http.HandlerFunc(nil) }), "Options.Denied is a nil http.HandlerFunc"},
	} {
		l, err := reg.New(tc.name, tc.opts)
		require.Nil(t, l)
		require.ErrorContains(t, err, tc.want)
		require.ErrorContains(t, err, fmt.Sprintf("ratelimit: limiter %q: ", tc.name))
	}
	for name := range reg.All() {
		t.Errorf("%q was refused and is there", name)
	}
}

// byValue is a store that cannot be a key of a map.
type byValue struct {
	Store
	f func()
}

func (byValue) Prefix() string { return "x" }

func TestOptionsRedisIsChecked(t *testing.T) {
	var reg Registry
	defer reg.Close()
	for _, tc := range []struct {
		what string
		opts Options
		want string
	}{
		{"with a store", Options{Redis: unreachableClient(t), Store: memory(t, "")}, "Options.Redis and Options.Store are both set"},
		{"nil client", Options{Redis: (*redis.Client)(nil)}, "Options.Redis is a nil *redis.Client: leave it out to count in memory"},
	} {
		tc.opts.Limits = []Limit{hour}
		_, err := reg.New("api", tc.opts)
		require.ErrorContains(t, err, `ratelimit: limiter "api": `, tc.what)
		require.ErrorContains(t, err, tc.want, tc.what)
	}
}
