package rule_test

import (
	"testing"

	"github.com/ratelimit-go/ratelimit/internal/rule"
)

// TestFirstUnitDecidesTheEnd: two processes whose tz databases differ disagree by 60 about
// the end of a period. The units of both are in the period that the first unit has opened.
func TestFirstUnitDecidesTheEnd(t *testing.T) {
	one := rule.Limit{Kind: rule.Calendar, Number: 7, N: 5, Window: 1000, Burst: 1000}
	other := one
	other.Burst = 1060
	for _, order := range [][2]rule.Limit{{one, other}, {other, one}} {
		end := order[0].End()
		s, _ := order[0].Take(rule.State{}, 500, 3)
		s, a := order[1].Take(s, 600, 2)
		if want := (rule.Answer{More: end - 600, Reset: end - 600}); a != want {
			t.Fatalf("%+v, want %+v", a, want)
		}
		for _, l := range order {
			if _, a := l.Take(s, 700, 1); a.Retry != end-700 {
				t.Fatalf("%+v: %+v, want a wait until %d", l, a, end)
			}
		}
	}
}
