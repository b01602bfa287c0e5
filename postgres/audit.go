package postgres

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/ratelimit-go/ratelimit/audit"
	"github.com/ratelimit-go/ratelimit/internal/clock"
	"github.com/ratelimit-go/ratelimit/internal/guard"
)

// This file has the audit trail in the database: the sink, the reader and the secrets of
// package audit. recording.go has the records that a Store writes by itself.

// AuditSink writes the records of an [audit.Trail] to the table ratelimit.audit, and keeps the
// secrets of pseudonyms beside it, which all processes share. It is an [audit.Sink], an
// [audit.Reader] and an [audit.Secrets]:
//
//	sink, err := postgres.NewAuditSink(pool)
//	…
//	trail, err := audit.New(audit.Options{Sink: sink, Secrets: sink, Service: "shop"})
//
// A role with ratelimit_application can write records, and neither read, change nor delete
// them. A role with ratelimit_auditor can read them, and not the secrets. [Migrate] makes the
// table and the roles. Two columns are set by the server: writer is the role that has written a
// record, and written is when, by the server's clock.
//
// Text that PostgreSQL cannot hold is quoted as Go quotes it. Text of more than 1,024
// bytes is cut, and its SHA-256 appended.
//
// Methods may be called from any number of goroutines. An AuditSink has no goroutine and needs
// no Close.
type AuditSink struct {
	pool      *pgxpool.Pool
	keepFails atomic.Bool // the last try has failed

	keep atomic.Int64 // when to make and drop partitions again, by clock.Now

	mu      sync.Mutex // not held while a statement runs
	secrets []audit.Secret
	until   int64 // when the secrets must be read again, by clock.Now
}

var (
	_ audit.Sink    = (*AuditSink)(nil)
	_ audit.Reader  = (*AuditSink)(nil)
	_ audit.Secrets = (*AuditSink)(nil)
)

// NewAuditSink returns a sink that writes to the database of a pool. The pool is lent: it may
// serve stores and other purposes, and is never closed. Nothing is sent yet.
func NewAuditSink(pool *pgxpool.Pool) (*AuditSink, error) {
	if pool == nil {
		return nil, errors.New("ratelimit: postgres.AuditSink: the pool is nil: make one with pgxpool.New")
	}
	return &AuditSink{pool: pool}, nil
}

const (
	// maxText is how long a text of a record may be, in bytes.
	maxText = 1024

	keepEvery    = int64(time.Hour)   // how often partitions are made and dropped
	secretsFresh = int64(time.Minute) // secrets are used without asking the server

	readHint = "grant ratelimit_auditor to the role that reads, or read with a pool of another role"
)

// Write implements [audit.Sink]. A record that is durable has been written to the server's disk,
// if its fsync and synchronous_commit are on. If the connection is lost before the server
// has answered, the records may be there although Write returns an error. A Trail then
// writes the records of its queue a second time.
func (s *AuditSink) Write(ctx context.Context, records []audit.Record, durable bool) error {
	ctx, cancel := patient(ctx)
	defer cancel()
	err := asJSON(ctx, records, func(text string) error {
		_, err := s.pool.Exec(ctx, "SELECT ratelimit.audit_write($1, NULL, NULL, $2)", text, !durable)
		return err
	})
	if err != nil {
		return s.fail(err, "")
	}
	s.keepSometimes(ctx)
	return nil
}

// patient returns a context with the deadline of another one that is not cancelled with it:
// a context that is cancelled would close the connection, and leave it unknown whether a record
// was written.
func patient(ctx context.Context) (context.Context, context.CancelFunc) {
	until := time.Now().Add(callTimeout)
	if deadline, ok := ctx.Deadline(); ok && deadline.Before(until) {
		until = deadline
	}
	return context.WithDeadline(context.WithoutCancel(ctx), until)
}

// asJSON calls send with records as a JSON array. If the database's encoding has no room for
// their text, nothing was written, and send is called again with all text in ASCII.
// It ends when ctx is done.
func asJSON(ctx context.Context, records []audit.Record, send func(text string) error) error {
	with := func(ascii bool) error {
		clean := make([]audit.Record, len(records))
		for i := range records {
			if err := ctx.Err(); err != nil {
				return err
			}
			clean[i] = cleaned(records[i], ascii)
		}
		text, err := json.Marshal(clean)
		if err != nil {
			return err
		}
		return send(string(text))
	}
	err := with(false)
	var reply *pgconn.PgError
	if errors.As(err, &reply) && strings.HasPrefix(reply.Code, "22") { // a data exception
		err = with(true)
	}
	return err
}

