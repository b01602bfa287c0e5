package use

import (
	"compress/gzip"
	"net/http"

	"example.com/vet/cors"

	"github.com/ratelimit-go/ratelimit"
)

type router struct{}

func (router) Use(middleware ...func(http.Handler) http.Handler) {}

func zip(h http.Handler) http.Handler {
	_ = gzip.BestSpeed
	return h
}

func withCORS(h http.Handler) http.Handler { return h }

func scorsese(h http.Handler) http.Handler { return h }

func routes(login, api *ratelimit.Limiter, h http.Handler, r router) {
	http.Handle("/a", login.Middleware(cors.New().Handler(h)))          // want `CORS middleware inside of a limiter.*: wrap it around the limiter`
	http.Handle("/b", login.Middleware(cors.Handler("https://a.b")(h))) // want `CORS middleware inside`
	http.Handle("/c", login.Middleware(withCORS(h)))                    // want `CORS middleware inside`
	http.Handle("/d", login.Middleware(zip(withCORS(h))))               // want `CORS middleware inside`
	http.Handle("/e", login.Middleware(api.Middleware(withCORS(h))))    // want `CORS middleware inside`
	r.Use(login.Middleware, cors.Handler("*"))                          // want `CORS middleware inside of a limiter.*: put it before the limiter's Middleware`
	c := cors.New()
	r.Use(login.Middleware, c.Handler) // want `CORS middleware inside`

	r.Use(cors.Handler("*"), login.Middleware)
	http.Handle("/f", withCORS(login.Middleware(h)))
	http.Handle("/g", cors.New().Handler(login.Middleware(h)))
	http.Handle("/h", login.Middleware(zip(h)))
	http.Handle("/i", login.Middleware(scorsese(h)))
	http.Handle("/j", login.Middleware(corsReport()))
}

// A handler about CORS is no middleware.
func corsReport() http.Handler { return http.NotFoundHandler() }
