package benchmarks

import (
	"net/http"
	"sync"

	"golang.org/x/time/rate"
)

// Package rate has no keys and no middleware, so its users write both, mostly in one of
// the two ways below. Most of them also remove old limiters from time to time. The
// benchmarks do not, which favors package rate.

func openXTimeMutex(q quota, fields bool) subject {
	var mu sync.Mutex
	limiters := make(map[string]*rate.Limiter)
	return xTime(fields, func(key string) (bool, error) {
		mu.Lock()
		l := limiters[key]
		if l == nil {
			l = newXTime(q)
			limiters[key] = l
		}
		mu.Unlock()
		return l.Allow(), nil
	})
}

func openXTimeSyncMap(q quota, fields bool) subject {
	var limiters sync.Map
	return xTime(fields, func(key string) (bool, error) {
		l, ok := limiters.Load(key)
		if !ok {
			l, _ = limiters.LoadOrStore(key, newXTime(q))
		}
		return l.(*rate.Limiter).Allow(), nil
	})
}

func newXTime(q quota) *rate.Limiter { return rate.NewLimiter(rate.Every(q.refill), int(q.units)) }

func xTime(fields bool, take func(string) (bool, error)) subject {
	s := subject{take: take}
	if fields { // Allow does not return the numbers for the fields
		return s
	}
	s.middleware = func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			key, err := address(r)
			ok := false
			if err == nil {
				ok, err = take(key)
			}
			if err != nil {
				http.Error(w, http.StatusText(http.StatusInternalServerError), http.StatusInternalServerError)
				return
			}
			if !ok {
				http.Error(w, http.StatusText(http.StatusTooManyRequests), http.StatusTooManyRequests)
				return
			}
			next.ServeHTTP(w, r)
		})
	}
	return s
}
