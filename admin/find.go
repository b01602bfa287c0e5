package admin

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/ratelimit-go/ratelimit"
	"github.com/ratelimit-go/ratelimit/internal/addr"
)

// This file finds the key that an operator means. Keys are exact: what Options.Key makes of
// a request. Operators type addresses without their network, names in capitals, or paste what a
// log or this page shows.

// candidates returns the keys that a typed text can mean, the text itself first.
func candidates(l *ratelimit.Limiter, t *track, typed string) []string {
	all := []string{typed}
	add := func(keys ...string) {
		for _, key := range keys {
			if key != "" && !slices.Contains(all, key) {
				all = append(all, key)
			}
		}
	}
	text := strings.TrimSpace(typed)
	if quoted, err := strconv.Unquote(text); err == nil {
		add(quoted)
		text = strings.TrimSpace(quoted)
	}
	add(text)
	add(addressKeys(l, "", text)...)
	if mark, rest, ok := strings.Cut(text, "="); ok { // a key of FirstKey
		add(addressKeys(l, mark+"=", strings.TrimSpace(rest))...)
	}
	add(ratelimit.Normalize(text))
	unmarked := slices.Clone(all)
	for _, d := range t.top() { // the same with a mark, if such a key is denied
		if _, rest, ok := strings.Cut(d.key, "="); ok && d.whole() && slices.Contains(unmarked, rest) {
			add(d.key)
		}
	}
	return all
}

// addressKeys returns keys of a client's address: what the limiter's Options.Key makes of a
// request from there, and the forms that ClientIP has. For a network, the first address is used.
func addressKeys(l *ratelimit.Limiter, mark, text string) (keys []string) {
	a, ok := addr.Parse(text)
	if p, err := netip.ParsePrefix(text); err == nil {
		a, ok = p.Addr(), true
		keys = append(keys, mark+p.Masked().String())
	}
	if !ok {
		return nil
	}
	if key, err := keyFrom(l, a); err == nil {
		keys = append(keys, key)
	}
	if a.Is4() {
		return append(keys, mark+a.String())
	}
	network, _ := a.Prefix(64)
	return append(keys, mark+network.String(), mark+a.String())
}

// keyFrom returns what Options.Key makes of a request from an address, without any header
// field. A function that panics because something is missing has no key.
func keyFrom(l *ratelimit.Limiter, a netip.Addr) (key string, err error) {
	defer func() {
		if with := recover(); with != nil {
			err = fmt.Errorf("Options.Key has panicked: %v", with)
		}
	}()
	// The context is not the operator's: it could name the operator.
	ctx, cancel := context.WithTimeout(context.Background(), findTimeout)
	defer cancel()
	r := &http.Request{
		Method: http.MethodGet, URL: &url.URL{Path: "/"}, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Header: make(http.Header), Body: http.NoBody,
		RemoteAddr: netip.AddrPortFrom(a, 1).String(),
	}
	return l.KeyOf(r.WithContext(ctx))
}

// locate returns the candidate that has something counted, or was denied here. If none has, it
// returns the one that Options.Key would make, or the text itself.
// err is why there may be something counted nevertheless.
func locate(ctx context.Context, l *ratelimit.Limiter, t *track, typed string) (key string, counted bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, findTimeout)
	defer cancel()
	all := candidates(l, t, typed)
	for _, key := range all {
		ok, failed := isCounted(ctx, l, t, key)
		if ok {
			return key, true, nil
		}
		err = cmp.Or(err, failed)
	}
	if keys := addressKeys(l, "", strings.TrimSpace(typed)); len(keys) > 0 {
		return keys[0], false, err
	}
	return all[0], false, err
}

const (
	// maxLooked is how many limiters are asked about a key that is looked for in all of them. The
	// others are asked only if they have denied it in this process.
	maxLooked = 50

	// maxFound is how many limiters are listed that know the key.
	maxFound = 100
)

// foundPage lists the limiters that know a key.
type foundPage struct {
	head  `json:"process"`
	Typed string     `json:"typed"`
	Rows  []foundRow `json:"limiters"`
	Asked int        `json:"asked"`            // limiters
	Lost  int        `json:"failed,omitempty"` // of these, how many could not say what they have counted
	All   int        `json:"total"`
}

// A foundRow is a limiter that knows the key, and what it knows.
type foundRow struct {
	Limiter string   `json:"limiter"`
	Key     shownKey `json:"key"`
	State   string   `json:"state"`
	Verdict string   `json:"verdict"`
}

// found shows which limiters know a key that was typed.
func (q *request) found() error {
	typed, ok := unseal(forTyped, q.r.URL.Query().Get("t"))
	if !ok {
		return errForeignLink
	}
	ctx, cancel := context.WithTimeout(q.r.Context(), findTimeout)
	defer cancel()
	p := &foundPage{head: q.head("Find a key"), Typed: q.showKey("", typed, len(typed)).Text, Rows: []foundRow{}}
	looked := 0
	for name, l := range q.h.opts.Registry.All() {
		p.All++
		t := q.h.watch.track(name)
		key, ok := deniedHere(l, t, typed)
		if len(p.Rows) == maxFound || ctx.Err() != nil || !ok && looked == maxLooked {
			continue
		}
		p.Asked++
		if !ok {
			looked++
			var err error
			if key, ok, err = locate(ctx, l, t, typed); !ok {
				if err != nil {
					p.Lost++
				}
				continue
			}
		}
		var k keyPage
		q.lookAt(ctx, &k, l, key, "")
		if k.Uncertain {
			k.Verdict += " The store does not answer: this is what this process knows."
		}
		p.Rows = append(p.Rows, foundRow{name, q.showKey(name, key, len(key)), k.State, k.Verdict})
	}
	return q.show(http.StatusOK, "found", p)
}

// deniedHere returns the candidate that the limiter has denied in this process.
func deniedHere(l *ratelimit.Limiter, t *track, typed string) (string, bool) {
	if len(t.top()) == 0 {
		return "", false
	}
	for _, key := range candidates(l, t, typed) {
		if _, ok := t.find(key); ok {
			return key, true
		}
	}
	return "", false
}

// findTimeout bounds the time for all the looks of a search.
const findTimeout = 5 * time.Second

// isCounted reports whether a key has a counter or a block, or was denied in this process. An
// error means that this is not known.
func isCounted(ctx context.Context, l *ratelimit.Limiter, t *track, key string) (bool, error) {
	if _, ok := t.find(key); ok {
		return true, nil
	}
	standings, uncertain, err := look(ctx, l, key)
	if uncertain && err == nil {
		err = errNoAnswer
	}
	return slices.ContainsFunc(standings, func(s ratelimit.Standing) bool {
		return s.Blocked || s.ResetAfter > 0 || s.MoreAfter > 0
	}), err
}

var errNoAnswer = errors.New("the store does not answer")

// look returns the state of a key. uncertain means that the store may not have been asked.
func look(ctx context.Context, l *ratelimit.Limiter, key string, under ...ratelimit.Limit) (standings []ratelimit.Standing, uncertain bool, err error) {
	before := l.Stats().Remote
	standings, err = l.LookKey(ctx, key, under...)
	after := l.Stats().Remote // a failure may be another call's, so this is only a doubt
	return standings, after.BreakerOpen || after.Failures+after.Spared > before.Failures+before.Spared, err
}
