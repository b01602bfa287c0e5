package admin

import (
	"context"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/ratelimit-go/ratelimit"
)

// This file has the page of a key.

// keyPage shows a key.
type keyPage struct {
	head       `json:"process"`
	limiterRow `json:"limiter"`
	Key        shownKey      `json:"key"`
	Standings  []standingRow `json:"standings"`
	Failed     string        `json:"error,omitempty"` // why there are no standings
	Verdict    string        `json:"verdict"`
	State      string        `json:"state"`               // "free", "denied", "blocked" or "unknown"
	Uncertain  bool          `json:"uncertain,omitempty"` // the store may not have been asked
	Denied     *deniedRow    `json:"denied,omitempty"`
	Typed      string        `json:"typed,omitempty"`
	Others     []shownKey    `json:"others,omitempty"` // other keys that Typed can mean
	TypedLink  string        `json:"-"`
	Plans      []string      `json:"plans,omitempty"` // that the key can be looked up under
	Plan       string        `json:"plan,omitempty"`  // that it is looked up under
	Refunds    bool          `json:"-"`               // there are units to give back
	IsNetwork  bool          `json:"-"`
}

// A standingRow is the state of the key under one limit.
type standingRow struct {
	Policy    string     `json:"policy"`
	Limit     string     `json:"limit"`
	Remaining int64      `json:"remaining"`
	Burst     int64      `json:"-"`
	Percent   int        `json:"-"` // that is left
	Blocked   bool       `json:"blocked"`
	Never     bool       `json:"never"` // the limit admits nothing
	Unlimited bool       `json:"-"`
	More      string     `json:"-"`
	MoreAt    *time.Time `json:"more_at,omitempty"` // when more units fit
	Whole     string     `json:"-"`
	WholeAt   *time.Time `json:"whole_at,omitempty"` // when all units fit
	Ladder    string     `json:"ladder,omitempty"`
}

// keyOf returns the limiter and the key that a link or a form is about.
func (q *request) keyOf(form string) (*ratelimit.Limiter, string, error) {
	name, key, ok := unsealKey(form)
	if !ok {
		return nil, "", errForeignLink
	}
	l, err := q.lookup(name)
	return l, key, err
}

// errForeignLink is the answer to a link that this process cannot read.
var errForeignLink = &failure{http.StatusGone, "This link was made by another process, or before this one was started. Look the key up again."}

// lookTimeout bounds the look at a key.
const lookTimeout = 5 * time.Second

// key shows a key.
func (q *request) key() error {
	form := q.r.URL.Query()
	l, key, err := q.keyOf(form.Get("k"))
	if err != nil {
		return err
	}
	p := &keyPage{head: q.head("Key in " + l.Name()), limiterRow: q.row(l), Key: q.showKey(l.Name(), key, len(key)), Standings: []standingRow{}}
	p.Live, p.IsNetwork = true, isNetwork(key)
	p.Notice = unsealNotice(form.Get("n"), l.Name(), key)
	t := q.h.watch.track(l.Name())
	if d, ok := t.find(key); ok {
		row := q.deniedRow(l.Name(), &d)
		p.Denied = &row
	}
	if typed, ok := unseal(forTyped, form.Get("t")); ok && typed != key {
		p.Typed, p.TypedLink = q.showKey(l.Name(), typed, len(typed)).Text, form.Get("t")
		for _, other := range candidates(l, t, typed) {
			if other != key {
				p.Others = append(p.Others, q.showKey(l.Name(), other, len(other)))
			}
		}
	}
	q.lookAt(q.r.Context(), p, l, key, form.Get("plan"))
	return q.show(http.StatusOK, "key", p)
}

