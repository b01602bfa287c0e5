package ratelimit

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ratelimit-go/ratelimit/internal/engine"
	"github.com/ratelimit-go/ratelimit/internal/guard"
)

// This file has the events that a limiter reports to the program around it, and the
// observers that get them. Counts are in stats.go, log messages in warning.go.

// Event is one thing that an operator or an auditor wants to know of. It goes to
// Options.Observe of the limiter and to the observers of its registry; see
// [Registry.Observe].
//
// In package slog an Event is a group of attributes. In JSON durations are seconds,
// Kind is its text, and fields without a value are left out. Key is what a client has
// sent, or was made of it. A program that stores or shows it must escape it, as package
// slog and package json do.
type Event struct {
	Kind    EventKind
	Time    time.Time // by the wall clock
	Limiter string    // the limiter's name

	Key    string // of a denial, a block, a reset or a refund
	Policy string // the name of the limit that has denied, blocked or changed, as in the header fields
	Actor  string // see WithActor
	Reason string // see WithReason

	Limit    Limit         // the limit that has denied, or that is in force now
	Decision Decision      // of a denial, also if it has started a block
	Units    int64         // that were asked for or refunded
	Duration time.Duration // of a block that has begun, or of the outage that is over
	Code     Code          // of a warning
	Err      error         // why a store is down, or what a warning is about; it may hold text of the store
}

// EventKind says what has happened.
type EventKind uint8

const (
	// EventDenied: a request, or a call that asked for units, was denied.
	EventDenied EventKind = iota + 1
	// EventShadowDenied: a request would have been denied, and Shadow has let it through.
	EventShadowDenied
	// EventBlocked: a denial has started a block; see [Limit.Block]. It comes right after
	// the EventDenied or EventShadowDenied of that denial. Duration is how long the block
	// lasts, and Policy is the limit that has started it. If several have, it is the one
	// that blocks for the longest. A block by hand, by [Limiter.Block], has no Policy and
	// no Decision.
	EventBlocked
	// EventReset: [Limiter.Reset] has forgotten what was counted for a key.
	EventReset
	// EventRefunded: [Limiter.Refund] has given units back in the name of an actor.
	// A Refund without one is no event.
	EventRefunded
	// EventLimitsChanged: [Limiter.SetLimits] or a [Reload] has put other limits in
	// force. There is one event for each limit that is in force now.
	EventLimitsChanged
	// EventReplaced: a [Reload] has replaced a limiter.
	EventReplaced
	// EventClosed: a limiter was closed, or a Reload has left it out.
	EventClosed
	// EventStoreDown: a [RemoteStore] has failed so often that it is asked only now
	// and then; see [CodeStoreDown].
	EventStoreDown
	// EventStoreBack: a RemoteStore answers again. Duration is how long it did not.
	EventStoreBack
	// EventWarning: a warning that is not one of the other kinds. It comes as often as
	// it is logged, at most once a minute for each Code, also if Options.Silence keeps
	// it out of the log. LimiterStats.Warnings counts all of them.
	EventWarning
)

var eventKinds = [...]string{
	EventDenied: "denied", EventShadowDenied: "shadow-denied", EventBlocked: "blocked", EventReset: "reset", EventRefunded: "refunded",
	EventLimitsChanged: "limits-changed", EventReplaced: "replaced", EventClosed: "closed",
	EventStoreDown: "store-down", EventStoreBack: "store-back", EventWarning: "warning",
}

// String returns the kind in lower case with hyphens, such as "shadow-denied".
func (k EventKind) String() string {
	if int(k) < len(eventKinds) && k > 0 {
		return eventKinds[k]
	}
	return fmt.Sprintf("EventKind(%d)", k)
}

// MarshalText implements [encoding.TextMarshaler] with [EventKind.String].
func (k EventKind) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// UnmarshalText implements [encoding.TextUnmarshaler] for what MarshalText writes.
func (k *EventKind) UnmarshalText(text []byte) error {
	i := slices.Index(eventKinds[1:], string(text))
	if i < 0 {
		return fmt.Errorf("ratelimit: event kind %q: want one of %s", text, strings.Join(eventKinds[1:], ", "))
	}
	*k = EventKind(i + 1)
	return nil
}

// MarshalJSON implements [json.Marshaler].
func (e Event) MarshalJSON() ([]byte, error) {
	form := struct {
		Kind     EventKind `json:"kind"`
		Time     time.Time `json:"time"`
		Limiter  string    `json:"limiter"`
		Key      string    `json:"key,omitempty"`
		Policy   string    `json:"policy,omitempty"`
		Actor    string    `json:"actor,omitempty"`
		Reason   string    `json:"reason,omitempty"`
		Limit    string    `json:"limit,omitempty"`
		Decision *Decision `json:"decision,omitempty"`
		Units    int64     `json:"units,omitempty"`
		Duration float64   `json:"duration,omitempty"`
		Code     Code      `json:"code,omitempty"`
		Error    string    `json:"error,omitempty"`
	}{e.Kind, e.Time, e.Limiter, e.Key, e.Policy, e.Actor, e.Reason, "", nil, e.Units, e.Duration.Seconds(), e.Code, ""}
	if e.Limit != (Limit{}) {
		form.Limit = e.Limit.String()
	}
	if e.Decision != (Decision{}) {
		form.Decision = &e.Decision
	}
	if e.Err != nil {
		form.Error = e.Err.Error()
	}
	return json.Marshal(form)
}

