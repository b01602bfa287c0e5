package otelratelimit_test

import (
	"context"
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/otel/attribute"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"

	"github.com/ratelimit-go/ratelimit"
	"github.com/ratelimit-go/ratelimit/otelratelimit"
)

// traced starts a span around each request, as instrumentation of servers does.
func traced(tracer trace.Tracer, h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx, span := tracer.Start(r.Context(), "request")
		defer span.End()
		h.ServeHTTP(w, r.WithContext(ctx))
	})
}

func newTracer(sampler sdktrace.Sampler) (*tracetest.SpanRecorder, trace.Tracer) {
	recorder := tracetest.NewSpanRecorder()
	provider := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(recorder), sdktrace.WithSampler(sampler))
	return recorder, provider.Tracer("test")
}

// last returns the attributes of the span that has ended last.
func last(recorder *tracetest.SpanRecorder) map[attribute.Key]string {
	attributes := make(map[attribute.Key]string)
	spans := recorder.Ended()
	for _, a := range spans[len(spans)-1].Attributes() {
		attributes[a.Key] = a.Value.AsString()
	}
	return attributes
}

// TestSpansOfRequests sends requests to two limiters, one of which is in Shadow.
func TestSpansOfRequests(t *testing.T) {
	var reg ratelimit.Registry
	stop := reg.Observe(otelratelimit.AnnotateSpan)
	recorder, tracer := newTracer(sdktrace.AlwaysSample())
	outer := quiet(hourly(1).Named("trial"))
	outer.Shadow = true
	h := newLimiter(t, &reg, "login", quiet(hourly(2))).Middleware(served)
	h = traced(tracer, newLimiter(t, &reg, "shadow", outer).Middleware(h))

	require.Equal(t, http.StatusNoContent, get(h, secret))
	require.Empty(t, last(recorder), "allowed")
	require.Equal(t, http.StatusNoContent, get(h, secret))
	require.Equal(t, map[attribute.Key]string{
		"ratelimit.limiter": "shadow", "ratelimit.policy": "trial", "ratelimit.source": "store", "ratelimit.result": "shadow_denied",
	}, last(recorder))
	require.Equal(t, http.StatusTooManyRequests, get(h, secret))
	require.Equal(t, map[attribute.Key]string{
		"ratelimit.limiter": "login", "ratelimit.policy": "login", "ratelimit.source": "store", "ratelimit.result": "denied",
	}, last(recorder), "the denial is the last one")
	stop()
	get(h, secret)
	require.Empty(t, last(recorder), "it is not observed")
}

// TestSpanHasTheSource denies from the cache, and by hand.
func TestSpanHasTheSource(t *testing.T) {
	var reg ratelimit.Registry
	recorder, tracer := newTracer(sdktrace.AlwaysSample())
	opts := quiet(hourly(1))
	opts.Store, opts.Observe = newRemote(t), otelratelimit.AnnotateSpan
	opts.Timeout, opts.DenyRecheck = time.Minute, time.Hour
	l := newLimiter(t, &reg, "api", opts)
	for range 3 {
		ctx, span := tracer.Start(ctx, "job")
		_, err := l.Take(ctx, secret)
		require.NoError(t, err)
		span.End()
	}
	require.Equal(t, "cache", last(recorder)["ratelimit.source"])
	for _, span := range recorder.Ended() {
		for _, a := range span.Attributes() {
			require.NotContains(t, a.Value.String(), secret)
		}
		require.Empty(t, span.Events())
	}
}

// TestOtherEventsAndSpans has no attributes: of events that are no denials, and of
// spans that are not recorded, have ended or do not exist.
func TestOtherEventsAndSpans(t *testing.T) {
	recorder, tracer := newTracer(sdktrace.AlwaysSample())
	recorded, span := tracer.Start(ctx, "span")
	for kind := ratelimit.EventKind(0); kind < 20; kind++ {
		if kind != ratelimit.EventDenied && kind != ratelimit.EventShadowDenied {
			otelratelimit.AnnotateSpan(recorded, ratelimit.Event{Kind: kind, Limiter: "x", Policy: "y", Key: secret})
		}
	}
	span.End()
	otelratelimit.AnnotateSpan(recorded, ratelimit.Event{Kind: ratelimit.EventDenied})
	require.Empty(t, last(recorder))
	otelratelimit.AnnotateSpan(ctx, ratelimit.Event{Kind: ratelimit.EventDenied})
	_, tracer = newTracer(sdktrace.NeverSample())
	unsampled, span := tracer.Start(ctx, "span")
	defer span.End()
	otelratelimit.AnnotateSpan(unsampled, ratelimit.Event{Kind: ratelimit.EventDenied})
}

// TestSpansCostNothingUnlessRecorded allocates nothing.
func TestSpansCostNothingUnlessRecorded(t *testing.T) {
	for name, ctx := range unrecorded() {
		event := ratelimit.Event{Kind: ratelimit.EventDenied, Limiter: "x", Policy: "y", Key: "key"}
		require.Zero(t, testing.AllocsPerRun(100, func() { otelratelimit.AnnotateSpan(ctx, event) }), name)
	}
}

// unrecorded returns contexts without a span that is recorded.
func unrecorded() map[string]context.Context {
	_, tracer := newTracer(sdktrace.NeverSample())
	unsampled, _ := tracer.Start(ctx, "span")
	return map[string]context.Context{"none": ctx, "unsampled": unsampled}
}

func BenchmarkAnnotateSpan(b *testing.B) {
	for name, ctx := range unrecorded() {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			event := ratelimit.Event{Kind: ratelimit.EventDenied, Limiter: "x", Policy: "y", Key: "key"}
			for b.Loop() {
				otelratelimit.AnnotateSpan(ctx, event)
			}
		})
	}
}

// BenchmarkCollect reads a hundred limiters.
func BenchmarkCollect(b *testing.B) {
	var reg ratelimit.Registry
	reader, _ := register(b, &reg)
	for i := range 100 {
		newLimiter(b, &reg, fmt.Sprint("limiter", i), quiet(hourly(1)))
	}
	b.ReportAllocs()
	for b.Loop() {
		metrics(b, reader)
	}
}
