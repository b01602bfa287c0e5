package ratelimit

import (
	"context"
	"strconv"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/ratelimit-go/ratelimit/internal/redisscript"
)

// A single server can do with one command for many keys: running a script costs it as
// much as what a take does there, and the client its arguments and its reply.

// maxManyKeys bounds how long one script keeps the server from others: some 60 µs, and 150
// where the limit is no fixed window. It is also by how much a fixed window may be taken to
// end late.
const maxManyKeys = 64

// redisMany is a command for takes of several keys under the same limits.
type redisMany struct {
	redisCommand
	jobs []*redisJob
}

var redisManys = sync.Pool{New: func() any { return new(redisMany) }}

// canMany reports whether all keys are in one place. A client of a single server may be one of a
// proxy before several, and that may go by a command's first key: the others would be counted where
// they are not looked for. So it is tried out, once, before the first such command.
func (s *RedisStore) canMany() bool {
	if _, single := s.client.(*redis.Client); !single {
		return false
	}
	if s.place.Load() == placeUnknown && s.place.CompareAndSwap(placeUnknown, placeAsked) {
		s.beside(s.findPlace)
	}
	return s.place.Load() == placeOne
}

// What is known of the place of keys.
const (
	placeUnknown uint32 = iota
	placeAsked
	placeOne
	placeSeveral
)

// placeKeys are so many that two servers are told apart but once in 65,536 times.
const placeKeys = 16

// findPlace asks by the names of some other keys for one that is there.
func (s *RedisStore) findPlace() {
	ctx, cancel := context.WithTimeout(context.Background(), adjustTimeout)
	defer cancel()
	key := s.prefix + "place"
	err := s.client.Set(ctx, key, "one", time.Minute).Err()
	var seen []*redis.Cmd
	if err == nil {
		pipe := s.client.Pipeline()
		for i := range placeKeys {
			seen = append(seen, pipe.Eval(ctx, "return redis.call('GET', KEYS[2])", []string{key + ":" + strconv.Itoa(i), key}))
		}
		pipe.Exec(ctx)
	}
	found := placeOne
	for _, cmd := range seen {
		switch text, failed := cmd.Text(); {
		case failed != nil && !isReply(failed):
			err = failed
		case failed != nil || text != "one":
			found = placeSeveral
		}
	}
	if err != nil && found == placeOne {
		found = placeUnknown // and is tried out again
	}
	s.place.Store(found)
}

// sendMany carries out calls by as few commands as they can do with, in one round trip.
func (s *RedisStore) sendMany(ctx context.Context, calls []*redisJob) {
	var buf [8]*redisMany
	manys, others := group(calls, buf[:0])
	commands := make([]*redisCommand, 0, len(manys)+len(others))
	for _, m := range manys {
		m.build(ctx, s.prefix)
		commands = append(commands, &m.redisCommand)
	}
	for _, job := range others {
		job.Value.build(ctx, s.prefix)
		commands = append(commands, &job.Value.redisCommand)
	}
	s.run(ctx, commands)
	for _, job := range others {
		s.read(&job.Value)
	}
	for _, m := range manys {
		if err := m.cmd.Err(); err != nil && redis.HasErrorPrefix(err, "CROSSSLOT") {
			s.place.Store(placeSeveral) // it is a cluster's by now, and has done nothing
			s.sendEach(ctx, m.jobs)
		} else {
			s.readMany(m)
		}
		m.done()
	}
}

// group puts takes together that can be one command: those of the same limits, and of
// keys of which there is no other command in the batch, so that the order of those stays.
func group(calls []*redisJob, manys []*redisMany) (_ []*redisMany, others []*redisJob) {
	var m *redisMany
	for _, job := range calls {
		c := &job.Value
		if c.op != redisTake || c.again || m != nil && c.shapes != m.jobs[0].Value.shapes {
			others = append(others, job)
			continue
		}
		if m == nil || len(m.jobs) == maxManyKeys {
			m = redisManys.Get().(*redisMany)
			manys = append(manys, m)
		}
		m.jobs = append(m.jobs, job)
	}
	if len(manys) > 0 && len(m.jobs) == 1 { // which costs less by itself
		others = append(others, m.jobs[0])
		m.done()
		manys = manys[:len(manys)-1]
	}
	return manys, others
}

// build makes the command.
func (m *redisMany) build(ctx context.Context, prefix string) {
	shapes := m.jobs[0].Value.shapes
	m.start(redisscript.Take, len(m.jobs)*len(shapes.suffixes))
	for _, job := range m.jobs {
		m.addKeys(prefix, job.Value.key, shapes)
	}
	m.args = append(m.args, shapes.args...)
	for i, job := range m.jobs {
		m.args = redisscript.AppendTake(m.args, i, job.Value.n, job.Value.sharers)
	}
	m.cmd = redis.NewIntSliceCmd(ctx, m.args...)
}

// readMany hands over the reply.
func (s *RedisStore) readMany(m *redisMany) {
	reply, err := m.cmd.Result()
	if err == nil {
		err = readTakes(reply, m.args[3:], m.jobs)
	}
	limits := len(m.jobs[0].Value.shapes.suffixes)
	for i, job := range m.jobs {
		c := &job.Value
		if err != nil {
			c.err = explain(err, m.args[3+i*limits:])
		}
	}
	s.learnFrom(err)
}

// readTakes hands over what a reply says of takes of the counters with these keys.
func readTakes(reply []int64, keys []any, jobs []*redisJob) error {
	limits := jobs[0].Value.shapes.rules
	takes, err := redisscript.ParseTakes(reply, len(jobs), limits)
	if err != nil {
		return err
	}
	for i, job := range jobs {
		c := &job.Value
		c.now, c.admitted = takes.Now, c.sharers
		takes.States(i, c.before[:])
	}
	for i, admitted := range takes.Partly() {
		c := &jobs[i].Value
		c.admitted = admitted
		if admitted < 0 {
			c.err = junk(keys[i*len(limits)-int(admitted)-1])
		}
	}
	return nil
}

func (m *redisMany) done() {
	clear(m.jobs)
	clear(m.args)
	m.jobs, m.args, m.cmd = m.jobs[:0], m.args[:0], nil
	redisManys.Put(m)
}
