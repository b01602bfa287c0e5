package check

import (
	"errors"
	"net/http"

	"github.com/ratelimit-go/ratelimit"
)

func ignored(login *ratelimit.Limiter, w http.ResponseWriter, r *http.Request) {
	login.Check(w, r)     // want `the result of Check is ignored`
	_ = login.Check(w, r) // want `the result of Check is ignored`
	go login.Check(w, r)  // want `the result of Check is ignored`
	w.Write(nil)
}

func ignoredWithResult(login *ratelimit.Limiter, w http.ResponseWriter, r *http.Request) error {
	login.Check(w, r) // want `the result of Check is ignored`
	return errors.New("the answer is up to the caller")
}

func looked(login *ratelimit.Limiter, w http.ResponseWriter, r *http.Request) bool {
	if !login.Check(w, r) {
		return false
	}
	ok := login.Check(w, r)
	return ok && login.Check(w, r)
}

type other struct{}

func (other) Check(w http.ResponseWriter, r *http.Request) bool { return true }

func notALimiter(w http.ResponseWriter, r *http.Request) { other{}.Check(w, r) }
