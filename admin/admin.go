package admin

import (
	"bytes"
	"cmp"
	"context"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"html/template"
	"io"
	"io/fs"
	"mime"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/ratelimit-go/ratelimit"
	"github.com/ratelimit-go/ratelimit/audit"
	"github.com/ratelimit-go/ratelimit/internal/accept"
)

// Options are the settings of a [Handler]. The zero Options are a page for the limiters of the
// default registry that only this machine can see, and that changes nothing. The functions are
// called from any number of goroutines.
type Options struct {
	// Registry has the limiters. Nil means ratelimit.DefaultRegistry. Inside of a Reload's build
	// function, pass the registry that is being reloaded, and not next.
	Registry *ratelimit.Registry

	// Actor returns who makes a request, for the audit trail, and whether they may see the page
	// and act on it. It is called for each request, also for the style sheet, and is the only
	// check there is: let it verify a session or a password. If ok is false or who is empty, or
	// if it panics, the request is refused.
	//
	// Nil means a read-only page for requests from a loopback address, to a loopback Host, and
	// without any header field that proxies add. docs/admin.md has the list, and the proxies that
	// cannot be recognised.
	Actor func(*http.Request) (who string, ok bool)

	// KeyView returns what a viewer sees in place of a key of a limiter, such as "2001:db8:…".
	// The page then has no key in any form that a viewer can read, and no text of errors, which
	// may have keys in it. Links and forms have it encrypted. Nil shows keys as they are.
	//
	// It is also called for what somebody has typed to find a key; limiter is empty if that was
	// for all limiters.
	KeyView func(r *http.Request, limiter, key string) string

	// Audit has the records for the page "audit", such as an *audit.Trail. Nil means that there is
	// no such page. What is recorded is up to ratelimit.Options.Audit of each limiter.
	Audit audit.Reader
}

// Handler returns the admin page. It may be mounted anywhere, with or without [http.StripPrefix],
// if the path of the mount ends with a slash: it reads only what comes after the last slash of
// the path, and all its links are relative.
//
// The first handler for a registry begins to observe it, until nothing uses the registry any
// more. Later handlers share what it has seen. It samples what each limiter has counted every 5
// seconds, which takes some 2 ms for 1,000 limiters, and follows the 64 keys that each limiter
// denies most. That takes about 13 kB for a limiter whose keys are addresses, and at most 35 kB
// for any. Keys of more than 256 bytes take up to 16 MB more, for all limiters together. A denial
// costs some 0.1 µs more, up to 1 µs if its key is new, and some µs if that has thousands of
// bytes.
//
// A handler may be used from any number of goroutines.
func Handler(opts Options) http.Handler {
	opts.Registry = cmp.Or(opts.Registry, ratelimit.DefaultRegistry)
	h := &handler{opts: opts, watch: watchOf(opts.Registry), crossOrigin: http.NewCrossOriginProtection()}
	h.host, _ = os.Hostname()
	return h
}

type handler struct {
	opts        Options
	watch       *watch
	crossOrigin *http.CrossOriginProtection
	host        string
	forms       sentForms
}

// started is when this process was started, as far as the page is concerned.
var started = time.Now()

//go:embed page
var files embed.FS

// pages are the templates of the pages.
var pages = template.Must(template.New("").Funcs(template.FuncMap{
	"count": count, "rate": rate, "spark": spark, "ago": ago, "until": until, "clock": clock, "inert": inert,
}).ParseFS(files, "page/*.html"))

// assets have the files that pages load, with their types.
var assets = map[string]string{
	"style.css": "text/css; charset=utf-8",
	"live.js":   "text/javascript; charset=utf-8",
	"icon.svg":  "image/svg+xml",
}

// A route is a page. get answers GET and HEAD, and post answers POST. Either may be nil.
type route struct {
	get, post func(*request) error
	acts      bool // post is a step to a change, so it needs an actor
}

var routes = map[string]route{
	"":        {get: (*request).limiters},
	"limiter": {get: (*request).limiter},
	"key":     {get: (*request).key, post: (*request).findKey},
	"found":   {get: (*request).found},
	"confirm": {post: (*request).confirm, acts: true},
	"act":     {post: (*request).act, acts: true},
	"store":   {get: (*request).stores},
	"audit":   {get: (*request).audit, post: (*request).findAudit},
}

