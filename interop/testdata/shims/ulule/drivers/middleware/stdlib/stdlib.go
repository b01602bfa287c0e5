// Package stdlib is Limiter.Middleware.
package stdlib

import (
	"net/http"

	"github.com/ulule/limiter/v3"
	"github.com/ulule/limiter/v3/drivers/ours"
)

type Middleware struct{ limiter *limiter.Limiter }

func NewMiddleware(l *limiter.Limiter) *Middleware { return &Middleware{l} }

func (m *Middleware) Handler(next http.Handler) http.Handler {
	limited := m.limiter.Store.(*ours.Store).Middleware(next)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		limited.ServeHTTP(w, ours.Request{Key: m.limiter.GetIPKey(r), Rate: m.limiter.Rate}.In(r))
	})
}
