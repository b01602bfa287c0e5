// Package blog limits comments, in memory with a snapshot.
package blog

import (
	"net/http"
	"time"

	"example.com/vet/cors"

	"github.com/ratelimit-go/ratelimit"
)

// Blog is an http.Handler whose limiters are made once.
type Blog struct {
	comments, search *ratelimit.Limiter
	mux              http.ServeMux
}

// New opens the counters.
func New(dir string) (*Blog, error) {
	comments, err := limiter(dir, "comments", ratelimit.Rolling(3, 10*time.Minute))
	if err != nil {
		return nil, err
	}
	search, err := limiter(dir, "search", ratelimit.TokenBucket(2, time.Second, 5))
	if err != nil {
		return nil, err
	}
	b := &Blog{comments: comments, search: search}
	c := cors.New()
	b.mux.Handle("POST /comments", c.Handler(comments.Middleware(http.HandlerFunc(b.comment))))
	b.mux.HandleFunc("GET /search", func(w http.ResponseWriter, r *http.Request) {
		if !b.search.Check(w, r) {
			return
		}
		w.Write([]byte("found"))
	})
	return b, nil
}

func limiter(dir, name string, limits ...ratelimit.Limit) (*ratelimit.Limiter, error) { // want limiter:"makes"
	store, err := ratelimit.NewMemoryStore(name, ratelimit.MemoryOptions{
		SnapshotFile:  dir + "/" + name + ".snapshot",
		SnapshotEvery: time.Second,
	})
	if err != nil {
		return nil, err
	}
	return ratelimit.New(name, ratelimit.Options{Limits: limits, Store: store})
}

func (b *Blog) comment(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusCreated) }

// ServeHTTP implements [http.Handler].
func (b *Blog) ServeHTTP(w http.ResponseWriter, r *http.Request) { b.mux.ServeHTTP(w, r) }
