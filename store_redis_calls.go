package ratelimit

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"

	"github.com/redis/go-redis/v9"

	"github.com/ratelimit-go/ratelimit/internal/batch"
	"github.com/ratelimit-go/ratelimit/internal/redisscript"
	"github.com/ratelimit-go/ratelimit/internal/rule"
)

// redisCall is one call of a RedisStore on its way, alone or with others.
type redisCall struct {
	op     redisOp
	key    string
	shapes *shapeSet
	n      int64
	at     Instant // of an adjust

	// Of those that share a command the first one makes it:
	first *redisJob
	again bool // the batch has another command of this key
	told  bool // one of those that share it is the latest
	redisCommand

	// And then all of them have what came of it:
	sharers  int64
	place    int64 // among the sharers, from 0
	latest   bool  // of the sharers that are still there it is the last
	err      error
	now      int64 // the server's, in microseconds
	admitted int64 // how many of the sharers were
	before   [MaxLimits]rule.State
	after    [MaxLimits]rule.State // of an adjust
}

type redisJob = batch.Call[redisCall]

type redisOp uint8

const (
	redisTake redisOp = iota
	redisAdjust
	redisReset
)

// once makes a command that is never sent a second time on the client's own account.
// MOVED and ASK are still followed: who answers so has not carried it out.
type once struct{ *redis.IntSliceCmd }

func (once) NoRetry() bool { return true }

// send carries out a batch: the calls that can share a command do, and the commands share a
// round trip.
func (s *RedisStore) send(ctx context.Context, batch []*redisJob) {
	if len(batch) == 1 {
		c := &batch[0].Value
		c.first, c.sharers, c.place, c.latest = batch[0], 1, 0, true
		c.build(ctx, s.prefix)
		s.run(ctx, []*redisCommand{&c.redisCommand})
		s.read(c)
		return
	}
	shared := redisShared.Get().(*sharing)
	calls := shared.share(batch)
	if s.canMany() {
		s.sendMany(ctx, calls)
	} else {
		s.sendEach(ctx, calls)
	}
	shared.done()
	for _, job := range batch {
		if job.Value.first != job {
			job.Value.copyFrom(&job.Value.first.Value)
		}
	}
}

// sendEach carries out calls by a command each.
func (s *RedisStore) sendEach(ctx context.Context, calls []*redisJob) {
	commands := make([]*redisCommand, 0, len(calls))
	for _, job := range calls {
		job.Value.build(ctx, s.prefix)
		commands = append(commands, &job.Value.redisCommand)
	}
	s.run(ctx, commands)
	for _, job := range calls {
		s.read(&job.Value)
	}
}

// redisCommand is a command on its way.
type redisCommand struct {
	script redisscript.Script
	args   []any
	cmd    *redis.IntSliceCmd
}

// start begins a command that runs a script on so many keys.
func (c *redisCommand) start(script redisscript.Script, keys int) {
	c.script, c.args = script, append(c.args[:0], "evalsha", script.Hash, keys)
}

// addKeys adds the names of a key's counters.
func (c *redisCommand) addKeys(prefix, key string, shapes *shapeSet) {
	var buf [redisscript.MaxKey + 2*maxName]byte
	head := redisscript.AppendKey(buf[:0], prefix, key)
	for _, suffix := range shapes.suffixes {
		c.args = append(c.args, string(append(head, suffix...)))
	}
}

func (c *redisCommand) isUnknownScript() bool {
	err := c.cmd.Err()
	return err != nil && redis.HasErrorPrefix(err, "NOSCRIPT")
}

// buildInFull makes the command again for a server that does not know the script, as
// after a restart. From then on it does.
func (c *redisCommand) buildInFull(ctx context.Context) {
	c.args[0], c.args[1] = "eval", c.script.Text
	c.cmd = redis.NewIntSliceCmd(ctx, c.args...)
}

// run sends commands, and those of unknown scripts again.
func (s *RedisStore) run(ctx context.Context, commands []*redisCommand) {
	s.exec(ctx, commands)
	unknown := 0
	for _, c := range commands {
		if c.isUnknownScript() {
			c.buildInFull(ctx)
			commands[unknown] = c
			unknown++
		}
	}
	if unknown > 0 {
		s.exec(ctx, commands[:unknown])
	}
}

// exec sends commands in one go: in a cluster, in one for each node.
func (s *RedisStore) exec(ctx context.Context, commands []*redisCommand) {
	if len(commands) == 1 {
		s.client.Process(ctx, once{commands[0].cmd})
		return
	}
	pipe := s.client.Pipeline()
	for _, c := range commands {
		pipe.Process(ctx, once{c.cmd})
	}
	pipe.Exec(ctx) // each command has its own error
}

// sharing is what it takes to find out who can share a command.
type sharing struct {
	calls  []*redisJob
	latest map[string]*redisJob // by key
}

var redisShared = sync.Pool{New: func() any { return &sharing{latest: make(map[string]*redisJob)} }}

func (s *sharing) done() {
	clear(s.calls)
	clear(s.latest)
	s.calls = s.calls[:0]
	redisShared.Put(s)
}

