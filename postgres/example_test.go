package postgres_test

import (
	"context"
	"log"
	"net/http"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/ratelimit-go/ratelimit"
	"github.com/ratelimit-go/ratelimit/audit"
	"github.com/ratelimit-go/ratelimit/postgres"
)

// A step of the deployment makes the schema, with a role that may do so.
func ExampleMigrate() {
	ctx := context.Background()
	conn, err := pgx.Connect(ctx, "postgres://admin@db/shop")
	if err != nil {
		log.Fatal(err)
	}
	defer conn.Close(ctx)
	if err := postgres.Migrate(ctx, conn); err != nil {
		log.Fatal(err)
	}
	if _, err := conn.Exec(ctx, "GRANT ratelimit_application TO shop"); err != nil {
		log.Fatal(err)
	}
}

// Logins are counted so that no attempt is lost if the server crashes.
func ExampleNewStore() {
	pool, err := pgxpool.New(context.Background(), "postgres://shop@db/shop")
	if err != nil {
		log.Fatal(err)
	}
	defer pool.Close()
	store, err := postgres.NewStore(pool, "login", postgres.Durable())
	if err != nil {
		log.Fatal(err)
	}
	defer store.Close()
	login := ratelimit.Must(ratelimit.New("login", ratelimit.Options{
		Limits:    []ratelimit.Limit{ratelimit.FixedWindow(5, time.Hour).Block(time.Hour, 24*time.Hour)},
		Store:     store,
		OnFailure: ratelimit.FailClosed,
	}))
	defer login.Close()
	http.Handle("POST /login", login.Middleware(http.NotFoundHandler()))
}

// Codes by mail cost money, so each decision about one is written together with its record. A
// limiter in memory around it keeps floods away from the database.
func ExampleWithAudit() {
	pool, err := pgxpool.New(context.Background(), "postgres://shop@db/shop")
	if err != nil {
		log.Fatal(err)
	}
	defer pool.Close()
	sink, err := postgres.NewAuditSink(pool)
	if err != nil {
		log.Fatal(err)
	}
	trail, err := audit.New(audit.Options{Sink: sink, Secrets: sink, Service: "shop"})
	if err != nil {
		log.Fatal(err)
	}
	defer trail.Close() // after the limiters
	store, err := postgres.NewStore(pool, "codes", postgres.WithAudit(sink, true))
	if err != nil {
		log.Fatal(err)
	}
	defer store.Close()
	codes := ratelimit.Must(ratelimit.New("codes", ratelimit.Options{
		Limits:    []ratelimit.Limit{ratelimit.FixedWindow(3, time.Hour)},
		Store:     store,
		OnFailure: ratelimit.FailClosed,
		Audit:     trail,
		Observe:   trail.Observe,
	}))
	defer codes.Close()
	flood := ratelimit.Must(ratelimit.New("flood", ratelimit.Options{Limits: []ratelimit.Limit{ratelimit.FixedWindow(20, time.Minute)}}))
	defer flood.Close()
	http.Handle("POST /code", flood.Middleware(codes.Middleware(http.NotFoundHandler())))
}
