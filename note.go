package ratelimit

import (
	"context"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/ratelimit-go/ratelimit/internal/addr"
	"github.com/ratelimit-go/ratelimit/internal/clock"
)

// Codes of the warnings that a limiter logs, as the attribute "code": each says what
// does not fit together and what to do. One limiter logs each at most once a
// minute, but [CodeStoreDown] and [CodeStoreBack]. [Options.Silence] turns a code off.
const (
	// CodeStoreFailed: the store could not decide. For a [RemoteStore] "on_failure" says what
	// becomes of requests; else clients get 503. An error.
	CodeStoreFailed = "store-failed"
	// CodeStoreDown: a [RemoteStore] has failed so often that it is hardly asked any more. An
	// outage that begins within ten seconds of the last one logged is logged when they are over,
	// if it still lasts; "outages" counts those that were not as well. An error.
	CodeStoreDown = "store-down"
	// CodeStoreBack: a RemoteStore answers again after that. It is logged at once.
	CodeStoreBack = "store-back"
	// CodePrefixClaimed: a limiter of another name counts under a [RedisStore]'s prefix, in
	// another process. An error.
	CodePrefixClaimed = "prefix-claimed"
	// CodeOtherLimits: a limiter has other limits in another process, as in a rolling deploy.
	CodeOtherLimits = "other-limits"
	// CodeClosed: requests reach a limiter that has been closed; clients get 503. An error.
	CodeClosed = "limiter-closed"
	// CodeOptionFailed: Key, Cost or LimitsFor of the options failed; clients get
	// 500. An error.
	CodeOptionFailed = "option-failed"
	// CodeNoKey: requests have no key; clients get 400.
	CodeNoKey = "no-key"
	// CodeCostTooHigh: a request costs more than a limit can ever hold; the client
	// gets 429 without a Retry-After, each time.
	CodeCostTooHigh = "cost-too-high"
	// CodeNoAddress: connections have no IP address to limit by; clients get 400.
	CodeNoAddress = "no-address"
	// CodeUntrustedProxy: requests come with a forwarding header and are counted by
	// the address of the connection all the same: no proxy is trusted, or not this
	// one, or ClientIP.Header names another header. If there is a proxy, all of its
	// clients share one key.
	CodeUntrustedProxy = "untrusted-proxy"
	// CodeKeyWithPort: a key reads like an address with a port, so that each
	// connection has a key of its own.
	CodeKeyWithPort = "key-with-port"
	// CodeWholeIPv6: a key reads like a single IPv6 address, of which each client
	// has 2^64 to choose from.
	CodeWholeIPv6 = "whole-ipv6"
	// CodeCountedOnce: a request passed the limiter twice; it was counted once.
	CodeCountedOnce = "counted-once"
	// CodeInHandler: a limiter was made while a request was being served. The
	// next request that makes it again gets ErrNameTaken.
	CodeInHandler = "limiter-in-handler"
	// CodeCountIgnored: Options.Count is set and the limiter is used through Check,
	// which does not see the response. AddCost gives units back there.
	CodeCountIgnored = "count-ignored"
	// CodeShadow: in Shadow, requests are let through that would be denied.
	CodeShadow = "shadow"
	// CodeSnapshotFailed: MemoryOptions.SnapshotFile could not be written. Counters go
	// on in memory, and it is tried again every SnapshotEvery. An error.
	CodeSnapshotFailed = "snapshot-failed"
	// CodeSnapshotSetAside: MemoryOptions.SnapshotFile could not be used and was set
	// aside, so that everybody starts afresh. An error.
	CodeSnapshotSetAside = "snapshot-set-aside"
)

// note is a warning, by its place in notes.
type note int

const (
	noteStoreFailed note = iota
	noteClosed
	noteOptionFailed
	noteNoKey
	noteCostTooHigh
	noteNoAddress
	noteUntrustedProxy
	noteKeyWithPort
	noteWholeIPv6
	noteCountedOnce
	noteInHandler
	noteCountIgnored
	noteShadow
	noteStoreDown
	noteStoreBack
	notePrefixClaimed
	noteOtherLimits
	noteSnapshotFailed
	noteSnapshotSetAside
	noteCount
)

type noteText struct{ code, text string }

var noteTexts = [noteCount]noteText{
	noteStoreFailed:    {CodeStoreFailed, "the store failed"},
	noteStoreDown:      {CodeStoreDown, "the store has failed so often that only one request at a time asks it, until one succeeds"},
	notePrefixClaimed:  {CodePrefixClaimed, "a limiter of another name counts under this limiter's prefix in another process, so that they count into each other: give each limiter a prefix of its own"},
	noteOtherLimits:    {CodeOtherLimits, "this limiter has other limits in another process, as in a rolling deploy"},
	noteStoreBack:      {CodeStoreBack, "the store answers again"},
	noteClosed:         {CodeClosed, "the limiter is closed, and requests are answered with 503: rebuild the handlers that it is in"},
	noteNoKey:          {CodeNoKey, "requests have no key, and are answered with 400: combine keys with FirstKey, or refuse such requests before the limiter"},
	noteCostTooHigh:    {CodeCostTooHigh, "a request costs more than the limit can ever hold, and will always be denied: raise the limit or the burst, or lower the cost"},
	noteOptionFailed:   {CodeOptionFailed, "a function of the options failed, and requests are answered with 500"},
	noteNoAddress:      {CodeNoAddress, "connections have no IP address, and requests are answered with 400: set Options.Key, or ClientIP.TrustedProxies where a proxy connects over a unix socket"},
	noteUntrustedProxy: {CodeUntrustedProxy, "requests carry a forwarding header and are counted by the connection's address: behind a proxy, set ClientIP.TrustedProxies to its network and ClientIP.Header to what it writes, or all of its clients share one key; without a proxy, add CodeUntrustedProxy to Options.Silence"},
	noteKeyWithPort:    {CodeKeyWithPort, "a key reads like an address with a port, so that every connection counts for itself: use ClientIP.Key instead of r.RemoteAddr"},
	noteWholeIPv6:      {CodeWholeIPv6, "a key reads like a single IPv6 address, and a client has 2^64 of them: use ClientIP.Key, which counts by /64"},
	noteCountedOnce:    {CodeCountedOnce, "a request passed this limiter twice and was counted once: mount it on the routes or around them, not both"},
	noteInHandler:      {CodeInHandler, "a limiter was made while a request was being served: make limiters once, at start, or inside Reload"},
	noteCountIgnored:   {CodeCountIgnored, "Options.Count is set, and Check does not see the response: use Middleware, or AddCost after the handler"},
	noteShadow:         {CodeShadow, "requests would be denied: the limiter is in Shadow and lets them through"},

	noteSnapshotFailed:   {CodeSnapshotFailed, "the snapshot file could not be written: counters go on in memory, and are lost if the process ends before that works again"},
	noteSnapshotSetAside: {CodeSnapshotSetAside, "the snapshot file could not be used and was set aside: everybody starts afresh"},
}

