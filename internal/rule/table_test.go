package rule_test

import (
	"testing"

	"github.com/ratelimit-go/ratelimit/internal/rule"
)

type takes = [][2]int64 // {instant, units}

func answer(remaining, retry, more, reset int64) rule.Answer {
	return rule.Answer{Remaining: remaining, Retry: retry, More: more, Reset: reset}
}

// TestTake checks complete answers. The rows under one limit are one history.
func TestTake(t *testing.T) {
	var (
		login  = fixed(3, hour)
		api    = sliding(10, minute)
		dense  = sliding(10, 4) // more units than nanoseconds
		thirds = bucket(3, second, 3)
		steady = bucket(10, second, 20)
		torn   = bucket(10, 4, 10)
		wild   = bucket(rule.MaxUnits, ms, 5) // leaks 2^63 units in less than ten seconds
		never  = int64(rule.Never)
	)
	for _, row := range []struct {
		name string
		l    rule.Limit
		past takes
		now  int64
		n    int64
		want rule.Answer // Remaining, Retry, More, Reset
	}{
		{"fixed: fresh", login, nil, 0, 0, answer(3, 0, 0, 0)},
		{"fixed: first unit opens the window", login, nil, 5 * hour, 1, answer(2, 0, hour, hour)},
		{"fixed: all at once", login, nil, 0, 3, answer(0, 0, hour, hour)},
		{"fixed: last unit", login, takes{{0, 1}, {20 * minute, 1}}, 30 * minute, 1, answer(0, 0, 30*minute, 30*minute)},
		{"fixed: full", login, takes{{0, 3}}, 59 * minute, 1, answer(0, minute, minute, minute)},
		{"fixed: full in its last instant", login, takes{{0, 3}}, hour - 1, 1, answer(0, 1, 1, 1)},
		{"fixed: the next window", login, takes{{0, 3}}, hour, 1, answer(2, 0, hour, hour)},
		{"fixed: the next window opens late", login, takes{{0, 3}}, hour + 7, 2, answer(1, 0, hour, hour)},
		{"fixed: two do not fit where one does", login, takes{{0, 2}}, 10 * minute, 2, answer(1, 50*minute, 50*minute, 50*minute)},
		{"fixed: never", login, nil, 0, 4, answer(3, never, 0, 0)},
		{"fixed: never, in use", login, takes{{0, 1}}, minute, never, answer(2, never, 59*minute, 59*minute)},

		{"sliding: fresh", api, nil, 0, 0, answer(10, 0, 0, 0)},
		{"sliding: one unit weighs until it is the older half", api, nil, 0, 1, answer(9, 0, minute+1, minute+1)},
		{"sliding: all at once", api, takes{{0, 10}}, 0, 0, answer(0, 0, minute+1, 114*second+1)},
		{"sliding: the older half weighs all", api, takes{{0, 10}}, minute, 1, answer(0, 1, 1, 54*second+1)},
		{"sliding: and a unit less 1 ns later", api, takes{{0, 10}}, minute + 1, 1, answer(0, 0, 6*second, minute)},
		{"sliding: 3/4 of it", api, takes{{0, 10}}, 75 * second, 0, answer(3, 0, 3*second+1, 39*second+1)},
		{"sliding: 3/4, three fit", api, takes{{0, 10}}, 75 * second, 3, answer(0, 0, 3*second+1, 85*second+1)},
		{"sliding: 3/4, four do not", api, takes{{0, 10}}, 75 * second, 4, answer(3, 3*second+1, 3*second+1, 39*second+1)},
		{"sliding: 1/2 of it", api, takes{{0, 10}}, 90 * second, 0, answer(5, 0, 1, 24*second+1)},
		{"sliding: 1/10 of it", api, takes{{0, 10}}, 114 * second, 10, answer(9, 1, 1, 1)},
		{"sliding: below one unit it opens afresh", api, takes{{0, 10}}, 114*second + 1, 10, answer(0, 0, minute+1, 114*second+1)},
		{"sliding: never", api, takes{{0, 10}}, 90 * second, 11, answer(5, never, 1, 24*second+1)},
		{"sliding: dense", dense, takes{{0, 10}}, 5, 0, answer(3, 0, 1, 3)},
		{"sliding: dense, last instant", dense, takes{{0, 10}}, 7, 9, answer(8, 1, 1, 1)},

		{"bucket: fresh", thirds, nil, 0, 0, answer(3, 0, 0, 0)},
		{"bucket: all at once", thirds, nil, 0, 3, answer(0, 0, 333_333_334, second)},
		{"bucket: a third of a second less a bit", thirds, takes{{0, 3}}, 333_333_333, 1, answer(0, 1, 1, 666_666_667)},
		{"bucket: a third of a second", thirds, takes{{0, 3}}, 333_333_334, 1, answer(0, 0, 333_333_333, second)},
		{"bucket: two thirds", thirds, takes{{0, 3}}, 666_666_667, 2, answer(0, 0, 333_333_333, second)},
		{"bucket: all again", thirds, takes{{0, 3}}, second, 3, answer(0, 0, 333_333_334, second)},
		{"bucket: never", thirds, takes{{0, 1}}, 0, 4, answer(2, never, 333_333_334, 333_333_334)},
		{"bucket: burst above the rate", steady, nil, 0, 20, answer(0, 0, 100*ms, 2*second)},
		{"bucket: half a unit", steady, takes{{0, 20}}, 50 * ms, 0, answer(0, 0, 50*ms, 1950*ms)},
		{"bucket: two where one fits", steady, takes{{0, 20}}, 150 * ms, 2, answer(1, 50*ms, 50*ms, 1850*ms)},
		{"bucket: all of them again", steady, takes{{0, 20}}, 150 * ms, 20, answer(1, 1850*ms, 50*ms, 1850*ms)},
		{"bucket: units per nanosecond", torn, takes{{0, 10}}, 1, 3, answer(2, 1, 1, 3)},
		{"bucket: units per nanosecond, whole", torn, takes{{0, 10}}, 4, 0, answer(10, 0, 0, 0)},
		{"bucket: more leaked than an int64 holds", wild, takes{{0, 5}}, 10 * second, 0, answer(5, 0, 0, 0)},
		{"bucket: more leaked than 64 bits hold", wild, takes{{0, 5}}, 20 * second, 0, answer(5, 0, 0, 0)},

		{"clock behind: fixed stands still", login, takes{{hour, 1}}, 50 * minute, 3, answer(2, 70*minute, 70*minute, 70*minute)},
		{"clock behind: sliding stands still", api, takes{{minute, 10}}, 50 * second, 1, answer(0, 70*second+1, 70*second+1, 124*second+1)},
		{"clock behind: bucket stands still", steady, takes{{second, 20}}, 900 * ms, 1, answer(0, 200*ms, 200*ms, 2100*ms)},
	} {
		t.Run(row.name, func(t *testing.T) {
			s := after(row.l, row.past)
			next, got := row.l.Take(s, row.now, row.n)
			if got != row.want {
				t.Errorf("Take(%+v, %d, %d)\n got %+v\nwant %+v", s, row.now, row.n, got, row.want)
			}
			if got.Retry > 0 && next != s {
				t.Errorf("denied, yet %+v became %+v", s, next)
			}
		})
	}
}

