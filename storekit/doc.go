// Package storekit makes a [ratelimit.RemoteStore] of anything that can change one record
// atomically: a database row, a key of a key-value store, a file under a lock.
//
// The author of a store writes a [Backend], which has two methods and knows nothing of rate
// limits. [New] makes a store of it, which counts every kind of limit. This backend is a
// map, for one process. It shows the shape, and lacks one thing: it deletes no record when its
// time is over.
//
//	type backend struct {
//		mu      sync.Mutex
//		records map[string][]byte
//	}
//
//	func (b *backend) Update(_ context.Context, key string, f func([]byte, time.Time) ([]byte, time.Duration)) error {
//		b.mu.Lock()
//		defer b.mu.Unlock()
//		record, _ := f(b.records[key], time.Now())
//		if b.records[key] = record; record == nil {
//			delete(b.records, key)
//		}
//		return nil
//	}
//
//	func (b *backend) Delete(_ context.Context, key string) error {
//		b.mu.Lock()
//		defer b.mu.Unlock()
//		delete(b.records, key)
//		return nil
//	}
//
// docs/stores.md shows how to write one for a database and for compare-and-swap, and how to
// test it with package storetest.
//
// # More than a Backend
//
// An author who wants more, such as batches of several keys, implements [ratelimit.Store]
// and uses the counting rules directly: a [Record] is what is counted for one key. It has
// no clock, no lock and no I/O, and its methods are the calls of a store.
package storekit
