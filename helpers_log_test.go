package ratelimit_test

import (
	"bytes"
	"context"
	"log/slog"
	"slices"
	"strings"
	"sync"

	. "github.com/ratelimit-go/ratelimit"
)

// logged is a slog handler that keeps the warnings.
type logged struct {
	panics func(Code) bool // the handler panics after it has kept a warning with such a code; nil: it never does

	mu      sync.Mutex
	records []slog.Record
}

func (l *logged) logger() *slog.Logger                     { return slog.New(l) }
func (l *logged) Enabled(context.Context, slog.Level) bool { return true }
func (l *logged) WithAttrs([]slog.Attr) slog.Handler       { panic("not used") }
func (l *logged) WithGroup(string) slog.Handler            { panic("not used") }
func (l *logged) Handle(_ context.Context, record slog.Record) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	code := codeOf(record)
	if record.Level >= slog.LevelWarn || l.panics != nil && code != "" {
		l.records = append(l.records, record.Clone())
	}
	if l.panics != nil && l.panics(code) {
		panic("a bug of the logger")
	}
	return nil
}

// codeOf returns the code of a warning, or "" for other records.
func codeOf(record slog.Record) (code Code) {
	record.Attrs(func(a slog.Attr) bool {
		if a.Key == "code" {
			code = Code(a.Value.String())
		}
		return code == ""
	})
	return code
}

// panicAt is for logged.panics.
func panicAt(codes ...Code) func(Code) bool {
	return func(code Code) bool { return slices.Contains(codes, code) }
}

// codes returns the codes of the warnings so far.
func (l *logged) codes() (codes []Code) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, record := range l.records {
		if code := codeOf(record); code != "" {
			codes = append(codes, code)
		}
	}
	return codes
}

// text returns all warnings, one per line.
func (l *logged) text() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var b strings.Builder
	for _, record := range l.records {
		slog.NewTextHandler(&b, nil).Handle(context.Background(), record)
	}
	return b.String()
}

// syncBuffer is a log that several goroutines may write to.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) Reset() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.b.Reset()
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// secret is in all text that a client or a backend writes.
const secret = "s3cr3t"
