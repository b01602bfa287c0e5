package admin

import (
	"context"
	"crypto/rand"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/ratelimit-go/ratelimit"
)

// This file has the changes that an operator can make. Each has a page that says what will
// happen and to whom, and then a form that does it. Both get the same fields and check them in
// the same way.

// A change is what a form asks for.
type change struct {
	Do      string // one of the names below
	Limiter *ratelimit.Limiter
	Key     string // empty for limits
	Reason  string
	For     time.Duration     // of a block
	Units   int64             // of a refund
	Limits  []ratelimit.Limit // new ones

	fields []field // as they came
}

// A field is one of a form.
type field struct{ Name, Value string }

// The names of the changes.
const (
	doUnblock = "unblock"
	doBlock   = "block"
	doRefund  = "refund"
	doLimits  = "limits"
)

// maxReason is the longest reason, in characters.
const maxReason = 500

// maxBlock is the longest block: 50 years, as for limits.
const maxBlock = 50 * 365 * 24 * time.Hour

// change reads a change from the form. A key comes as the link of a key, or as limiter and key.
func (q *request) change() (c *change, err error) {
	form := q.r.PostForm
	c = &change{Do: form.Get("do"), Reason: strings.TrimSpace(form.Get("reason"))}
	keep := func(names ...string) {
		for _, name := range append(names, "do", "reason") {
			c.fields = append(c.fields, field{name, form.Get(name)})
		}
	}
	switch sealed := form.Get("k"); {
	case c.Do == doLimits:
		c.Limiter, err = q.lookup(form.Get("limiter"))
	case sealed != "":
		c.Limiter, c.Key, err = q.keyOf(sealed)
	default:
		c.Key = form.Get("key")
		if c.Limiter, err = q.lookup(form.Get("limiter")); err == nil && c.Key == "" {
			err = badRequest("The field key is empty.")
		}
	}
	if err != nil {
		return nil, err
	}
	switch {
	case !strings.ContainsFunc(c.Reason, isVisible):
		return nil, badRequest("Give a reason, such as the number of a ticket. It is recorded with your name.")
	case utf8.RuneCountInString(c.Reason) > maxReason:
		return nil, badRequest("The reason has %d characters: at most %d are recorded.", utf8.RuneCountInString(c.Reason), maxReason)
	}
	switch c.Do {
	case doUnblock:
		keep("k")
	case doBlock:
		keep("k", "for")
		c.For, err = parseSpan(form.Get("for"))
	case doRefund:
		keep("k", "units")
		c.Units, err = strconv.ParseInt(form.Get("units"), 10, 64)
		if err != nil || c.Units < 1 {
			err = badRequest("Units are %q: want a whole number, 1 or more.", form.Get("units"))
		}
	case doLimits:
		keep("limiter", "limits", "was")
		c.Limits, err = parseLimits(form.Get("limits"))
	default:
		err = badRequest("The field do is %q: want %s, %s, %s or %s.", c.Do, doUnblock, doBlock, doRefund, doLimits)
	}
	return c, err
}

// parseSpan reads a time span as time.ParseDuration does, and days as "7d".
func parseSpan(s string) (time.Duration, error) {
	s = strings.TrimSpace(s)
	if days, ok := strings.CutSuffix(s, "d"); ok {
		n, err := strconv.ParseUint(days, 10, 15)
		if d := time.Duration(n) * 24 * time.Hour; err == nil && n > 0 && d <= maxBlock {
			return d, nil
		}
		return 0, errSpan(s)
	}
	d, err := time.ParseDuration(s)
	if err != nil || d < time.Millisecond || d > maxBlock {
		return 0, errSpan(s)
	}
	return d, nil
}

func errSpan(s string) error {
	return badRequest("The time of the block is %q: want one such as 30m, 24h or 7d, and 50 years at most.", s)
}

// isVisible reports whether a reader sees a character.
func isVisible(c rune) bool {
	return unicode.IsGraphic(c) && !unicode.IsSpace(c) && c != '\u2800' && c != utf8.RuneError && !unicode.Is(unicode.M, c) &&
		!unicode.Is(unicode.Other_Default_Ignorable_Code_Point, c)
}

// parseLimits reads limits, one a line.
func parseLimits(s string) (limits []ratelimit.Limit, err error) {
	for line := range strings.Lines(s) {
		if line = strings.TrimSpace(line); line == "" {
			continue
		}
		limit, err := ratelimit.ParseLimit(line)
		if err != nil {
			return nil, badRequest("%s", strings.TrimPrefix(err.Error(), "ratelimit: "))
		}
		limits = append(limits, limit)
	}
	if len(limits) == 0 {
		return nil, badRequest("There are no limits. To lift them, give the one limit “unlimited”.")
	}
	return limits, nil
}

// confirmPage says what will happen.
type confirmPage struct {
	head       `json:"process"`
	limiterRow `json:"limiter"`
	Ask        string    `json:"question"`
	Key        *shownKey `json:"key,omitempty"`
	Says       []string  `json:"says"`
	Reason     string    `json:"reason"`
	New        []string  `json:"new_limits,omitempty"`
	Button     string    `json:"-"`
	Danger     bool      `json:"-"`
	Fields     []field   `json:"-"`
	Back       string    `json:"-"`
}

