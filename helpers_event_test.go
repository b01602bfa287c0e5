package ratelimit_test

import (
	"context"
	"sync"
	"time"

	. "github.com/ratelimit-go/ratelimit"
)

// recorder is an observer that keeps the events, and their contexts.
type recorder struct {
	mu       sync.Mutex
	events   []Event
	contexts []context.Context
}

func (r *recorder) observe(ctx context.Context, e Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events, r.contexts = append(r.events, e), append(r.contexts, ctx)
}

// all returns the events since the last call, without their times.
func (r *recorder) all() []Event {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := r.events
	for i := range all {
		all[i].Time = time.Time{}
	}
	r.events, r.contexts = nil, nil
	return all
}

// of returns the events of one kind so far.
func (r *recorder) of(kind EventKind) (some []Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range r.events {
		if e.Kind == kind {
			some = append(some, e)
		}
	}
	return some
}

// kinds returns the kinds of the events since the last call.
func (r *recorder) kinds() (kinds []EventKind) {
	for _, e := range r.all() {
		kinds = append(kinds, e.Kind)
	}
	return kinds
}
