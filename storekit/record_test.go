package storekit_test

import (
	"context"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ratelimit-go/ratelimit"
	"github.com/ratelimit-go/ratelimit/storekit"
	"github.com/stretchr/testify/require"
)

// TestRecordCountsAsMemoryStore compares a store of this package with a MemoryStore, which
// counts with other code: both get the same random calls at the same instants, and must
// return the same. RATELIMIT_MODEL_SEEDS sets how many histories it makes.
func TestRecordCountsAsMemoryStore(t *testing.T) {
	histories := 300
	if s := os.Getenv("RATELIMIT_MODEL_SEEDS"); s != "" {
		var err error
		histories, err = strconv.Atoi(s)
		require.NoError(t, err)
	}
	for seed := range histories {
		t.Run(strconv.Itoa(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { compare(t, rand.New(rand.NewPCG(uint64(seed), 1))) })
		})
	}
}

// compare makes one history.
func compare(t *testing.T, random *rand.Rand) {
	memory, err := ratelimit.NewMemoryStore(fmt.Sprintf("storekit-%p", t), ratelimit.MemoryOptions{})
	require.NoError(t, err)
	defer memory.Close()
	b := newBackend()
	b.twice, b.loses = random.IntN(4) == 0, random.IntN(4) == 0
	kit := newStore(t, b)
	began := time.Now()
	ctx := context.Background()

	// A clock of a MemoryStore begins when the program does, so instants differ by the same
	// time in each call.
	var apart ratelimit.Instant
	instants := []ratelimit.Instant{0, ratelimit.Now} // of the MemoryStore
	toKit := func(at ratelimit.Instant) ratelimit.Instant {
		if at == 0 || at == ratelimit.Now {
			return at
		}
		return at + apart
	}
	holds := map[string][2]int64{}
	for step := range 60 {
		time.Sleep([]time.Duration{0, 0, 8, 800, time.Millisecond, time.Second, 7 * time.Second, time.Minute, 13 * time.Hour}[random.IntN(9)])
		limits := randomLimits(random)
		n := []int64{0, 1, 1, 1, 2, 3, 5, 40}[random.IntN(8)]
		var pending, pendingKit []ratelimit.Pending
		for range random.IntN(3) {
			p := ratelimit.Pending{Units: random.Int64N(4), At: instants[random.IntN(len(instants))]}
			pending = append(pending, p)
			pendingKit = append(pendingKit, ratelimit.Pending{Units: p.Units, At: toKit(p.At)})
		}
		want, got := make([]ratelimit.Result, len(limits), len(limits)+1), make([]ratelimit.Result, len(limits), len(limits)+1)
		var what string
		var wantOther, gotOther any
		switch op := random.IntN(20); {
		case op < 10:
			what = fmt.Sprintf("TakePending %d %v under %v", n, pending, limits)
			at, err := memory.TakePending(ctx, "key", n, pending, limits, want)
			require.NoError(t, err)
			kitAt, err := kit.TakePending(ctx, "key", n, pendingKit, limits, got)
			require.NoError(t, err)
			if apart == 0 {
				apart = kitAt - at
			}
			wantOther, gotOther = at+apart, kitAt
			instants = append(instants, at)
		case op < 14:
			n, at := random.Int64N(13)-6, instants[random.IntN(len(instants))]
			what = fmt.Sprintf("Adjust %d of %v under %v", n, at, limits)
			wantOther, err = memory.Adjust(ctx, "key", n, at, limits)
			require.NoError(t, err)
			gotOther, err = kit.Adjust(ctx, "key", n, toKit(at), limits)
			require.NoError(t, err)
		case op < 15:
			given := ratelimit.Block{Left: time.Duration(random.IntN(3)-1) * 40 * time.Second, Rung: random.IntN(5), Forget: time.Duration(random.IntN(2)) * time.Minute}
			what = fmt.Sprintf("Block %v under %v", given, limits)
			require.NoError(t, memory.Block(ctx, "key", given, limits))
			require.NoError(t, kit.Block(ctx, "key", given, limits))
		case op < 16:
			what = fmt.Sprintf("Reset under %v", limits)
			require.NoError(t, memory.Reset(ctx, "key", limits))
			require.NoError(t, kit.Reset(ctx, "key", limits))
		default:
			q := ratelimit.HoldRequest{
				Action: ratelimit.HoldAction(random.IntN(3)), Key: "key", Most: 1 + random.Int64N(4), Lasts: time.Duration(1+random.IntN(60)) * time.Second,
				Process: []string{"a", "b", "c"}[random.IntN(3)], Alone: random.IntN(2) == 0,
			}
			of := holds[q.Process]
			if q.Began, q.Ended = of[0], of[1]; q.Ended < q.Began && random.IntN(2) == 0 {
				q.Ended++
			}
			if q.Action == ratelimit.HoldAdd {
				q.Units, q.Limits, q.Pending = max(1, n), limits, pending
			}
			what = fmt.Sprintf("Hold %+v", q)
			want, got = want[:len(q.Limits)+1], got[:len(q.Limits)+1]
			reply, err := memory.Hold(ctx, q, want)
			require.NoError(t, err)
			q.Pending = pendingKit
			kitReply, err := kit.Hold(ctx, q, got)
			require.NoError(t, err)
			holds[q.Process] = [2]int64{reply.Began, reply.Ended}
			reply.At, kitReply.At = 0, 0
			wantOther, gotOther = reply, kitReply
		}
		for i := range want { // what a MemoryStore has for the limiter
			want[i] = ratelimit.Result{
				Remaining: want[i].Remaining, RetryAfter: want[i].RetryAfter, MoreAfter: want[i].MoreAfter, ResetAfter: want[i].ResetAfter,
				Blocked: want[i].Blocked, BlockBegan: want[i].BlockBegan,
			}
		}
		require.Equal(t, want, got, "step %d, after %v: %s", step, time.Since(began), what)
		require.Equal(t, wantOther, gotOther, "step %d, after %v: %s", step, time.Since(began), what)
	}
}

