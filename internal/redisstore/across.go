package redisstore

import (
	"context"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ratelimit-go/ratelimit/internal/clock"
	"github.com/ratelimit-go/ratelimit/internal/engine"
	"github.com/ratelimit-go/ratelimit/internal/redisscript"
)

// With Options.AcrossSlots, the takes of a round trip to one master of a Cluster
// share commands, although their keys are of different slots. This file is about
// such commands.
//
// The script is redisscript.TakeAcross. It first reads all its keys, and does
// nothing if the server refuses one of them: then the slot is at another master,
// or moves there. The reply names those keys. They are sent again, each with a
// command of its own that declares its keys, so that the client can follow the
// server's MOVED and ASK. The other takes share a command again. Nothing counts twice,
// because the reply says that nothing was counted: a command without a reply is
// never sent again.
//
// The slots of refused keys get commands of their own for a while. So a slot
// that moves for a long time costs one batch in each movedFor a second round
// trip.

// acrossKeys is the index of the first key in a command's arguments.
const acrossKeys = 4

// movedFor is for how long the keys of a slot share no commands after one of them was
// elsewhere.
const movedFor = time.Second

// sendToMaster is send for calls of keys of one master.
func (s *Store) sendToMaster(ctx context.Context, jobs []*job) {
	x := exchanges.Get().(*exchange)
	x.group(jobs)
	if len(jobs) > 1 && !s.refused.Load() {
		x.plan(across, &s.moved)
	} else {
		x.plan(apart, nil)
	}
	s.run(ctx, x.commands)
	more := s.splitElsewhere(x, x.commands, true)
	for len(more) > 0 { // twice at most: the second time no takes share a command again
		s.run(ctx, more)
		more = s.splitElsewhere(x, more, false)
	}
	s.finish(x, jobs)
}

// splitElsewhere handles commands that have done nothing because some of their keys are
// elsewhere. It makes a command for each of these keys. The other takes get one
// command if share is set, and otherwise one each. It returns the new commands, which it
// has also added to the exchange.
func (s *Store) splitElsewhere(x *exchange, sent []*command, share bool) []*command {
	before := len(x.commands)
	for _, c := range sent {
		err := c.cmd.Err()
		if !c.across || err == nil {
			continue
		}
		keys, why, ok := redisscript.Elsewhere(err)
		if !ok {
			s.noteRefusal(err)
			continue
		}
		if !isElsewhere(why) {
			s.refuseAcross(why)
			share = false
		}
		elsewhere := make([]bool, len(c.groups))
		for _, key := range keys {
			if i := key / len(c.set().suffixes); i < len(c.groups) {
				elsewhere[i] = true
			}
		}
		var many *command
		for i, g := range c.groups {
			switch {
			case elsewhere[i]:
				x.newCommand(g)
				s.moved.add(g.first().key)
			case many != nil:
				many.groups = append(many.groups, g)
				many.across = true
			default:
				if c := x.newCommand(g); share {
					many = c
				}
			}
		}
		c.groups = c.groups[:0]
	}
	return x.commands[before:]
}

// isElsewhere reports whether a server's text says that a key is not served here now. Any
// other text means that the server does not let scripts use keys that they have not
// declared.
func isElsewhere(why string) bool {
	for _, text := range []string{
		"access a non local key", "access a slot not served", "cluster is down", "MASTERDOWN", "LOADING",
		"undeclared keys were accessed during rehashing of the slot",
	} {
		if strings.Contains(why, text) {
			return true
		}
	}
	return false
}

// noteRefusal looks at the error of a command for keys of different slots. If it is an error
// reply that no server is known to give for another reason, and that does not come from
// within the script, the server does not allow such commands. The takes of this command have
// failed: they may have been counted.
func (s *Store) noteRefusal(err error) {
	if !isReply(err) {
		return
	}
	fault, _ := classifyReply(err)
	_, inScript := replyText(err)
	if _, ofClock := redisscript.Clock(err); fault == engine.Unknown && !inScript && !ofClock {
		s.refuseAcross(err.Error())
	}
}

// refuseAcross ends the use of commands for keys of different slots, and reports that once, on a
// goroutine of its own.
func (s *Store) refuseAcross(why string) {
	if s.refused.Swap(true) {
		return
	}
	if c := s.owner.is.Load(); c != nil {
		s.goUntilClose(func() { c.report.AcrossSlotsRefused(s.prefix, why) })
	}
}

// AcrossSlotsRefused reports whether a server has refused a command for keys of different
// slots.
func (s *Store) AcrossSlotsRefused() bool { return s.refused.Load() }

// movedSlots has the slots of which a key was elsewhere lately. Its zero value is ready to use. A
// nil one is empty.
type movedSlots struct {
	n     atomic.Int32 // the number of slots in until
	mu    sync.Mutex
	until map[uint16]int64 // by clock.Now
}

// add adds the slot of a key for movedFor from now on. It takes m.mu.
func (m *movedSlots) add(key string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.until == nil {
		m.until = make(map[uint16]int64)
	}
	m.until[slotOf(redisscript.Tag(key))] = clock.Now() + int64(movedFor)
	m.n.Store(int32(len(m.until)))
}

// has reports whether m has the slot of a key. It takes m.mu, unless m is empty.
func (m *movedSlots) has(key string) bool {
	if m == nil || m.n.Load() == 0 {
		return false
	}
	slot := slotOf(redisscript.Tag(key))
	m.mu.Lock()
	defer m.mu.Unlock()
	until, ok := m.until[slot]
	if ok && clock.Now() >= until {
		delete(m.until, slot)
		m.n.Store(int32(len(m.until)))
		return false
	}
	return ok
}

// slotOf returns the slot of a hash tag: its CRC-16 (XMODEM), modulo the number of slots.
func slotOf(tag string) uint16 {
	var crc uint16
	for i := range len(tag) {
		crc ^= uint16(tag[i]) << 8
		for range 8 {
			carry := crc >> 15
			crc = crc<<1 ^ carry*0x1021
		}
	}
	return crc % 16384
}
