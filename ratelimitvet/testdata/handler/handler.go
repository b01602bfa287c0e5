package handler

import (
	"net/http"
	"sync"
	"time"

	"github.com/ratelimit-go/ratelimit"
)

var options = ratelimit.Options{Limits: []ratelimit.Limit{ratelimit.FixedWindow(5, time.Hour)}}

func serve(w http.ResponseWriter, r *http.Request) {
	login, err := ratelimit.New("login", options) // want `ratelimit.New in an HTTP handler`
	if err != nil || !login.Check(w, r) {
		return
	}
}

func limiter(name string) *ratelimit.Limiter { // want limiter:"makes"
	return ratelimit.Must(ratelimit.New(name, options))
}

func again(name string) *ratelimit.Limiter { return limiter(name) } // want again:"makes"

type server struct {
	registry ratelimit.Registry
	once     sync.Once
	login    *ratelimit.Limiter
}

func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.registry.New("login", options) // want `s.registry.New in an HTTP handler`
	again("login")                   // want `again in an HTTP handler`
	s.once.Do(func() { s.login = limiter("login") })
	ratelimit.Memory("reset").Stats()
}

// It is a middleware that makes its limiter in each request.
func middleware(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		limiter(r.URL.Path).Middleware(next).ServeHTTP(w, r) // want `limiter in an HTTP handler`
	})
}

func routes(next http.Handler) http.Handler {
	return ratelimit.Must(ratelimit.New("api", options)).Middleware(next)
}

// A route for operators that reloads the configuration.
func reload(w http.ResponseWriter, r *http.Request) {
	ratelimit.Reload(func(next *ratelimit.Registry) error {
		_, err := next.New("login", options)
		return err
	})
}
