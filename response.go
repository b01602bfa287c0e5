package ratelimit

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/felixge/httpsnoop"
)

const (
	plainText   = "text/plain; charset=utf-8"
	problemJSON = "application/problem+json"
)

// refusalValues are the values of the header fields of a refusal: Retry-After first, and
// then what answer sets. They are the response's own, in one allocation.
type refusalValues [5]string

// answer sends a refusal of the limiter's own. Caches must not store it (RFC 6585,
// section 4). values are for its header fields; nil allocates them.
func answer(w http.ResponseWriter, r *http.Request, values *refusalValues, status int, contentType string, body []byte) {
	if values == nil {
		values = new(refusalValues)
	}
	h := w.Header()
	values[1], values[2], values[3], values[4] = contentType, "nosniff", noStore, strconv.Itoa(len(body))
	h["Content-Type"], h["X-Content-Type-Options"], h["Cache-Control"] = values[1:2:2], values[2:3:3], values[3:4:4]
	// If a writer further out may compress the body, it knows the length. In an
	// http.TimeoutHandler, which has the whole body, net/http does: see forgetSuccess.
	if _, removed := h["Content-Length"]; !removed && h["Content-Encoding"] == nil {
		h["Content-Length"] = values[4:5:5]
	}
	w.WriteHeader(status)
	if r.Method != http.MethodHead {
		w.Write(body) // an error here is the client's connection: there is nobody to report it to
	}
}

// forgetSuccess removes from the response what handlers around the limiter have set
// for the successful one, because the request is refused. Other fields stay: cookies,
// CORS, security, request numbers. others reports whether these handlers have set any.
func forgetSuccess(w http.ResponseWriter, r *http.Request, others bool) {
	h := w.Header()
	if others {
		for name, values := range h {
			if len(values) > 0 && ofSuccess(http.CanonicalHeaderKey(name)) && !(name == "Content-Encoding" && mayEncode(w, r, values)) {
				delete(h, name)
			}
		}
	}
	if !ofTimeout(w) {
		return
	}
	// The writer has a header of its own, which is copied over the one outside when the
	// handler has returned. A field without values then replaces the field of that name
	// there. A compressor outside removes Accept-Encoding from the request, and its
	// Content-Encoding must stay.
	for _, name := range successFields {
		if h[name] == nil && (name != "Content-Encoding" || r.Header["Accept-Encoding"] != nil) {
			h[name] = nil
		}
	}
}

// ofTimeout reports whether w is the writer of [http.TimeoutHandler], or wraps it: the
// only one of net/http that can push and cannot flush.
func ofTimeout(w http.ResponseWriter) bool {
	for {
		_, pushes := w.(http.Pusher)
		if _, flushes := w.(http.Flusher); pushes && !flushes {
			return true
		}
		wrapper, ok := w.(interface{ Unwrap() http.ResponseWriter })
		if !ok {
			return false
		}
		w = wrapper.Unwrap()
	}
}

const noStore = "no-store"

// ofSuccess reports whether a field of this name describes the successful response:
// its content (RFC 9110, section 8), where that is, and for how long whom it may be
// stored by (RFC 9111, section 5; RFC 9213).
func ofSuccess(name string) bool {
	return isSuccessField[name] || strings.HasPrefix(name, http.TrailerPrefix) ||
		strings.HasPrefix(name, "Content-") && !strings.HasPrefix(name, "Content-Security-Policy") ||
		allowsCaching(name)
}

// successFields are the fields of ofSuccess that its patterns do not cover, and those
// of the patterns that are in wide use.
var successFields = [...]string{
	"Content-Length", "Content-Encoding", "Content-Disposition", "Content-Language", "Content-Location", "Content-Range", "Content-Md5", "Content-Digest",
	"Cdn-Cache-Control", "Cloudflare-Cdn-Cache-Control", "Netlify-Cdn-Cache-Control", "Vercel-Cdn-Cache-Control",
	"Akamai-Cache-Control", "X-Litespeed-Cache-Control", "Surrogate-Control", "X-Accel-Expires", "Edge-Control",
	"Expires", "Age", "Pragma", "Etag", "Last-Modified", "Accept-Ranges", "Digest", "Repr-Digest", "Trailer",
	"Location", "Refresh", "X-Accel-Redirect", "X-Sendfile", "Surrogate-Key", "Cache-Tag",
}

var isSuccessField = func() map[string]bool {
	is := map[string]bool{}
	for _, name := range successFields {
		is[name] = true
	}
	return is
}()

// allowsCaching reports whether a field of this name can allow a cache to store the
// response, in addition to Cache-Control or against it. Fields of RFC 9213 are named
// "*-Cache-Control"; the others belong to caches that came before it.
func allowsCaching(name string) bool {
	switch name {
	case "Expires", "Surrogate-Control", "X-Accel-Expires", "Edge-Control":
		return true
	}
	return strings.HasSuffix(name, "Cache-Control")
}

