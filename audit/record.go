package audit

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"log/slog"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/ratelimit-go/ratelimit"
)

// Record is one line of the trail. Fields without a value are left out of its JSON form.
//
// NIST SP 800-53 (revision 5, control AU-3) asks for these fields: what happened, when, where,
// the source, the outcome, and the identities involved.
type Record struct {
	Kind Kind      `json:"kind"`
	Time time.Time `json:"time"` // in UTC, by the wall clock of the instance

	Service  string `json:"service"`
	Instance string `json:"instance"` // the process: by default the name of the host
	Limiter  string `json:"limiter,omitempty"`

	// Actor is the person or system that a call was made for; see ratelimit.WithActor. Reason
	// is what they gave as a reason. Outcome is of a call: "intended" in the record that is
	// written before the call changes anything, and "done" in the one after it.
	Actor   string  `json:"actor,omitempty"`
	Reason  string  `json:"reason,omitempty"`
	Outcome Outcome `json:"outcome,omitempty"`

	// Pseudonym is the pseudonym of the key that was denied, blocked or reset, and Epoch names the
	// secret that it was made with. With Options.PlainKeys, Key has the key itself, quoted if
	// it is not valid UTF-8.
	Pseudonym string `json:"pseudonym,omitempty"`
	Epoch     string `json:"epoch,omitempty"`
	Key       string `json:"key,omitempty"`

	Policy string `json:"policy,omitempty"` // the limit's name, as in the header fields
	Limit  string `json:"limit,omitempty"`  // the limit in force, as ratelimit.ParseLimit reads it
	Units  int64  `json:"units,omitempty"`  // that were asked for, or refunded; of an episode, all of them together
	Count  int64  `json:"count,omitempty"`  // how many events the record is about, if more than one
	Source string `json:"source,omitempty"` // where a decision was made; see ratelimit.Source

	Since *time.Time `json:"since,omitempty"` // when an episode or a gap has begun
	Until *time.Time `json:"until,omitempty"` // when the key may come again, or its block ends, as far as that is known

	Ended string `json:"ended,omitempty"` // of a released record: why the episode is over
	Code  string `json:"code,omitempty"`  // of a warning; see ratelimit.Code
	Error string `json:"error,omitempty"` // only with Options.PlainKeys: an error's text may have keys in it

	Route     string `json:"route,omitempty"` // see Options.Request
	RequestID string `json:"request_id,omitempty"`
}

// Kind says what a record is about: a kind of a [ratelimit.Event], or one of the following.
type Kind string

const (
	// Released ends an episode: a key that was denied has not been denied again for 5 minutes,
	// or Ended has another reason. Since is when the episode began, and Count has how many denials
	// it had.
	Released Kind = "released"
	// Suppressed is about Count events of a limiter within a second: more than 100 keys
	// were denied or blocked in it for the first time.
	Suppressed Kind = "suppressed"
	// Admitted is a decision that has let a request through, and Charged are units that were
	// added to one later. There are such records only of a [ratelimit.RecordingStore] that
	// records each decision.
	Admitted Kind = "admitted"
	Charged  Kind = "charged"
	// Gap is about Count records that are missing, since Since: the sink did not take them,
	// and the queue was full.
	Gap Kind = "gap"
)

// Outcome says whether a call by hand is about to be carried out, or was.
type Outcome string

// The outcomes of calls. A call that has failed has only the first. A call whose record a
// [ratelimit.RecordingStore] writes together with the change has only the second.
const (
	Intended Outcome = "intended"
	Done     Outcome = "done"
)

// LogValue implements [slog.LogValuer]: the record is a group with the attributes of its JSON
// form, without the time, because a log record has one.
func (r Record) LogValue() slog.Value {
	attrs := []slog.Attr{slog.String("kind", string(r.Kind)), slog.String("service", r.Service), slog.String("instance", r.Instance)}
	for _, a := range [...]struct{ name, value string }{
		{"limiter", r.Limiter}, {"actor", r.Actor}, {"reason", r.Reason}, {"outcome", string(r.Outcome)}, {"pseudonym", r.Pseudonym}, {"epoch", r.Epoch},
		{"key", r.Key}, {"policy", r.Policy}, {"limit", r.Limit}, {"source", r.Source}, {"ended", r.Ended}, {"code", r.Code}, {"error", r.Error},
		{"route", r.Route}, {"request_id", r.RequestID},
	} {
		if a.value != "" {
			attrs = append(attrs, slog.String(a.name, a.value))
		}
	}
	for _, a := range [...]struct {
		name  string
		value int64
	}{{"units", r.Units}, {"count", r.Count}} {
		if a.value != 0 {
			attrs = append(attrs, slog.Int64(a.name, a.value))
		}
	}
	for _, a := range [...]struct {
		name  string
		value *time.Time
	}{{"since", r.Since}, {"until", r.Until}} {
		if a.value != nil {
			attrs = append(attrs, slog.Time(a.name, *a.value))
		}
	}
	return slog.GroupValue(attrs...)
}

