package ratelimit

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// Headers selects the response header fields that tell clients about their
// limits. Styles can be combined with |; where two write the same field, the
// newest does. The draft that became each style is in its name, because the
// draft still changes. Times are whole seconds, rounded up, as in Retry-After: a
// sliding window of a minute can say 61. Zero means HeadersDraft10.
//
// Scripts of other origins see the fields only if the response also has
// Access-Control-Expose-Headers with their names, which is CORS middleware's to say.
type Headers uint8

const (
	// HeadersDraft10 is draft-ietf-httpapi-ratelimit-headers-10: one member per
	// limit, and limiters that are stacked on a request add theirs.
	//
	//	RateLimit-Policy: "login";q=5;w=3600
	//	RateLimit: "login";r=4;t=3600
	//
	// t is the time until r grows. A token bucket is told by its rate, so that r
	// can be above q by what it allows in a burst.
	HeadersDraft10 Headers = 1 << iota

	// HeadersDraft7 is draft 7 of the same. RateLimit tells of the binding limit
	// alone, as in the styles below: of all limiters on a request, that which
	// denied, or that with the least remaining. reset is the time until it is whole.
	//
	//	RateLimit-Policy: 5;w=3600
	//	RateLimit: limit=5, remaining=4, reset=3600
	HeadersDraft7

	// HeadersDraft6 is draft 6 of the same.
	//
	//	RateLimit-Policy: 5;w=3600
	//	RateLimit-Limit: 5
	//	RateLimit-Remaining: 4
	//	RateLimit-Reset: 3600
	HeadersDraft6

	// HeadersLegacy is what GitHub and others have sent since before there was a
	// draft; the reset is an instant, in seconds of Unix time.
	//
	//	X-RateLimit-Limit: 5
	//	X-RateLimit-Remaining: 4
	//	X-RateLimit-Reset: 1735693200
	HeadersLegacy

	// HeadersNone is no field but Retry-After. It cannot be combined.
	HeadersNone
)

func (h Headers) validate() error {
	const all = HeadersDraft10 | HeadersDraft7 | HeadersDraft6 | HeadersLegacy
	switch {
	case h&^(all|HeadersNone) != 0:
		return fmt.Errorf("Options.Headers is %#x: want HeadersDraft10, 7, 6, HeadersLegacy, a combination of them, or HeadersNone", uint8(h))
	case h&HeadersNone != 0 && h != HeadersNone:
		return errors.New("Options.Headers has HeadersNone and other styles: leave one of them out")
	case h&HeadersDraft10 != 0 && h&HeadersDraft7 != 0:
		return errors.New("Options.Headers has HeadersDraft10 and HeadersDraft7, which write the same two fields: choose one of them")
	}
	return nil
}

// Field names in the form of the keys of an http.Header.
const (
	fieldPolicy    = "Ratelimit-Policy"
	fieldRateLimit = "Ratelimit"
)

// policy is a limiter's limits with all of the answers that can be made before a
// request is there. It does not change.
type policy struct {
	limits   []Limit
	plan     bool     // of Options.LimitsFor
	names    []string // effective policy names
	declared []string // RateLimit-Policy of draft 10, one string: a header field's value as it is stored
	older    []string // RateLimit-Policy of drafts 7 and 6
	members  []member
}

// member is the constant part of one limit in lists.
type member struct {
	declared  string // "login";q=5;w=3600
	remaining string // "login";r=
	problem   string // "login" in JSON
}

func newPolicy(limiter string, limits []Limit) *policy {
	p := &policy{limits: slices.Clone(limits), names: policyNames(limiter, limits)}
	var declared, older []byte
	for i, l := range p.limits {
		if i > 0 {
			declared = append(declared, ", "...)
			older = append(older, ", "...)
		}
		quota := strconv.FormatInt(l.N(), 10)
		window := ";w=" + strconv.FormatInt(seconds(l.Window()), 10)
		name := fieldString(p.names[i])
		asJSON, _ := json.Marshal(p.names[i]) // a valid string always has a form
		m := member{
			declared:  name + ";q=" + quota + window,
			remaining: name + ";r=",
			problem:   string(asJSON),
		}
		p.members = append(p.members, m)
		declared = append(declared, m.declared...)
		older = append(older, quota+window...)
	}
	p.declared, p.older = []string{string(declared)}, []string{string(older)}
	return p
}

