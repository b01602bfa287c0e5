// Package gin is Limiter.Check in a middleware of gin.
package gin

import (
	"github.com/gin-gonic/gin"
	"github.com/ulule/limiter/v3"
	"github.com/ulule/limiter/v3/drivers/ours"
)

type settings struct {
	key      func(*gin.Context) string
	excluded func(string) bool
}

type Option func(*settings)

func WithKeyGetter(key func(*gin.Context) string) Option { return func(s *settings) { s.key = key } }

func WithExcludedKey(excluded func(string) bool) Option {
	return func(s *settings) { s.excluded = excluded }
}

func NewMiddleware(l *limiter.Limiter, options ...Option) gin.HandlerFunc {
	s := settings{key: (*gin.Context).ClientIP, excluded: func(string) bool { return false }}
	for _, option := range options {
		option(&s)
	}
	return func(c *gin.Context) {
		key := s.key(c)
		r := ours.Request{Key: key, Rate: l.Rate, Skip: s.excluded(key)}.In(c.Request)
		if !l.Store.(*ours.Store).Check(c.Writer, r) {
			c.Abort()
		}
	}
}
