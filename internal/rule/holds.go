package rule

import "slices"

// This file has holds: units of an in-flight limit, each from the admission of a request
// until the request is over. Several processes may have holds of one key.
//
// A store keeps a record for each process that has some: how many have begun there, how
// many have ended, and until when the record counts. A process says both totals in each call,
// and the larger numbers stay. So no call that is lost, late or carried out twice leaves the
// count wrong for good: the next one puts it right. A process that was killed says nothing
// more, and its record ends by itself.
//
// A limit of the kind InFlight allows N holds. Its Window is how long a record counts after
// the last call of its process. The functions for a [State] are not for it.

// A Holding is what a call asks and learns about the holds of a key.
type Holding struct {
	Action HoldAction
	Most   int64 // how many there may be at the same time, of all processes
	Lasts  int64 // how long the record of the process counts after this call

	Process      string // names the record
	Began, Ended int64  // holds of this process, as far as it knows

	// Alone means that no other call of the process about the key is under way. Only then a
	// record without holds is deleted. Otherwise a call that began before these totals were
	// known could make the record again, with totals in which the same numbers are other holds.
	Alone bool

	Held Held // the answer
}

// HoldAction is what a call does about holds.
type HoldAction uint8

const (
	LookHolds  HoldAction = iota // changes nothing
	AddHold                      // begins one if there is room for it, and the units of the call fit
	RenewHolds                   // reports what has begun and ended, and that the process is alive
)

// Valid reports whether the call has the numbers of a limiter's call.
func (h *Holding) Valid() bool {
	return h.Action <= RenewHolds && h.Process != "" && 0 <= h.Ended && h.Ended <= h.Began && h.Began <= MaxUnits &&
		0 < h.Lasts && h.Lasts <= MaxSpan && 0 <= h.Most && h.Most <= MaxUnits
}

// Answer returns the answer of the in-flight limit, when h.Held is filled in.
func (h *Holding) Answer() Answer {
	held := &h.Held
	a := Answer{Remaining: max(0, h.Most-held.Others-(held.Began-held.Ended)), More: held.Soonest, Reset: held.Soonest}
	if held.Denied {
		a.Retry = max(1, a.More)
	}
	return a
}

// Held is what a store answers about the holds of a key. Spans are from the call on.
type Held struct {
	Began, Ended int64 // of the process, after the call
	Others       int64 // holds of other processes
	OthersLeft   int64 // until the last of their records ends
	Soonest      int64 // until the first of all records ends; 0 if there are no holds
	Denied       bool  // there is no room for the hold that was asked for
}

// Holds are the records of one key, in any order.
type Holds []HoldRecord

// A HoldRecord is what a store knows of one process's holds of a key.
type HoldRecord struct {
	Process      string
	Began, Ended int64
	Until        int64 // when it counts no longer
	Lasts        int64 // how long it counted from the last call on
}

func (r *HoldRecord) held() int64 { return r.Began - r.Ended }

// left returns how long the record counts from now on.
func (r *HoldRecord) left(now int64) int64 { return min(r.Until-now, r.Lasts) }

// own returns the record of the call's process with what the call knows, and the one that is
// stored: zero if it is missing or has ended.
func (hs Holds) own(h *Holding, now int64) (own, stored HoldRecord) {
	i := slices.IndexFunc(hs, func(r HoldRecord) bool { return r.Process == h.Process })
	if i >= 0 && hs[i].left(now) > 0 {
		stored = hs[i]
	}
	own = stored
	own.Process, own.Until = h.Process, now+stored.left(now)
	own.Began, own.Ended = max(own.Began, h.Began), max(own.Ended, h.Ended)
	own.Began = max(own.Began, own.Ended)
	return own, stored
}

// Room returns how many holds may begin: less than zero if there are too many, because the
// limit was lowered or processes were away from the store.
func (hs Holds) Room(h *Holding, now int64) int64 {
	own, _ := hs.own(h, now)
	room := h.Most - own.held()
	for i := range hs {
		if r := &hs[i]; r.Process != h.Process && r.left(now) > 0 {
			room -= r.held()
		}
	}
	return room
}

// Apply carries out a call in which a number of holds begin, and fills in h.Held. It returns
// the records, which are hs itself if nothing has changed. A call that adds no hold only
// writes what the store did not know. If the clock was set back, no record has more left than
// its process had been given: otherwise nobody would get the holds of a process that was killed.
func (hs Holds) Apply(h *Holding, now, begun int64) Holds {
	own, stored := hs.own(h, now)
	own.Began += begun
	if begun > 0 || h.Action == RenewHolds || stored.Lasts == 0 {
		left := h.Lasts
		if stored.Lasts > 0 {
			left = max(left, stored.left(now))
		}
		own.Until, own.Lasts = Lasting(left, now), left
	}
	after := hs
	ahead := func(r HoldRecord) bool { return r.Process != h.Process && r.Until-now > r.Lasts }
	exists := stored.Lasts > 0
	if h.Action != LookHolds && (own != stored && (own.held() > 0 || exists) || h.Alone && exists && own.held() == 0 || slices.ContainsFunc(hs, ahead)) {
		after = slices.DeleteFunc(slices.Clone(hs), func(r HoldRecord) bool { return r.Process == h.Process || r.left(now) <= 0 })
		for i := range after {
			after[i].Until = now + after[i].left(now)
		}
		if own.held() > 0 || exists && !h.Alone {
			after = append(after, own)
		}
	}
	h.Held = Held{Began: own.Began, Ended: own.Ended, Denied: h.Action == AddHold && begun == 0 && hs.Room(h, now) < 1}
	if own.held() > 0 {
		h.Held.Soonest = own.left(now)
	}
	for i := range hs {
		r := &hs[i]
		if r.Process == h.Process || r.left(now) <= 0 || r.held() == 0 {
			continue
		}
		h.Held.Others += r.held()
		h.Held.OthersLeft = max(h.Held.OthersLeft, r.left(now))
		if h.Held.Soonest == 0 || r.left(now) < h.Held.Soonest {
			h.Held.Soonest = r.left(now)
		}
	}
	return after
}