// lookAt fills in the state of the key, under the limiter's own limits or one plan's.
func (q *request) lookAt(ctx context.Context, p *keyPage, l *ratelimit.Limiter, key, plan string) {
	var under []ratelimit.Limit
	for _, policy := range l.Stats().Policies {
		if policy.Limit == (ratelimit.Limit{}) || slices.Contains(p.Limits, policy.Limit.String()) {
			continue
		}
		p.Plans = append(p.Plans, policy.Name)
		if policy.Name == plan {
			p.Plan, under = plan, []ratelimit.Limit{policy.Limit}
			if policy.Limit.Name() == "" && plan != l.Name() {
				// The plan has several limits. Alone, this limit would go by the limiter's name, and
				// the statistics would keep that as another policy.
				under[0] = policy.Limit.Named(plan)
			}
		}
	}
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	standings, uncertain, err := look(ctx, l, key, under...)
	p.Uncertain = uncertain
	if err != nil {
		p.Failed, p.State, p.Verdict = q.errorText(err), "unknown", "The state of this key cannot be read."
		return
	}
	p.judge(standings, q.now)
	if l.Info().Shadow && p.State != "free" {
		p.Verdict += " Its requests are let through nevertheless, because of Options.Shadow."
	}
}

// judge says what standings mean together.
func (p *keyPage) judge(standings []ratelimit.Standing, now time.Time) {
	p.State = "free"
	wait := time.Duration(0)
	for _, s := range standings {
		row := standingOf(&s, now)
		p.Standings = append(p.Standings, row)
		p.Refunds = p.Refunds || row.Burst > 0 && s.Limit.Algorithm() != "inflight"
		switch {
		case row.Never:
			p.State, p.Verdict = "blocked", "The limit admits nothing. Unblocking changes nothing: give the client other limits."
		case row.Unlimited:
		case s.Blocked:
			p.State, wait = "blocked", max(wait, s.MoreAfter)
		case s.Remaining == 0:
			wait = max(wait, s.MoreAfter)
			if p.State == "free" {
				p.State = "denied"
			}
		}
	}
	if p.Verdict != "" {
		return
	}
	when := until(wait) + ", at " + clock(*instant(now.Add(wait)), now) + " UTC."
	switch p.State {
	case "blocked":
		p.Verdict = "Blocked. It may come again in " + when
	case "denied":
		p.Verdict = "Denied. One unit fits again in " + when
	default:
		p.Verdict = "Not denied. A request for one unit is admitted now."
	}
}

// standingOf returns what the page shows of a standing.
func standingOf(s *ratelimit.Standing, now time.Time) standingRow {
	row := standingRow{Policy: s.Name, Limit: s.Limit.String(), Remaining: s.Remaining, Burst: s.Limit.Burst(), Blocked: s.Blocked}
	row.Never = s.RetryAfter == ratelimit.Never
	row.Unlimited = !row.Never && row.Burst <= 0
	if row.Burst > 0 {
		row.Percent = percent(float64(s.Remaining) / float64(row.Burst))
	}
	if s.MoreAfter > 0 && !row.Never {
		row.More, row.MoreAt = until(s.MoreAfter), instant(now.Add(s.MoreAfter))
	}
	if s.ResetAfter > 0 && !row.Never {
		row.Whole, row.WholeAt = until(s.ResetAfter), instant(now.Add(s.ResetAfter))
	}
	var steps []string
	for _, d := range s.Limit.Ladder() {
		steps = append(steps, ago(d))
	}
	row.Ladder = strings.Join(steps, ", then ")
	return row
}

// instant returns a time in whole seconds, rounded up: somebody may wait for it.
func instant(t time.Time) *time.Time {
	t = t.UTC().Add(time.Second - 1).Truncate(time.Second)
	return &t
}

// maxTyped is the longest text that is looked up, in bytes.
const maxTyped = 32 << 10

// findKey finds the key that an operator has typed, and leads to its page, or without a limiter
// to the page of all limiters that know the key. It is a POST, so that no log of requests has
// the key.
func (q *request) findKey() error {
	typed := q.r.PostForm.Get("key")
	if strings.TrimSpace(typed) == "" || len(typed) > maxTyped {
		return badRequest("Type a key, of at most %d bytes.", maxTyped)
	}
	if q.r.PostForm.Get("limiter") == "" {
		return q.redirect("found", url.Values{"t": {seal(forTyped, typed)}})
	}
	l, err := q.lookup(q.r.PostForm.Get("limiter"))
	if err != nil {
		return err
	}
	key, _, _ := locate(q.r.Context(), l, q.h.watch.track(l.Name()), typed)
	to := url.Values{"k": {sealKey(l.Name(), key)}}
	if key != typed && len(typed) <= maxKept {
		to.Set("t", seal(forTyped, typed))
	}
	return q.redirect("key", to)
}