// policyNames gives each limit its own name, or else the limiter's, with as much
// of the limit behind it as tells it from the others.
func policyNames(limiter string, limits []Limit) []string {
	names := make([]string, len(limits))
	for i, l := range limits {
		names[i] = l.name
		if names[i] != "" {
			continue
		}
		names[i] = limiter
		if len(limits) == 1 {
			continue
		}
		names[i] += "-" + shortDuration(l.Window())
		for j, other := range limits {
			if j != i && other.name == "" && other.Window() == l.Window() {
				names[i] += "-" + l.Algorithm()
				break
			}
		}
	}
	return names
}

// binding returns the place of the limit that binds: of those that denied the one
// that denies for the longest, else the one with the least left.
func binding(results []Result) int {
	binding := 0
	for i := 1; i < len(results); i++ {
		r, b := &results[i], &results[binding]
		if r.RetryAfter > b.RetryAfter || r.RetryAfter == b.RetryAfter && r.Remaining < b.Remaining {
			binding = i
		}
	}
	return binding
}

// decision fills in what the result of the limit that binds comes to.
func (p *policy) decision(d *Decision, binding int, r *Result) {
	d.Allowed = r.RetryAfter == 0
	d.Limit = p.limits[binding]
	d.Remaining = r.Remaining
	d.ResetAfter = r.ResetAfter
	d.RetryAfter = r.RetryAfter
}

// stricter reports whether p tells a client more of what it must heed than other.
func (p *passage) stricter(other *passage) bool {
	if p.allowed() != other.allowed() {
		return !p.allowed()
	}
	return p.result.Remaining < other.result.Remaining
}

// writeFields puts what the limiter's styles tell into h. Of limiters stacked on a
// request, each sees what those around it have written: lists grow, styles without
// lists are brought to what binds most by now, and a field that an older and a
// newer style want is the newer one's alone.
func (pass *passage) writeFields(h http.Header, results []Result) {
	var outer Headers
	if pass.parent != nil {
		outer, pass.told = pass.parent.styles, pass.parent.told
	}
	own := pass.limiter.opts.Headers &^ HeadersNone
	if pass.styles = outer | own; own == 0 {
		return
	}
	if pass.told == nil || pass.stricter(pass.told) {
		pass.told = pass
	}
	if own&HeadersDraft10 != 0 {
		pass.writeDraft10(h, results, outer&HeadersDraft10 != 0)
	}
	if pass.styles&^HeadersDraft10 != 0 {
		pass.writeOlder(h, own)
	}
}

// writeDraft10 writes the lists of draft 10, or adds to them.
func (pass *passage) writeDraft10(h http.Header, results []Result, add bool) {
	partition := ""
	if secret := pass.limiter.opts.PartitionSecret; len(secret) > 0 {
		partition = partitionParam(secret, pass.limiter.name, pass.key)
	}
	declared := pass.policy.declaredFor(partition)
	var buf [128]byte
	b := buf[:0]
	if there := h[fieldRateLimit]; add && len(there) > 0 {
		b = append(append(b, there[0]...), ", "...)
		declared = joined(h[fieldPolicy], declared)
	}
	for i, r := range results {
		if i > 0 {
			b = append(b, ", "...)
		}
		t := seconds(r.MoreAfter)
		if !pass.allowed() {
			t = max(t, 1)
		}
		b = append(b, pass.policy.members[i].remaining...)
		b = strconv.AppendInt(b, r.Remaining, 10)
		b = append(b, ";t="...)
		b = strconv.AppendInt(b, t, 10)
		b = append(b, partition...)
	}
	pass.field[0] = string(b)
	pass.field[1] = declared[0]
	h[fieldRateLimit], h[fieldPolicy] = pass.field[:1:1], pass.field[1:2:2]
}

// writeOlder writes the styles that tell of the binding limit alone.
func (pass *passage) writeOlder(h http.Header, own Headers) {
	d := pass.told.decision()
	limit := strconv.FormatInt(d.Limit.Burst(), 10)
	remaining := strconv.FormatInt(d.Remaining, 10)
	reset := strconv.FormatInt(seconds(d.ResetAfter), 10)
	if pass.styles&HeadersDraft10 == 0 {
		if own&(HeadersDraft7|HeadersDraft6) != 0 {
			h[fieldPolicy] = joined(h[fieldPolicy], pass.policy.older)
		}
		if pass.styles&HeadersDraft7 != 0 {
			h[fieldRateLimit] = []string{"limit=" + limit + ", remaining=" + remaining + ", reset=" + reset}
		}
	}
	if pass.styles&HeadersDraft6 != 0 {
		h["Ratelimit-Limit"] = []string{limit}
		h["Ratelimit-Remaining"] = []string{remaining}
		h["Ratelimit-Reset"] = []string{reset}
	}
	if pass.styles&HeadersLegacy != 0 {
		at := time.Now().Add(d.ResetAfter + time.Second - 1).Unix()
		h["X-Ratelimit-Limit"] = []string{limit}
		h["X-Ratelimit-Remaining"] = []string{remaining}
		h["X-Ratelimit-Reset"] = []string{strconv.FormatInt(at, 10)}
	}
}

