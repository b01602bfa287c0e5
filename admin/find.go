package admin

import (
	"context"
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
// request from there, and the forms that ClientIP has. A network stands for an address in it.
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
	r := &http.Request{
		Method: http.MethodGet, URL: &url.URL{Path: "/"}, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Header: make(http.Header), Body: http.NoBody,
		RemoteAddr: netip.AddrPortFrom(a, 1).String(),
	}
	return l.KeyOf(r.WithContext(context.Background()))
}

// locate returns the candidate that has something counted, or was denied here. If none has, it
// returns the one that Options.Key would make, or the text itself.
func locate(ctx context.Context, l *ratelimit.Limiter, t *track, typed string) string {
	ctx, cancel := context.WithTimeout(ctx, findTimeout)
	defer cancel()
	all := candidates(l, t, typed)
	for _, key := range all {
		if isCounted(ctx, l, t, key) {
			return key
		}
	}
	if keys := addressKeys(l, "", strings.TrimSpace(typed)); len(keys) > 0 {
		return keys[0]
	}
	return all[0]
}

// findTimeout bounds the time for all the looks of a search.
const findTimeout = 5 * time.Second

// isCounted reports whether a key has a counter or a block, or was denied in this process.
func isCounted(ctx context.Context, l *ratelimit.Limiter, t *track, key string) bool {
	if _, ok := t.find(key); ok {
		return true
	}
	standings, err := l.LookKey(ctx, key)
	return err == nil && slices.ContainsFunc(standings, func(s ratelimit.Standing) bool {
		return s.Blocked || s.ResetAfter > 0 || s.MoreAfter > 0
	})
}
