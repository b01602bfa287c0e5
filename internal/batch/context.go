// This file has the context that Send gets.

package batch

import (
	"context"
	"time"
)

// batchContext is the context of a batch.
//
// Its deadline is the latest one of the batch, or none if a call has none.
// After that no caller waits for a reply.
//
// It is never done. A shared batch has several callers, and none of them may
// cancel the calls of the others. Also, a command that was sent may be carried
// out in any case, and only the reply says whether it was. So the queue waits
// for the reply, even if no caller does. The context of an inline call is done
// at its deadline, because that makes Send return, and the caller with it.
//
// If there is one caller, the values are the values of its context. So a trace
// or a log line of the client belongs to the right request. For several callers
// there are no values, because each choice would be wrong for some of them.
type batchContext struct {
	context.Context // only for Value
	deadline        time.Time
	expired         <-chan struct{} // only of an inline call, or nil
}

// contextOf returns the context of a batch that is in flight. It needs no lock,
// because the contexts and deadlines of these calls do not change.
func contextOf[T any](batch []*Call[T]) *batchContext {
	c := &batchContext{Context: context.Background(), deadline: batch[0].deadline}
	if len(batch) == 1 {
		c.Context = batch[0].ctx
	}
	for _, call := range batch[1:] {
		if call.deadline.IsZero() || !c.deadline.IsZero() && call.deadline.After(c.deadline) {
			c.deadline = call.deadline
		}
	}
	return c
}

// Deadline implements [context.Context].
func (c *batchContext) Deadline() (time.Time, bool) { return c.deadline, !c.deadline.IsZero() }

// Done implements [context.Context].
func (c *batchContext) Done() <-chan struct{} { return c.expired }

// Err implements [context.Context].
func (c *batchContext) Err() error {
	select {
	case <-c.expired:
		return context.DeadlineExceeded
	default:
		return nil
	}
}
