package admin

import (
	"cmp"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/ratelimit-go/ratelimit"
)

// This file has the pages of all limiters and of one limiter.

// perPage is how many limiters a page lists.
const perPage = 50

// limitersPage lists limiters.
type limitersPage struct {
	head `json:"process"`
	paging
	Rows     []limiterRow `json:"limiters"`
	All      int          `json:"-"` // limiters in the registry
	Sort     string       `json:"-"`
	Troubled []limiterRow `json:"-"` // limiters with alerts, of all pages
	More     int          `json:"-"` // troubled ones that are not in Troubled
}

// A limiterRow is what is said of a limiter wherever it is mentioned.
type limiterRow struct {
	Name      string   `json:"name"`
	Limits    []string `json:"limits"`
	Site      string   `json:"site"`
	Store     string   `json:"store"`
	Remote    bool     `json:"remote"`
	Prefix    string   `json:"prefix"`
	OnFailure string   `json:"on_failure,omitempty"`
	Shadow    bool     `json:"shadow,omitempty"` // requests are let through although they are denied
	traffic
}

// Link leads to the limiter's page. Links with a query are made here: html/template would
// escape the "=" of a query that is put behind a "?".
func (row *limiterRow) Link() string { return "limiter?" + url.Values{"name": {row.Name}}.Encode() }

// Place returns where the limiter was made: the last folder and the file.
func (row *limiterRow) Place() string {
	parts := strings.Split(row.Site, "/")
	return strings.Join(parts[max(0, len(parts)-2):], "/")
}

// row returns what is known of a limiter, without asking its store.
func (q *request) row(l *ratelimit.Limiter) limiterRow {
	info := l.Info()
	row := limiterRow{Name: info.Name, Site: info.Site, Store: info.Store, Remote: info.Remote, Prefix: info.Prefix, Shadow: info.Shadow}
	if info.Remote {
		row.OnFailure = info.OnFailure.String()
	}
	row.Limits = limitTexts(l.Limits())
	row.traffic = trafficOf(q.h.watch.track(info.Name).minute(), info.OnFailure.String())
	return row
}

// limitTexts returns the text forms of limits.
func limitTexts(limits []ratelimit.Limit) (texts []string) {
	for _, limit := range limits {
		texts = append(texts, limit.String())
	}
	return texts
}

// limiters shows the limiters that match a filter.
func (q *request) limiters() error {
	form := q.r.URL.Query()
	p := &limitersPage{head: q.head("Limiters"), Sort: form.Get("sort"), Rows: []limiterRow{}}
	p.Live = true
	matching, all := q.matching(form.Get("q"))
	p.All = all
	var rows []limiterRow
	for _, l := range matching {
		row := q.row(l)
		rows = append(rows, row)
		if len(row.Alerts) > 0 {
			p.Troubled = append(p.Troubled, row)
		}
	}
	const mostTroubled = 8
	if p.More = max(0, len(p.Troubled)-mostTroubled); p.More > 0 {
		p.Troubled = p.Troubled[:mostTroubled]
	}
	switch p.Sort {
	case "requests":
		slices.SortStableFunc(rows, func(a, b limiterRow) int { return cmp.Compare(b.Requests, a.Requests) })
	case "denied":
		slices.SortStableFunc(rows, func(a, b limiterRow) int { return cmp.Compare(b.Denials, a.Denials) })
	default:
		p.Sort = "name"
	}
	p.paging = pagingOf("./", url.Values{"q": {form.Get("q")}, "sort": {p.Sort}}, form.Get("page"), len(rows))
	p.Rows = append(p.Rows, onPage(&p.paging, rows)...)
	return q.show(http.StatusOK, "limiters", p)
}

// matching returns the limiters that have a text in their names, and how many there are in all.
func (q *request) matching(filter string) (matching []*ratelimit.Limiter, all int) {
	filter = strings.ToLower(filter)
	for name, l := range q.h.opts.Registry.All() {
		all++
		if strings.Contains(strings.ToLower(name), filter) {
			matching = append(matching, l)
		}
	}
	return matching, all
}

// paging divides a list into pages.
type paging struct {
	Total int `json:"total"` // that match the filter
	Page  int `json:"page"`  // from 1
	Pages int `json:"pages"`

	path  string
	query url.Values // besides the page
}

// pagingOf returns the paging of a list. asked is the page that the client wants, if it is a number.
func pagingOf(path string, query url.Values, asked string, total int) paging {
	p := paging{Total: total, Pages: max(1, (total+perPage-1)/perPage), path: path, query: query}
	page, _ := strconv.Atoi(asked) // the largest number if it is too large
	p.Page = min(max(1, page), p.Pages)
	return p
}

// onPage returns the part of a list that is on the page.
func onPage[T any](p *paging, list []T) []T {
	return list[min(p.Total, (p.Page-1)*perPage):min(p.Total, p.Page*perPage)]
}

// Filter is what the names are filtered by.
func (p *paging) Filter() string { return p.query.Get("q") }

// Previous and Next lead to the pages beside this one, if there are any.
func (p *paging) Previous() string { return p.to(p.Page - 1) }
func (p *paging) Next() string     { return p.to(p.Page + 1) }

func (p *paging) to(page int) string {
	if page < 1 || page > p.Pages {
		return ""
	}
	query := maps.Clone(p.query)
	query.Set("page", strconv.Itoa(page))
	return p.path + "?" + query.Encode()
}

