package audit_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/ratelimit-go/ratelimit"
	"github.com/ratelimit-go/ratelimit/audit"
)

// A file of JSON lines, with the secrets of its pseudonyms in another file.
func Example() {
	dir, err := os.MkdirTemp("", "audit")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)

	file, err := audit.OpenFile(filepath.Join(dir, "audit.jsonl"))
	if err != nil {
		panic(err)
	}
	defer file.Close()
	secrets, err := audit.OpenSecrets(filepath.Join(dir, "audit.secrets"), 90*24*time.Hour)
	if err != nil {
		panic(err)
	}
	trail, err := audit.New(audit.Options{Sink: file, Secrets: secrets, Service: "shop"})
	if err != nil {
		panic(err)
	}

	login := ratelimit.Must(new(ratelimit.Registry).New("login", ratelimit.Options{
		Limits:  []ratelimit.Limit{ratelimit.FixedWindow(1, time.Hour)},
		Observe: trail.Observe,
		Audit:   trail,
	}))
	ctx := context.Background()
	for range 3 {
		login.Take(ctx, "203.0.113.7")
	}
	login.Reset(ratelimit.WithReason(ratelimit.WithActor(ctx, "alice"), "ticket 4711"), "203.0.113.7")
	login.Close()
	trail.Close()

	found, err := trail.Read(ctx, audit.Query{Key: "203.0.113.7"})
	if err != nil {
		panic(err)
	}
	for _, r := range found { // the newest first
		fmt.Printf("%s: %s %s by %q, denials: %d\n", r.Limiter, r.Outcome, r.Kind, r.Actor, r.Count)
	}
	// Output:
	// login:  released by "", denials: 2
	// login: done reset by "alice", denials: 0
	// login:  denied by "", denials: 0
	// login: intended reset by "alice", denials: 0
}