// LogValue implements [slog.LogValuer]. The time is left out, because a log record
// has one.
func (e Event) LogValue() slog.Value {
	attrs := []slog.Attr{slog.String("kind", e.Kind.String()), slog.String("limiter", e.Limiter)}
	for _, a := range [...]struct{ name, value string }{
		{"key", e.Key}, {"policy", e.Policy}, {"actor", e.Actor}, {"reason", e.Reason}, {"code", string(e.Code)},
	} {
		if a.value != "" {
			attrs = append(attrs, slog.String(a.name, a.value))
		}
	}
	if e.Limit != (Limit{}) {
		attrs = append(attrs, slog.String("limit", e.Limit.String()))
	}
	if wait := e.Decision.RetryAfter; wait != 0 && wait != Never {
		attrs = append(attrs, slog.Duration("retry_after", wait))
	}
	if e.Decision.Blocked {
		attrs = append(attrs, slog.Bool("blocked", true))
	}
	if e.Units != 0 {
		attrs = append(attrs, slog.Int64("units", e.Units))
	}
	if e.Duration != 0 {
		attrs = append(attrs, slog.Duration("duration", e.Duration))
	}
	if e.Err != nil {
		attrs = append(attrs, slog.Any("error", e.Err))
	}
	return slog.GroupValue(attrs...)
}

// Auditor keeps a record of what operators do. Record is called with the event that a call
// will cause, and with the call's context, before the call changes anything. If it returns an
// error, or panics, the call changes nothing and returns an error: what cannot be recorded is
// not done. If the call fails after that, it causes no event. So a record without the event is
// of a call that has failed, or of a program that was killed in between.
//
// Record should return only when the record is safe. It is called on the goroutine of the call,
// with no lock held, and from any number of goroutines. It must not call the limiter.
type Auditor interface {
	Record(ctx context.Context, e Event) error
}

type (
	actorKey  struct{}
	reasonKey struct{}
)

// WithActor names the person or system on whose behalf a call is made. Events that are
// caused with this context have the name as Actor: [Limiter.Reset], [Limiter.Block],
// [Limiter.SetLimitsContext] and [Limiter.Refund] cause such events, for example.
func WithActor(ctx context.Context, who string) context.Context {
	return context.WithValue(ctx, actorKey{}, who)
}

// WithReason says why a call is made. Events that are caused with this context have the
// text as Reason.
func WithReason(ctx context.Context, why string) context.Context {
	return context.WithValue(ctx, reasonKey{}, why)
}

func actorOf(ctx context.Context) string {
	who, _ := ctx.Value(actorKey{}).(string)
	return who
}

// Recording says which calls of a [RecordingStore] the store records by itself.
type Recording uint8

const (
	// RecordsNothing: Options.Audit gets all events, as with any other store.
	RecordsNothing Recording = iota
	// RecordsCalls: the store records a Reset, a Block and a Refund by an actor. Options.Audit
	// gets other calls by hand, which change nothing in the store.
	RecordsCalls
	// RecordsDecisions: the store also records each decision, and units that are given back
	// or charged later.
	RecordsDecisions
)

// Recordable is what a [RecordingStore] needs for the record of a call, beside its arguments.
type Recordable struct {
	Auditor Auditor // Options.Audit
	// Event is what the auditor would get of a call by hand. For other calls it
	// has the time, the limiter, the actor and the reason, and no Kind.
	Event    Event
	Policies []string // of a decision: the names of its limits, as in the header fields
}

// RecordableFrom is for a [RecordingStore]: it returns what the context of a call has for its
// record. ok is false for a call that no limiter makes, or that is not recorded.
func RecordableFrom(ctx context.Context) (r Recordable, ok bool) {
	r, ok = engine.Recordable(ctx).(Recordable)
	return r, ok
}

type recordedKey struct{}

// RecordedBy is for observers: it returns the auditor in whose name a [RecordingStore] has
// recorded the event that an observer gets with this context. It is nil for other events.
func RecordedBy(ctx context.Context) Auditor {
	by, _ := ctx.Value(recordedKey{}).(Auditor)
	return by
}

// observers are the functions that a registry's limiters report to. The zero value
// has none.
type observers struct {
	mu   sync.Mutex // orders changes; reads take no lock
	list atomic.Pointer[[]*observer]
}