// A Sink takes the records of a [Trail]. Its methods may be called from any number of
// goroutines.
type Sink interface {
	// Write appends records, in their order: all of them, or none if it returns an error. If
	// durable is set, it returns when they survive a crash of the program and of the machine.
	// It keeps neither the slice nor the records. ctx ends after some seconds.
	Write(ctx context.Context, records []Record, durable bool) error
}

// A Reader finds records. A [Trail] is one if its sink is one.
type Reader interface {
	// Read returns the records that match the query, the newest first.
	Read(ctx context.Context, q Query) ([]Record, error)
}

// Query says which records to find. The zero Query matches all.
type Query struct {
	Limiter string
	Actor   string
	Key     string // the key itself; a Trail also finds the records that have its pseudonyms
	Kind    Kind

	From, To time.Time // From is included, To is not; zero for no bound
	Most     int       // how many records to return, at most 1,000,000; 0 for 100

	// Pseudonyms finds records with any of them, whatever Key is. Trail.Read fills in the
	// pseudonyms of Key. See Secret.Pseudonym.
	Pseudonyms []string
}

// most returns how many records to return.
func (q *Query) most() int {
	if q.Most <= 0 {
		return 100
	}
	return min(q.Most, 1_000_000)
}

// Matches reports whether a record is one that the query asks for.
func (q *Query) Matches(r *Record) bool {
	switch {
	case q.Limiter != "" && q.Limiter != r.Limiter, q.Actor != "" && q.Actor != r.Actor, q.Kind != "" && q.Kind != r.Kind:
		return false
	case !q.From.IsZero() && r.Time.Before(q.From), !q.To.IsZero() && !r.Time.Before(q.To):
		return false
	case q.Key == "" && len(q.Pseudonyms) == 0, q.Key != "" && plainKey(q.Key) == r.Key:
		return true
	}
	for _, p := range q.Pseudonyms {
		if p == r.Pseudonym {
			return true
		}
	}
	return false
}

// plainKey returns a key as Options.PlainKeys records it: quoted as Go quotes it if it is not
// valid UTF-8, which JSON cannot hold, and not longer than maxText.
func plainKey(key string) string {
	if key = bounded(key); utf8.ValidString(key) {
		return key
	}
	return bounded(strconv.QuoteToASCII(key))
}

// maxText is how long a text of a record may be, in bytes. Clients choose some of them, such as
// keys and the ids of requests.
const maxText = 1024

// bounded returns a text, or if it is too long its beginning and its SHA-256.
func bounded(text string) string {
	if len(text) <= maxText {
		return text
	}
	sum := sha256.Sum256([]byte(text))
	end := "... sha256:" + hex.EncodeToString(sum[:])
	return strings.ToValidUTF8(text[:maxText-len(end)], "") + end
}

// NewLogSink returns a sink that writes each record to a logger, as a group with the name
// "audit". A logger does not say whether it has failed, so calls of operators never do.
func NewLogSink(logger *slog.Logger) Sink { return logSink{logger} }

type logSink struct{ logger *slog.Logger }

func (s logSink) Write(ctx context.Context, records []Record, _ bool) error {
	for _, r := range records {
		s.logger.LogAttrs(ctx, slog.LevelInfo, "ratelimit: audit", slog.Attr{Key: "audit", Value: r.LogValue()})
	}
	return nil
}

// recordOf returns the record of an event, without its key.
func recordOf(e *ratelimit.Event) Record {
	r := Record{
		Kind: Kind(e.Kind.String()), Time: e.Time.UTC(), Limiter: e.Limiter, Actor: bounded(e.Actor), Reason: bounded(e.Reason),
		Policy: e.Policy, Units: e.Units, Code: string(e.Code),
	}
	limit := e.Limit
	if limit == (ratelimit.Limit{}) {
		limit = e.Decision.Limit
	}
	if limit != (ratelimit.Limit{}) {
		r.Limit = limit.String()
	}
	if e.Decision != (ratelimit.Decision{}) {
		r.Source = e.Decision.Source.String()
	}
	if e.Kind == ratelimit.EventStoreBack {
		r.Since = instant(e.Time.Add(-e.Duration))
	} else {
		r.Until = untilOf(e)
	}
	return r
}

// untilOf returns when the key of an event may come again, or nil.
func untilOf(e *ratelimit.Event) *time.Time {
	wait := max(e.Decision.RetryAfter, e.Duration)
	if wait <= 0 || wait == ratelimit.Never {
		return nil
	}
	return instant(e.Time.Add(wait))
}

func instant(t time.Time) *time.Time {
	t = t.UTC()
	return &t
}
