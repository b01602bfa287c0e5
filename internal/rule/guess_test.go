package rule_test

import (
	"testing"

	"github.com/ratelimit-go/ratelimit/internal/rule"
)

// smallStates calls f with every state of every small limit that a key can be in at 0.
func smallStates(kind rule.Kind, f func(l rule.Limit, s rule.State)) {
	for n := int64(1); n <= 5; n++ {
		for w := int64(1); w <= 9; w++ {
			switch kind {
			case rule.Bucket:
				for burst := int64(1); burst <= 4; burst++ {
					for a := range burst {
						for part := range w {
							f(bucket(n, w, burst), rule.State{A: a, B: part})
						}
					}
					f(bucket(n, w, burst), rule.State{A: burst})
				}
			case rule.Fixed:
				for used := range n + 1 {
					for elapsed := range w {
						f(fixed(n, w), rule.State{T: -elapsed, A: used})
					}
				}
			default:
				for newer := range n + 1 {
					for older := range n + 1 {
						for elapsed := range w {
							s, l := rule.State{T: -elapsed, A: newer, B: older}, sliding(n, w)
							if look(l, s, 0).Remaining+newer <= n { // otherwise there was no room for the newer ones
								f(l, s)
							}
						}
					}
				}
			}
		}
	}
}

// TestGuess: a guess has the same answer now as the real state. If nothing uses the key
// in the meantime, it leaves no more units at any later instant. It is exact for a fixed
// window. For a bucket it is as exact as Reset, which is in whole nanoseconds.
func TestGuess(t *testing.T) {
	for _, kind := range kinds {
		states := 0
		smallStates(kind, func(l rule.Limit, s rule.State) {
			states++
			real := look(l, s, 0)
			g := l.Guess(real, 0)
			guess := look(l, g, 0)
			if guess.Remaining != real.Remaining || guess.Reset < real.Reset || guess.More < real.More || g.T > 0 && !g.Fresh() {
				t.Fatalf("%+v: of %+v, which says %+v, the guess %+v says %+v", l, s, real, g, guess)
			}
			if kind != rule.Sliding && guess.Reset != real.Reset {
				t.Fatalf("%+v: %+v is whole after %d, the guess %+v after %d", l, s, real.Reset, g, guess.Reset)
			}
			for now := range 3*l.Window + 2*l.Burst*l.Window {
				real, guess := look(l, s, now), look(l, g, now)
				if guess.Remaining > real.Remaining {
					t.Fatalf("%+v: of %+v, at %d, the guess %+v has %d left, not %d", l, s, now, g, guess.Remaining, real.Remaining)
				}
				if kind == rule.Fixed && guess != real {
					t.Fatalf("%+v: of %+v, at %d, the guess %+v says %+v, not %+v", l, s, now, g, guess, real)
				}
				if kind == rule.Bucket && now > 0 && guess.Remaining < look(l, s, now-1).Remaining {
					t.Fatalf("%+v: of %+v, at %d, the guess %+v has %d left, which is late", l, s, now, g, guess.Remaining)
				}
			}
		})
		if states < 200 {
			t.Errorf("kind %d: only %d states", kind, states)
		}
	}
}

// TestGuessInUse tries every sequence of takes from every state. As long as the key is used by the
// guess, the real state would have admitted everything that the guess admits. That does not hold
// for sliding windows: the windows of a guess open at other times than the real ones.
func TestGuessInUse(t *testing.T) {
	type searchState struct {
		now         int64
		real, guess rule.State
	}
	for _, kind := range []rule.Kind{rule.Fixed, rule.Bucket} {
		smallStates(kind, func(l rule.Limit, s rule.State) {
			if l.N > 4 || l.Window > 6 {
				return
			}
			visited := map[searchState]bool{}
			for todo := []searchState{{0, s, l.Guess(look(l, s, 0), 0)}}; len(todo) > 0; {
				g := todo[len(todo)-1]
				todo = todo[:len(todo)-1]
				if visited[g] || g.now > 4*l.Window {
					continue
				}
				visited[g] = true
				todo = append(todo, searchState{g.now + 1, g.real, g.guess})
				guess, a := l.Take(g.guess, g.now, 1)
				if a.Retry > 0 {
					continue
				}
				real, a := l.Take(g.real, g.now, 1)
				if a.Retry > 0 {
					t.Fatalf("%+v: the guess for %+v admits a unit at %d that %+v does not: it is %+v", l, s, g.now, g.real, g.guess)
				}
				todo = append(todo, searchState{g.now, real, guess})
			}
		})
	}
}
