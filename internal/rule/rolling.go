package rule

import "slices"

// This file has rolling windows. A rolling window keeps the instant of each unit, so
// it is exact: a unit of the instant t counts until t+Window, exclusive, and at most N
// units count at any instant. Therefore no interval as long as the window has more
// than N units. The price is 8 bytes for each unit that counts.

// MaxRolling is the largest N of a [Rolling] limit. It bounds how much memory one key
// takes, and how many units are moved if a charge of the past is put in order.
const MaxRolling = 1000

// A Log is what a store keeps of one key under a [Rolling] limit: the instants of its
// units, in order. Some of the oldest units may have left the window; they stay in the
// log until the next unit is counted or given back. The zero Log has no units.
//
// A Log does not depend on N, so N can change under it. If N was lowered below what the
// log holds, the units stay and leave by themselves.
//
// Two copies of a Log share its Ring, so only one of them may be changed.
type Log struct {
	T    int64 // the instant of the youngest unit
	N    int64 // how many units there are
	Ring *Ring // their instants, or nil if all of them are of the instant T
}

// Ring has the instants of a [Log] whose units are of at least two instants.
type Ring struct {
	at    []int64 // the oldest unit is at[first]; the others follow it, also past the end
	first uint16
}

// Cap returns how many instants the ring has memory for. A nil Ring has none.
func (r *Ring) Cap() int {
	if r == nil {
		return 0
	}
	return len(r.at)
}

// LogOf returns a log with these instants, which must be in order and at most
// [MaxRolling]. It does not keep the slice.
func LogOf(instants []int64) (g Log) {
	n := len(instants)
	if n == 0 {
		return g
	}
	g = Log{T: instants[n-1], N: int64(n)}
	if instants[0] != g.T {
		g.Ring = &Ring{at: room(int64(n))}
		copy(g.Ring.at, instants)
	}
	return g
}

// Clone returns a copy that shares nothing with g.
func (g *Log) Clone() Log { return g.Map(func(instant int64) int64 { return instant }) }

// Map returns a log with an instant for each instant of g: what move returns for it. move
// must keep their order. The result shares nothing with g.
func (g *Log) Map(move func(instant int64) int64) Log {
	if g.Ring == nil {
		if g.N == 0 {
			return Log{}
		}
		return Log{T: move(g.T), N: g.N}
	}
	moved := Log{N: g.N, Ring: &Ring{at: room(g.N)}}
	for i := range g.N {
		moved.Ring.at[i] = move(g.unit(i))
	}
	moved.T = moved.unit(g.N - 1)
	moved.tidy()
	return moved
}

// AppendTo appends the instants of all units in the log, from the oldest to the youngest.
func (g *Log) AppendTo(instants []int64) []int64 {
	if g.Ring == nil {
		for range g.N {
			instants = append(instants, g.T)
		}
		return instants
	}
	instants = slices.Grow(instants, int(g.N))
	oldest := g.Ring.at[g.Ring.first:]
	oldest = oldest[:min(len(oldest), int(g.N))]
	return append(append(instants, oldest...), g.Ring.at[:int(g.N)-len(oldest)]...)
}

// Ask returns the answer for n >= 0 units at now. If they fit, it is the answer after
// they have been counted, and [Limit.Count] counts them. Ask changes nothing.
//
// The units leave in the order of their instants. So the units asked for fit when enough
// of the oldest ones have left. Which unit is the last of these follows from its number.
// Only units that have left and are still in the log are searched for, by halves.
func (l *Limit) Ask(g *Log, now, n int64) Answer {
	latest := l.latest(g, now)
	left := func(i int64) int64 { // until the i-th of the units leaves
		return min(g.unit(i), latest) + l.Window - now
	}
	gone := l.gone(g, now)
	counts := g.N - gone
	a := Answer{Remaining: max(0, l.N-counts)}
	switch {
	case n > l.N:
		a.Retry = Never
	case n > a.Remaining:
		a.Retry = left(gone + counts + n - l.N - 1)
	case n > 0:
		// The units asked for are the youngest, unless the clock was ahead before.
		a.Remaining -= n
		a.More, a.Reset = l.Window, l.Window
		if counts > 0 {
			a.More, a.Reset = min(a.More, left(gone)), max(a.Reset, left(g.N-1))
		}
		return a
	}
	if counts > 0 {
		// If N was lowered, the units above it leave before one more fits.
		a.More, a.Reset = left(gone+max(0, counts-l.N)), left(g.N-1)
	}
	return a
}

// Count counts n > 0 units at now, for which there must be room. It removes the units
// that have left.
func (l *Limit) Count(g *Log, now, n int64) {
	l.bring(g, now)
	g.insert(now, n)
}

// AdjustLog is [Limit.Adjust] for a rolling window. It charges or gives back units that
// were taken at the instant at, and returns how many it has charged or removed. oldest is
// the instant of the oldest of them.
//
// A charge counts from its instant, in order. There is only room for N units, and none
// for an instant that has left the window. If at is in the future, the charge counts
// from now.
//
// A refund removes units of the instant at, and none of another instant. So units that
// have left are not given back a second time. If at is in the future and no unit is of
// that instant, it means now, and the refund removes the youngest units. The present
// itself is an instant: the units that were taken just now.
func (l *Limit) AdjustLog(g *Log, now, n, at int64) (moved, oldest int64) {
	if n == 0 {
		return 0, 0
	}
	l.bring(g, now)
	at = max(0, at)
	if n > 0 {
		at = min(at, now)
		if at <= now-l.Window {
			return 0, 0
		}
		n = min(n, max(0, min(l.N, MaxRolling)-g.N))
		if n > 0 {
			g.insert(at, n)
		}
		return n, at
	}
	from, to := g.since(at), g.N
	if at < g.T {
		to = g.since(at + 1)
	}
	if from == to && at > now {
		from, to = 0, g.N
	}
	if n = min(-max(n, -MaxUnits), to-from); n > 0 {
		oldest = g.unit(to - n)
		g.remove(to-n, n)
	}
	return n, oldest
}