// cleaned returns a record whose texts and times the server can hold.
func cleaned(r audit.Record, ascii bool) audit.Record {
	kind, outcome := string(r.Kind), string(r.Outcome)
	for _, text := range []*string{
		&kind, &r.Service, &r.Instance, &r.Limiter, &r.Actor, &r.Reason, &outcome, &r.Pseudonym, &r.Epoch, &r.Key,
		&r.Policy, &r.Limit, &r.Source, &r.Ended, &r.Code, &r.Error, &r.Route, &r.RequestID,
	} {
		*text = cleanText(*text, ascii)
	}
	r.Kind, r.Outcome = audit.Kind(kind), audit.Outcome(outcome)
	r.Time = cleanTime(r.Time)
	for _, at := range []**time.Time{&r.Since, &r.Until} {
		if *at != nil {
			t := cleanTime(**at)
			*at = &t
		}
	}
	return r
}

// cleanText returns a text that the server can hold. Two texts have the same result only if
// they have the same SHA-256, or if one is the quoted form of the other.
func cleanText(s string, ascii bool) string {
	if len(s) > 4*maxText {
		s = cutText(s, 4*maxText) // before it is quoted, which makes it four times as long
	}
	if !utf8.ValidString(s) || strings.Contains(s, "\x00") || ascii && strings.ContainsFunc(s, func(r rune) bool { return r >= utf8.RuneSelf }) {
		s = strconv.QuoteToASCII(s)
	}
	if len(s) <= maxText {
		return s
	}
	return cutText(s, maxText)
}

// cutText returns the beginning of a text, of at most n bytes with the text's SHA-256.
func cutText(s string, n int) string {
	sum := sha256.Sum256([]byte(s))
	end := "... sha256:" + hex.EncodeToString(sum[:])
	cut := n - len(end)
	for least := cut - utf8.UTFMax; cut > least && !utf8.RuneStart(s[cut]); cut-- {
	}
	return s[:cut] + end
}

// cleanTime returns the time in the bounds of JSON.
func cleanTime(t time.Time) time.Time {
	switch t = t.UTC(); {
	case t.Year() < 1:
		return time.Time{}
	case t.Year() > 9999:
		return time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC)
	}
	return t
}

// keepSometimes makes and drops partitions if it is time for that. It logs the first of several
// errors of the server. Write reports that a server does not answer.
func (s *AuditSink) keepSometimes(ctx context.Context) {
	now, next := clock.Now(), s.keep.Load()
	if now < next || !s.keep.CompareAndSwap(next, now+keepEvery) {
		return
	}
	ctx, cancel := patient(ctx)
	defer cancel()
	if _, err := s.pool.Exec(ctx, "SELECT ratelimit.audit_keep()"); err != nil {
		s.keep.Store(now + int64(time.Minute))
		if errors.As(err, new(*pgconn.PgError)) && !s.keepFails.Swap(true) {
			guard.Run(func() { // the records are written, whatever the logger does
				slog.Error("ratelimit: old months of the audit trail cannot be dropped, or the next one cannot be made; records are written", "error", s.fail(err, ""))
			}, nil)
		}
		return
	}
	s.keepFails.Store(false)
}