// ServeHTTP answers a request.
func (h *handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	secure(w.Header())
	who, refused := h.viewer(r)
	if refused != nil {
		plain(w, refused.status, refused.text)
		return
	}
	name := r.URL.Path[strings.LastIndexByte(r.URL.Path, '/')+1:]
	if kind, ok := assets[name]; ok {
		asset(w, r, name, kind)
		return
	}
	page, ok := routes[name]
	if !ok {
		plain(w, http.StatusNotFound, "The admin page has no such page.\nIf it should be here: mount it with a path that ends with a slash.\n")
		return
	}
	if name == "" && redirectToSlash(w, r) {
		return
	}
	q := &request{h: h, w: w, r: r, who: who, now: time.Now()}
	answer := page.get
	switch {
	case r.Method == http.MethodPost && page.post != nil:
		answer = q.protected(page)
	case r.Method != http.MethodGet && r.Method != http.MethodHead, answer == nil:
		w.Header().Set("Allow", allowed(page))
		plain(w, http.StatusMethodNotAllowed, "This page answers "+allowed(page)+" only.\n")
		return
	}
	if err := answer(q); err != nil {
		q.fail(err)
	}
}

func allowed(page route) string {
	switch {
	case page.post == nil:
		return "GET, HEAD"
	case page.get == nil:
		return "POST"
	}
	return "GET, HEAD, POST"
}

// secure sets the header fields of all answers.
func secure(h http.Header) {
	h.Set("Cache-Control", "no-store")
	h.Set("Content-Security-Policy", "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; "+
		"form-action 'self'; frame-ancestors 'none'; base-uri 'none'")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("X-Frame-Options", "DENY")
	h.Set("Cross-Origin-Opener-Policy", "same-origin")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	// With no-referrer, browsers send "Origin: null" with forms, which CrossOriginProtection
	// refuses where they send no Sec-Fetch-Site: at addresses without TLS.
	h.Set("Referrer-Policy", "same-origin")
}

func plain(w http.ResponseWriter, status int, text string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(status)
	io.WriteString(w, text)
}

// asset answers a request for a file that pages load.
func asset(w http.ResponseWriter, r *http.Request, name, kind string) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		plain(w, http.StatusMethodNotAllowed, "This file answers GET and HEAD only.\n")
		return
	}
	b, err := fs.ReadFile(files, "page/"+name)
	if err != nil {
		panic(err) // it is embedded
	}
	w.Header().Set("Content-Type", kind)
	w.Write(b)
}

// redirectToSlash sends a client that has asked for the mount without its slash to the one with
// it, because relative links would lead astray. It looks at what the client has sent, which
// StripPrefix does not change.
func redirectToSlash(w http.ResponseWriter, r *http.Request) bool {
	sent, query, _ := strings.Cut(r.RequestURI, "?")
	last := sent[strings.LastIndexByte(sent, '/')+1:]
	if last == "" {
		return false
	}
	to := "./" + last + "/" // a name with a colon would be read as a scheme without the dot
	if query != "" {
		to += "?" + query
	}
	w.Header().Set("Location", to)
	plain(w, http.StatusMovedPermanently, "The admin page is at "+to+"\n")
	return true
}

// A request is one request for a page.
type request struct {
	h   *handler
	w   http.ResponseWriter
	r   *http.Request
	who string // "" is a viewer who can change nothing
	now time.Time
}

// maxForm is the longest form, in bytes.
const maxForm = 64 << 10

// protected returns what answers a POST, after all checks.
func (q *request) protected(page route) func(*request) error {
	return func(q *request) error {
		if err := q.h.crossOrigin.Check(q.r); err != nil {
			return &failure{http.StatusForbidden, "This form was sent by another site, so nothing was done."}
		}
		if page.acts && q.who == "" {
			return &failure{http.StatusForbidden, "This page is read-only, because admin.Options.Actor is not set. " +
				"Set it to a function that checks who operators are."}
		}
		q.r.Body = http.MaxBytesReader(q.w, q.r.Body, maxForm)
		if kind, _, err := mime.ParseMediaType(q.r.Header.Get("Content-Type")); err != nil || kind != "application/x-www-form-urlencoded" {
			return &failure{http.StatusUnsupportedMediaType, "Send a form, as application/x-www-form-urlencoded."}
		}
		if err := q.r.ParseForm(); err != nil {
			return &failure{http.StatusBadRequest, "The form cannot be read, or is longer than 64 kB."}
		}
		return page.post(q)
	}
}

