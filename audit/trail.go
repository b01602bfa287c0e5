package audit

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/ratelimit-go/ratelimit"
	"github.com/ratelimit-go/ratelimit/internal/guard"
)

const (
	// maxQueue is how many records wait for the sink. They have some 300 bytes each.
	maxQueue = 8192

	// maxBatch is how many records the sink gets at once.
	maxBatch = 1024

	// writeEvery is how long a record waits at most before it is written, if the sink works.
	writeEvery = time.Second

	// writeTimeout ends a call of the sink.
	writeTimeout = 5 * time.Second
)

// Options are the settings of a [Trail].
type Options struct {
	Sink Sink // where records are written; required

	// Service is the name of the program in its records. Empty means the name of its file.
	// Instance distinguishes processes of the service. Empty means the name of the host.
	Service, Instance string

	// Secrets are what pseudonyms of keys are made with. Nil means secrets in memory: the
	// records of a key can be found until the program ends.
	Secrets Secrets

	// PlainKeys records keys in place of pseudonyms, and the text of errors, which may have
	// keys in it. Keys are often personal data, such as addresses.
	PlainKeys bool

	// Request returns the route and the id of the request that a context belongs to, if it is
	// known. It is called for each record of an event, and not for denials of an episode that
	// has begun. Nil: records have neither.
	Request func(ctx context.Context) (route, id string)

	// Logger gets an error when the sink begins to fail, and when it works again. Nil means
	// slog.Default().
	Logger *slog.Logger
}

// Trail makes records of events and writes them to a sink. It is a [ratelimit.Auditor], and its
// method Observe is for ratelimit.Options.Observe or ratelimit.Registry.Observe. One trail may
// serve all limiters of a program. Its methods may be called from any number of goroutines.
//
// It has one goroutine, until Close.
type Trail struct {
	opts Options
	stop chan struct{} // closed by Close
	done chan struct{} // closed when the goroutine has ended

	written chan struct{} // closed when Close has written what was left

	logPanic sync.Once // of Options.Request

	mu       sync.Mutex
	queue    []Record
	gap      Record // of records that have not found room in the queue; Count is 0 if there are none
	dropped  uint64 // in all gaps
	secrets  []Secret
	episodes episodes
	closed   bool

	failing bool // the sink has failed; only the goroutine and Close use it
}

// New returns a trail. It is an error if there is no sink, or no secret can be had.
func New(opts Options) (*Trail, error) {
	if opts.Sink == nil {
		return nil, errors.New("audit: Options.Sink is nil: use OpenFile or NewLogSink, or a sink of your own")
	}
	if opts.Service == "" {
		opts.Service = filepath.Base(os.Args[0])
	}
	if opts.Instance == "" {
		opts.Instance, _ = os.Hostname()
	}
	opts.Service, opts.Instance = bounded(opts.Service), bounded(opts.Instance)
	opts.Logger = cmp.Or(opts.Logger, slog.Default())
	if opts.Secrets == nil && !opts.PlainKeys {
		opts.Secrets = &FileSecrets{keep: 90 * 24 * time.Hour}
	}
	t := &Trail{opts: opts, stop: make(chan struct{}), done: make(chan struct{}), written: make(chan struct{}), episodes: newEpisodes()}
	if err := t.renewSecrets(); err != nil {
		return nil, err
	}
	go t.run()
	return t, nil
}

// Observe records an event. It never waits for the sink. It records the first denial of an
// episode, and the end of the episode. It records no event that a [ratelimit.RecordingStore] has
// recorded in the name of the trail.
func (t *Trail) Observe(ctx context.Context, e ratelimit.Event) {
	isShadow := e.Kind == ratelimit.EventShadowDenied
	isDenial := isShadow || e.Kind == ratelimit.EventDenied
	startsBlock := e.Kind == ratelimit.EventBlocked && e.Policy != ""
	by, _ := ratelimit.RecordedBy(ctx).(*Trail)
	isRecorded := by == t
	if isRecorded && e.Kind != ratelimit.EventReset {
		return
	}
	t.mu.Lock()
	isCovered := isDenial && t.episodes.continues(&e, isShadow, t.episodes.hasRoom(e.Limiter)) || (isDenial || startsBlock) && !t.episodes.mayBegin(e.Limiter)
	t.mu.Unlock()
	if isCovered {
		return
	}
	route, id := t.request(ctx) // with no lock held
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed || isDenial && t.episodes.continues(&e, isShadow, true) { // another denial has begun the episode
		return
	}
	r := t.record(&e, route, id)
	if isByHand(e.Kind) && !startsBlock {
		r.Outcome = Done
	}
	if !isRecorded {
		t.add(r)
	}
	switch {
	case isDenial:
		for _, released := range t.episodes.begin(&e, isShadow, r) {
			t.add(released)
		}
	case e.Kind == ratelimit.EventReset:
		for _, released := range t.episodes.reset(&e) {
			t.add(released)
		}
	}
}

