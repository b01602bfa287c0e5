package ratelimit

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"math"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// Headers selects the response header fields that show clients their limits. Styles
// can be combined with |; if two write the same field, the newest does. The draft that became each style is in its name, because the
// draft still changes. Times are whole seconds, rounded up, except that a rest of up
// to 2 ms is dropped: stores count in their own resolution, and a window of a minute
// should not be announced as 61 seconds. Retry-After is always rounded up. Zero means
// HeadersDraft10.
//
// If a handler adds the same fields, as a reverse proxy adds its upstream's, fields of
// draft 10 are one list with the limiter's. An upstream that writes RateLimit in an
// older form makes that list unreadable: let the proxy remove the field. The older
// styles have no lists, so the set with the least remaining is sent.
//
// After an informational response (1xx) of its upstream, [net/http/httputil.ReverseProxy]
// removes all fields, including the limiter's. The limiter puts its fields back if it
// has Options.Count or writes an older style. Otherwise it does not see the response, and
// the fields are missing. If an upstream sends 103, or clients send Expect: 100-continue,
// set a Count that always returns true.
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
	// t is the time until r grows. For a token bucket q and w are its rate, so r can
	// be above q by its burst. An [InFlight] limit has no times:
	//
	//	RateLimit-Policy: "export";q=20;qu="concurrent-requests"
	//	RateLimit: "export";r=19
	HeadersDraft10 Headers = 1 << iota

	// HeadersDraft7 is draft 7 of the same. RateLimit shows the binding limit alone,
	// as in the styles below: among all limiters on a request, the one that denied,
	// otherwise the one with the least remaining. reset is the time until it is whole, or
	// the hold of an [InFlight] limit.
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

// olderStyles show the binding limit alone.
const olderStyles = HeadersDraft7 | HeadersDraft6 | HeadersLegacy