type observer func(context.Context, Event)

func (o *observers) add(fn observer) *observer {
	o.mu.Lock()
	defer o.mu.Unlock()
	all := append(slices.Clone(o.all()), &fn)
	o.list.Store(&all)
	return &fn
}

func (o *observers) remove(fn *observer) {
	o.mu.Lock()
	defer o.mu.Unlock()
	others := slices.DeleteFunc(slices.Clone(o.all()), func(other *observer) bool { return other == fn })
	o.list.Store(&others)
}

// all returns the observers, in a slice that must not be changed.
func (o *observers) all() []*observer {
	if o == nil {
		return nil
	}
	if list := o.list.Load(); list != nil {
		return *list
	}
	return nil
}

// An emitter hands a limiter's events to its observers.
type emitter struct {
	report   *reporter
	own      observer   // Options.Observe, or nil
	registry *observers // of the limiter's registry; nil if there is none
	audit    Auditor    // Options.Audit, or nil
	inStore  Recording  // what the store records
}

// recordable returns the context of a call that the store records. policies is nil for a call
// by hand.
func (m *emitter) recordable(ctx context.Context, e Event, policies []string) context.Context {
	m.complete(ctx, &e)
	return engine.WithRecordable(ctx, Recordable{Auditor: m.audit, Event: e, Policies: policies})
}

// isRecorded reports whether the store has recorded an event.
func (m *emitter) isRecorded(e *Event) bool {
	switch e.Kind {
	case EventReset, EventRefunded:
		return m.inStore >= RecordsCalls
	case EventBlocked:
		return m.inStore >= RecordsCalls && e.Policy == "" // by hand
	case EventDenied:
		return m.inStore == RecordsDecisions
	}
	return false
}

// record hands the event of a call that changes something to the auditor. After an error the
// call must not change anything.
func (m *emitter) record(ctx context.Context, e Event) (err error) {
	if m.audit == nil {
		return nil
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	m.complete(ctx, &e)
	defer func() {
		if with := recover(); with != nil {
			err = fmt.Errorf("Options.Audit has panicked: %v", with)
		}
		if err != nil {
			err = fmt.Errorf("nothing was changed, because it could not be recorded: %w", err)
		}
	}()
	return m.audit.Record(ctx, e)
}

// complete fills in what an event has from its limiter and its context.
func (m *emitter) complete(ctx context.Context, e *Event) {
	e.Time, e.Limiter, e.Actor = time.Now(), m.report.name, actorOf(ctx)
	e.Reason, _ = ctx.Value(reasonKey{}).(string)
}

// observed reports whether anybody observes. It is asked before an event is made, so
// that events cost nothing if nobody does.
func (m *emitter) observed() bool { return m.own != nil || len(m.registry.all()) > 0 }

// emit completes an event and calls all observers, on this goroutine. No lock of the
// library may be held.
func (m *emitter) emit(ctx context.Context, e Event) {
	if !m.observed() {
		return
	}
	if ctx == nil {
		ctx = context.Background()
	}
	m.complete(ctx, &e)
	switch {
	case m.isRecorded(&e):
		ctx = context.WithValue(ctx, recordedKey{}, m.audit)
	case ctx.Value(recordedKey{}) != nil: // of another limiter's event, whose observer has caused this one
		ctx = context.WithValue(ctx, recordedKey{}, nil)
	}
	if m.own != nil {
		m.call(m.own, ctx, &e)
	}
	for _, o := range m.registry.all() {
		m.call(*o, ctx, &e)
	}
}

// isolated is emit on another goroutine, for which it waits. It is for events of this
// library's own goroutines, which others rely on: an observer may end the goroutine that
// it runs on, as a failing test does.
func (m *emitter) isolated(e Event) {
	if !m.observed() {
		return
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		m.emit(context.Background(), e)
	}()
	<-done
}

// call calls one observer. If it panics, that is logged, and nobody else notices. The
// warning is no event, because its observer might panic again.
func (m *emitter) call(fn observer, ctx context.Context, e *Event) {
	guard.Run(func() { fn(ctx, *e) }, func(p guard.Panic) {
		if m.report.count(warnObserverPanicked) {
			m.report.print(warnObserverPanicked, "event", e.Kind.String(), "panic", fmt.Sprint(p.With))
		}
	})
}

// warned emits the event of a warning, for reporter.observed.
func (m *emitter) warned(w warning, err error, lasted time.Duration) {
	e := Event{Kind: EventWarning, Code: warnings[w].code, Err: err, Duration: lasted}
	switch w {
	case warnStoreDown:
		e.Kind = EventStoreDown
	case warnStoreBack:
		e.Kind = EventStoreBack
	case warnPrefixClaimed, warnOtherLimits, warnAcrossSlotsRefused, warnSnapshotFailed:
	default:
		m.emit(context.Background(), e)
		return
	}
	m.isolated(e)
}