// Secrets implements [audit.Secrets], by the server's clock: now is not used. The secrets are in
// a table that only the owner of the schema and the functions can read. They exist for as many
// days as ratelimit.audit_setting says, 90 by default.
func (s *AuditSink) Secrets(ctx context.Context, _ time.Time) ([]audit.Secret, error) {
	s.mu.Lock()
	if clock.Now() < s.until {
		defer s.mu.Unlock()
		return slices.Clone(s.secrets), nil
	}
	s.mu.Unlock()
	s.keepSometimes(ctx)
	asked := clock.Now()
	patient, cancel := patient(ctx)
	defer cancel()
	var now time.Time
	var days int
	var epochs []string
	var begins []time.Time
	var secrets [][]byte
	err := s.pool.QueryRow(patient, "SELECT r_now, r_days, r_epochs, r_begins, r_secrets FROM ratelimit.audit_secrets()").Scan(&now, &days, &epochs, &begins, &secrets)
	if err == nil && (len(epochs) == 0 || len(begins) != len(epochs) || len(secrets) != len(epochs)) {
		err = errReply
	}
	if err != nil {
		return nil, s.fail(err, "")
	}
	all := make([]audit.Secret, len(epochs))
	for i := range all {
		all[i] = audit.Secret{Epoch: epochs[i], Begins: begins[i].UTC(), Bytes: secrets[i]}
	}
	exist := time.Duration(days) * 24 * time.Hour
	fresh := min(secretsFresh, int64(begins[0].Add(exist/3).Sub(now)), int64(begins[len(all)-1].Add(exist).Sub(now)))
	s.mu.Lock()
	defer s.mu.Unlock()
	s.secrets, s.until = all, asked+fresh
	return slices.Clone(all), nil
}

// Read implements [audit.Reader]. The role of the pool must have ratelimit_auditor.
func (s *AuditSink) Read(ctx context.Context, q audit.Query) ([]audit.Record, error) {
	most := q.Most
	if most <= 0 {
		most = 100
	}
	sql, args := "WHERE true", []any{}
	where := func(condition string, arg any) {
		args = append(args, arg)
		sql += fmt.Sprintf(" AND "+condition, len(args))
	}
	for _, equal := range []struct{ column, value string }{{"limiter", q.Limiter}, {"actor", q.Actor}, {"kind", string(q.Kind)}} {
		if equal.value != "" {
			where(equal.column+" = $%d", cleanText(equal.value, false))
		}
	}
	if !q.From.IsZero() {
		where("time >= $%d", cleanTime(q.From))
	}
	if !q.To.IsZero() {
		where("time < $%d", cleanTime(q.To))
	}
	switch {
	case q.Key != "":
		args = append(args, q.Pseudonyms)
		where(fmt.Sprintf("(pseudonym = ANY ($%d::text[]) OR key = $%%d)", len(args)), cleanText(q.Key, false))
	case len(q.Pseudonyms) > 0:
		where("pseudonym = ANY ($%d::text[])", q.Pseudonyms)
	}
	rows, err := s.pool.Query(ctx, `SELECT time, kind, coalesce(service, ''), coalesce(instance, ''), coalesce(limiter, ''), coalesce(actor, ''), coalesce(reason, ''),
		coalesce(outcome, ''), coalesce(pseudonym, ''), coalesce(epoch, ''), coalesce(key, ''), coalesce(policy, ''), coalesce("limit", ''), coalesce(units, 0),
		coalesce(count, 0), coalesce(source, ''), since, until, coalesce(ended, ''), coalesce(code, ''), coalesce(error, ''), coalesce(route, ''), coalesce(request_id, '')
		FROM ratelimit.audit `+sql+` ORDER BY time DESC, id DESC LIMIT `+strconv.Itoa(most), args...)
	if err != nil {
		return nil, s.fail(err, readHint)
	}
	found, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (r audit.Record, err error) {
		err = row.Scan(&r.Time, &r.Kind, &r.Service, &r.Instance, &r.Limiter, &r.Actor, &r.Reason, &r.Outcome, &r.Pseudonym, &r.Epoch, &r.Key, &r.Policy, &r.Limit, &r.Units,
			&r.Count, &r.Source, &r.Since, &r.Until, &r.Ended, &r.Code, &r.Error, &r.Route, &r.RequestID)
		return cleaned(r, false), err // with its times in UTC
	})
	if err != nil {
		return nil, s.fail(err, readHint)
	}
	return found, nil
}

// fail returns the error of a call. rights is what to do if the role may not make it.
func (s *AuditSink) fail(err error, rights string) error {
	_, hint := classify(err)
	var reply *pgconn.PgError
	if rights != "" && errors.As(err, &reply) && reply.Code == "42501" {
		hint = rights
	}
	return fmt.Errorf("ratelimit: postgres.AuditSink: %w%s", err, because(hint))
}
