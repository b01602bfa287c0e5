package redisstore

import (
	"context"
	"slices"
	"sync"

	"github.com/redis/go-redis/v9"
)

// This file makes as few commands as possible of the calls that share a round
// trip, in two steps. Writing and reading a command is in command.go.
//
// First, callers that take the same number of units of one key under the same
// limits form a group. A group is one take with a number of callers, which the
// script admits one after the other. A call of another kind for that key ends the
// group, so that calls for a key keep their order.
//
// Second, if all keys are on one server, the takes of different keys under the
// same limits become one command. Starting a script costs the server as much as a
// take does, and the client has to write and read less. In a Cluster that is so
// for the keys of one master, if Options.AcrossSlots is set: see across.go.

// A group has the callers of one take, or the one caller of an adjust or a
// reset.
type group struct {
	callers []*job
	shared  bool // the round trip has another group of this key, whose order against this one must stay
	newest  bool // answered has found the newest caller
	result
	err      error
	exchange *exchange
}

func (g *group) first() *call { return &g.callers[0].Value }

// accepts reports whether a call can join the group.
func (g *group) accepts(c *call) bool {
	f := g.first()
	return f.op == take && c.op == take && f.units == c.units && f.set == c.set && !f.upTo && !c.upTo && !f.alone() && !c.alone()
}

// cost and takers are the units per caller and the number of callers that the
// script gets. If a caller wants as many of n units as fit, the script gets n
// callers of one unit each, and admits as many of them as fit.
func (g *group) cost() int64 { return g.first().asked() }

func (g *group) takers() int64 {
	if f := g.first(); f.upTo {
		return f.units
	}
	return int64(len(g.callers))
}

// An exchange has the data of one round trip. It is reused, with its groups and
// commands and their memory. It belongs to the goroutine of the round trip until
// answered releases it.
type exchange struct {
	groups   []*group
	commands []*command
	last     map[string]*group // by key
}

var exchanges = sync.Pool{New: func() any { return &exchange{last: make(map[string]*group)} }}

// maxScriptKeys bounds how long one script blocks the server: about 60 µs, or
// 150 µs if the limit is not a fixed window. A fixed window may also seem to end
// later than it does, by up to this time.
const maxScriptKeys = 64

// send carries out the calls of a round trip and waits for the replies. The
// queue calls it, on a goroutine of its own or on the goroutine of the only
// caller.
func (s *Store) send(ctx context.Context, jobs []*job) {
	x := exchanges.Get().(*exchange)
	x.group(jobs)
	if len(jobs) > 1 && s.keysAreTogether() {
		x.plan(together, nil)
	} else {
		x.plan(apart, nil)
	}
	s.run(ctx, x.commands)
	if apart := s.splitCrossSlot(x); len(apart) > 0 {
		s.run(ctx, apart)
	}
	s.finish(x, jobs)
}

// finish reads the replies and hands them out.
func (s *Store) finish(x *exchange, jobs []*job) {
	for _, c := range x.commands {
		if len(c.groups) > 0 {
			s.read(c)
		}
	}
	x.handOut()
	if len(jobs) == 1 { // a lone call is the newest; answered skips it, if the queue calls it
		jobs[0].Value.newest, jobs[0].Value.group = true, nil
		x.release()
	}
}

// group divides calls into groups, in the order in which they came.
func (x *exchange) group(jobs []*job) {
	if len(jobs) == 1 {
		x.newGroup(jobs[0])
		return
	}
	var g *group
	for _, j := range jobs {
		c := &j.Value
		if g == nil || g.first().key != c.key { // if most calls are for one key, the map is rarely needed
			g = x.last[c.key]
		}
		if g != nil && g.accepts(c) {
			g.callers = append(g.callers, j)
			c.group = g
			continue
		}
		before := g
		g = x.newGroup(j)
		if before != nil {
			before.shared, g.shared = true, true
		}
		x.last[c.key] = g
	}
}

