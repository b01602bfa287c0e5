package admin

import (
	"context"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"weak"

	"github.com/ratelimit-go/ratelimit"
)

// This file keeps what the page shows of the last minute: samples of what limiters count, the
// keys that they deny most, and recent notices. All handlers for a registry share one watch, so
// that a program that makes a new handler with each reload neither loses it nor piles them up.

const (
	// every is the time between two samples.
	every = 5 * time.Second

	// maxSamples are the samples of a minute.
	maxSamples = int(time.Minute/every) + 1

	// maxNotices is how many warnings, outages and changes of limits a limiter keeps.
	maxNotices = 16

	// maxNoticeText is how much is kept of the text of an error, in bytes.
	maxNoticeText = 256
)

// A watch follows the limiters of a registry.
type watch struct {
	registry weak.Pointer[ratelimit.Registry]
	tracks   sync.Map     // by limiter's name, *track
	ended    atomic.Bool  // the registry is gone. If a Reload has built it, its observers are still called
	long     atomic.Int64 // what long keys take in the sketches of all tracks, in bytes
}

// watches has the watch of each registry that has a handler. It keeps no registry alive.
var watches struct {
	mu sync.Mutex
	of map[weak.Pointer[ratelimit.Registry]]*watch
}

// watchOf returns the watch of a registry, and starts it if there is none. It has a timer and no
// goroutine. It ends when nothing else uses the registry.
func watchOf(r *ratelimit.Registry) *watch {
	watches.mu.Lock()
	defer watches.mu.Unlock()
	p := weak.Make(r)
	if w := watches.of[p]; w != nil {
		return w
	}
	w := &watch{registry: p}
	if watches.of == nil {
		watches.of = make(map[weak.Pointer[ratelimit.Registry]]*watch)
	}
	watches.of[p] = w
	r.Observe(w.observe)
	w.tick()
	return w
}

// tick takes a sample of each limiter, now and from then on.
func (w *watch) tick() {
	r := w.registry.Value()
	if r == nil {
		watches.mu.Lock()
		delete(watches.of, w.registry)
		watches.mu.Unlock()
		w.ended.Store(true)
		w.tracks.Clear()
		return
	}
	w.sample(r, time.Now())
	time.AfterFunc(every, w.tick)
}

// sample takes a sample of each limiter, and forgets limiters that are gone.
func (w *watch) sample(r *ratelimit.Registry, now time.Time) {
	present := make(map[string]bool)
	for name, l := range r.All() {
		present[name] = true
		stats := l.Stats()
		w.track(name).sample(sampleOf(&stats, now))
	}
	w.tracks.Range(func(name, t any) bool {
		if !present[name.(string)] {
			w.tracks.Delete(name)
			t.(*track).clear()
		}
		return true
	})
}

// track returns what is known of a limiter.
func (w *watch) track(limiter string) *track {
	if t, ok := w.tracks.Load(limiter); ok {
		return t.(*track)
	}
	t, _ := w.tracks.LoadOrStore(limiter, &track{denials: sketch{long: &w.long}})
	return t.(*track)
}

// observe is called for each event, on the goroutine of the request.
func (w *watch) observe(_ context.Context, e ratelimit.Event) {
	if w.ended.Load() {
		return
	}
	switch e.Kind {
	case ratelimit.EventDenied:
		w.track(e.Limiter).denied(&e)
	case ratelimit.EventReset:
		w.track(e.Limiter).reset(&e)
	case ratelimit.EventWarning, ratelimit.EventStoreDown, ratelimit.EventStoreBack, ratelimit.EventLimitsChanged:
		w.track(e.Limiter).note(&e)
	}
}

// A track is what is known of one limiter. Its methods may be called from any number of
// goroutines.
type track struct {
	mu      sync.Mutex
	samples []sample // the oldest first
	denials sketch
	gone    bool     // the watch has forgotten it, so nothing is added to denials
	notices []notice // the oldest first
}

// A sample is what a limiter had counted at an instant.
type sample struct {
	at               time.Time
	requests, denied uint64
	by               [sourceCount]uint64 // decisions, by where they were made
	evicted          uint64              // counters of keys that were being denied

	breakerOpen     bool
	prefixClaimed   bool
	snapshotsFailed uint64
}

const sourceCount = 5

// sources are the places where decisions are made, in the order of sample.by.
var sources = [sourceCount]ratelimit.Source{
	ratelimit.SourceStore, ratelimit.SourceCache, ratelimit.SourceLease, ratelimit.SourceFallback, ratelimit.SourceFailOpen,
}

func sampleOf(s *ratelimit.LimiterStats, now time.Time) sample {
	decided := s.Allowed + s.Denied + s.ShadowDenied
	x := sample{
		at: now, requests: decided + s.Exempt + s.NoKey + s.Failed, denied: s.Denied,
		by:          [sourceCount]uint64{0, s.Remote.Cached, s.Remote.Leased, s.Remote.Fallback, s.Remote.FailedOpen},
		evicted:     s.Memory.EvictedDenied,
		breakerOpen: s.Remote.BreakerOpen, prefixClaimed: s.Warnings[ratelimit.CodePrefixClaimed] > 0,
		snapshotsFailed: s.Memory.SnapshotsFailed,
	}
	x.by[0] = decided - min(decided, x.by[1]+x.by[2]+x.by[3]+x.by[4])
	return x
}

func (t *track) sample(s sample) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.samples) == maxSamples {
		t.samples = slices.Delete(t.samples, 0, 1)
	}
	t.samples = append(t.samples, s)
}

// clear forgets the denied keys, because the limiter is gone.
func (t *track) clear() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.denials.clear()
	t.gone = true
}

func (t *track) denied(e *ratelimit.Event) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.gone {
		t.denials.add(e.Key, e.Policy, e.Time)
	}
}

func (t *track) reset(e *ratelimit.Event) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.denials.endRun(e.Key)
}

// A notice is a warning, an outage or a change of limits.
type notice struct {
	at   time.Time
	what string // a warning's code, or the kind of the event
	text string // of an error or a limit
	err  bool   // text is an error's, which may have keys in it
}

func (t *track) note(e *ratelimit.Event) {
	n := notice{at: e.Time, what: e.Kind.String()}
	if e.Code != "" {
		n.what = string(e.Code)
	}
	switch {
	case e.Err != nil:
		n.text, n.err = strings.Clone(cut(e.Err.Error(), maxNoticeText)), true
	case e.Kind == ratelimit.EventLimitsChanged:
		n.text = e.Limit.String()
	case e.Kind == ratelimit.EventStoreBack:
		n.text = "after " + ago(e.Duration)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.notices) == maxNotices {
		t.notices = slices.Delete(t.notices, 0, 1)
	}
	t.notices = append(t.notices, n)
}

// top returns the keys that are denied most, the first one first.
func (t *track) top() []denials {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.denials.ranked()
}

// find returns what is known of the denials of a key.
func (t *track) find(key string) (denials, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.denials.find(key)
}

// recent returns the notices, the newest first.
func (t *track) recent() []notice {
	t.mu.Lock()
	defer t.mu.Unlock()
	all := slices.Clone(t.notices)
	slices.Reverse(all)
	return all
}

// minute returns the samples of the last minute, the oldest first.
func (t *track) minute() []sample {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Clone(t.samples)
}
