package main

import (
	"crypto/rand"
	_ "embed"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net/http"
	"net/mail"
	"path/filepath"
	"strconv"
	"time"

	"github.com/ratelimit-go/ratelimit"
)

//go:embed page.html
var page []byte

// reset sends codes.
type reset struct {
	limiters  ratelimit.Registry
	stores    []*ratelimit.MemoryStore
	byAddress *ratelimit.Limiter
	byEmail   *ratelimit.Limiter
}

func newReset(codes ratelimit.Limit, dir string) (*reset, error) {
	r := new(reset)
	if err := r.make(codes, dir); err != nil {
		return nil, errors.Join(err, r.close())
	}
	return r, nil
}

func (r *reset) make(codes ratelimit.Limit, dir string) (err error) {
	r.byAddress, err = r.limiter("reset-address", dir, ratelimit.Options{
		Limits:  []ratelimit.Limit{codes},
		Message: "These were all the codes for now.",
	})
	if err != nil {
		return err
	}
	r.byEmail, err = r.limiter("reset-email", dir, ratelimit.Options{
		Limits:  []ratelimit.Limit{codes},
		Key:     func(r *http.Request) (string, error) { return ratelimit.Normalize(r.PostFormValue("email")), nil },
		Message: "These were all the codes for this mailbox for now.",
	})
	return err
}

// limiter makes a limiter whose counters outlive the process. A tool that reloads the
// program may start the new process while the old one ends, so SnapshotWait is set. Or it
// may kill the old process, so SnapshotEvery is short.
func (r *reset) limiter(name, dir string, opts ratelimit.Options) (*ratelimit.Limiter, error) {
	store, err := ratelimit.NewMemoryStore(name, ratelimit.MemoryOptions{
		MaxKeys:       100_000,
		SnapshotFile:  filepath.Join(dir, name+".snapshot"),
		SnapshotEvery: 100 * time.Millisecond,
		SnapshotWait:  10 * time.Second,
	})
	if err != nil {
		return nil, err
	}
	r.stores = append(r.stores, store)
	opts.Store = store
	return r.limiters.New(name, opts)
}

// close writes the counters for the last time.
func (r *reset) close() error {
	errs := []error{r.limiters.Close()}
	for _, store := range r.stores {
		errs = append(errs, store.Close())
	}
	return errors.Join(errs...)
}

func (r *reset) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		w.Header().Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src data:")
		w.Write(page)
	})
	mux.HandleFunc("GET /codes", r.look)
	send := r.byAddress.Middleware(r.byEmail.Middleware(http.HandlerFunc(send)))
	mux.Handle("POST /codes", withEmail(send))
	return http.NewCrossOriginProtection().Handler(mux) // other sites cannot use up a visitor's codes
}

// look answers with 204 if the caller's address has a code left, and otherwise like a denied
// request for a code. It takes no code.
func (r *reset) look(w http.ResponseWriter, req *http.Request) {
	w.Header().Set("Cache-Control", "no-store")
	standings, err := r.byAddress.Look(req)
	if err != nil {
		http.Error(w, "Please try again later.", http.StatusServiceUnavailable)
		return
	}
	if s := standings[0]; s.Remaining == 0 {
		w.Header().Set("Retry-After", strconv.FormatInt(int64((s.MoreAfter+time.Second-1)/time.Second), 10))
		w.WriteHeader(http.StatusTooManyRequests)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

// withEmail refuses requests without a valid e-mail address, before anything is counted.
func withEmail(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.Body = http.MaxBytesReader(w, r.Body, 4<<10)
		email := r.PostFormValue("email")
		if parsed, err := mail.ParseAddress(email); err != nil || parsed.Address != email || len(email) > 254 {
			http.Error(w, "Please enter an e-mail address.", http.StatusBadRequest)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// send sends a code; in this example it logs the code. The response does not depend on
// whether there is an account.
func send(w http.ResponseWriter, r *http.Request) {
	n, err := rand.Int(rand.Reader, big.NewInt(1_000_000))
	if err != nil {
		http.Error(w, "Please try again later.", http.StatusInternalServerError)
		return
	}
	slog.Info("code sent", "to", r.PostFormValue("email"), "code", fmt.Sprintf("%06d", n))
	w.WriteHeader(http.StatusNoContent)
}
