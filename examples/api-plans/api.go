package main

import (
	"crypto/sha256"
	"encoding/json"
	"log/slog"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"github.com/ratelimit-go/ratelimit"
)

// plan is what a customer pays for. All plans have the same algorithms and windows, so
// they share their counters: a customer who changes plans does not start from zero.
type plan struct {
	name   string
	limits []ratelimit.Limit
}

func newPlan(name string, perMinute, burst, perDay int64) *plan {
	return &plan{name, []ratelimit.Limit{
		ratelimit.TokenBucket(perMinute, time.Minute, burst).Named("rate"),
		ratelimit.Daily(perDay, nil).Named("daily"), // days in UTC
	}}
}

var (
	anonymous = newPlan("anonymous", 10, 10, 50) // for an address
	free      = newPlan("free", 60, 20, 1_000)
	pro       = newPlan("pro", 600, 100, 50_000)
)

type customer struct {
	name string
	plan atomic.Pointer[plan]
}

// api serves its customers under their plans, and everybody else under the anonymous plan.
type api struct {
	customers map[[sha256.Size]byte]*customer // by the hash of their API key
	costs     map[string]int64                // by route, filled in by handler
	limiter   *ratelimit.Limiter
}

func newAPI(registry *ratelimit.Registry, store ratelimit.Store) (*api, error) {
	a := &api{
		customers: make(map[[sha256.Size]byte]*customer),
		costs:     make(map[string]int64),
	}
	var err error
	a.limiter, err = registry.New("api", ratelimit.Options{
		Limits:    anonymous.limits,
		LimitsFor: func(r *http.Request) []ratelimit.Limit { return a.plan(r).limits },
		// Behind a proxy, ClientIP needs its TrustedProxies.
		Key:   ratelimit.FirstKey(ratelimit.NamedKey("customer", a.customerKey), ratelimit.NamedKey("ip", ratelimit.ClientIP{}.Key)),
		Cost:  a.cost,
		Store: store,
	})
	return a, err
}

// add gives a customer an API key. It must be called before the API serves.
func (a *api) add(apiKey, name string, p *plan) {
	c := &customer{name: name}
	c.plan.Store(p)
	a.customers[sha256.Sum256([]byte(apiKey))] = c
}

var apiKey = ratelimit.HeaderKey("X-API-Key")

// caller returns the customer that sent r, or nil. invented reports whether r has an API
// key that no customer has.
func (a *api) caller(r *http.Request) (c *customer, invented bool) {
	key, err := apiKey(r)
	if err != nil {
		return nil, false
	}
	c = a.customers[sha256.Sum256([]byte(key))]
	return c, c == nil
}

// customerKey counts by customer and not by API key. So a new API key does not bring a new
// quota, and the store contains no API keys. A request with an invented API key is counted by
// address, so that inventing more API keys gains nothing.
func (a *api) customerKey(r *http.Request) (string, error) {
	if c, _ := a.caller(r); c != nil {
		return c.name, nil
	}
	return "", ratelimit.ErrNoKey
}

func (a *api) plan(r *http.Request) *plan {
	if c, _ := a.caller(r); c != nil {
		return c.plan.Load()
	}
	return anonymous
}

func (a *api) cost(r *http.Request) int64 {
	cost := a.costs[r.Pattern] // the mux has set Pattern, because it is outside of the limiter
	if _, invented := a.caller(r); invented {
		return max(1, cost) // otherwise a client could guess API keys at free routes
	}
	return cost
}

func (a *api) handler() http.Handler {
	mux := http.NewServeMux()
	handle := func(pattern string, cost int64, h http.HandlerFunc) {
		a.costs[pattern] = cost
		mux.Handle(pattern, a.limiter.Middleware(a.refuseInvented(h)))
	}
	handle("GET /search", 1, a.search) // and more when it is done
	handle("POST /reports", 10, a.report)
	handle("GET /me/limits", 0, a.showLimits)
	handle("POST /me/upgrade", 0, a.upgrade)
	return mux
}

// refuseInvented is behind the limiter, because its refusal must cost something.
func (a *api) refuseInvented(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, invented := a.caller(r); invented {
			unauthorized(w)
			return
		}
		next.ServeHTTP(w, r)
	})
}

var corpus = strings.Fields(`bufio bytes context crypto/sha256 crypto/tls encoding/json errors fmt html/template io
	log/slog maps math net net/http net/http/cookiejar net/http/httptest net/http/httptrace net/http/httputil net/http/pprof
	net/netip net/url os reflect runtime slices sort strconv strings sync testing time unicode`)

// search knows only at its end what it costs.
func (a *api) search(w http.ResponseWriter, r *http.Request) {
	results := []string{}
	for _, doc := range corpus {
		if strings.Contains(doc, r.URL.Query().Get("q")) {
			results = append(results, doc)
		}
	}
	more := int64(len(results) / 5)
	if err := a.limiter.AddCost(r.Context(), more); err != nil {
		slog.Warn("a search was not charged for", "error", err) // the work is done, so the caller gets the result
	}
	reply(w, http.StatusOK, map[string]any{"results": results, "cost": 1 + more})
}

func (a *api) report(w http.ResponseWriter, r *http.Request) {
	c, _ := a.caller(r)
	if c == nil {
		unauthorized(w)
		return
	}
	reply(w, http.StatusAccepted, map[string]any{"report": "being written for " + c.name})
}

func (a *api) upgrade(w http.ResponseWriter, r *http.Request) {
	c, _ := a.caller(r)
	if c == nil {
		unauthorized(w)
		return
	}
	c.plan.Store(pro)
	reply(w, http.StatusOK, map[string]any{"plan": pro.name})
}

func unauthorized(w http.ResponseWriter) {
	w.Header().Set("WWW-Authenticate", `ApiKey header="X-API-Key"`)
	reply(w, http.StatusUnauthorized, map[string]any{"error": "this needs the X-API-Key of a customer"})
}

func reply(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(body) // fails only if the client's connection does
}