// share finds the calls that can do with one command: takes of the same units of one
// key, with nothing else of that key between them. It returns the first of each.
func (s *sharing) share(batch []*redisJob) []*redisJob {
	var before *redisJob
	for i, job := range batch {
		c := &job.Value
		c.latest = false
		if i == 0 || before.Value.key != c.key { // as it mostly is where one key is in demand
			before = s.latest[c.key]
		}
		if before != nil {
			f := &before.Value
			if f.op == redisTake && c.op == redisTake && f.n == c.n && f.shapes == c.shapes {
				c.first, c.place = before, f.sharers
				f.sharers++
				continue
			}
		}
		c.first, c.place, c.sharers, c.again, c.told = job, 0, 1, false, false
		if before != nil {
			before.Value.again, c.again = true, true
		}
		s.latest[c.key], before = job, job
		s.calls = append(s.calls, job)
	}
	return s.calls
}

// landed finds out who of those that shared a command knows the most.
func landed(jobs []*redisJob) {
	for _, job := range slices.Backward(jobs) {
		if c := &job.Value; !c.first.Value.told {
			c.first.Value.told, c.latest = true, true
		}
	}
}

// copyFrom takes over what came of a shared command.
func (c *redisCall) copyFrom(first *redisCall) {
	c.sharers, c.err, c.now, c.admitted = first.sharers, first.err, first.now, first.admitted
	copy(c.before[:], first.before[:len(c.shapes.limits)])
}

// build makes the command.
func (c *redisCall) build(ctx context.Context, prefix string) {
	script := redisscript.Take
	switch c.op {
	case redisAdjust:
		script = redisscript.Adjust
	case redisReset:
		script = redisscript.Reset
	}
	c.start(script, len(c.shapes.suffixes))
	c.addKeys(prefix, c.key, c.shapes)
	c.args = append(c.args, c.shapes.args...)
	switch {
	case c.op == redisTake:
		c.args = redisscript.AppendTake(c.args, 0, c.n, c.sharers)
	case c.op == redisAdjust && c.at == Now:
		c.args = append(c.args, c.n, "now")
	case c.op == redisAdjust:
		c.args = append(c.args, c.n, int64(c.at)/1000)
	}
	c.cmd = redis.NewIntSliceCmd(ctx, c.args...)
}

// read reads the reply to the command.
func (s *RedisStore) read(c *redisCall) {
	reply, err := c.cmd.Result()
	if err == nil {
		switch c.op {
		case redisTake:
			err = readTakes(reply, c.args[3:], []*redisJob{c.first})
		case redisAdjust:
			n := len(c.shapes.limits)
			c.now, err = redisscript.ParseAdjust(reply, c.before[:n], c.after[:n])
		}
	}
	if err != nil {
		c.err = explain(err, c.args[3:])
	}
	c.cmd = nil
	s.learnFrom(err)
}

// learnFrom takes note of how the last command has ended.
func (s *RedisStore) learnFrom(err error) {
	proven := err == nil || isReply(err)
	if cluster, ok := s.client.(*redis.ClusterClient); ok {
		if !proven {
			// The client finds a new master by itself only where it sends commands again.
			cluster.ReloadState(context.Background())
		} else if !s.nodes.known.Load() {
			s.nodes.known.Store(true)
		}
	}
	if proven != s.proven.Load() {
		s.proven.Store(proven)
	}
}

// wasAdmitted reports whether a take was.
func (c *redisCall) wasAdmitted() bool { return c.place < c.admitted }

// results works out what the caller of a take is to be told, as if those that shared
// its command had come one by one.
func (c *redisCall) results(results []Result) error {
	denied := false
	for i, l := range c.shapes.rules {
		state := c.before[i]
		state.A += c.n * min(c.place, c.admitted)
		asked := int64(0)
		if c.wasAdmitted() {
			state.A += c.n
		} else if asked = c.n; asked > 0 {
			if _, a := l.Take(state, c.now, c.n); a.Retry == 0 {
				asked = 0 // it is another limit that denies
			}
		}
		_, a := l.Take(state, c.now, asked)
		denied = denied || a.Retry > 0
		results[i] = Result{
			Remaining:  a.Remaining,
			RetryAfter: redisscript.Nanos(a.Retry),
			MoreAfter:  redisscript.Nanos(a.More),
			ResetAfter: redisscript.Nanos(a.Reset),
		}
	}
	if denied == c.wasAdmitted() {
		return errors.New("the script's arithmetic is not this library's: is there a proxy that changes replies?")
	}
	return nil
}

// charged tells what an adjust has charged, under every limit.
func (c *redisCall) charged() int64 {
	charged := max(0, c.n)
	for i, l := range c.shapes.rules {
		charged = min(charged, l.Charged(c.before[i], c.after[i], c.now))
	}
	return charged
}

// giveBack is for a call that was carried out when its caller had gone. A client that
// left has had no use of its units; a caller whose time was over may have admitted it
// all the same.
func (s *RedisStore) giveBack(job *redisJob) {
	c := &job.Value
	if !job.Cancelled || c.op != redisTake || c.n == 0 || c.err != nil || !c.wasAdmitted() {
		return
	}
	back := &batch.Call[redisCall]{Value: redisCall{
		op: redisAdjust, key: c.key, shapes: c.shapes, n: -c.n, at: Instant(c.now * 1000),
	}}
	s.queueOf(c.key).Post(back) // and what cannot be given back is counted
}

// panicked is for calls whose command a hook of the client has brought down.
func (s *RedisStore) panicked(job *redisJob, with any) {
	job.Value.err = &RedisError{err: fmt.Errorf("the client has panicked: %v", with)}
	s.learnFrom(job.Value.err)
}

func isDialError(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "dial"
}
