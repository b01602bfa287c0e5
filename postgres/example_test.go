package postgres_test

import (
	"context"
	"log"
	"net/http"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/ratelimit-go/ratelimit"
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
