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
	across bool        // the keys are of different slots: see across.go
	cmd    redis.Cmder // a once, or a onceMixed if the set has rolling windows

	// The memory of these is kept for the next round trip. So a hook of the client
	// must not keep a command after it has returned.
	args  []any
	ints  redis.IntSliceCmd // of a once
	names []byte            // of the counters, one after the other
	ends  []int             // where each name ends
}

var scripts = [...]redisscript.Script{
	take: redisscript.Take, adjust: redisscript.Adjust, block: redisscript.Block, reset: redisscript.Reset,
	takeHold: redisscript.TakeHold, hold: redisscript.Hold,
}

func (c *command) op() op         { return c.groups[0].first().op }
func (c *command) set() *limitSet { return c.groups[0].first().set }

// keys returns the names of the counters, group by group. The script's arguments
// follow them.
func (c *command) keys() []any {
	if c.across {
		return c.args[acrossKeys:]
	}
	return c.args[3:]
}

// script returns the script that the command runs.
func (c *command) script() *redisscript.Script {
	if c.across {
		return &redisscript.TakeAcross
	}
	return &scripts[c.op()]
}

// build makes the command from its groups. limits are the arguments about its limits.
func (c *command) build(ctx context.Context, prefix string, limits []any) {
	set := c.set()
	keys := len(c.groups) * len(set.suffixes)
	c.args = append(c.args[:0], "evalsha", c.script().Hash, keys)
	if c.across {
		c.args[2] = 0
		c.args = append(c.args, keys)
	}
	c.addKeys(prefix, set.suffixes)
	f := c.groups[0].first()
	withHold := f.op == takeHold || f.op == hold
	if withHold {
		c.args[2] = len(set.suffixes) + 1
		c.args = append(c.args, string(append(redisscript.AppendKey(nil, prefix, f.key), holdSuffix...)))
	}
	c.args = append(c.args, limits...)
	switch f.op {
	case take, takeHold:
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
	if withHold {
		c.args = redisscript.HoldArgs(c.args, &f.holding)
	}
	c.cmd = c.newCmd(ctx)
}

// holdSuffix ends the name of the hash with the holds of a key.
const holdSuffix = "inflight"

// addKeys adds the names of the counters. They are parts of one string, because that is
// one allocation for all of them.
func (c *command) addKeys(prefix string, suffixes []string) {
	c.names, c.ends = c.names[:0], c.ends[:0]
	for _, g := range c.groups {
		begin := len(c.names)
		c.names = redisscript.AppendKey(c.names, prefix, g.first().key)
		head := c.names[begin:]
		for i, suffix := range suffixes {
			if i > 0 {
				c.names = append(c.names, head...)
			}
			c.names = append(c.names, suffix...)
			c.ends = append(c.ends, len(c.names))
		}
	}
	names, begin := string(c.names), 0
	for _, end := range c.ends {
		c.args = append(c.args, names[begin:end])
		begin = end
	}
}

// once is a command that the client never sends a second time by itself, whatever
// its MaxRetries is: the first one may have been carried out. The client still
// follows MOVED and ASK, because a server that answers so has done nothing.
type once struct{ *redis.IntSliceCmd }

func (once) NoRetry() bool { return true }

// onceMixed is a once whose reply may have strings, the logs of rolling windows.
type onceMixed struct{ *redis.SliceCmd }

func (onceMixed) NoRetry() bool { return true }

func (c *command) newCmd(ctx context.Context) redis.Cmder {
	var cmd redis.Cmder
	if c.set().rolling {
		cmd = onceMixed{redis.NewSliceCmd(ctx, c.args...)}
	} else {
		c.ints = *redis.NewIntSliceCmd(ctx, c.args...) // it is inlined, so nothing is allocated
		cmd = once{&c.ints}
	}
	if c.across {
		cmd.SetFirstKeyPos(acrossKeys) // the client sends it to the master of this key
	}
	return cmd
}

// reply returns the numbers and the strings of the reply; see [redisscript.Numbers].
func (c *command) reply() (numbers []int64, logs []string, err error) {
	if mixed, ok := c.cmd.(onceMixed); ok {
		reply, err := mixed.Result()
		if err != nil {
			return nil, nil, err
		}
		return redisscript.Numbers(reply)
	}
	numbers, err = c.cmd.(once).Result()
	return numbers, nil, err
}

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
			c.args[0], c.args[1] = "eval", c.script().Text
			c.cmd = c.newCmd(ctx)
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
		s.client.Process(ctx, commands[0].cmd)
		return
	}
	pipe := s.client.Pipeline()
	for _, c := range commands {
		pipe.Process(ctx, c.cmd)
	}
	pipe.Exec(ctx)
}

// read parses the reply and stores the results in the command's groups.
func (s *Store) read(c *command) {
	reply, logs, err := c.reply()
	if err == nil {
		switch c.op() {
		case take:
			err = s.readTakes(c, reply, logs)
		case takeHold, hold:
			err = s.readHold(c, reply, logs)
		case adjust:
			g, limits := c.groups[0], len(c.set().rules)
			g.now, err = redisscript.ParseAdjust(reply, g.before[:limits], g.after[:limits])
		}
	}
	if err != nil {
		limits := len(c.set().rules)
		for i, g := range c.groups {
			g.err = s.explain(err, c.set(), c.keys()[i*limits:])
		}
	}
	s.recordOutcome(err)
}

// readHold reads the reply of a takeHold or a hold.
func (s *Store) readHold(c *command, reply []int64, logs []string) error {
	held, rest, err := redisscript.ParseHold(reply)
	if err != nil {
		if c.op() == takeHold { // one of the counters is none, and then the reply has no holds
			return s.readTakes(c, reply, logs)
		}
		return err
	}
	g := c.groups[0]
	g.held, g.now = held, rest[0]
	if c.op() == hold {
		return nil
	}
	return s.readTakes(c, rest, logs)
}

func (s *Store) readTakes(c *command, reply []int64, logs []string) error {
	limits := c.set().micros
	takes, err := redisscript.ParseTakes(reply, logs, len(c.groups), limits)
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
	for i, g := range c.groups {
		if c.set().rolling && g.err == nil {
			s.readLogs(c, i, takes)
		}
	}
	return nil
}

// readLogs sets the logs of a group under rolling windows. Its callers share them, so they
// must not be changed.
func (s *Store) readLogs(c *command, take int, takes redisscript.Takes) {
	g, limits := c.groups[take], c.set().micros
	g.logs = make([]logs, len(limits))
	for i := range limits {
		if limits[i].Kind != rule.Rolling {
			continue
		}
		before, ok := takes.Log(take, i)
		if !ok {
			g.err = s.notCounter(c.keys()[take*len(limits)+i])
			return
		}
		// The units are counted here again, so a reply that no script of ours sends must not
		// make the log longer than the limit.
		units, fits := int64(0), g.admitted <= g.takers()
		if fits && g.admitted > 0 {
			fits = g.cost() <= limits[i].N/g.admitted
			units = g.cost() * g.admitted
		}
		if !fits || limits[i].Ask(&before, g.now, units).Retry != 0 {
			g.err = s.explain(redisscript.ErrReply, c.set(), c.keys()[take*len(limits):])
			return
		}
		g.logs[i] = logs{before, countedOn(&limits[i], before, g.now, units)}
	}
}

// countedOn returns a log with n units more.
func countedOn(l *rule.Limit, g rule.Log, now, n int64) rule.Log {
	if n == 0 {
		return g
	}
	g = g.Clone()
	l.Count(&g, now, n)
	return g
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
