package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/ratelimit-go/ratelimit/storekit"
)

// backend is a [storekit.Backend] that keeps its records in a JetStream key-value bucket.
// Each record has a time to live of its own, for which it needs NATS 2.11 or later.
//
// NATS has no clock for its clients, so the backend passes time.Now(). The clocks of all
// processes should be synchronized: a process whose clock is a second ahead sees each
// window end a second early.
type backend struct {
	js     jetstream.JetStream
	bucket string
	stream atomic.Pointer[jetstream.Stream] // of the bucket; nil before the first call
}

// connect connects to a server, now or as soon as it answers. Without a connection, calls
// fail at once: by default, updates would be kept and sent later, when their callers have
// decided without them.
func connect(url string) (*nats.Conn, error) {
	return nats.Connect(url, nats.RetryOnFailedConnect(true), nats.MaxReconnects(-1),
		nats.ReconnectWait(100*time.Millisecond), nats.ReconnectBufSize(-1))
}

func newBackend(nc *nats.Conn, bucket string) (*backend, error) {
	js, err := jetstream.New(nc)
	return &backend{js: js, bucket: bucket}, err
}

// Update implements [storekit.Backend]. It writes the record only if its revision is still
// the one that was read. Otherwise it has lost a race, and storekit calls it again.
func (b *backend) Update(ctx context.Context, key string, f func([]byte, time.Time) ([]byte, time.Duration)) error {
	key = "$KV." + b.bucket + "." + key
	old, revision, err := b.get(ctx, key)
	if err != nil {
		return notApplied(err)
	}
	record, ttl := f(old, time.Now())
	if bytes.Equal(record, old) {
		return nil
	}
	// KeyValue.Update would remove the time to live, so this publishes to the bucket's stream.
	// The server cuts the time to live to whole seconds. A record that is deleted is empty
	// for a second.
	ttl = max(time.Second, (ttl + time.Second - 1).Truncate(time.Second))
	_, err = b.js.Publish(ctx, key, record, jetstream.WithMsgTTL(ttl),
		jetstream.WithExpectLastSequencePerSubject(revision), jetstream.WithRetryAttempts(0))
	var refused *jetstream.APIError // for example, another revision is there, or the disk is full
	if errors.As(err, &refused) || errors.Is(err, jetstream.ErrNoStreamResponse) ||
		errors.Is(err, nats.ErrReconnectBufExceeded) || errors.Is(err, nats.ErrConnectionClosed) {
		return notApplied(err)
	}
	return err // after a timeout, the record may have been written
}

// Delete implements [storekit.Backend].
func (b *backend) Delete(ctx context.Context, key string) error {
	return b.Update(ctx, key, func([]byte, time.Time) ([]byte, time.Duration) { return nil, 0 })
}

func notApplied(err error) error { return fmt.Errorf("%w: %w", storekit.ErrNotApplied, err) }

// get returns the record of a key and its revision. Without a record it returns nil, and the
// revision of the marker that the record has left behind, or 0.
func (b *backend) get(ctx context.Context, key string) (record []byte, revision uint64, err error) {
	stream, err := b.open(ctx)
	if err != nil {
		return nil, 0, err
	}
	msg, err := stream.GetLastMsgForSubject(ctx, key)
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return nil, 0, nil
	} else if errors.Is(err, nats.ErrNoResponders) {
		b.stream.Store(nil) // the bucket may be gone, and the next call creates it
	}
	if err != nil {
		return nil, 0, err
	}
	return msg.Data, msg.Sequence, nil // markers have no data
}

// open returns the stream of the bucket. The first call creates it if there is none, so
// that a program starts without its NATS server, too. On a cluster, create the bucket
// beforehand, with three replicas: nats kv add NAME --replicas=3 --marker-ttl=1s
func (b *backend) open(ctx context.Context) (jetstream.Stream, error) {
	if stream := b.stream.Load(); stream != nil {
		return *stream, nil
	}
	_, err := b.js.CreateKeyValue(ctx, jetstream.KeyValueConfig{Bucket: b.bucket, LimitMarkerTTL: time.Second})
	if err != nil && !errors.Is(err, jetstream.ErrBucketExists) {
		return nil, err
	}
	stream, err := b.js.Stream(ctx, "KV_"+b.bucket)
	if err == nil {
		b.stream.Store(&stream)
	}
	return stream, err
}
