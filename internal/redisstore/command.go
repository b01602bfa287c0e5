package redisstore

import (
	"context"

	"github.com/redis/go-redis/v9"

	"github.com/ratelimit-go/ratelimit/internal/redisscript"
	"github.com/ratelimit-go/ratelimit/internal/rule"
)

// A command runs a script once, for one group, or for takes of several keys under
// the same limits. This file writes a command, sends it and reads its reply.
// Package redisscript has the format of arguments and replies.
type command struct {
	groups []*group
	args   []any // kept for the next round trip
	cmd    *redis.IntSliceCmd
}

var scripts = [...]redisscript.Script{
	take: redisscript.Take, adjust: redisscript.Adjust, block: redisscript.Block, reset: redisscript.Reset,
}

func (c *command) op() op         { return c.groups[0].first().op }
func (c *command) set() *limitSet { return c.groups[0].first().set }

// keys returns the names of the counters, group by group. The script's arguments
// follow them.
func (c *command) keys() []any { return c.args[3:] }

// build makes the command from its groups. limits are the arguments about its limits.
func (c *command) build(ctx context.Context, prefix string, limits []any) {
	set := c.set()
	c.args = append(c.args[:0], "evalsha", scripts[c.op()].Hash, len(c.groups)*len(set.suffixes))
	for _, g := range c.groups {
		c.addKeys(prefix, g.first().key, set)
	}
	c.args = append(c.args, limits...)
	switch f := c.groups[0].first(); f.op {
	case take:
		for i, g := range c.groups {
			c.args = redisscript.AppendTake(c.args, i, g.cost(), g.takers())
		}
		if f.alone() {
			c.args = redisscript.AppendOptions(c.args, f.upTo, f.pending)
		}
	case adjust:
		c.args = redisscript.AdjustArgs(c.args, f.units, f.at)
	case block:
		c.args = redisscript.BlockArgs(c.args, f.given)
	}
	c.cmd = redis.NewIntSliceCmd(ctx, c.args...)
}

// addKeys adds the names of a key's counters.
func (c *command) addKeys(prefix, key string, set *limitSet) {
	var buf [redisscript.MaxKey + 2*128]byte // plus a prefix and a suffix
	head := redisscript.AppendKey(buf[:0], prefix, key)
	for _, suffix := range set.suffixes {
		c.args = append(c.args, string(append(head, suffix...)))
	}
}

// once is a command that the client never sends a second time by itself, whatever
// its MaxRetries is: the first one may have been carried out. The client still
// follows MOVED and ASK, because a server that answers so has done nothing.
type once struct{ *redis.IntSliceCmd }

func (once) NoRetry() bool { return true }

// run sends commands in one round trip and waits for the replies. If the server
// does not know the script of some of them, for example after a restart, it sends
// these again in a second round trip. The second time they carry the text of the
// script, which the server then caches. If the clock of a server is further from this
// process's than a period of a calendar, it sends the commands again that are about
// calendars.
func (s *Store) run(ctx context.Context, commands []*command) {
	for _, c := range commands {
		c.build(ctx, s.prefix, c.set().argsNow())
	}
	s.execKnown(ctx, commands)
	var apart []*command
	for _, c := range commands {
		if err := c.cmd.Err(); err != nil {
			if now, ok := redisscript.Clock(err); ok {
				c.build(ctx, s.prefix, c.set().argsAt(now*1000).args)
				apart = append(apart, c)
			}
		}
	}
	if len(apart) > 0 {
		s.execKnown(ctx, apart)
	}
}

// execKnown is exec for scripts that a server may not know.
func (s *Store) execKnown(ctx context.Context, commands []*command) {
	s.exec(ctx, commands)
	var unknown []*command
	for _, c := range commands {
		if err := c.cmd.Err(); err != nil && redis.HasErrorPrefix(err, "NOSCRIPT") {
			c.args[0], c.args[1] = "eval", scripts[c.op()].Text
			c.cmd = redis.NewIntSliceCmd(ctx, c.args...)
			unknown = append(unknown, c)
		}
	}
	if len(unknown) > 0 {
		s.exec(ctx, unknown)
	}
}

// exec sends commands together and waits for the replies. In a Cluster the
// client sends each node its own part. Each command has its own error.
func (s *Store) exec(ctx context.Context, commands []*command) {
	if len(commands) == 1 {
		s.client.Process(ctx, once{commands[0].cmd})
		return
	}
	pipe := s.client.Pipeline()
	for _, c := range commands {
		pipe.Process(ctx, once{c.cmd})
	}
	pipe.Exec(ctx)
}

// read parses the reply and stores the results in the command's groups.
func (s *Store) read(c *command) {
	reply, err := c.cmd.Result()
	if err == nil {
		switch c.op() {
		case take:
			err = s.readTakes(c, reply)
		case adjust:
			g, limits := c.groups[0], len(c.set().rules)
			g.now, err = redisscript.ParseAdjust(reply, g.before[:limits], g.after[:limits])
		}
	}
	if err != nil {
		limits := len(c.set().rules)
		for i, g := range c.groups {
			g.err = s.explain(err, c.keys()[i*limits:])
		}
	}
	s.recordOutcome(err)
}

func (s *Store) readTakes(c *command, reply []int64) error {
	limits := c.set().micros
	takes, err := redisscript.ParseTakes(reply, len(c.groups), limits)
	if err != nil {
		return err
	}
	for i, g := range c.groups {
		g.now, g.admitted = takes.Now, g.takers()
		takes.States(i, g.before[:])
	}
	for i, b := range takes.Blocks() {
		g := c.groups[i]
		if !g.blocked {
			g.blocked, g.blocks, g.began = true, [rule.MaxLimits]rule.Block{}, 0
		}
		if g.blocks[b.Limit] = b.Block; b.Began {
			g.began |= 1 << b.Limit
		}
	}
	for i, admitted := range takes.Incomplete() {
		g := c.groups[i]
		if g.admitted = admitted; admitted < 0 { // -i: key i is not a counter
			g.err = s.notCounter(c.keys()[i*len(limits)-int(admitted)-1])
		}
	}
	return nil
}

// recordOutcome records how the last command has ended. err is nil if it has
// succeeded.
func (s *Store) recordOutcome(err error) {
	answered := err == nil || isReply(err)
	s.nodes.recordOutcome(s.client, answered)
	if answered != s.answering.Load() {
		s.answering.Store(answered)
	}
}