// Repairs reports whether the youngest unit is more than a window ahead of the clock, so
// that a call must move the log back; see [Limit.Take] for why.
func (l *Limit) Repairs(g *Log, now int64) bool { return g.N > 0 && g.T > now && g.T-now > l.Window }

// Repair moves the units that are ahead of the clock to now, if [Limit.Repairs]. Units
// that are not ahead keep their instants. So a repair frees no unit, and after one window
// at most all of them have left.
func (l *Limit) Repair(g *Log, now int64) {
	if !l.Repairs(g, now) {
		return
	}
	g.T = now
	if g.Ring != nil {
		for i := g.N - 1; i >= 0 && g.unit(i) > now; i-- {
			g.Ring.at[g.index(i)] = now
		}
		g.tidy()
	}
}

// LogDeniesWithout is [Limit.DeniesWithout] for a rolling window. Pending units may have
// been recorded together, with the last of their instants, so each of them counts as
// given back for as long as a unit of that instant counts.
func (l *Limit) LogDeniesWithout(pending []Pending, g *Log, now, n int64) bool {
	counts := g.N - l.gone(g, now)
	for _, p := range pending {
		if p.At > now-l.Window {
			counts -= max(0, min(p.Units, counts))
		}
	}
	return n > l.N-counts
}

// bring moves the log to now: it repairs it, and removes the units that have left.
func (l *Limit) bring(g *Log, now int64) {
	l.Repair(g, now)
	if gone := l.gone(g, now); gone > 0 {
		g.remove(0, gone)
	}
}

// latest returns the latest instant that a unit counts from. It is now if the log has to
// be repaired first, because a repair puts later units there.
func (l *Limit) latest(g *Log, now int64) int64 {
	if l.Repairs(g, now) {
		return now
	}
	return Never
}

// gone returns how many of the oldest units have left the window.
func (l *Limit) gone(g *Log, now int64) int64 {
	since := now - l.Window + 1 // the oldest instant that counts
	switch {
	case g.N == 0 || g.unit(0) >= since:
		return 0
	case g.T < since:
		return g.N
	}
	return g.since(since)
}

// since returns how many units are older than an instant. So it is the number of the first
// unit that is not.
func (g *Log) since(instant int64) int64 {
	older, not := int64(0), g.N // units below the first are older, and from the second on they are not
	for older < not {
		if middle := (older + not) / 2; g.unit(middle) < instant {
			older = middle + 1
		} else {
			not = middle
		}
	}
	return older
}

// unit returns the instant of a unit, by its number from the oldest on.
func (g *Log) unit(i int64) int64 {
	if g.Ring == nil {
		return g.T
	}
	return g.Ring.at[g.index(i)]
}

// index returns where in the ring a unit is.
func (g *Log) index(i int64) int {
	at := int(g.Ring.first) + int(i)
	if at >= len(g.Ring.at) {
		at -= len(g.Ring.at)
	}
	return at
}

// insert adds n > 0 units of an instant, in order.
func (g *Log) insert(instant, n int64) {
	switch {
	case g.N == 0:
		*g = Log{T: instant, N: n}
		return
	case g.Ring == nil && instant == g.T:
		g.N += n
		return
	case g.Ring == nil:
		g.Ring = &Ring{at: room(g.N + n)}
		for i := range g.N {
			g.Ring.at[i] = g.T
		}
	case int(g.N+n) > len(g.Ring.at):
		g.resize(g.N + n)
	}
	before := g.N
	if instant < g.T {
		before = g.since(instant + 1)
	}
	for i := g.N - 1; i >= before; i-- { // the younger units; usually there are few
		g.Ring.at[g.index(i+n)] = g.Ring.at[g.index(i)]
	}
	for i := range n {
		g.Ring.at[g.index(before+i)] = instant
	}
	g.N += n
	g.T = max(g.T, instant)
}

// remove removes n units, beginning with the unit of a number.
func (g *Log) remove(from, n int64) {
	switch {
	case n == 0:
		return
	case n == g.N:
		*g = Log{}
		return
	case g.Ring == nil:
		g.N -= n
		return
	case from == 0:
		g.Ring.first = uint16(g.index(n))
	default:
		for i := from; i+n < g.N; i++ {
			g.Ring.at[g.index(i)] = g.Ring.at[g.index(i+n)]
		}
	}
	g.N -= n
	g.T = g.unit(g.N - 1)
	g.tidy()
}

// tidy gives back memory that the log does not need: all of it if its units are of one
// instant, and half of it if no more than half is used.
func (g *Log) tidy() {
	const small = 16
	if g.unit(0) == g.T {
		g.Ring = nil
	} else if n := len(g.Ring.at); n > small && g.N <= int64(n/2) {
		g.resize(g.N)
	}
}

// resize moves the ring to memory for n units.
func (g *Log) resize(n int64) {
	moved := room(n)
	for i := range g.N {
		moved[i] = g.unit(i)
	}
	g.Ring.at, g.Ring.first = moved, 0
}

// room returns memory for at least n instants: as many as fit into the next size in which
// memory is allocated. That is at most a fifth more, so a log that grows by steps wastes
// little, and it is copied some 40 times on its way to [MaxRolling].
func room(n int64) []int64 {
	s := slices.Grow([]int64(nil), int(n))
	return s[:cap(s)]
}