// limiterPage shows one limiter.
type limiterPage struct {
	head       `json:"process"`
	limiterRow `json:"limiter"`
	Totals     []total      `json:"-"`
	Counts     countsJSON   `json:"counts"`
	Policies   []policyRow  `json:"policies"`
	Denied     []deniedRow  `json:"denied_keys"`
	Notices    []noticeRow  `json:"notices"`
	Warnings   []warningRow `json:"warnings"`
	Form       string       `json:"-"` // the limits, one a line
	Lines      int          `json:"-"`
}

// A total is one number of a limiter's life.
type total struct {
	Name  string
	Count uint64
}

type countsJSON struct {
	Allowed      uint64 `json:"allowed"`
	Denied       uint64 `json:"denied"`
	ShadowDenied uint64 `json:"shadow_denied"`
	NearLimit    uint64 `json:"near_limit"`
	Exempt       uint64 `json:"exempt"`
	NoKey        uint64 `json:"no_key"`
	Failed       uint64 `json:"failed"`
	Waiting      int    `json:"waiting"`
	InFlight     int    `json:"in_flight"`
}

type policyRow struct {
	Name    string `json:"name"`
	Limit   string `json:"limit"`
	Denied  uint64 `json:"denied"`
	InForce bool   `json:"in_force"` // it is one of the limiter's own limits, and no plan's
}

// A deniedRow is one of the keys that are denied most.
type deniedRow struct {
	Key    shownKey  `json:"key"`
	Count  uint64    `json:"denied"`
	Excess uint64    `json:"too_high_by_at_most"`
	Since  time.Time `json:"since"` // of the present run of denials
	Last   time.Time `json:"last"`
	Policy string    `json:"policy"`
	For    string    `json:"-"`
}

type noticeRow struct {
	Time time.Time `json:"time"`
	What string    `json:"what"`
	Text string    `json:"text,omitempty"`
}

type warningRow struct {
	Code  string `json:"code"`
	Count uint64 `json:"count"`
}

// limiter shows one limiter.
func (q *request) limiter() error {
	l, err := q.lookup(q.r.URL.Query().Get("name"))
	if err != nil {
		return err
	}
	stats, t := l.Stats(), q.h.watch.track(l.Name())
	p := &limiterPage{
		head: q.head(l.Name()), limiterRow: q.row(l), Counts: countsOf(&stats),
		Policies: []policyRow{}, Denied: []deniedRow{}, Notices: []noticeRow{}, Warnings: []warningRow{},
	}
	p.Live = true
	p.Notice = unsealNotice(q.r.URL.Query().Get("n"), l.Name(), "")
	p.Totals = []total{
		{"allowed", stats.Allowed}, {"denied", stats.Denied}, {"near a limit", stats.NearLimit}, {"denied in Shadow", stats.ShadowDenied},
		{"exempt", stats.Exempt}, {"without a key", stats.NoKey}, {"failed", stats.Failed},
		{"waiting now", uint64(max(0, stats.Waiting))}, {"in flight now", uint64(max(0, stats.InFlight))},
	}
	p.Form, p.Lines = strings.Join(p.Limits, "\n"), max(2, len(p.Limits))
	for _, policy := range stats.Policies {
		row := policyRow{Name: policy.Name, Denied: policy.Denied}
		if policy.Limit != (ratelimit.Limit{}) {
			row.Limit = policy.Limit.String()
		}
		row.InForce = slices.Contains(p.Limits, row.Limit)
		p.Policies = append(p.Policies, row)
	}
	for _, d := range t.top() {
		p.Denied = append(p.Denied, q.deniedRow(l.Name(), &d))
	}
	for _, n := range t.recent() {
		row := noticeRow{n.at.UTC(), n.what, n.text}
		if n.err && q.h.opts.KeyView != nil {
			row.Text = "" // it may have a key in it
		}
		p.Notices = append(p.Notices, row)
	}
	for code, n := range stats.Warnings {
		p.Warnings = append(p.Warnings, warningRow{string(code), n})
	}
	slices.SortFunc(p.Warnings, func(a, b warningRow) int { return strings.Compare(a.Code, b.Code) })
	return q.show(http.StatusOK, "limiter", p)
}

func countsOf(s *ratelimit.LimiterStats) countsJSON {
	return countsJSON{
		Allowed: s.Allowed, Denied: s.Denied, ShadowDenied: s.ShadowDenied, NearLimit: s.NearLimit,
		Exempt: s.Exempt, NoKey: s.NoKey, Failed: s.Failed, Waiting: s.Waiting, InFlight: s.InFlight,
	}
}

func (q *request) deniedRow(limiter string, d *denials) deniedRow {
	row := deniedRow{
		Key: q.showKey(limiter, d.key, d.length), Count: d.count, Excess: d.excess, Since: d.since.UTC(), Last: d.last.UTC(), Policy: d.policy,
	}
	switch quiet := q.now.Sub(d.last); {
	case d.last.IsZero():
		row.For = "unblocked"
	case quiet >= runEnds:
		row.For = "last denied " + ago(quiet) + " ago"
	default:
		row.For = "denied for " + ago(max(0, q.now.Sub(d.since)))
	}
	return row
}