// randomLimits returns one to three limits with different counters. Their durations are whole
// numbers of 8 ns, to which a MemoryStore rounds some. Buckets have one rate and burst: a record
// forgets a bucket when it is whole under the limit that it was written for.
func randomLimits(random *rand.Rand) []ratelimit.Limit {
	n := 1 + random.Int64N(6)
	window := []time.Duration{8 * time.Second, 24 * time.Second}[random.IntN(2)]
	all := []ratelimit.Limit{
		ratelimit.FixedWindow(n, window), ratelimit.SlidingWindow(n, window), ratelimit.TokenBucket(3, window, 5),
		ratelimit.Rolling(n, window), ratelimit.Daily(n, nil),
	}
	random.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	limits := all[:1+random.IntN(3)]
	for i := range limits {
		switch random.IntN(4) {
		case 0:
			limits[i] = limits[i].Block(16 * time.Second)
		case 1:
			limits[i] = limits[i].Block(8*time.Millisecond, 32*time.Second, time.Minute)
		}
	}
	return limits
}

// golden are records of version 1. Their bytes never change.
var golden = []struct {
	name, bytes string
	record      storekit.Record
}{
	{"fixed window", "0118fae2848bfb5800010866697865642d316801008080c58bc6d101030000", storekit.Record{Counters: []storekit.Counter{{Name: "fixed-1h", End: 1_800_000_000e9, T: 1_799_996_400e9, A: 3}}}},
	{"sliding window and bucket", "0118fae2848bfb5800020a736c6964696e672d316d010080a0b787e9050307096275636b65742d31730180a8d6b90780d0acf30e0280cab5ee0100", storekit.Record{Counters: []storekit.Counter{
		{Name: "sliding-1m", End: 1_800_000_000e9, T: 1_799_999_900e9, A: 3, B: 7},
		{Name: "bucket-1s", End: 1_799_999_999e9, T: 1_799_999_998e9, A: 2, B: 500_000_000},
	}}},
	{"rolling window", "0118fae2848bfb5800010a726f6c6c696e672d31680200038080a2a9eae8010080c0ee8ed20b00", storekit.Record{Counters: []storekit.Counter{
		{Name: "rolling-1h", End: 1_800_000_000e9, Log: []int64{1_799_996_000e9, 1_799_996_000e9, 1_799_996_400e9}},
	}}},
	{"period with a block", "0118fb345f4e02f80001116461792d4575726f70652f4265726c696e05008080bda0d8f628e807008080f89492a527028080bc8ac9d21300", storekit.Record{Counters: []storekit.Counter{
		{Name: "day-Europe/Berlin", End: 1_800_090_000e9, T: 1_800_000_000e9, A: 1000, Until: 1_800_003_600e9, Rung: 2, Forget: 24 * time.Hour},
	}}},
	{"block by hand", "0118fae2848bfb5800010866697865642d3168040000000000", storekit.Record{Counters: []storekit.Counter{{Name: "fixed-1h", End: 1_800_000_000e9, Until: 1_800_000_000e9}}}},
	{"holds", "0118fae2848bfb58000002057765622d310c090080d88ee16f057765622d3201008090dfc04a80d88ee16f", storekit.Record{Holds: []storekit.Hold{
		{Process: "web-1", Began: 12, Ended: 9, Until: 1_800_000_000e9, Lasts: 30 * time.Second},
		{Process: "web-2", Began: 1, Until: 1_799_999_990e9, Lasts: 30 * time.Second},
	}}},
}

