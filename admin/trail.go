package admin

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/ratelimit-go/ratelimit/audit"
)

// This file has the page of the audit trail.

// maxRecords is how many records the page shows.
const maxRecords = 100

// auditPage lists records.
type auditPage struct {
	head    `json:"process"`
	Records []recordRow `json:"records"`
	Limiter string      `json:"limiter,omitempty"`
	By      string      `json:"actor,omitempty"` // the actor that was asked for
	Key     *shownKey   `json:"key,omitempty"`
	KeyForm string      `json:"-"`
	Failed  string      `json:"error,omitempty"`
	Full    bool        `json:"more"` // there may be more
}

// A recordRow is a record as this viewer may see it.
type recordRow struct {
	audit.Record
	Shown *shownKey `json:"-"`
}

// What describes the record in a few words.
func (r *recordRow) What() string {
	what := string(r.Kind)
	if r.Outcome != "" {
		what += ", " + string(r.Outcome)
	}
	return what
}

// Details has the rest of the record.
func (r *recordRow) Details() (details []field) {
	add := func(name, value string) {
		if value != "" {
			details = append(details, field{name, value})
		}
	}
	if r.Policy != r.Limiter && !strings.Contains(r.Limit, r.Policy) {
		add("policy", r.Policy)
	}
	add("limit", r.Limit)
	if r.Units > 1 {
		add("units", strconv.FormatInt(r.Units, 10)) // count's spaces would be shown as escapes
	}
	if r.Count > 0 {
		add("events", strconv.FormatInt(r.Count, 10))
	}
	if r.Since != nil {
		add("since", clock(*r.Since, r.Time))
	}
	if r.Until != nil {
		add("until", clock(*r.Until, r.Time))
	}
	add("ended", r.Ended)
	add("code", r.Code)
	add("error", r.Error)
	add("route", r.Route)
	add("request", r.RequestID)
	return details
}

// audit shows the latest records.
func (q *request) audit() error {
	if q.h.opts.Audit == nil {
		return &failure{http.StatusNotFound, "There is no audit trail here: set admin.Options.Audit."}
	}
	form := q.r.URL.Query()
	p := &auditPage{head: q.head("Audit trail"), Limiter: form.Get("limiter"), By: form.Get("actor"), KeyForm: form.Get("k"), Records: []recordRow{}}
	p.Section = "audit" // it is not refreshed: to read a long trail takes a while
	query := audit.Query{Limiter: p.Limiter, Actor: p.By, Most: maxRecords}
	if p.KeyForm != "" {
		limiter, key, ok := unsealKey(p.KeyForm)
		if !ok {
			return errForeignLink
		}
		shown := q.showKey(limiter, key, len(key))
		p.Key, query.Key = &shown, key
	}
	ctx, cancel := context.WithTimeout(q.r.Context(), readTimeout)
	defer cancel()
	records, err := q.read(ctx, query)
	if err != nil {
		p.Failed = q.errorText(err)
	}
	p.Full = len(records) >= maxRecords
	for _, r := range records {
		row := recordRow{Record: r}
		if r.Key != "" {
			shown := q.showKey(r.Limiter, r.Key, len(r.Key))
			row.Shown, row.Key = &shown, shown.Text
		}
		if q.h.opts.KeyView != nil {
			row.Error = "" // it may have a key in it
		}
		p.Records = append(p.Records, row)
	}
	return q.show(http.StatusOK, "audit", p)
}

// read calls Options.Audit.
func (q *request) read(ctx context.Context, query audit.Query) (records []audit.Record, err error) {
	defer func() {
		if recover() != nil {
			records, err = nil, errors.New("Options.Audit has panicked")
		}
	}()
	return q.h.opts.Audit.Read(ctx, query)
}

// readTimeout bounds the time to read the trail.
const readTimeout = 10 * time.Second

// findAudit leads to the records that a form asks for, without the key in the address.
func (q *request) findAudit() error {
	form := q.r.PostForm
	to := url.Values{}
	for _, name := range []string{"limiter", "actor"} {
		if v := strings.TrimSpace(form.Get(name)); v != "" {
			to.Set(name, v)
		}
	}
	switch key := form.Get("key"); {
	case len(key) > maxTyped:
		return badRequest("The key has more than %d bytes.", maxTyped)
	case key != "":
		if l, ok := q.h.opts.Registry.Lookup(to.Get("limiter")); ok {
			key, _, _ = locate(q.r.Context(), l, q.h.watch.track(l.Name()), key)
		}
		to.Set("k", sealKey(to.Get("limiter"), key))
	case form.Get("k") != "":
		to.Set("k", form.Get("k"))
	}
	return q.redirect("audit", to)
}