// confirm shows what a change will do. It changes nothing.
func (q *request) confirm() error {
	c, err := q.change()
	if err != nil {
		return err
	}
	p := &confirmPage{head: q.head("Confirm"), limiterRow: q.row(c.Limiter), Reason: c.Reason, Fields: c.fields}
	if c.Do == doLimits {
		p.Fields = setField(p.Fields, "was", strings.Join(p.Limits, "\n"))
	}
	p.Fields = append(p.Fields, field{"once", rand.Text()})
	where := "in this process, where its counters are"
	if p.Remote {
		where = "for all processes that count in " + p.Store + " " + p.Prefix + ". Processes that know the key as denied notice it within their Options.DenyRecheck"
	}
	switch c.Do {
	case doUnblock:
		p.Ask, p.Button = "Unblock this key?", "Unblock"
		p.Says = append(p.Says, "Everything that is counted for it is forgotten, its blocks end, and the next block is the first one of its ladder again.", "That holds "+where+".")
	case doBlock:
		p.Ask, p.Button, p.Danger = "Block this key?", "Block", true
		p.Says = append(p.Says, fmt.Sprintf("Its requests are denied for %s, until %s UTC. If it is blocked for longer already, that stays.", ago(c.For), clock(q.now.Add(c.For), q.now)),
			"That holds "+where+".", "Unblocking ends it.")
	case doRefund:
		p.Ask, p.Button = "Give units back?", "Refund"
		p.Says = append(p.Says, fmt.Sprintf("It gets %s units back under each of the limits %s, never more than it has used. A block stays.", count(uint64(c.Units)), strings.Join(p.Limits, " and ")),
			"That holds "+where+".")
	case doLimits:
		p.Ask, p.Button, p.Danger = "Change the limits?", "Change limits", true
		p.New = limitTexts(c.Limits)
		p.Says = append(p.Says, "This changes this process only, "+strconv.Itoa(p.PID)+" on "+q.h.host+", until it ends or reloads its limiters. Other processes keep their limits: change them there, and in the configuration.",
			"A key keeps what was counted under a limit whose algorithm and window stay the same. Under another one it starts from zero.",
			"Plans keep their limits.")
	}
	if p.Shadow && c.Do != doRefund {
		p.Says = append(p.Says, "Options.Shadow of this limiter is set: its denials are counted, and all requests are let through.")
	}
	if c.Do == doLimits {
		p.Back = "limiter?" + url.Values{"name": {c.Limiter.Name()}}.Encode()
	} else {
		shown := q.showKey(c.Limiter.Name(), c.Key, len(c.Key))
		p.Key, p.Back = &shown, "key?"+url.Values{"k": {shown.Link}}.Encode()
		p.Fields = setField(p.Fields, "k", shown.Link)
		if isNetwork(c.Key) {
			p.Says = append(p.Says, "The key is a whole network: this is about everybody in it.")
		}
	}
	return q.show(http.StatusOK, "confirm", p)
}

func setField(fields []field, name, value string) []field {
	for i := range fields {
		if fields[i].Name == name {
			fields[i].Value = value
		}
	}
	return fields
}

// isNetwork reports whether a key, or what follows its mark, is a network of addresses.
func isNetwork(key string) bool {
	if _, marked, ok := strings.Cut(key, "="); ok {
		key = marked
	}
	_, err := netip.ParsePrefix(key)
	return err == nil
}

// act makes a change, and leads to the page that shows it.
func (q *request) act() error {
	c, err := q.change()
	if err != nil {
		return err
	}
	was := strings.ReplaceAll(q.r.PostForm.Get("was"), "\r\n", "\n") // browsers send each newline as CRLF
	if c.Do == doLimits && was != "" && was != strings.Join(limitTexts(c.Limiter.Limits()), "\n") {
		return &failure{http.StatusConflict, "Somebody has changed the limits since you saw them, so nothing was done. Look at them, and change them again if you still want to."}
	}
	if once := q.r.PostForm.Get("once"); once != "" && !q.h.forms.isNew(once) {
		return &failure{http.StatusConflict, "This form was sent before, so nothing was done now. Look at the key or the limiter to see what it has done."}
	}
	done, err := c.make(q.acting(c.Reason))
	if err != nil && c.Do == doLimits { // its text has no key
		return &failure{http.StatusInternalServerError, strings.TrimPrefix(err.Error(), "ratelimit: ")}
	}
	if err != nil {
		return &failure{http.StatusInternalServerError, q.errorText(err)}
	}
	notice := sealNotice(c.Limiter.Name(), c.Key, fmt.Sprintf("%s by %s at %s UTC: %s", done, q.who, clock(q.now, q.now), c.Reason))
	if c.Do == doLimits {
		return q.redirect("limiter", url.Values{"name": {c.Limiter.Name()}, "n": {notice}})
	}
	return q.redirect("key", url.Values{"k": {sealKey(c.Limiter.Name(), c.Key)}, "n": {notice}})
}

// sentForms are the forms that were sent last, so that a double click acts once. It may be used
// from any number of goroutines.
type sentForms struct {
	mu   sync.Mutex
	ids  map[string]bool
	last [1000]string
	next int
}

// isNew reports whether a form has not been sent before, and remembers it.
func (f *sentForms) isNew(id string) bool {
	const maxID = 64 // rand.Text has 26
	if len(id) > maxID {
		return true
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.ids[id] {
		return false
	}
	if f.ids == nil {
		f.ids = make(map[string]bool)
	}
	delete(f.ids, f.last[f.next])
	f.ids[id], f.last[f.next] = true, id
	f.next = (f.next + 1) % len(f.last)
	return true
}

// make makes the change, and returns what was done.
func (c *change) make(ctx context.Context) (done string, err error) {
	switch c.Do {
	case doUnblock:
		return "Unblocked", c.Limiter.Reset(ctx, c.Key)
	case doBlock:
		return "Blocked for " + ago(c.For), c.Limiter.Block(ctx, c.Key, c.For)
	case doRefund:
		return count(uint64(c.Units)) + " units given back", c.Limiter.Refund(ctx, c.Key, c.Units)
	}
	return "Limits changed", c.Limiter.SetLimitsContext(ctx, c.Limits...)
}
