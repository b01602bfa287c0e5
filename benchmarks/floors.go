package benchmarks

import (
	"hash/maphash"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/puzpuzpuz/xsync/v4"
)

// The floors of the memory cases read the clock, find a word and count in it. They
// are a fixed window, and report only whether a unit was left. Nothing expires,
// nothing is bounded, and keys are as long as clients make them.

// word holds the opening time of a window in milliseconds, and its units in the lower
// bits.
type word = uint64

const unitBits = 32

// started is the zero of a word's milliseconds. The time since then needs the
// monotonic clock only, which is the cheapest to read in package time.
var started = time.Now()

// admit counts one unit in w if there is one left.
func admit(w word, q quota) (word, bool) {
	now := word(time.Since(started) / time.Millisecond)
	if w == 0 || now-w>>unitBits >= word(q.window/time.Millisecond) {
		return now<<unitBits | 1, true
	}
	if w&(1<<unitBits-1) >= word(q.units) {
		return w, false
	}
	return w + 1, true
}

func openXSyncFloor(q quota, _ bool) subject {
	words := xsync.NewMap[string, *atomic.Uint64]()
	return subject{take: func(key string) (bool, error) {
		w, ok := words.Load(key)
		if !ok {
			w, _ = words.LoadOrStore(key, new(atomic.Uint64))
		}
		for {
			old := w.Load()
			next, ok := admit(old, q)
			if !ok || w.CompareAndSwap(old, next) {
				return ok, nil
			}
		}
	}}
}

func openShardedFloor(q quota, _ bool) subject {
	type shard struct {
		mu    sync.Mutex
		words map[string]word
		_     [48]byte // keeps the next lock in another cache line
	}
	shards := make([]shard, 256)
	for i := range shards {
		shards[i].words = make(map[string]word)
	}
	seed := maphash.MakeSeed()
	return subject{take: func(key string) (bool, error) {
		s := &shards[maphash.String(seed, key)%256]
		s.mu.Lock()
		defer s.mu.Unlock()
		next, ok := admit(s.words[key], q)
		if ok {
			s.words[key] = next
		}
		return ok, nil
	}}
}

// openFieldsFloor writes the fields of a limit without having a limit. The constant
// field is a slice that exists already. The other two fields take one allocation for
// their text and one for both slices.
func openFieldsFloor(q quota, fields bool) subject {
	if !fields {
		return subject{middleware: func(next http.Handler) http.Handler { return next }}
	}
	limit := []string{strconv.FormatInt(q.units, 10)}
	set := func(h http.Header, remaining int64) (reset []string) {
		var buf [40]byte
		b := strconv.AppendInt(buf[:0], remaining, 10)
		n := len(b)
		text := string(strconv.AppendInt(b, int64(time.Since(started)/time.Second), 10))
		values := &[2]string{text[:n], text[n:]}
		h["X-Ratelimit-Limit"] = limit
		h["X-Ratelimit-Remaining"] = values[:1:1]
		h["X-Ratelimit-Reset"] = values[1:]
		return values[1:]
	}
	contentType, body := []string{"text/plain; charset=utf-8"}, []byte("Too Many Requests\n")
	return subject{middleware: func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			h := w.Header()
			if q != single {
				set(h, q.units-1)
				next.ServeHTTP(w, r)
				return
			}
			h["Retry-After"] = set(h, 0)
			h["Content-Type"] = contentType
			w.WriteHeader(http.StatusTooManyRequests)
			w.Write(body)
		})
	}}
}