// request returns what is known of the request that a context belongs to.
func (t *Trail) request(ctx context.Context) (route, id string) {
	if t.opts.Request == nil {
		return "", ""
	}
	defer func() {
		if with := recover(); with != nil {
			if with == http.ErrAbortHandler {
				panic(with)
			}
			route, id = "", "" // the record is worth more than these
			t.logPanic.Do(func() {
				t.log(slog.LevelError, "ratelimit: Options.Request of the audit trail has panicked; records are without routes and ids", "panic", fmt.Sprintf("%T", with))
			})
		}
	}()
	return t.opts.Request(ctx)
}

// isByHand reports whether a kind of event, if it is not a denial's, is caused by a call.
func isByHand(k ratelimit.EventKind) bool {
	switch k {
	case ratelimit.EventReset, ratelimit.EventBlocked, ratelimit.EventRefunded, ratelimit.EventLimitsChanged:
		return true
	}
	return false
}

// Record implements [ratelimit.Auditor]: it returns when the sink has the record for good.
func (t *Trail) Record(ctx context.Context, e ratelimit.Event) error {
	r, err := t.RecordOf(ctx, e)
	if err != nil {
		return err
	}
	r.Outcome = Intended
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	return t.opts.Sink.Write(ctx, []Record{r}, true)
}

// RecordOf returns the record of an event and writes nothing: for a [ratelimit.RecordingStore],
// which writes the record itself. The record has no Outcome. It is an error if the trail has
// been closed.
func (t *Trail) RecordOf(ctx context.Context, e ratelimit.Event) (r Record, err error) {
	route, id := t.request(ctx)
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return Record{}, errors.New("audit: the trail has been closed: close limiters first")
	}
	return t.complete(t.record(&e, route, id)), nil
}

// Sink returns Options.Sink.
func (t *Trail) Sink() Sink { return t.opts.Sink }

// Dropped returns how many records are missing because the sink has failed for too long. Each
// gap is in the trail, too, when the sink works again.
func (t *Trail) Dropped() uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.dropped
}

// Read implements [Reader], if the sink does. A query for a key finds the records with its
// pseudonyms, as long as their secrets exist.
func (t *Trail) Read(ctx context.Context, q Query) ([]Record, error) {
	reader, ok := t.opts.Sink.(Reader)
	if !ok {
		return nil, fmt.Errorf("audit: the sink is a %T, which cannot be read", t.opts.Sink)
	}
	if q.Key != "" {
		q.Pseudonyms = nil
	}
	if q.Key != "" && t.opts.Secrets != nil {
		secrets, err := t.opts.Secrets.Secrets(ctx, time.Now())
		if err != nil {
			return nil, err
		}
		for i := range secrets {
			q.Pseudonyms = append(q.Pseudonyms, secrets[i].Pseudonym(q.Key))
		}
		if n := len(secrets); !t.opts.PlainKeys && n > 0 && !q.To.IsZero() && !q.To.After(secrets[n-1].Begins) {
			return nil, fmt.Errorf("audit: records before %v cannot be found by their key any more: their secrets were deleted. Leave Query.Key out, or set Query.To to a later time",
				secrets[n-1].Begins.UTC())
		}
	}
	if t.opts.PlainKeys && q.Key != "" {
		q.Key = plainKey(q.Key)
	}
	return reader.Read(ctx, q)
}

// Close ends all episodes and writes what is left. It returns an error if the sink does not
// take it. Close limiters before the trail, and the sink after it.
func (t *Trail) Close() error {
	t.mu.Lock()
	if t.closed {
		t.mu.Unlock()
		<-t.written
		return nil
	}
	t.closed = true
	t.mu.Unlock()
	defer close(t.written)
	close(t.stop)
	<-t.done
	t.mu.Lock()
	for _, r := range append(t.episodes.suppressed(), t.episodes.endAll()...) {
		t.add(r)
	}
	t.mu.Unlock()
	return t.write(true)
}

