package audit

import (
	"container/list"
	"hash/maphash"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/ratelimit-go/ratelimit"
)

// This file has episodes of denials. A key that is denied a million times in a row is two
// records: one when that begins, and one when it is over, with the number of denials. An
// episode ends with its day, in UTC, so that each day on which a key was denied has a record.
//
// Two bounds keep a flood out of the trail. A limiter begins at most maxBegins episodes and
// blocks in a second; more are counted in one record. And there are at most maxEpisodes: if one
// more begins, the one whose last denial is the oldest ends.

const (
	// quiet is how long after its last denial an episode ends.
	quiet = 5 * time.Minute

	// maxBegins is how many episodes and blocks of a limiter are recorded in a second.
	maxBegins = 100

	// maxEpisodes bounds the memory: an episode takes some 500 bytes.
	maxEpisodes = 16384
)

// Why an episode is over.
const (
	endedQuiet   = "quiet"   // no denial for the time of quiet
	endedDay     = "day"     // a denial on another day has begun the next episode
	endedReset   = "reset"   // an operator has reset the key
	endedEvicted = "evicted" // too many other keys were denied
	endedClosed  = "closed"  // the trail was closed
)

// An episodeID identifies a limiter and a key. Keys may be long, so it has two hashes of them
// under random seeds.
type episodeID [2]uint64

// An episode is in progress: a key is being denied.
type episode struct {
	id    episodeID
	first Record // what was recorded when it began
	last  time.Time
	count int64
	units int64
	until *time.Time
}

// episodes are the episodes of a trail in progress. The lock of the trail guards them.
type episodes struct {
	seeds    [2]maphash.Seed
	of       map[episodeID]*list.Element
	byLast   list.List        // of *episode, the one with the oldest last denial first
	began    map[string]int64 // by limiter, since the last call of suppressed
	overflow map[string]int64 // events of a limiter that are not recorded, since then
}

func newEpisodes() episodes {
	return episodes{
		seeds: [2]maphash.Seed{maphash.MakeSeed(), maphash.MakeSeed()}, of: make(map[episodeID]*list.Element),
		began: make(map[string]int64), overflow: make(map[string]int64),
	}
}

func (s *episodes) id(limiter, key string, shadow bool) (id episodeID) {
	for i, seed := range s.seeds {
		var h maphash.Hash
		h.SetSeed(seed)
		if shadow {
			h.WriteByte(1)
		}
		h.WriteString(limiter)
		h.WriteByte(0) // no limiter's name has it
		h.WriteString(key)
		id[i] = h.Sum64()
	}
	return id
}

// continues counts a denial, if it belongs to an episode. mayBegin says that it may begin
// another one: then an episode of another day does not continue.
func (s *episodes) continues(e *ratelimit.Event, shadow, mayBegin bool) bool {
	at, ok := s.of[s.id(e.Limiter, e.Key, shadow)]
	if !ok {
		return false
	}
	ep := at.Value.(*episode)
	if mayBegin && !sameDay(ep.first.Time, e.Time) {
		return false
	}
	ep.count++
	ep.units += min(e.Units, math.MaxInt64-ep.units)
	ep.last = e.Time
	if until := untilOf(e); until != nil {
		ep.until = until
	}
	s.byLast.MoveToBack(at)
	return true
}

// hasRoom reports whether a limiter may begin one more episode in this second.
func (s *episodes) hasRoom(limiter string) bool { return s.began[limiter] < maxBegins }

// mayBegin reports whether one more event of a limiter may be recorded in this second. If not,
// it counts the event.
func (s *episodes) mayBegin(limiter string) bool {
	if !s.hasRoom(limiter) {
		s.overflow[limiter]++
		return false
	}
	s.began[limiter]++
	return true
}

// sameDay reports whether two times have one day in UTC.
func sameDay(a, b time.Time) bool {
	const day = 24 * 60 * 60
	return a.Unix()/day == b.Unix()/day
}

// begin begins an episode with the record of its first denial. It returns the records of the
// episodes that have ended: the key's last one, and another one if there are too many.
func (s *episodes) begin(e *ratelimit.Event, shadow bool, first Record) (released []Record) {
	id := s.id(e.Limiter, e.Key, shadow)
	if last, ok := s.of[id]; ok {
		released = append(released, s.release(last, endedDay))
	}
	first.Route, first.RequestID = "", "" // of its first request only
	s.of[id] = s.byLast.PushBack(&episode{id: id, first: first, last: e.Time, count: 1, units: e.Units, until: first.Until})
	if len(s.of) > maxEpisodes {
		released = append(released, s.release(s.byLast.Front(), endedEvicted))
	}
	return released
}

// end ends the episodes that are over, and returns their records.
func (s *episodes) end(now time.Time) (released []Record) {
	for at := s.byLast.Front(); at != nil && now.Sub(at.Value.(*episode).last) >= quiet; at = s.byLast.Front() {
		released = append(released, s.release(at, endedQuiet))
	}
	return released
}

// endAll ends all episodes, because the trail is closed.
func (s *episodes) endAll() (released []Record) {
	for at := s.byLast.Front(); at != nil; at = s.byLast.Front() {
		released = append(released, s.release(at, endedClosed))
	}
	return released
}

// reset ends the episodes of a key that was reset.
func (s *episodes) reset(e *ratelimit.Event) (released []Record) {
	for _, shadow := range []bool{false, true} {
		if at, ok := s.of[s.id(e.Limiter, e.Key, shadow)]; ok {
			released = append(released, s.release(at, endedReset))
		}
	}
	return released
}

// release ends an episode and returns its record.
func (s *episodes) release(at *list.Element, why string) Record {
	ep := at.Value.(*episode)
	s.byLast.Remove(at)
	delete(s.of, ep.id)
	r := ep.first
	r.Kind, r.Time, r.Since, r.Until = Released, time.Time{}, instant(ep.first.Time), ep.until
	r.Units, r.Count, r.Ended = ep.units, ep.count, why
	return r
}

// suppressed returns a record for each limiter that had more events than are recorded, and
// begins a new second.
func (s *episodes) suppressed() (records []Record) {
	for limiter, n := range s.overflow {
		records = append(records, Record{Kind: Suppressed, Limiter: limiter, Count: n})
	}
	slices.SortFunc(records, func(a, b Record) int { return strings.Compare(a.Limiter, b.Limiter) })
	clear(s.began)
	clear(s.overflow)
	return records
}