// TestNewLimit changes N and Burst of an existing counter.
func TestNewLimit(t *testing.T) {
	for _, row := range []struct {
		name     string
		old, now rule.Limit
		past     takes
		at, n    int64
		want     rule.Answer
	}{
		{"fixed: raised", fixed(3, hour), fixed(5, hour), takes{{0, 3}}, 30 * minute, 1, answer(1, 0, 30*minute, 30*minute)},
		{"fixed: lowered", fixed(5, hour), fixed(4, hour), takes{{0, 3}}, 30 * minute, 1, answer(0, 0, 30*minute, 30*minute)},
		{"fixed: lowered below the count", fixed(5, hour), fixed(2, hour), takes{{0, 4}}, 30 * minute, 1, answer(0, 30*minute, 30*minute, 30*minute)},
		{"sliding: raised", sliding(10, minute), sliding(20, minute), takes{{0, 10}}, 75 * second, 0, answer(13, 0, 3*second+1, 39*second+1)},
		{"sliding: lowered", sliding(10, minute), sliding(8, minute), takes{{0, 10}}, 75 * second, 1, answer(0, 0, 3*second+1, 45*second+1)},
		{"sliding: lowered below the older half", sliding(10, minute), sliding(4, minute), takes{{0, 10}}, 75 * second, 1, answer(0, 21*second+1, 21*second+1, 39*second+1)},
		{"sliding: lowered below this half", sliding(10, minute), sliding(4, minute), takes{{0, 10}}, 0, 1, answer(0, 96*second+1, 96*second+1, 114*second+1)},
		{"bucket: burst raised", bucket(10, second, 20), bucket(10, second, 30), takes{{0, 20}}, 0, 1, answer(9, 0, 100*ms, 2100*ms)},
		{"bucket: burst lowered", bucket(10, second, 20), bucket(10, second, 15), takes{{0, 10}}, 0, 1, answer(4, 0, 100*ms, 1100*ms)},
		{"bucket: burst lowered below the level", bucket(10, second, 20), bucket(10, second, 5), takes{{0, 20}}, 0, 1, answer(0, 1600*ms, 1600*ms, 2*second)},
		{"bucket: rate raised", bucket(10, second, 20), bucket(20, second, 20), takes{{0, 20}}, 0, 1, answer(0, 50*ms, 50*ms, second)},
		{"bucket: rate lowered", bucket(10, second, 20), bucket(5, second, 20), takes{{0, 20}}, 0, 1, answer(0, 200*ms, 200*ms, 4*second)},
	} {
		t.Run(row.name, func(t *testing.T) {
			if _, got := row.now.Take(after(row.old, row.past), row.at, row.n); got != row.want {
				t.Errorf("\n got %+v\nwant %+v", got, row.want)
			}
		})
	}
}

