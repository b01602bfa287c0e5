package ratelimit

import (
	"context"
	"sync"

	"github.com/ratelimit-go/ratelimit/internal/holds"
)

// held is a hold of a request or of a call of Acquire. A request's is the context of its
// state, so that requests without one need no room for it.
type held struct {
	context.Context
	hold *holds.Hold
	over func() // called when the hold has ended
}

// end ends the hold. It does nothing the second time.
func (h *held) end() {
	if h.hold.End() {
		h.over()
	}
}

// acquired has the functions that end the holds which a limiter's Acquire has given out. The
// zero value has none.
type acquired struct {
	mu     sync.Mutex
	next   uint64
	all    map[uint64]func()
	closed bool
}

// add adds a hold, and returns how to remove it. It returns false after releaseAll.
func (a *acquired) add(release func()) (remove func(), ok bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return nil, false
	}
	if a.all == nil {
		a.all = make(map[uint64]func())
	}
	id := a.next
	a.next++
	a.all[id] = release
	return func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		delete(a.all, id)
	}, true
}

// releaseAll ends all holds. Those that are added later are refused.
func (a *acquired) releaseAll() {
	a.mu.Lock()
	all := a.all
	a.all, a.closed = nil, true
	a.mu.Unlock()
	for _, release := range all {
		release()
	}
}
