package ratelimit

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
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

// answer sends a refusal of the limiter's own. Caches must not store it (RFC 6585,
// section 4).
func answer(w http.ResponseWriter, r *http.Request, status int, contentType string, body []byte) {
	h := w.Header()
	values := [...]string{contentType, "nosniff", noStore, strconv.Itoa(len(body))} // the response's own, in one allocation
	h["Content-Type"], h["X-Content-Type-Options"], h["Cache-Control"] = values[0:1:1], values[1:2:2], values[2:3:3]
	if h["Content-Encoding"] == nil { // otherwise a writer further out compresses the body, and knows its length
		h["Content-Length"] = values[3:4:4]
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
	_, pushes := w.(http.Pusher)
	if _, flushes := w.(http.Flusher); pushes && !flushes {
		// The writer of http.TimeoutHandler. It has a header of its own, which it copies
		// over the one outside when the handler has returned. A field without values then
		// replaces the field of that name there.
		for _, name := range successFields {
			if h[name] == nil {
				h[name] = nil
			}
		}
	}
}

const noStore = "no-store"

// ofSuccess reports whether a field of this name describes the successful response:
// its content (RFC 9110, section 8), where that is, and for how long whom it may be
// stored by (RFC 9111, section 5; RFC 9213).
func ofSuccess(name string) bool {
	return isSuccessField[name] ||
		strings.HasPrefix(name, "Content-") && !strings.HasPrefix(name, "Content-Security-Policy") ||
		allowsCaching(name)
}

// successFields are the fields of ofSuccess that its patterns do not cover, and those
// of the patterns that are in wide use.
var successFields = [...]string{
	"Content-Length", "Content-Encoding", "Content-Disposition", "Content-Language", "Content-Location", "Content-Range", "Content-Md5", "Content-Digest",
	"Cdn-Cache-Control", "Cloudflare-Cdn-Cache-Control", "Surrogate-Control", "X-Accel-Expires", "Edge-Control",
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
	forbidden := false
	for field, values := range h {
		switch name := http.CanonicalHeaderKey(field); {
		case name == "Cache-Control" && strings.Contains(strings.ToLower(strings.Join(values, ",")), noStore):
			forbidden = true
		case allowsCaching(name):
			h[field] = nil // not deleted: see forgetSuccess
		}
	}
	if !forbidden {
		h["Cache-Control"] = []string{noStore}
	}
}

// mayEncode reports whether w may be a writer that compresses what is written to it,
// and that has said so by setting Content-Encoding before there is anything to
// compress, as many do. The server's own writer does not, and a compressor chooses
// from what the client accepts; many remove Accept-Encoding from the request.
func mayEncode(w http.ResponseWriter, r *http.Request, encoding []string) bool {
	t := reflect.TypeOf(w)
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if path := t.PkgPath(); path == "net/http" || path == "net/http/httptest" {
		return false
	}
	accepted, ok := r.Header["Accept-Encoding"]
	return !ok || strings.Contains(strings.ToLower(strings.Join(accepted, ",")), strings.ToLower(encoding[0]))
}

// servePage lets a handler of the user answer a request that the limiter refuses. The
// answer has that status, unless the handler writes another one, and is not stored by
// caches.
func servePage(w http.ResponseWriter, status int, page func(http.ResponseWriter)) {
	response := watchResponse(w, status, func(int) { forbidCaching(w.Header()) })
	page(response.w)
	if response.status == 0 {
		response.w.WriteHeader(status)
	}
	forbidCaching(w.Header()) // http.TimeoutHandler also sends what was set after the status
}

// A watchedResponse calls before with the status of a response, once, just before
// its header is sent.
type watchedResponse struct {
	w        http.ResponseWriter // for the handler; it has the interfaces of the writer underneath
	under    http.ResponseWriter
	status   int // that was sent, 0 for none yet
	implicit int // what is sent with the body if the handler writes no status
	before   func(status int)
}

// watchResponse watches the response that is written to w. Like w, the result is for
// one goroutine at a time.
func watchResponse(w http.ResponseWriter, implicit int, before func(status int)) *watchedResponse {
	x := &watchedResponse{under: w, implicit: implicit, before: before}
	x.w = httpsnoop.Wrap(w, httpsnoop.Hooks{
		WriteHeader: func(next httpsnoop.WriteHeaderFunc) httpsnoop.WriteHeaderFunc {
			return func(code int) {
				// 1xx are followed by the real one, and net/http panics over what is no status.
				if code >= 200 && code <= 999 || code == http.StatusSwitchingProtocols {
					x.sends(code)
				}
				next(code)
			}
		},
		Write: func(next httpsnoop.WriteFunc) httpsnoop.WriteFunc {
			return func(b []byte) (int, error) { x.sendsBody(); return next(b) }
		},
		ReadFrom: func(next httpsnoop.ReadFromFunc) httpsnoop.ReadFromFunc {
			return func(src io.Reader) (int64, error) { x.sendsBody(); return next(src) }
		},
		Flush: func(next httpsnoop.FlushFunc) httpsnoop.FlushFunc {
			return func() { x.sendsBody(); next() }
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

func (x *watchedResponse) sends(status int) {
	if x.status == 0 {
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