// TestNewRateHoldsFromTheLastUnitOn: a state does not record the rate that it was
// filled under. So a new rate applies to the whole refill since the key's last
// unit. The key gains or loses one bucket at most.
func TestNewRateHoldsFromTheLastUnitOn(t *testing.T) {
	slow, fast := bucket(1, hour, 10), bucket(1000, hour, 10)
	s := after(slow, takes{{0, 10}})
	if at0, later := look(fast, s, 0).Remaining, look(fast, s, 30*minute).Remaining; at0 != 0 || later != 10 {
		t.Errorf("10 units at 1/1h: under 1000/1h %d left at once and %d half an hour later; want 0 and 10", at0, later)
	}
	s = after(fast, takes{{0, 10}})
	if at0, later := look(slow, s, 0).Remaining, look(slow, s, 30*minute).Remaining; at0 != 0 || later != 0 {
		t.Errorf("10 units at 1000/1h: under 1/1h %d left at once and %d half an hour later; want 0 and 0", at0, later)
	}
}

// TestBucketDoesNotDrift takes one unit at a time, each at the first instant it
// fits. An interval that is not whole nanoseconds must not add up to an error:
// after a burst of Burst units, unit k is admitted at exactly ceil(k*Window/N).
// (The bucket must not run empty in between: then it loses what it rounds up,
// which is unavoidable, because two units of a Burst of 1 are never less than
// Window/N apart.)
func TestBucketDoesNotDrift(t *testing.T) {
	for _, l := range []rule.Limit{
		bucket(3, second, 3), bucket(3, second, 2), bucket(7, second, 2), bucket(999_999_937, second, 5),
		bucket(10, 3, 4), bucket(7, 7, 7), bucket(1, 13, 1), bucket(1_000_003, hour, 50),
	} {
		s, _ := l.Take(rule.State{}, 0, l.Burst)
		now := int64(0)
		for k := int64(1); k <= 100_000; k++ {
			_, denied := l.Take(s, now, 1)
			now += denied.Retry
			var a rule.Answer
			if s, a = l.Take(s, now, 1); a.Retry != 0 {
				t.Fatalf("%+v: unit %d was to come at %d, and waits %d more", l, k, now, a.Retry)
			}
			if want := (k*l.Window + l.N - 1) / l.N; now != want {
				t.Fatalf("%+v: unit %d comes at %d, want %d", l, k, now, want)
			}
		}
	}
}

// TestBucketOfOne: without a burst two units are ceil(Window/N) apart, always.
func TestBucketOfOne(t *testing.T) {
	l := bucket(3, second, 1)
	var s rule.State
	for k := range int64(1000) {
		var a rule.Answer
		if s, a = l.Take(s, k*333_333_334, 1); a != (answer(0, 0, 333_333_334, 333_333_334)) {
			t.Fatalf("unit %d: %+v", k, a)
		}
	}
}

// TestWaitBeyondInt64Saturates: the wait for a bucket filled under a far larger
// limit can be any number of years. Here it is 2^63 ns. The quotient of the
// division behind it is 2^64-1 with a remainder, and rounding it up must not
// wrap to 0.
func TestWaitBeyondInt64Saturates(t *testing.T) {
	const w = 1 << 60
	big, small := bucket(241, w, 33), bucket(2, w, 1)
	now := int64((w + 1) / 241)               // after it, exactly w+1 parts of w have leaked
	s := after(big, takes{{0, 32}, {now, 1}}) // 32 units less a w-th of one
	if _, a := small.Take(s, now, 1); a.Remaining != 0 || a.Retry < 1<<61 || a.More < 1<<61 || a.Reset < a.More {
		t.Errorf("Take(%+v, %d, 1) = %+v, want a wait of many years", s, now, a)
	}
}

// TestRefill: a bucket that was filled at once is whole again after Refill.
func TestRefill(t *testing.T) {
	r := newRand(t)
	for range 6000 {
		l := randomLimit(r, rule.Bucket)
		if _, a := l.Take(rule.State{}, 0, l.Burst); a.Reset != l.Refill() {
			t.Fatalf("%+v: whole again after %d, Refill says %d", l, a.Reset, l.Refill())
		}
	}
}

// TestRefillBeyondInt64Saturates: limits are validated by their Refill. So it
// must not wrap to 0 if it is 2^64-1 ns and a remainder, which is 584 years.
func TestRefillBeyondInt64Saturates(t *testing.T) {
	for _, l := range []rule.Limit{bucket(3, 177_942_868_878_227_186, 311), bucket(7, 74_510_795_450_644_467, 1733)} {
		if got := l.Refill(); got <= rule.MaxSpan {
			t.Errorf("%+v: Refill is %d, want more than 50 years", l, got)
		}
	}
}
