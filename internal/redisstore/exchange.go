package redisstore

import (
	"context"
	"slices"
	"sync"

	"github.com/redis/go-redis/v9"
)

// This file makes as few commands as possible of the calls that share a round
// trip, in two steps.
//
// First, callers that take the same units of one key under the same limits form a
// group: one take with
// a number of callers, which the script admits one after the other. A call of
// another kind for that key ends the group, so that calls for a key keep their
// order.
//
// Second, where all keys are on one server, the takes of different keys under the
// same limits become one command: to run a script costs the server as much as a
// take does, and the client its arguments and its reply.

// A group is the callers of one take, or the one caller of an adjust or a reset.
type group struct {
	callers []*job
	shared  bool // the round trip has another group of this key, whose order against this one must stay
	newest  bool // answered has found the newest caller
	result
	err      error
	exchange *exchange
}

func (g *group) first() *call { return &g.callers[0].Value }

// accepts reports whether one command can serve a call beside the group's.
func (g *group) accepts(c *call) bool {
	f := g.first()
	return f.op == take && c.op == take && f.units == c.units && f.set == c.set && !f.upTo && !c.upTo
}

// cost and takers are the units of each caller and the number of callers that the
// script is given. A caller that wants as many units as fit is given as that many
// callers of one unit each: the script admits as many of them as fit.
func (g *group) cost() int64 { return g.first().asked() }

func (g *group) takers() int64 {
	if f := g.first(); f.upTo {
		return f.units
	}
	return int64(len(g.callers))
}

// An exchange is what one round trip works with. It is reused, with its groups and
// commands and all that they have allocated.
type exchange struct {
	groups   []*group
	commands []*command
	last     map[string]*group // by key
}

var exchanges = sync.Pool{New: func() any { return &exchange{last: make(map[string]*group)} }}

// maxScriptKeys bounds how long one script keeps the server from others: some
// 60 µs, and 150 µs where the limit is no fixed window. It is also by how much a
// fixed window may be taken to end late.
const maxScriptKeys = 64

// send carries out the calls of a round trip. The queue calls it, on a goroutine
// of its own or on the goroutine of the only caller.
func (s *Store) send(ctx context.Context, jobs []*job) {
	x := exchanges.Get().(*exchange)
	x.group(jobs)
	x.plan(len(jobs) > 1 && s.keysAreTogether())
	s.run(ctx, x.commands)
	if apart := s.splitCrossSlot(x); len(apart) > 0 {
		s.run(ctx, apart)
	}
	for _, c := range x.commands {
		if len(c.groups) > 0 {
			s.read(c)
		}
	}
	x.handOut()
	if len(jobs) == 1 { // a lone call is the newest; answered, if the queue calls it, skips it
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
		if g == nil || g.first().key != c.key { // if one key is in demand, the map is seldom needed
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

// plan makes a command of each group, or of many takes if the keys are together.
// Only takes under the same limits as the first one can be one command.
func (x *exchange) plan(together bool) {
	var many *command
	for _, g := range x.groups {
		joins := together && g.first().op == take && !g.shared && (many == nil || many.set() == g.first().set)
		if joins && many != nil && len(many.groups) < maxScriptKeys {
			many.groups = append(many.groups, g)
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
	c.groups = append(c.groups, g)
	return c
}

// splitCrossSlot makes a command of each group of those commands that the server
// has refused because their keys are in different slots: by now it is part of a
// Cluster. It returns the new commands, which are in the exchange, too.
func (s *Store) splitCrossSlot(x *exchange) []*command {
	sent := len(x.commands)
	for _, c := range x.commands[:sent] {
		if len(c.groups) == 1 || !redis.HasErrorPrefix(c.cmd.Err(), "CROSSSLOT") {
			continue
		}
		s.place.Store(placeSeveral)
		for _, g := range c.groups {
			x.newCommand(g)
		}
		c.groups = c.groups[:0]
	}
	return x.commands[sent:]
}

// handOut gives each caller a copy of its group's result. The group is used again
// before its callers have read theirs.
func (x *exchange) handOut() {
	for _, g := range x.groups {
		op, limits := g.first().op, len(g.first().set.rules)
		if op == reset {
			limits = 0
		}
		for i, j := range g.callers {
			c := &j.Value
			c.copyFrom(&g.result, op, limits)
			c.place, c.err, c.newest = int64(i), g.err, false
		}
	}
}

// answered finds the newest answer of each group: the last caller that is still
// waiting has it. The queue calls it with the calls of a round trip whose callers
// have waited, before it wakes them.
func answered(jobs []*job) {
	var x *exchange
	for _, j := range slices.Backward(jobs) {
		c := &j.Value
		if c.group == nil {
			continue // it was the only one of its round trip, or the client has panicked
		}
		if !c.group.newest {
			c.group.newest, c.newest = true, true
		}
		x, c.group = c.group.exchange, nil
	}
	if x != nil { // otherwise nobody has waited, and it goes to the garbage collector
		x.release()
	}
}

// release makes the exchange ready for another round trip.
func (x *exchange) release() {
	for _, g := range x.groups {
		clear(g.callers)
		g.callers, g.shared, g.newest, g.err = g.callers[:0], false, false, nil
	}
	for _, c := range x.commands {
		clear(c.groups)
		clear(c.args)
		c.groups, c.args, c.cmd = c.groups[:0], c.args[:0], nil
	}
	clear(x.last)
	x.groups, x.commands = x.groups[:0], x.commands[:0]
	exchanges.Put(x)
}

// grow adds an element to s: the one that was there before, if there was one.
func grow[T any](s []*T) ([]*T, *T) {
	if len(s) == cap(s) {
		s = append(s, new(T))
	} else if s = s[:len(s)+1]; s[len(s)-1] == nil {
		s[len(s)-1] = new(T)
	}
	return s, s[len(s)-1]
}
