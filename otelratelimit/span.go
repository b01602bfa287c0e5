package otelratelimit

import (
	"context"

	"go.opentelemetry.io/otel/trace"

	"github.com/ratelimit-go/ratelimit"
)

// AnnotateSpan sets attributes on the current span of ctx if e is a denial. It is
// for [ratelimit.Registry.Observe], which covers all limiters of a registry, or for
// Options.Observe of one limiter:
//
//   - ratelimit.result is denied, or shadow_denied if Shadow has let the request
//     through.
//   - ratelimit.limiter and ratelimit.policy are the limiter and its policy that
//     have denied.
//   - ratelimit.source is where that was decided: store, cache, lease or fallback.
//
// The span never gets the key. If there are several denials in one span, the last
// one sets the attributes. Allowed requests, other events, and contexts without a
// recording span change nothing and allocate nothing.
//
// The current span is the span of the handler around the limiter. If the limiter
// is outside of the handler that starts spans, there is no span yet.
func AnnotateSpan(ctx context.Context, e ratelimit.Event) {
	var result string
	switch e.Kind {
	case ratelimit.EventDenied:
		result = resultDenied
	case ratelimit.EventShadowDenied:
		result = resultShadowDenied
	default:
		return
	}
	span := trace.SpanFromContext(ctx)
	if !span.IsRecording() {
		return
	}
	span.SetAttributes(
		resultKey.String(result),
		limiterKey.String(e.Limiter),
		policyKey.String(e.Policy),
		sourceKey.String(e.Decision.Source.String()),
	)
}
