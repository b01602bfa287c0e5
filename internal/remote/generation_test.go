package remote

import "testing"

// TestLaterGenerationStaysTheOwner begins three generations in the wrong order, as two
// Reloads may that overlap.
func TestLaterGenerationStaysTheOwner(t *testing.T) {
	first := New(Options{Counts: new(Counts)})
	second, third := New(Options{Counts: new(Counts)}), New(Options{Counts: new(Counts)})
	second.TakeOver(first)
	third.TakeOver(second)
	first.Begin()
	third.Begin()
	second.Begin()
	if owner := first.owner.Load(); owner != third {
		t.Errorf("the owner is generation %d, want 2", owner.generation)
	}
	for i, r := range []*Remote{first, second, third} {
		if r.areLoopsStopped() != (i < 2) {
			t.Errorf("the loops of generation %d are stopped: %v", i, r.areLoopsStopped())
		}
		r.Close()
	}
}
