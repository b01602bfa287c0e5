package promratelimit_test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/ratelimit-go/ratelimit"
	"github.com/ratelimit-go/ratelimit/promratelimit"
)

func Example() {
	login := ratelimit.Must(ratelimit.New("login", ratelimit.Options{
		Limits: []ratelimit.Limit{ratelimit.FixedWindow(5, time.Hour)},
	}))
	defer login.Close()

	metrics := prometheus.NewRegistry()
	metrics.MustRegister(promratelimit.NewCollector(nil)) // of the default registry
	handler := promhttp.HandlerFor(metrics, promhttp.HandlerOpts{})

	for range 7 {
		login.Take(context.Background(), "alice")
	}

	w := httptest.NewRecorder()
	handler.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	for line := range strings.Lines(w.Body.String()) {
		if strings.HasPrefix(line, "ratelimit_requests_total") {
			fmt.Print(line)
		}
	}
	// Output:
	// ratelimit_requests_total{limiter="login",result="allowed"} 5
	// ratelimit_requests_total{limiter="login",result="denied"} 2
	// ratelimit_requests_total{limiter="login",result="exempt"} 0
	// ratelimit_requests_total{limiter="login",result="failed"} 0
	// ratelimit_requests_total{limiter="login",result="no_key"} 0
	// ratelimit_requests_total{limiter="login",result="shadow_denied"} 0
}

// Two registries in one process need a label with different values.
func ExampleNewCollector_severalRegistries() {
	var public, internal ratelimit.Registry
	defer public.Close()
	defer internal.Close()

	metrics := prometheus.NewRegistry()
	for name, registry := range map[string]*ratelimit.Registry{"public": &public, "internal": &internal} {
		labels := prometheus.Labels{"registry": name}
		prometheus.WrapRegistererWith(labels, metrics).MustRegister(promratelimit.NewCollector(registry))
	}

	limits := []ratelimit.Limit{ratelimit.TokenBucket(10, time.Second, 20)}
	ratelimit.Must(public.New("api", ratelimit.Options{Limits: limits, Store: ratelimit.Memory("public-api")}))
	ratelimit.Must(internal.New("api", ratelimit.Options{Limits: limits, Store: ratelimit.Memory("internal-api")}))

	families, err := metrics.Gather()
	if err != nil {
		fmt.Println(err)
	}
	for _, family := range families {
		if family.GetName() == "ratelimit_limiter_info" {
			for _, m := range family.Metric {
				limiter, registry := m.Label[0].GetValue(), m.Label[2].GetValue() // sorted by name
				fmt.Println(limiter, "in", registry)
			}
		}
	}
	// Output:
	// api in internal
	// api in public
}