// declaredFor is the value of RateLimit-Policy, with the partition if there is one.
func (p *policy) declaredFor(partition string) []string {
	if partition == "" {
		return p.declared
	}
	var b []byte
	for i, m := range p.members {
		if i > 0 {
			b = append(b, ", "...)
		}
		b = append(append(b, m.declared...), partition...)
	}
	return []string{string(b)}
}

// joined adds a list to the one that is there, in a slice of the response's own.
func joined(there, list []string) []string {
	if len(there) == 0 {
		return []string{list[0]}
	}
	return []string{there[0] + ", " + list[0]}
}

// problemHead is the part of a denial's problem details that is the same for all:
// the type and title of draft 10, section 5, and status and detail of RFC 9457.
func problemHead(message string) []byte {
	detail, _ := json.Marshal(message)
	return fmt.Appendf(nil, `{"type":"https://iana.org/assignments/http-problem-types#quota-exceeded",`+
		`"title":"Request cannot be satisfied as assigned quota has been exceeded",`+
		`"status":%d,"detail":%s,"violated-policies":[`, http.StatusTooManyRequests, detail)
}

// problem completes the problem details with the limits that denied.
func (p *policy) problem(head []byte, results []Result) []byte {
	b := slices.Clone(head)
	for i, r := range results {
		if r.RetryAfter == 0 {
			continue
		}
		if len(b) > len(head) {
			b = append(b, ',')
		}
		b = append(b, p.members[i].problem...)
	}
	return append(b, "]}"...)
}

// partitionParam is the parameter pk of draft 10: it tells two keys apart and
// nothing else, being the first 128 bits of an HMAC.
func partitionParam(secret []byte, limiter, key string) string {
	mac := hmac.New(sha256.New, secret)
	mac.Write([]byte(limiter + "\x00" + key)) // no limiter's name has a NUL
	return ";pk=:" + base64.StdEncoding.EncodeToString(mac.Sum(nil)[:16]) + ":"
}

// seconds rounds up: a client that waits so long has waited long enough.
func seconds(d time.Duration) int64 {
	s := int64(d / time.Second)
	if d%time.Second > 0 {
		s++
	}
	return s
}

// fieldString writes s as a String of a structured field (RFC 9651, section
// 3.3.3). That holds printable ASCII only; a name with other characters is
// percent-encoded, with its percent signs.
func fieldString(s string) string {
	const hex = "0123456789ABCDEF"
	ascii := !strings.ContainsFunc(s, func(r rune) bool { return r > 0x7e })
	b := []byte{'"'}
	for _, c := range []byte(s) {
		switch {
		case c > 0x7e || c == '%' && !ascii:
			b = append(b, '%', hex[c>>4], hex[c&15])
		case c == '"' || c == '\\':
			b = append(b, '\\', c)
		default:
			b = append(b, c)
		}
	}
	return string(append(b, '"'))
}

// plans keeps the policies made for what Options.LimitsFor has returned, because
// to make one costs far more than a decision. Its zero value is ready to use.
type plans struct {
	made atomic.Pointer[[]*policy]
}

// maxPlans bounds the memory for a LimitsFor that returns ever new limits.
const maxPlans = 64

// all returns the policies made so far.
func (c *plans) all() []*policy {
	if made := c.made.Load(); made != nil {
		return slices.Clone(*made)
	}
	return nil
}

// of returns the policy of limits, which need not be valid.
func (c *plans) of(l *Limiter, limits []Limit) (*policy, error) {
	made := c.made.Load()
	if made != nil {
		for _, p := range *made {
			if slices.Equal(p.limits, limits) {
				return p, nil
			}
		}
	}
	if err := validateLimits(l.name, limits); err != nil {
		return nil, fmt.Errorf("Options.LimitsFor: %w", err)
	}
	p := newPolicy(l.name, limits)
	p.plan = true
	l.used.add(p.limits)
	var old []*policy
	if made != nil {
		old = *made
	}
	if len(old) < maxPlans {
		both := append(slices.Clone(old), p)
		c.made.CompareAndSwap(made, &both) // whoever loses is made again
	}
	return p, nil
}
