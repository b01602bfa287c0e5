package main

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"fmt"
	"net/http"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/ratelimit-go/ratelimit"
)

// login checks passwords.
type login struct {
	passwords map[string]string // by account; a real service stores slow hashes
	limiters  ratelimit.Registry
	byAddress *ratelimit.Limiter
	byAccount *ratelimit.Limiter
}

// timeout is how long a decision may take at Redis. After that, this process decides by
// itself.
var timeout = ratelimit.DefaultTimeout

// newLogin counts in memory if client is nil.
func newLogin(failures ratelimit.Limit, client redis.UniversalClient, passwords map[string]string) (s *login, err error) {
	s = &login{passwords: passwords}
	s.byAddress, err = s.limiters.New("login-address", ratelimit.Options{
		Limits:  []ratelimit.Limit{failures},
		Redis:   client,
		Timeout: timeout,
		Count:   failed,
		Message: "Too many wrong passwords from your address.",
	})
	if err != nil {
		return nil, err
	}
	s.byAccount, err = s.limiters.New("login-account", ratelimit.Options{
		Limits:  []ratelimit.Limit{failures, perDay},
		Redis:   client,
		Timeout: timeout,
		Key:     func(r *http.Request) (string, error) { return account(r), nil },
		Count:   failed,
		Message: "Too many wrong passwords for this account.",
	})
	return s, err
}

// perDay is for clients that guess until one more failure would block them, wait for the
// window to end, and go on.
var perDay = ratelimit.FixedWindow(20, 24*time.Hour)

// failed says which responses count: all but successes, so that no response is free by
// mistake. A client that hangs up before its response counts, too.
func failed(_ *http.Request, status int) bool { return status >= 400 }

// account returns the account that a request is about, so that different spellings of the
// name are one key.
func account(r *http.Request) string { return ratelimit.Normalize(r.PostFormValue("account")) }

func (s *login) handler() http.Handler {
	mux := http.NewServeMux()
	check := s.byAddress.Middleware(s.byAccount.Middleware(http.HandlerFunc(s.check)))
	mux.Handle("POST /login", withAccount(check))
	return http.NewCrossOriginProtection().Handler(mux)
}

// withAccount refuses requests without an account, before anything is counted.
func withAccount(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.Body = http.MaxBytesReader(w, r.Body, 4<<10)
		if account(r) == "" {
			http.Error(w, "Please enter an account and a password.", http.StatusBadRequest)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// check answers with 401 for a wrong password, and in the same way if there is no such
// account.
func (s *login) check(w http.ResponseWriter, r *http.Request) {
	want, known := s.passwords[account(r)]
	got, right := sha256.Sum256([]byte(r.PostFormValue("password"))), sha256.Sum256([]byte(want))
	if subtle.ConstantTimeCompare(got[:], right[:]) != 1 || !known {
		http.Error(w, "Wrong account or password.", http.StatusUnauthorized)
		return
	}
	w.Write([]byte("Welcome.\n"))
}

// operator returns the routes for operators. They must not be reachable by clients. The
// limiter is "address" or "account", and the key is the address or the account.
//
//	GET    /blocks/account?key=ada             what is left, and whether it is blocked
//	POST   /blocks/account?key=ada&for=24h     block it by hand
//	DELETE /blocks/account?key=ada             unblock it
//
// The form value "who" names the operator for the events of the limiters.
func (s *login) operator() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /blocks/{limiter}", s.on(func(w http.ResponseWriter, r *http.Request, l *ratelimit.Limiter, key string) error {
		standings, err := l.LookKey(r.Context(), key)
		if err != nil {
			return err
		}
		w.Header().Set("Content-Type", "application/json")
		return json.NewEncoder(w).Encode(standings)
	}))
	mux.HandleFunc("POST /blocks/{limiter}", s.on(func(w http.ResponseWriter, r *http.Request, l *ratelimit.Limiter, key string) error {
		d, err := time.ParseDuration(r.FormValue("for"))
		if err != nil || d < time.Second || d > maxBlock {
			http.Error(w, fmt.Sprintf("for is %q: want a duration such as 24h, at least 1s and at most %v", r.FormValue("for"), maxBlock), http.StatusBadRequest)
			return nil
		}
		return l.Block(ratelimit.WithActor(r.Context(), r.FormValue("who")), key, d)
	}))
	mux.HandleFunc("DELETE /blocks/{limiter}", s.on(func(w http.ResponseWriter, r *http.Request, l *ratelimit.Limiter, key string) error {
		return l.Reset(ratelimit.WithActor(r.Context(), r.FormValue("who")), key)
	}))
	return mux
}

// maxBlock is the longest block by hand.
const maxBlock = 365 * 24 * time.Hour

// on finds the limiter and the key that an operator's request names. It answers with 400
// if there is no key, with 404 if there is no such limiter or account, and with 503 if the
// limiter returns an error: then the input was right, and the store has failed.
func (s *login) on(do func(http.ResponseWriter, *http.Request, *ratelimit.Limiter, string) error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		limiter, key := s.byAddress, r.FormValue("key")
		switch r.PathValue("limiter") {
		case "address":
		case "account":
			limiter, key = s.byAccount, ratelimit.Normalize(key)
		default:
			http.NotFound(w, r)
			return
		}
		if key == "" {
			http.Error(w, "key is empty: want an address or an account", http.StatusBadRequest)
			return
		}
		if _, known := s.passwords[key]; limiter == s.byAccount && !known {
			http.Error(w, fmt.Sprintf("there is no account %q", key), http.StatusNotFound)
			return
		}
		if err := do(w, r, limiter, key); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
		}
	}
}

func (s *login) close() error { return s.limiters.Close() }