// forbidCaching keeps caches from storing a page, whatever it has set itself.
func forbidCaching(h http.Header) {
	for field := range h {
		if allowsCaching(http.CanonicalHeaderKey(field)) {
			h[field] = nil // not deleted: see forgetSuccess
		}
	}
	h["Cache-Control"] = []string{noStore}
}

// mayEncode reports whether w may be a writer that compresses what is written to it,
// and that has said so by setting Content-Encoding before there is anything to
// compress, as many do. The server's own writer does not, nor does the one of
// watchResponse. A compressor chooses what the client accepts, and most say so with
// Vary; many also remove Accept-Encoding from the request.
func mayEncode(w http.ResponseWriter, r *http.Request, encoding []string) bool {
	if strings.Contains(strings.ToLower(strings.Join(w.Header()["Vary"], ",")), "accept-encoding") {
		return true
	}
	t := reflect.TypeOf(w)
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	switch t.PkgPath() {
	case "net/http", "net/http/httptest", reflect.TypeFor[httpsnoop.Hooks]().PkgPath():
		return false
	}
	for item := range strings.SplitSeq(strings.Join(r.Header["Accept-Encoding"], ","), ",") {
		name, q, _ := strings.Cut(strings.ReplaceAll(item, " ", ""), ";")
		if strings.EqualFold(name, encoding[0]) && (q == "" || strings.Trim(strings.TrimPrefix(q, "q="), "0.") != "") {
			return true
		}
	}
	return false
}

// servePage lets a handler of the user answer a request that the limiter refuses. The
// answer has that status, unless the handler writes another one, and is not stored by
// caches.
func servePage(w http.ResponseWriter, status int, styles Headers, page func(http.ResponseWriter)) {
	response := watchResponse(w, status, styles, func(int) {
		settleFields(w.Header(), styles)
		forbidCaching(w.Header())
	})
	// http.TimeoutHandler also sends what was set after the status; and if the page
	// panics, somebody further out may answer with what it has set.
	defer func() { forbidCaching(w.Header()) }()
	page(response.w)
	if response.status == 0 {
		response.w.WriteHeader(status)
	}
}

// A watchedResponse calls before with the status of a response, once, just before
// its header is sent. If the header is cleared after an informational response (1xx), as
// httputil.ReverseProxy does, it puts the fields of limiters back.
type watchedResponse struct {
	w        http.ResponseWriter // for the handler; it has the interfaces of the writer underneath
	under    http.ResponseWriter
	status   int         // that was sent, 0 for none yet
	implicit int         // what is sent with the body if the handler writes no status
	styles   Headers     // of the limiters that have written fields
	header   http.Header // of the response, from the first informational response on
	own      http.Header // the fields of limiters in it
	before   func(status int)
}

// watchResponse watches the response that is written to w, to whose header limiters of
// these styles have written. Like w, the result is for one goroutine at a time.
func watchResponse(w http.ResponseWriter, implicit int, styles Headers, before func(status int)) *watchedResponse {
	w = controlled(w)
	x := &watchedResponse{under: w, implicit: implicit, styles: styles, before: before}
	x.w = httpsnoop.Wrap(w, httpsnoop.Hooks{
		Header: func(next httpsnoop.HeaderFunc) httpsnoop.HeaderFunc {
			return func() http.Header { x.restore(); return next() }
		},
		WriteHeader: func(next httpsnoop.WriteHeaderFunc) httpsnoop.WriteHeaderFunc {
			return func(code int) {
				// 1xx are followed by the real one, and net/http panics over what is no status.
				switch {
				case code >= 200 && code <= 999 || code == http.StatusSwitchingProtocols:
					x.sends(code)
				case code >= 100 && code <= 199:
					x.informs()
				}
				next(code)
			}
		},
		Write: func(next httpsnoop.WriteFunc) httpsnoop.WriteFunc {
			return func(b []byte) (int, error) { x.sendsBody(); return next(b) }
		},
		ReadFrom: func(next httpsnoop.ReadFromFunc) httpsnoop.ReadFromFunc {
			return func(src io.Reader) (int64, error) { return x.readFrom(src, next) }
		},
		Flush: func(next httpsnoop.FlushFunc) httpsnoop.FlushFunc {
			return func() { x.sendsBody(); next() }
		},
		FlushError: func(next httpsnoop.FlushErrorFunc) httpsnoop.FlushErrorFunc {
			return func() error { x.sendsBody(); return next() }
		},
		Hijack: func(next httpsnoop.HijackFunc) httpsnoop.HijackFunc {
			return func() (net.Conn, *bufio.ReadWriter, error) {
				conn, rw, err := next()
				if err == nil {
					x.sends(http.StatusSwitchingProtocols)
				}
				return conn, rw, err
			}
		},
	})
	return x
}

