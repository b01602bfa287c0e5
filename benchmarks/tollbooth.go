package benchmarks

import (
	"net/http"

	"github.com/didip/tollbooth/v7"
	"github.com/didip/tollbooth/v7/limiter"
)

func openTollbooth(q quota, fields bool) subject {
	l := limiter.New(nil).
		SetMax(1 / q.refill.Seconds()).
		SetBurst(int(q.units)).
		SetIPLookups([]string{"RemoteAddr"}).
		SetIgnoreURL(true)
	s := subject{take: func(key string) (bool, error) { return !l.LimitReached(key), nil }}
	if fields { // fields of this library cannot be turned off
		s.middleware = func(next http.Handler) http.Handler { return tollbooth.LimitHandler(l, next) }
	}
	return s
}
