package otelratelimit_test

import (
	"context"
	"fmt"
	"log"
	"net/http"
	"net/http/httptest"
	"time"

	"go.opentelemetry.io/otel/attribute"
	sdk "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/ratelimit-go/ratelimit"
	"github.com/ratelimit-go/ratelimit/otelratelimit"
)

// A program passes nil for both arguments, or the provider that its exporter reads.
// Here a ManualReader takes the exporter's place.
func ExampleRegister() {
	reader := sdk.NewManualReader()
	provider := sdk.NewMeterProvider(sdk.WithReader(reader))
	registration, err := otelratelimit.Register(ratelimit.DefaultRegistry, provider)
	if err != nil {
		log.Fatal(err)
	}
	defer registration.Unregister()

	login := ratelimit.Must(ratelimit.New("example-login", ratelimit.Options{
		Limits: []ratelimit.Limit{ratelimit.FixedWindow(5, time.Hour)},
	}))
	defer login.Close()
	for range 7 {
		if _, err := login.Take(context.Background(), "203.0.113.7"); err != nil {
			log.Fatal(err)
		}
	}

	var collected metricdata.ResourceMetrics
	if err := reader.Collect(context.Background(), &collected); err != nil {
		log.Fatal(err)
	}
	for _, m := range collected.ScopeMetrics[0].Metrics {
		if m.Name != "ratelimit.denials" {
			continue
		}
		for _, p := range m.Data.(metricdata.Sum[int64]).DataPoints {
			fmt.Println(m.Name, p.Attributes.Encoded(attribute.DefaultEncoder()), p.Value)
		}
	}
	// Output: ratelimit.denials ratelimit.limiter=example-login,ratelimit.policy=example-login 2
}

// The span must be started around the limiter. Handlers of otelhttp do the same as
// the function traced here.
func ExampleAnnotateSpan() {
	stop := ratelimit.DefaultRegistry.Observe(otelratelimit.AnnotateSpan)
	defer stop()

	search := ratelimit.Must(ratelimit.New("example-search", ratelimit.Options{
		Limits: []ratelimit.Limit{ratelimit.FixedWindow(1, time.Hour)},
	}))
	defer search.Close()
	limited := search.Middleware(http.NotFoundHandler())

	recorder := tracetest.NewSpanRecorder()
	tracer := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(recorder)).Tracer("example")
	traced := func(w http.ResponseWriter, r *http.Request) {
		ctx, span := tracer.Start(r.Context(), "GET /search")
		defer span.End()
		limited.ServeHTTP(w, r.WithContext(ctx))
	}
	for range 2 {
		traced(httptest.NewRecorder(), httptest.NewRequest("GET", "/search", nil))
	}

	for _, span := range recorder.Ended() {
		fmt.Println(span.Name())
		for _, a := range span.Attributes() {
			fmt.Println(" ", a.Key, a.Value.AsString())
		}
	}
	// Output:
	// GET /search
	// GET /search
	//   ratelimit.result denied
	//   ratelimit.limiter example-search
	//   ratelimit.policy example-search
	//   ratelimit.source store
}