func TestRecordEncoding(t *testing.T) {
	now := time.Unix(1_799_999_000-3600, 0)
	for _, tc := range golden {
		encoded, ttl := tc.record.Append(nil, now)
		if tc.name == "period with a block" {
			require.Equal(t, 94_660*time.Second, ttl)
		} else {
			require.Equal(t, 4660*time.Second, ttl)
		}
		require.Equal(t, tc.bytes, hex.EncodeToString(encoded), tc.name)
		decoded, err := storekit.DecodeRecord(encoded)
		require.NoError(t, err)
		require.Equal(t, &tc.record, decoded, tc.name)
		for cut := range encoded {
			if _, err := storekit.DecodeRecord(encoded[:cut]); cut > 0 {
				require.Error(t, err, "%s, cut off after %d bytes", tc.name, cut)
			}
		}
	}
}

// What has ended a minute ago is left out.
func TestRecordForgets(t *testing.T) {
	r := storekit.Record{
		Counters: []storekit.Counter{{Name: "fixed-1h", End: 100e9, T: 90e9, A: 3}, {Name: "fixed-1m", End: 90e9, T: 60e9, A: 3}},
		Holds:    []storekit.Hold{{Process: "p", Began: 1, Until: 95e9, Lasts: 1}},
	}
	for at, want := range map[int64][2]int{149: {2, 1}, 150: {1, 1}, 155: {1, 0}, 160: {0, 0}} {
		encoded, _ := r.Append(nil, time.Unix(at, 0))
		got, err := storekit.DecodeRecord(encoded)
		require.NoError(t, err)
		require.Equal(t, want, [2]int{len(got.Counters), len(got.Holds)})
		require.Equal(t, want == [2]int{}, len(encoded) == 0)
	}
}

// FuzzDecodeRecord checks that any bytes are a record or an error, and that the limits of a
// call can be counted on any record.
func FuzzDecodeRecord(f *testing.F) {
	now := time.Unix(1_799_999_000, 0)
	for _, tc := range golden {
		encoded, _ := tc.record.Append(nil, now)
		f.Add(encoded)
	}
	limits := []ratelimit.Limit{
		ratelimit.FixedWindow(5, time.Hour).Block(time.Minute), ratelimit.SlidingWindow(5, time.Minute), ratelimit.TokenBucket(5, time.Second, 9),
		ratelimit.Rolling(5, time.Hour), ratelimit.Daily(1000, time.UTC),
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := storekit.DecodeRecord(b)
		if err != nil {
			return
		}
		again, err := storekit.DecodeRecord(first(r.Append(nil, time.Unix(0, 0))))
		require.NoError(t, err)
		require.Equal(t, *r, *again)
		results := make([]ratelimit.Result, len(limits)+1)
		if _, err = r.Take(now, ratelimit.SharedRequest{Units: 1, Limits: limits}, results[:len(limits)]); err != nil {
			return
		}
		_, err = r.Adjust(now, -1, ratelimit.Now, limits)
		require.NoError(t, err)
		_, err = r.Hold(now, ratelimit.HoldRequest{Action: ratelimit.HoldAdd, Most: 3, Lasts: time.Hour, Process: "p", Units: 1, Limits: limits}, results)
		require.NoError(t, err)
		for _, result := range results {
			if result.Remaining < 0 || result.RetryAfter < 0 || result.MoreAfter < 0 || result.ResetAfter < 0 {
				t.Errorf("%+v", result)
			}
		}
		if encoded, ttl := r.Append(nil, now); len(encoded) > 0 {
			require.Positive(t, ttl)
			_, err = storekit.DecodeRecord(encoded)
			require.NoError(t, err)
		}
	})
}