// record returns the record of an event, with its key as the options say, and with what is
// known of its request. t.mu must be held.
func (t *Trail) record(e *ratelimit.Event, route, id string) Record {
	r := recordOf(e)
	r.Route, r.RequestID = bounded(route), bounded(id)
	if t.opts.PlainKeys {
		r.Key = plainKey(e.Key)
		if e.Err != nil {
			r.Error = bounded(e.Err.Error())
		}
	} else if e.Key != "" {
		r.Pseudonym, r.Epoch = t.secrets[0].Pseudonym(e.Key), t.secrets[0].Epoch
	}
	return r
}

// complete fills in what all records of the trail have.
func (t *Trail) complete(r Record) Record {
	r.Service, r.Instance = t.opts.Service, t.opts.Instance
	if r.Time.IsZero() {
		r.Time = time.Now().UTC()
	}
	return r
}

// add puts a record into the queue. If that is full, the record is counted as missing. t.mu
// must be held.
func (t *Trail) add(r Record) {
	if len(t.queue) < maxQueue {
		t.queue = append(t.queue, t.complete(r))
		return
	}
	if t.gap.Count == 0 {
		t.gap = Record{Kind: Gap, Since: instant(time.Now())}
	}
	t.gap.Count++
	t.dropped++
}

// run writes records until Close.
func (t *Trail) run() {
	defer close(t.done)
	tick := time.NewTicker(writeEvery)
	defer tick.Stop()
	for {
		select {
		case <-t.stop:
			return
		case <-tick.C:
		}
		err := t.renewSecrets()
		t.mu.Lock()
		for _, r := range append(t.episodes.suppressed(), t.episodes.end(time.Now())...) {
			t.add(r)
		}
		t.mu.Unlock()
		t.report(errors.Join(err, t.write(false)))
	}
}

// report logs the first error of the sink, and that it works again.
func (t *Trail) report(err error) {
	switch {
	case err != nil && !t.failing:
		t.log(slog.LevelError, "ratelimit: the audit trail cannot be written; records wait, and calls of operators fail", "error", err)
	case err == nil && t.failing:
		t.log(slog.LevelInfo, "ratelimit: the audit trail is written again", "dropped", t.Dropped())
	}
	t.failing = err != nil
}

// log writes to the log. If the logger panics, that is dropped, because records are worth more
// than the log.
func (t *Trail) log(level slog.Level, text string, args ...any) {
	guard.Run(func() { t.opts.Logger.Log(context.Background(), level, text, args...) }, nil)
}

// renewSecrets gets the secrets of the present epoch. If that fails, the last ones stay in use.
func (t *Trail) renewSecrets() error {
	if t.opts.PlainKeys {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), writeTimeout)
	defer cancel()
	var secrets []Secret
	err := guard.Error(func() (err error) {
		secrets, err = t.opts.Secrets.Secrets(ctx, time.Now())
		return err
	})
	if errors.As(err, new(guard.Panic)) {
		err = fmt.Errorf("audit: Options.Secrets: %w", err)
	}
	if err == nil && len(secrets) == 0 {
		err = errors.New("audit: Options.Secrets has returned none")
	}
	if err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.secrets = secrets
	return nil
}

// write hands the queue to the sink, in batches. What the sink does not take stays in the
// queue. Only run and Close call it, one after the other.
func (t *Trail) write(durable bool) error {
	for {
		t.mu.Lock()
		batch := t.queue[:min(len(t.queue), maxBatch)]
		gap := t.gap
		t.mu.Unlock()
		if len(batch) == 0 && gap.Count == 0 {
			return nil
		}
		records := append([]Record(nil), batch...)
		if last := len(batch) < maxBatch; last && gap.Count > 0 {
			records = append(records, t.complete(gap)) // it is younger than what is in the queue
		} else {
			gap.Count = 0
		}
		ctx, cancel := context.WithTimeout(context.Background(), writeTimeout)
		err := guard.Error(func() error { return t.opts.Sink.Write(ctx, records, durable) })
		cancel()
		if err != nil {
			return err
		}
		t.mu.Lock()
		t.queue = t.queue[len(batch):]
		if gap.Count > 0 {
			t.gap.Count -= gap.Count
			t.gap.Since = instant(time.Now()) // of what was dropped in the meantime
		}
		if len(t.queue) == 0 {
			t.queue = nil
		}
		t.mu.Unlock()
	}
}
