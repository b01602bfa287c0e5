package postgres

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/ratelimit-go/ratelimit"
	"github.com/ratelimit-go/ratelimit/audit"
)

// This file has the records that a store writes in the transaction of what they are about.
// The statement is in exchange.go, and audit.sql has its function.

// WithAudit makes the store write records of an audit trail in the transaction of the change:
// both, or neither. The sink must have the pool of the store. The limiter's Options.Audit must
// be a trail of the sink, which is what [ratelimit.New] checks.
//
// There is such a record of each [ratelimit.Limiter.Reset] and [ratelimit.Limiter.Block], and of
// each [ratelimit.Limiter.Refund] by an actor. Its outcome is "done", and there is none
// that says "intended". While the database is away, these calls fail, and change nothing
// in the process either. [ratelimit.Limiter.SetLimits] changes no row: it is recorded before it
// takes effect, as with any other sink.
//
// With all, each decision has a record, also a denial, and so have units that are given back or
// charged later. That is for grave and slow limiters: codes by mail, payments. It implies
// [Durable]. Each decision then takes two or three round trips, and a wait for the server's
// disk. No decision is made without the database: see [ratelimit.RecordingStore] for what New
// refuses. Limits above 1,000 units per second and in-flight limits are refused, too. A denied
// call writes its record, so put a limiter without this option around it to stop floods.
func WithAudit(sink *AuditSink, all bool) Option {
	return func(s *Store) {
		s.audited, s.sink, s.recordsAll = true, sink, all
		s.durable = s.durable || all
	}
}

// maxRecordedRate is the highest limit whose decisions are recorded, in units per second.
const maxRecordedRate = 1000

var _ ratelimit.RecordingStore = (*Store)(nil)

// validateAudit returns an error for an option WithAudit that cannot work.
func (s *Store) validateAudit() error {
	switch {
	case !s.audited:
	case s.sink == nil:
		return errors.New("the sink of WithAudit is nil: make one with NewAuditSink, or leave WithAudit out")
	case s.sink.pool != s.pool:
		return errors.New("the sink of WithAudit has another pool, so records could not be in the transactions of the store: give both the same one")
	}
	return nil
}

// Records implements [ratelimit.RecordingStore].
func (s *Store) Records(auditor ratelimit.Auditor) (ratelimit.Recording, error) {
	if !s.audited {
		return ratelimit.RecordsNothing, nil
	}
	trail, ok := auditor.(*audit.Trail)
	if !ok {
		return ratelimit.RecordsNothing, fmt.Errorf("it is a %T, and the store with the prefix %q has WithAudit: set it to an *audit.Trail with the sink of WithAudit", auditor, s.prefix)
	}
	if trail == nil || trail.Sink() != audit.Sink(s.sink) {
		return ratelimit.RecordsNothing, fmt.Errorf("its trail has another sink than WithAudit of the store with the prefix %q: give both the same one", s.prefix)
	}
	if s.recordsAll {
		return ratelimit.RecordsDecisions, nil
	}
	return ratelimit.RecordsCalls, nil
}

// Validate implements [ratelimit.Validator]: a store that records each decision refuses limits
// that are too high, or that count more than decisions.
func (s *Store) Validate(limits []ratelimit.Limit) error {
	if !s.recordsAll {
		return nil
	}
	for _, l := range limits {
		if l.Algorithm() == "inflight" {
			return fmt.Errorf("limit %v: its holds end without a decision, and the store (prefix %q) records each decision: give it a limiter and a store of its own", l, s.prefix)
		}
		if float64(l.N()) > maxRecordedRate*l.Window().Seconds() {
			return fmt.Errorf("limit %v is above %d units per second, and the store (prefix %q) records each decision: use WithAudit(sink, false)", l, maxRecordedRate, s.prefix)
		}
	}
	return nil
}

// A recording is what is known of the record of a call before it is carried out.
type recording struct {
	first    audit.Record // of the limiter, the key, and who asks
	byHand   bool         // the record is complete
	limits   []ratelimit.Limit
	policies []string
}

// recordingOf returns the recording of a call, or nil if it is not recorded. Not recorded are
// looks, and what a limiter sends of the time before its store had WithAudit.
func (s *Store) recordingOf(ctx context.Context, op op, key string, units int64, limits []ratelimit.Limit, must bool) (*recording, error) {
	with, ok := ratelimit.RecordableFrom(ctx)
	byHand := with.Event.Kind != 0
	if !must && (!s.audited || !ok || !byHand && (op != adjust || units == 0)) {
		return nil, nil
	}
	trail, isTrail := with.Auditor.(*audit.Trail)
	if !isTrail {
		return nil, s.fail(ratelimit.FaultKey, errors.New("it has WithAudit, and the call has no record"),
			"call it through a limiter whose Options.Audit is the trail; a wrapper of the store must hand on the contexts of calls")
	}
	e := with.Event
	if e.Key = key; !byHand {
		e.Units = max(units, -units)
	}
	r, err := trail.RecordOf(ctx, e)
	if err != nil {
		return nil, s.fail(ratelimit.FaultKey, err, "")
	}
	if byHand {
		r.Outcome = audit.Done
	} else {
		r.Source = ratelimit.SourceStore.String()
	}
	return &recording{first: r, byHand: byHand, limits: slices.Clone(limits), policies: with.Policies}, nil
}

// giveBack returns the recording of units that are given back after their caller has gone.
func (r *recording) giveBack() *recording {
	if r == nil {
		return nil
	}
	back := *r
	back.first.Time = time.Now().UTC()
	return &back
}

// record returns the record of a call that was carried out.
func (c *call) record() audit.Record {
	r := c.recording.first
	switch {
	case c.recording.byHand:
	case c.op == adjust && c.units < 0:
		r.Kind, r.Units = audit.Kind(ratelimit.EventRefunded.String()), -c.units
	case c.op == adjust:
		r.Kind, r.Units = audit.Charged, c.charged
	default:
		c.recordDecision(&r)
	}
	return r
}

// recordDecision fills in the record of a take.
func (c *call) recordDecision(r *audit.Record) {
	binding := 0
	limits := c.recording.limits
	for i := range limits {
		if c.results[i].RetryAfter > c.results[binding].RetryAfter {
			binding = i
		}
	}
	if wait := c.results[binding].RetryAfter; wait > 0 {
		r.Kind = audit.Kind(ratelimit.EventDenied.String())
		if wait != ratelimit.Never {
			until := time.Unix(0, c.decided).UTC().Add(wait)
			r.Until = &until
		}
	} else {
		r.Kind, r.Units = audit.Admitted, c.taken
		if len(limits) > 1 {
			return // under all of them
		}
	}
	r.Limit = limits[binding].String()
	if binding < len(c.recording.policies) {
		r.Policy = c.recording.policies[binding]
	}
}
