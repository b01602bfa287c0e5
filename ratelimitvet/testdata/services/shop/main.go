// Command shop has a login, an API and a form, on one Redis client.
package main

import (
	"encoding/json"
	"log"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/ratelimit-go/ratelimit"
)

type config struct {
	Redis   string
	Login   ratelimit.Limit
	API     ratelimit.Limit
	Proxies []netip.Prefix
}

func main() {
	var c config
	file, err := os.ReadFile("shop.json")
	if err != nil {
		log.Fatal(err)
	}
	if err := json.Unmarshal(file, &c); err != nil {
		log.Fatal(err)
	}
	client := redis.NewUniversalClient(&redis.UniversalOptions{Addrs: []string{c.Redis}})
	handler, err := routes(ratelimit.DefaultRegistry, c, client)
	if err != nil {
		log.Fatal(err)
	}
	log.Fatal(http.ListenAndServe(":8080", handler))
}

func routes(r *ratelimit.Registry, c config, client redis.UniversalClient) (http.Handler, error) {
	address := ratelimit.ClientIP{TrustedProxies: c.Proxies}.Key
	login, err := r.New("login", ratelimit.Options{
		Limits:    []ratelimit.Limit{c.Login},
		Redis:     client,
		Key:       address,
		OnFailure: ratelimit.FailClosed,
		Count:     func(_ *http.Request, status int) bool { return status >= 400 },
	})
	if err != nil {
		return nil, err
	}
	api, err := r.New("api", ratelimit.Options{Limits: []ratelimit.Limit{c.API}, Redis: client, Key: address, Timeout: 50 * time.Millisecond})
	if err != nil {
		return nil, err
	}
	mux := http.NewServeMux()
	mux.Handle("POST /login", login.Middleware(http.HandlerFunc(signIn)))
	mux.Handle("/api/", api.Middleware(http.HandlerFunc(serve)))
	mux.HandleFunc("POST /admin/reload", func(w http.ResponseWriter, req *http.Request) {
		err := ratelimit.Reload(func(next *ratelimit.Registry) error {
			_, err := routes(next, c, client)
			return err
		})
		if err != nil {
			http.Error(w, "no", http.StatusInternalServerError)
		}
	})
	return logged(mux), nil
}

func signIn(w http.ResponseWriter, r *http.Request) {
	if r.PostFormValue("password") != "secret" {
		http.Error(w, "wrong", http.StatusUnauthorized)
	}
}

func serve(w http.ResponseWriter, r *http.Request) { w.Write([]byte("data")) }

func logged(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		slog.Info("request", "from", r.RemoteAddr, "forwarded", r.Header.Get("X-Forwarded-For"))
		next.ServeHTTP(w, r)
	})
}
