// Package docs is what the Go code in the documentation takes as given: names that a
// reader's own program would have. TestGoInDocumentation checks each block beside this
// file. What a block declares itself replaces what is declared here.
package docs

import (
	"context"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/go-redis/v9"

	"github.com/ratelimit-go/ratelimit"
	"github.com/ratelimit-go/ratelimit/audit"
	"github.com/ratelimit-go/ratelimit/postgres"
	"github.com/ratelimit-go/ratelimit/storekit"
)

// In a handler, and in the server around it.
var (
	ctx     context.Context
	w       http.ResponseWriter
	r       *http.Request
	handler http.Handler
	mux     *http.ServeMux
	server  *http.Server
	t       *testing.T
	current atomic.Pointer[http.Handler]
)

// Limiters, and what they are made of.
var (
	login, api, codes, exports, mails, queries, perUser, global, limiter *ratelimit.Limiter

	limits             []ratelimit.Limit
	plan               []ratelimit.Limit
	plans              map[string][]ratelimit.Limit
	free, pro, burst   ratelimit.Limit
	store              ratelimit.Store
	key, email, status = "", "", 0
	rows               int64
	clientIP           ratelimit.KeyFunc
)

// Functions and types that are the reader's own.
type customer struct {
	zone  *time.Location
	quota []ratelimit.Limit
}

type session struct {
	User       string
	MayOperate bool
}

var sessions interface {
	Get(r *http.Request) (session, error)
}

func cors(next http.Handler) http.Handler                   { return next }
func apiKey(r *http.Request) (string, error)                { return "", nil }
func planOf(r *http.Request) string                         { return "" }
func operator(r *http.Request) string                       { return "" }
func customerOf(r *http.Request) customer                   { return customer{} }
func routes(*ratelimit.Registry, any) (http.Handler, error) { return nil, nil }

var (
	newYork, berlin *time.Location
	tuesday         time.Time
	config          *pgxpool.Config
	secret          []byte
	searches        *prometheus.CounterVec
)

// Servers.
var (
	client        redis.UniversalClient
	clusterClient *redis.ClusterClient
	pool          *pgxpool.Pool
	url, adminURL string
)

// An audit trail.
type Record = audit.Record

var (
	trail   *audit.Trail
	secrets *audit.FileSecrets
	sink    *postgres.AuditSink
)

// A store of the reader's own.
type Backend struct{ storekit.Backend }

func newBackend(t *testing.T) *Backend { return nil }

var (
	backend storekit.Backend
	row     []byte
	ttl     time.Duration
	now     time.Time
	results []ratelimit.Result
)
