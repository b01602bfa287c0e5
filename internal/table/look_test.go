package table

import (
	"testing"

	"github.com/ratelimit-go/ratelimit/internal/rule"
)

// looks are all calls for a blocked key that change none of its units. The key "k"
// of the zero owner has been refused under l, which has no unit left.
var looks = map[string]func(tab *timed, l rule.Limit){
	"nothing": func(tab *timed, l rule.Limit) {},
	"TakeOne of nothing": func(tab *timed, l rule.Limit) {
		tab.TakeOne("k", 0, &l)
	},
	"Take of nothing": func(tab *timed, l rule.Limit) {
		tab.Table.Take("k", 0, []rule.Limit{l}, make([]rule.Answer, 1), nil)
	},
	"Take of nothing under several limits": func(tab *timed, l rule.Limit) {
		tab.take("k", 0, l, fixed(9, minute), sliding(9, 2*hour))
	},
	"TakeAt of nothing": func(tab *timed, l rule.Limit) {
		tab.TakeAt(tab.Hash("k", Owner{}), 0, tab.clock.Load(), []rule.Limit{l}, make([]rule.Answer, 1), nil)
	},
	"TakeOne of more than can ever fit": func(tab *timed, l rule.Limit) {
		tab.TakeOne("k", l.Cap()+1, &l)
	},
	"Take of more than can ever fit": func(tab *timed, l rule.Limit) {
		tab.Table.Take("k", l.Cap()+1, []rule.Limit{l}, make([]rule.Answer, 1), nil)
	},
	"Take that another limit denies, too": func(tab *timed, l rule.Limit) {
		tab.take("k", 2, l, fixed(1, minute))
	},
	"Take that only another limit denies": func(tab *timed, l rule.Limit) {
		if l.Kind == rule.Bucket {
			l.Burst *= 9
		} else {
			l.N *= 9
		}
		tab.take("k", 2, l, fixed(1, minute))
	},
	"Adjust by nothing": func(tab *timed, l rule.Limit) {
		tab.Adjust("k", 0, tab.clock.Load(), []rule.Limit{l})
	},
	"a charge that there is no room for": func(tab *timed, l rule.Limit) {
		tab.Adjust("k", 1, tab.clock.Load(), []rule.Limit{l})
	},
	"a charge that there is room for only elsewhere": func(tab *timed, l rule.Limit) {
		tab.Adjust("k", 1, tab.clock.Load(), []rule.Limit{fixed(9, minute), l})
	},
	"a refund of units from long ago": func(tab *timed, l rule.Limit) {
		tab.Adjust("k", -3, 0, []rule.Limit{l})
	},
	"Denied": func(tab *timed, l rule.Limit) {
		tab.Denied(tab.Hash("k", Owner{}), 1, tab.clock.Load(), []rule.Limit{l}, make([]rule.Answer, 1))
	},
	"Denied for more than can ever fit": func(tab *timed, l rule.Limit) {
		tab.Denied(tab.Hash("k", Owner{}), l.Cap()+1, tab.clock.Load(), []rule.Limit{l}, make([]rule.Answer, 1))
	},
	"Learn from a look": func(tab *timed, l rule.Limit) {
		h, now := tab.Hash("k", Owner{}), tab.clock.Load()
		state, _ := tab.State(h, now, &l)
		tab.Learn(h, 0, now, []rule.Limit{l}, Learnt{States: []rule.State{state}})
	},
	"Learn of what may be older": func(tab *timed, l rule.Limit) {
		tab.Learn(tab.Hash("k", Owner{}), 0, tab.clock.Load(), []rule.Limit{l}, Learnt{States: []rule.State{{T: 10 * hour, A: 1}}, StatesOlder: true})
	},
	"a look by another owner": func(tab *timed, l rule.Limit) {
		tab.Learn(tab.Hash("k", NewOwner()), 0, tab.clock.Load(), []rule.Limit{l}, Learnt{States: []rule.State{{}}})
	},
}

// TestLookKeepsProtection: a call that changes no unit of a blocked key never lets a
// flood evict the key. The keys of the flood have no unit left either and are fresh
// later. So "k" stays only because it is marked as refused.
func TestLookKeepsProtection(t *testing.T) {
	for name, look := range looks {
		for kind, l := range hourly(3) {
			for _, most := range []int{200, 9000} {
				if most > 200 && (kind != "fixed" || raceDetector && name != "nothing" && name != "Take of nothing") {
					continue // several shards need not be tested with each
				}
				tab := newTimed(most).at(10 * hour)
				tab.take("k", 3, l)
				if tab.take("k", 1, l) {
					t.Fatal("a fourth unit was admitted")
				}
				look(tab.at(10*hour+second), l)
				flood(tab, 3*most, fixed(1, 10*hour))
				if !tab.holds("k", l) || tab.take("k", 1, l) {
					t.Errorf("%s, then a flood in a table of %d: the key blocked under %s is free again", name, most, kind)
				}
				checkInvariants(t, tab.Table)
			}
		}
	}
}

// TestLookWritesNothing: a call that changes no unit changes no bit of any slot, and
// uses no other slot. A charge is an exception, because it writes to a bucket.
func TestLookWritesNothing(t *testing.T) {
	for name, look := range looks {
		switch name {
		case "a charge that there is no room for", "a charge that there is room for only elsewhere",
			"a refund of units from long ago", "Take that only another limit denies":
			continue
		}
		for kind, l := range hourly(3) {
			tab := newTimed(100).at(10 * hour)
			tab.take("k", 3, l)
			tab.take("k", 1, l)
			before := contents(tab.Table)
			look(tab.at(10*hour+second), l)
			if after := contents(tab.Table); len(after) != len(before) || after[0] != before[0] {
				t.Errorf("%s: the slot under %s was %x and is %x", name, kind, before, after)
			}
		}
	}
}

// contents returns the used slots of a table of one shard.
func contents(tab *Table) (slots []slot) {
	for p := range places(tab.shards.of(0)) {
		if *p.id() != 0 {
			slots = append(slots, *p.slot())
		}
	}
	return slots
}

// TestProtectionEnds: a key that gets a unit is no longer protected as a blocked key,
// whichever call gives it the unit.
func TestProtectionEnds(t *testing.T) {
	for name, free := range map[string]func(tab *timed, l rule.Limit){
		"a refund":       func(tab *timed, l rule.Limit) { tab.Adjust("k", -1, tab.clock.Load(), []rule.Limit{l}) },
		"a higher limit": func(tab *timed, l rule.Limit) { l.N, l.Burst = 4*l.N, 4*l.Burst; tab.take("k", 1, l) },
		"Learn of more left": func(tab *timed, l rule.Limit) {
			tab.Learn(tab.Hash("k", Owner{}), 0, tab.clock.Load(), []rule.Limit{l}, Learnt{States: []rule.State{{T: 10 * hour, A: 2}}})
		},
	} {
		for kind, l := range hourly(3) {
			tab := newTimed(200).at(10 * hour)
			tab.take("k", 3, l)
			tab.take("k", 1, l)
			free(tab, l)
			if denied, _ := tab.Denied(tab.Hash("k", Owner{}), 3, tab.clock.Load(), []rule.Limit{l}, make([]rule.Answer, 1)); denied {
				t.Errorf("%s under %s: the key is still known to be denied", name, kind)
			}
			flood(tab, 600, fixed(1, 4*hour))
			if tab.holds("k", l) {
				t.Errorf("%s under %s: the flood has not pushed out a key that was not blocked", name, kind)
			}
		}
	}
}