// A failure is an error that is shown.
type failure struct {
	status int
	text   string
}

func (f *failure) Error() string { return f.text }

func badRequest(format string, args ...any) error {
	return &failure{http.StatusBadRequest, fmt.Sprintf(format, args...)}
}

// fail answers with an error.
func (q *request) fail(err error) {
	f := &failure{http.StatusInternalServerError, "The page has failed."}
	errors.As(err, &f)
	q.show(f.status, "error", &errorPage{q.head("Error"), f.text})
}

type errorPage struct {
	head  `json:"process"`
	Error string `json:"error"`
}

// A head is what all pages have: whose numbers they show.
type head struct {
	Title   string    `json:"-"`
	Host    string    `json:"host"`
	PID     int       `json:"pid"`
	Since   time.Time `json:"since"`
	Now     time.Time `json:"now"`
	Actor   string    `json:"actor,omitempty"`
	Trail   bool      `json:"-"` // there is a page "audit"
	Live    bool      `json:"-"` // the page is refreshed
	Notice  string    `json:"notice,omitempty"`
	Section string    `json:"-"` // of the navigation
}

// head returns the head of a page.
func (q *request) head(title string) head {
	return head{
		Title: title, Host: q.h.host, PID: os.Getpid(), Since: started.UTC().Truncate(time.Second), Now: q.now.UTC().Truncate(time.Second),
		Actor: q.who, Trail: q.h.opts.Audit != nil,
	}
}

// show answers with a page, in the form that the client prefers.
func (q *request) show(status int, page string, view any) error {
	var b bytes.Buffer
	kind := "text/html; charset=utf-8"
	var err error
	if q.wantsJSON() {
		kind = "application/json"
		encoder := json.NewEncoder(&b)
		encoder.SetIndent("", "  ")
		err = encoder.Encode(view)
	} else {
		err = pages.ExecuteTemplate(&b, page+".html", view)
	}
	if err != nil { // a template or a form that is wrong
		plain(q.w, http.StatusInternalServerError, "The page cannot be shown.\n")
		return nil
	}
	q.w.Header().Set("Content-Type", kind)
	q.w.Header().Add("Vary", "Accept")
	q.w.WriteHeader(status)
	q.w.Write(b.Bytes()) // an error is the client's connection
	return nil
}

// wantsJSON reports whether the client prefers JSON. One that reads HTML gets that.
func (q *request) wantsJSON() bool {
	lines := q.r.Header["Accept"]
	return accept.PrefersJSON(lines) && !strings.Contains(strings.ToLower(strings.Join(lines, ",")), "text/html")
}

// redirect sends the client to a page, which it gets with GET.
func (q *request) redirect(page string, query url.Values) error {
	q.w.Header().Set("Location", page+"?"+query.Encode())
	plain(q.w, http.StatusSeeOther, "See "+page+".\n")
	return nil
}

// lookup returns the limiter of that name that is in force now.
func (q *request) lookup(name string) (*ratelimit.Limiter, error) {
	l, ok := q.h.opts.Registry.Lookup(name)
	if !ok {
		return nil, &failure{http.StatusNotFound, fmt.Sprintf("There is no limiter %q in this process.", name)}
	}
	return l, nil
}

// showKey returns a key as this viewer may see it. kept may be its beginning only.
func (q *request) showKey(limiter, kept string, length int) (k shownKey) {
	if q.h.opts.KeyView == nil {
		k = showKey(kept, length)
	} else {
		view := q.keyView(limiter, kept)
		k = showKey(view, len(view))
		k.Masked, k.Length = true, 0
	}
	if len(kept) == length {
		k.Link = sealKey(limiter, kept)
	}
	return k
}

// keyView calls Options.KeyView.
func (q *request) keyView(limiter, key string) (view string) {
	defer func() {
		if recover() != nil {
			view = "hidden, because Options.KeyView has panicked"
		}
	}()
	return q.h.opts.KeyView(q.r, limiter, key)
}

// errorText returns the text of an error of the library, unless it might show a key.
func (q *request) errorText(err error) string {
	if q.h.opts.KeyView != nil {
		return "It has failed. The reason is not shown, because it may have a key in it."
	}
	return strings.TrimPrefix(err.Error(), "ratelimit: ")
}

// acting returns the context of a call in the name of the actor.
func (q *request) acting(reason string) context.Context {
	return ratelimit.WithReason(ratelimit.WithActor(q.r.Context(), q.who), reason)
}