func (h Headers) validate() error {
	const all = HeadersDraft10 | olderStyles
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

// fields is what clients have been shown about a request by one limiter and those
// around it. A limiter further in goes on from there.
type fields struct {
	strictest *bound    // what binds most, of all limiters so far: for styles without lists
	values    [2]string // of RateLimit and RateLimit-Policy, so that they need no allocation of their own
}

// shown is what one limiter has to show of a decision, except for the results:
// those would escape to the heap with the rest.
type shown struct {
	bound     *bound
	partition string // the parameter pk; empty for none
}

// write puts what the styles of a limiter show into h. outer is of the limiters
// around this one, or nil, and before has their styles. Each limiter sees what those around it have written:
// lists grow, styles without lists show what binds most by now, and if an older
// and a newer style both want a field, it is the newer one's.
//
// shared reports whether those limiters have written to h too. Otherwise h replaces
// what they have written when the handler has returned, so it has to say everything.
func (f *fields) write(h http.Header, styles, before Headers, outer *fields, shared bool, s shown, results []Result) {
	if outer != nil {
		f.strictest, f.values = outer.strictest, outer.values
	}
	if styles == 0 {
		return
	}
	if shared && (outer != nil || styles&olderStyles != 0) { // a handler in between may have changed them
		read := first
		if before&HeadersDraft10 != 0 {
			read = list
		}
		f.values = [2]string{read(h[fieldRateLimit]), read(h[fieldPolicy])}
	}
	if f.strictest == nil || s.bound.stricter(f.strictest) {
		f.strictest = s.bound
	}
	if styles&HeadersDraft10 != 0 {
		f.writeDraft10(h, s, results, before&HeadersDraft10 != 0)
	}
	if all := before | styles; all&^HeadersDraft10 != 0 {
		f.writeOlder(h, styles, all, shared, s.bound.policy)
	}
}

func first(values []string) string {
	if len(values) == 0 {
		return ""
	}
	return values[0]
}

// list returns all lines of a field of draft 10 as one. It allocates nothing for one line.
func list(values []string) (all string) {
	for _, value := range values {
		if value != "" {
			all = joined(all, value)
		}
	}
	return all
}

// stricter reports whether b restricts a client more than other does.
func (b *bound) stricter(other *bound) bool {
	if b.allowed() != other.allowed() {
		return !b.allowed()
	}
	return b.remaining < other.remaining
}

// writeDraft10 writes the lists of draft 10, or adds to them.
func (f *fields) writeDraft10(h http.Header, s shown, results []Result, add bool) {
	var buf [128]byte
	b := buf[:0]
	if declared := s.bound.policy.declaredFor(s.partition); add && f.values[0] != "" {
		b = append(append(b, f.values[0]...), ", "...)
		f.values[1] = joined(f.values[1], declared)
	} else {
		f.values[1] = declared
	}
	denied := !s.bound.allowed()
	for i, r := range results {
		if i > 0 {
			b = append(b, ", "...)
		}
		b = append(b, s.bound.policy.members[i].remaining...)
		b = strconv.AppendInt(b, r.Remaining, 10)
		if i < len(s.bound.policy.limits) { // nobody knows when the next hold ends
			t := wholeSeconds(r.MoreAfter)
			if denied {
				t = max(t, 1)
			}
			b = append(b, ";t="...)
			b = strconv.AppendInt(b, t, 10)
		}
		b = append(b, s.partition...)
	}
	f.values[0] = string(b)
	h[fieldRateLimit], h[fieldPolicy] = f.values[:1:1], f.values[1:2:2]
}

// writeOlder writes the styles that show the binding limit alone: this limiter's, and
// all that those around it have.
func (f *fields) writeOlder(h http.Header, styles, all Headers, shared bool, p *policy) {
	limit := strconv.FormatInt(f.strictest.limit().Burst(), 10)
	remaining := strconv.FormatInt(f.strictest.remaining, 10)
	resetAfter := f.strictest.resetAfter
	reset := strconv.FormatInt(wholeSeconds(resetAfter), 10)
	if all&HeadersDraft10 == 0 {
		lists := styles & (HeadersDraft7 | HeadersDraft6)
		if lists != 0 {
			f.values[1] = joined(f.values[1], p.present().older)
		}
		if lists != 0 || !shared && f.values[1] != "" {
			h[fieldPolicy] = f.values[1:2:2]
		}
		if all&HeadersDraft7 != 0 {
			f.values[0] = "limit=" + limit + ", remaining=" + remaining + ", reset=" + reset
			h[fieldRateLimit] = f.values[:1:1]
		}
	}
	if all&HeadersDraft6 != 0 {
		h["Ratelimit-Limit"] = []string{limit}
		h["Ratelimit-Remaining"] = []string{remaining}
		h["Ratelimit-Reset"] = []string{reset}
	}
	if all&HeadersLegacy != 0 {
		at := time.Now().Add(resetAfter - resolution + time.Second - 1).Unix()
		h["X-Ratelimit-Limit"] = []string{limit}
		h["X-Ratelimit-Remaining"] = []string{remaining}
		h["X-Ratelimit-Reset"] = []string{strconv.FormatInt(at, 10)}
	}
}

// joined adds a list to the one before it, if there is one.
func joined(before, list string) string {
	if before == "" {
		return list
	}
	return before + ", " + list
}

// resolution is more than the coarsest store of this library adds to a time: Redis
// counts milliseconds, and a window that ends within one ends with it.
const resolution = 2 * time.Millisecond

// wholeSeconds is seconds for times that only inform.
func wholeSeconds(d time.Duration) int64 { return seconds(max(d-resolution, min(d, 1))) }

// olderFields are the fields of the older styles, and which of them say what remains.
var olderFields = [...]struct {
	name    string
	styles  Headers
	remains bool
}{
	{fieldRateLimit, HeadersDraft7, true},
	{fieldPolicy, HeadersDraft7 | HeadersDraft6, false},
	{"Ratelimit-Remaining", HeadersDraft6, true},
	{"Ratelimit-Limit", HeadersDraft6, false},
	{"Ratelimit-Reset", HeadersDraft6, false},
	{"X-Ratelimit-Remaining", HeadersLegacy, true},
	{"X-Ratelimit-Limit", HeadersLegacy, false},
	{"X-Ratelimit-Reset", HeadersLegacy, false},
}

// settleFields leaves one set of the older fields that limiters have written, if the
// handler has added another one, as httputil.ReverseProxy adds what its upstream has
// sent: the set with the least remaining. Two lines of draft 10 stay: they are one list.
func settleFields(h http.Header, styles Headers) {
	lists := styles&HeadersDraft10 != 0
	if lists { // RateLimit is draft 10's, also if another limiter has draft 7
		styles &^= HeadersDraft7
	}
	least, set := int64(math.MaxInt64), 0 // the set with the least remaining; 0 is the limiter's
	for _, f := range olderFields {
		if values := h[f.name]; f.remains && f.styles&styles != 0 && len(values) > 1 {
			for i, value := range values {
				if n := remainingIn(value); n < least {
					least, set = n, i
				}
			}
		}
	}
	for _, f := range olderFields {
		switch values := h[f.name]; {
		case f.styles&styles == 0, lists && f.name == fieldPolicy:
		case len(values) > set && len(values) > 1:
			h[f.name] = values[set : set+1 : set+1]
		case set > 0:
			delete(h, f.name)
		}
	}
}

// ownFields returns the fields of h that limiters of these styles have written. They come
// before what a handler has added.
func ownFields(h http.Header, styles Headers) http.Header {
	own := make(http.Header)
	for _, f := range olderFields {
		if f.name == fieldRateLimit || f.name == fieldPolicy {
			f.styles |= HeadersDraft10
		}
		if values := h[f.name]; f.styles&styles != 0 && len(values) > 0 {
			own[f.name] = values[:1:1]
		}
	}
	return own
}

// remainingIn reads what remains from a field of an older style: from draft 7's
// RateLimit, or from a field that is only a number. Whatever it cannot read is no
// limit.
func remainingIn(value string) int64 {
	if _, after, ok := strings.Cut(value, "remaining="); ok {
		value, _, _ = strings.Cut(after, ",")
	}
	n, err := strconv.ParseInt(strings.TrimSpace(value), 10, 64)
	if err != nil {
		return math.MaxInt64
	}
	return n
}

// partitionParam is the parameter pk of draft 10: the first 128 bits of an HMAC, which
// distinguish two keys and show nothing of them.
func partitionParam(secret []byte, limiter, key string) string {
	if len(secret) == 0 {
		return ""
	}
	mac := hmac.New(sha256.New, secret)
	mac.Write([]byte(limiter + "\x00" + key)) // no limiter's name has a NUL
	return ";pk=:" + base64.StdEncoding.EncodeToString(mac.Sum(nil)[:16]) + ":"
}