// notes remembers when each note was last logged. The zero value is ready to use.
type notes [noteCount]struct {
	last atomic.Int64 // by clock.Now, 0 for never
}

// noteEvery is how often one limiter repeats a note.
const noteEvery = time.Minute

// note logs a warning unless it did within the last minute. Attributes are the
// limiter's own words: nothing that a client has sent.
func (l *Limiter) note(n note, args ...any) {
	last, now := l.notes[n].last.Load(), max(1, clock.Now())
	if last != 0 && now-last < int64(noteEvery) && now >= last {
		return
	}
	if l.notes[n].last.CompareAndSwap(last, now) {
		l.log(n, args...)
	}
}

// log logs a warning, unless it is silenced.
func (l *Limiter) log(n note, args ...any) {
	if slices.Contains(l.opts.Silence, noteTexts[n].code) {
		return
	}
	level := slog.LevelWarn
	switch n {
	case noteStoreFailed, noteStoreDown, notePrefixClaimed, noteClosed, noteOptionFailed, noteSnapshotFailed, noteSnapshotSetAside:
		level = slog.LevelError
	case noteStoreBack, noteOtherLimits:
		level = slog.LevelInfo
	}
	args = append([]any{"limiter", l.name, "code", noteTexts[n].code}, args...)
	l.logger().Log(context.Background(), level, "ratelimit: "+noteTexts[n].text, args...)
}

// outages are a remote's, as far as the log knows of them.
type outages struct {
	telling atomic.Bool           // somebody sees to it that the log's last word is true
	down    atomic.Bool           // that word
	cause   atomic.Pointer[error] // of the last outage
	next    int64                 // when another may be told of; of who is telling
}

// outageEvery is how often outages are told of: a breaker that flaps makes two lines in that time.
const outageEvery = 10 * time.Second

// noteOutage tells of an outage and of its end, now that the breaker has opened or closed. The
// log's last word has to be true: what is not told at once is looked at again.
func (r *remote) noteOutage(err error) {
	o := &r.outages
	if err != nil && r.breaker.Open() {
		o.cause.Store(&err)
	}
	if !o.telling.CompareAndSwap(false, true) {
		return
	}
	r.beside(func() {
		for more := true; more; {
			r.tellOutage()
			o.telling.Store(false)
			more = r.closing.Err() == nil && r.breaker.Open() != o.down.Load() && o.telling.CompareAndSwap(false, true)
		}
	})
}

func (r *remote) tellOutage() {
	o := &r.outages
	if !o.down.Load() {
		select {
		case <-time.After(time.Duration(o.next - clock.Now())):
		case <-r.closing.Done():
			return
		}
	}
	down := r.breaker.Open()
	if o.down.Swap(down) == down {
		return
	}
	if !down {
		r.l.log(noteStoreBack, "outages", r.breaker.Opened())
		return
	}
	o.next = clock.Now() + int64(outageEvery)
	cause := errBreakerOpen
	if c := o.cause.Load(); c != nil {
		cause = *c
	}
	r.l.log(noteStoreDown, "outages", r.breaker.Opened(), "on_failure", r.l.opts.OnFailure, "error", cause)
}

// noteKey looks for what is likely to be a mistake in who is limited. A key does
// not change what is noted once: a quick look has to do.
func (l *Limiter) noteKey(r *http.Request, key string) {
	forwarded := l.key.byAddress && hasForwarding(r.Header)
	if !forwarded && (l.key.byAddress || !strings.Contains(key, ":")) {
		return
	}
	if _, own, ok := strings.Cut(key, "="); ok { // of FirstKey
		key = own
	}
	if forwarded {
		peer, ok := addr.Parse(r.RemoteAddr)
		if l.key.noProxies || ok && addr.Covers(key, peer) {
			l.note(noteUntrustedProxy)
		}
		return
	}
	a, ok := addr.Parse(key)
	port := strings.Count(key, ":") == 1
	if strings.HasPrefix(key, "[") {
		port = !strings.HasSuffix(key, "]")
	}
	switch {
	case ok && port:
		l.note(noteKeyWithPort)
	case ok && a.Is6():
		l.note(noteWholeIPv6)
	}
}

func hasForwarding(h http.Header) bool {
	return h["X-Forwarded-For"] != nil || h["Forwarded"] != nil || h["X-Real-Ip"] != nil || h["Cf-Connecting-Ip"] != nil
}