func (x *exchange) newGroup(j *job) *group {
	var g *group
	x.groups, g = grow(x.groups)
	g.exchange, g.callers = x, append(g.callers, j)
	j.Value.group = g
	return g
}

// A sharing says whether takes of different keys share commands.
type sharing uint8

const (
	apart    sharing = iota
	together         // all keys are on one server
	across           // all keys are of one master of a Cluster
)

// plan makes a command of each group, or of many takes if they share commands. Only
// takes under the same limits as the first one can share its command. Takes of slots
// that have moved lately share none.
func (x *exchange) plan(how sharing, moved *movedSlots) {
	var many *command
	for _, g := range x.groups {
		f := g.first()
		joins := how != apart && f.op == take && !f.alone() && !g.shared && (many == nil || many.set() == f.set) &&
			!moved.has(f.key)
		if joins && many != nil && len(many.groups) < maxScriptKeys {
			many.groups = append(many.groups, g)
			many.across = how == across
			continue
		}
		c := x.newCommand(g)
		if joins {
			many = c
		}
	}
}

func (x *exchange) newCommand(g *group) *command {
	var c *command
	x.commands, c = grow(x.commands)
	c.groups, c.across = append(c.groups, g), false
	return c
}

// splitCrossSlot handles commands that the server has refused because their keys
// are in different slots: the server has become part of a Cluster. It makes a
// command of each group of these. It returns the new commands, which it has also
// added to the exchange.
func (s *Store) splitCrossSlot(x *exchange) []*command {
	sent := len(x.commands)
	for _, c := range x.commands[:sent] {
		if len(c.groups) == 1 || !redis.HasErrorPrefix(c.cmd.Err(), "CROSSSLOT") {
			continue
		}
		s.topology.Store(severalServers)
		for _, g := range c.groups {
			x.newCommand(g)
		}
		c.groups = c.groups[:0]
	}
	return x.commands[sent:]
}

// handOut copies its group's result to each caller, because the group may be
// reused before its callers have read their results.
func (x *exchange) handOut() {
	for _, g := range x.groups {
		op, limits := g.first().op, len(g.first().set.rules)
		if op == reset || op == block {
			limits = 0
		}
		for i, j := range g.callers {
			c := &j.Value
			c.copyFrom(&g.result, op, limits)
			c.index, c.err, c.newest = int64(i), g.err, false
		}
	}
}

// answered marks the newest answer of each group, which belongs to the last
// caller that is still waiting. The queue calls it with the calls of a round trip
// whose callers have waited, before it wakes them. answered releases the
// exchange.
func answered(jobs []*job) {
	var x *exchange
	for _, j := range slices.Backward(jobs) {
		c := &j.Value
		if c.group == nil {
			continue // a lone call, or the client has panicked
		}
		if !c.group.newest {
			c.group.newest, c.newest = true, true
		}
		x, c.group = c.group.exchange, nil
	}
	if x != nil { // otherwise no caller has waited: leave the exchange to the garbage collector
		x.release()
	}
}

// release makes the exchange ready for another round trip.
func (x *exchange) release() {
	for _, g := range x.groups {
		clear(g.callers)
		g.callers, g.shared, g.newest, g.blocked, g.err = g.callers[:0], false, false, false, nil
	}
	for _, c := range x.commands {
		clear(c.groups)
		clear(c.args)
		c.groups, c.args, c.cmd, c.ints = c.groups[:0], c.args[:0], nil, redis.IntSliceCmd{}
	}
	clear(x.last)
	x.groups, x.commands = x.groups[:0], x.commands[:0]
	exchanges.Put(x)
}

// grow adds an element to s. It reuses the element that was at this place
// before, if there was one.
func grow[T any](s []*T) ([]*T, *T) {
	if len(s) == cap(s) {
		s = append(s, new(T))
	} else if s = s[:len(s)+1]; s[len(s)-1] == nil {
		s[len(s)-1] = new(T)
	}
	return s, s[len(s)-1]
}