func first(b []byte, _ time.Duration) []byte { return b }

// TestRecordSizes has the sizes of docs/stores.md: of a key whose last unit was just taken.
func TestRecordSizes(t *testing.T) {
	for _, tc := range []struct {
		units  int
		limits []ratelimit.Limit
		bytes  int
	}{
		{50, []ratelimit.Limit{ratelimit.FixedWindow(100, time.Hour)}, 31},
		{50, []ratelimit.Limit{ratelimit.SlidingWindow(100, time.Hour)}, 33},
		{50, []ratelimit.Limit{ratelimit.TokenBucket(100, time.Hour, 100)}, 31},
		{50, []ratelimit.Limit{ratelimit.FixedWindow(100, time.Minute), ratelimit.Monthly(100, 1, nil)}, 56},
		{100, []ratelimit.Limit{ratelimit.Rolling(100, time.Hour)}, 626},
		{1000, []ratelimit.Limit{ratelimit.Rolling(1000, time.Hour)}, 5028},
	} {
		r := new(storekit.Record)
		now := time.Unix(1_800_000_000, 0)
		for range tc.units {
			now = now.Add(tc.limits[0].Window() / time.Duration(tc.units+1))
			_, err := r.Take(now, ratelimit.SharedRequest{Units: 1, Limits: tc.limits}, make([]ratelimit.Result, len(tc.limits)))
			require.NoError(t, err)
		}
		require.Len(t, first(r.Append(nil, now)), tc.bytes, "%v", tc.limits)
	}
}

// TestQuotaOfALongerPeriodIsGivenOutOnce: a clock that is a little behind, at the beginning of a
// period that is longer than the one before, does not move the units of that period into the
// one before.
func TestQuotaOfALongerPeriodIsGivenOutOnce(t *testing.T) {
	berlin, err := time.LoadLocation("Europe/Berlin")
	require.NoError(t, err)
	for _, test := range []struct {
		limit  ratelimit.Limit
		begins time.Time
	}{
		{ratelimit.Monthly(5, 1, time.UTC), time.Date(2027, 3, 1, 0, 0, 0, 0, time.UTC)},
		{ratelimit.Monthly(5, 1, time.UTC), time.Date(2027, 4, 1, 0, 0, 0, 0, time.UTC)},
		{ratelimit.Monthly(5, 31, time.UTC), time.Date(2027, 2, 28, 0, 0, 0, 0, time.UTC)},
		{ratelimit.Daily(5, berlin), time.Date(2027, 10, 31, 0, 0, 0, 0, berlin)},
		{ratelimit.Daily(5, berlin), time.Date(2027, 3, 29, 0, 0, 0, 0, berlin)},
		{ratelimit.Weekly(5, time.Monday, berlin), time.Date(2027, 10, 25, 0, 0, 0, 0, berlin)},
	} {
		var r storekit.Record
		take := func(after time.Duration) (n int) {
			for results := make([]ratelimit.Result, 1); ; n++ {
				r.Take(test.begins.Add(after), ratelimit.SharedRequest{Units: 1, Limits: []ratelimit.Limit{test.limit}}, results)
				if results[0].RetryAfter > 0 {
					return n
				}
			}
		}
		for i, want := range []int{5, 0, 0, 0, 0} {
			after := 20*time.Millisecond - time.Duration(i%2)*50*time.Millisecond
			require.Equal(t, want, take(after), "%v, %v after %v", test.limit, after, test.begins)
		}
	}
}