// readFrom copies src. net/http sends no header if there is nothing in src, so the
// first bytes are read before a status is implied.
func (x *watchedResponse) readFrom(src io.Reader, next httpsnoop.ReadFromFunc) (n int64, err error) {
	var first [512]byte
	for x.status == 0 {
		read, readErr := src.Read(first[:])
		if read > 0 {
			x.sendsBody()
			written, err := x.under.Write(first[:read])
			if n += int64(written); err != nil {
				return n, err
			}
		}
		if readErr == io.EOF {
			return n, nil
		}
		if readErr != nil {
			return n, readErr
		}
	}
	rest, err := next(src)
	return n + rest, err
}

// controlled makes sure that [http.ResponseController] cannot go around our hooks. If w
// lacks Flush or Hijack, a controller calls the method of a writer underneath, which it
// finds by Unwrap. If there is one, controlled returns a writer that has the method itself,
// and the ReadFrom of w. Otherwise controlled returns w. Push is not kept: it works only over
// HTTP/2, where nothing can be hijacked, so only a writer without Flush loses it.
func controlled(w http.ResponseWriter) http.ResponseWriter {
	flushes, hijacks := flushesOrHijacks(w)
	canFlush, canHijack := flushes, hijacks
	for under := w; !canFlush || !canHijack; {
		wrapper, ok := under.(interface{ Unwrap() http.ResponseWriter })
		if !ok {
			break
		}
		under = wrapper.Unwrap()
		f, h := flushesOrHijacks(under)
		canFlush, canHijack = canFlush || f, canHijack || h
	}
	if flushes == canFlush && hijacks == canHijack {
		return w
	}
	c := controlledWriter{w}
	reader, reads := w.(io.ReaderFrom)
	flusher, isFlusher := w.(http.Flusher) // only together with Hijack: otherwise w lacks nothing
	switch {
	case isFlusher && reads:
		return struct {
			flushingWriter
			io.ReaderFrom
		}{flushingWriter{hijackingWriter{c}, flusher}, reader}
	case isFlusher:
		return flushingWriter{hijackingWriter{c}, flusher}
	case canHijack && reads:
		return struct {
			hijackingWriter
			io.ReaderFrom
		}{hijackingWriter{c}, reader}
	case canHijack:
		return hijackingWriter{c}
	case reads:
		return struct {
			controlledWriter
			io.ReaderFrom
		}{c, reader}
	}
	return c
}

// flushesOrHijacks reports which of the methods that a controller looks for w has itself.
func flushesOrHijacks(w http.ResponseWriter) (flushes, hijacks bool) {
	switch w.(type) {
	case http.Flusher, interface{ FlushError() error }:
		flushes = true
	}
	_, hijacks = w.(http.Hijacker)
	return flushes, hijacks
}

// A controlledWriter flushes the writer underneath, as a controller does. If no writer can,
// the error is the same as without it.
type controlledWriter struct{ http.ResponseWriter }

func (c controlledWriter) Unwrap() http.ResponseWriter { return c.ResponseWriter }
func (c controlledWriter) FlushError() error {
	return http.NewResponseController(c.ResponseWriter).Flush()
}

type hijackingWriter struct{ controlledWriter }

func (h hijackingWriter) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	return http.NewResponseController(h.ResponseWriter).Hijack()
}

type flushingWriter struct {
	hijackingWriter
	http.Flusher
}

// informs is called before an informational response is sent. It keeps the fields of
// limiters for restore. Later ones may have the fields of an upstream in their place.
func (x *watchedResponse) informs() {
	if x.header != nil || x.status != 0 {
		return
	}
	x.header = x.under.Header()
	x.own = ownFields(x.header, x.styles)
	if retry := x.header["Retry-After"]; x.implicit != http.StatusOK && len(retry) > 0 { // of a refusal
		x.own["Retry-After"] = retry[:1:1]
	}
}

// restore puts the fields of limiters back if the header was cleared after an
// informational response. It does so before the handler can add fields again, so they keep
// their place before them. When limiters are nested, the inner one does it first, because
// it knows the fields of all. A handler that removes single fields does not get them back.
func (x *watchedResponse) restore() {
	if x.header != nil && x.status == 0 && len(x.header) == 0 {
		maps.Copy(x.header, x.own)
	}
}

func (x *watchedResponse) sends(status int) {
	if x.status == 0 {
		x.restore()
		x.status = status
		x.before(status)
	}
}

// sendsBody is called before what makes net/http send a header with 200 if no status
// was written.
func (x *watchedResponse) sendsBody() {
	if x.status != 0 {
		return
	}
	x.sends(x.implicit)
	if x.implicit != http.StatusOK {
		x.under.WriteHeader(x.implicit)
	}
}

// failureProblem is a refusal that is no denial as problem details of RFC 9457, which
// has the type "about:blank" for problems that say no more than their status.
func failureProblem(status int) []byte {
	return fmt.Appendf(nil, `{"type":"about:blank","title":"%s","status":%d}`, http.StatusText(status), status)
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
func problem(head []byte, p *policy, results []Result) []byte {
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
