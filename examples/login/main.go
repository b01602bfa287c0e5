// Command login serves a login whose wrong passwords block: first for 15 minutes, then
// for an hour, then for a day. Each client address has a ladder of blocks, and so does each
// account. Successful logins count nowhere. An operator can unblock somebody, and block an
// account by hand.
//
//	go run ./examples/login
//	go run ./examples/login -redis localhost:6379
package main

import (
	"flag"
	"fmt"
	"log"
	"net/http"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/ratelimit-go/ratelimit"
)

func main() {
	addr := flag.String("addr", "127.0.0.1:8080", "`address` to listen on")
	operator := flag.String("operator", "127.0.0.1:8081", "`address` of the operator's routes; keep it private")
	redisAddr := flag.String("redis", "", "`address` of a Redis server that counts for several processes; empty counts in memory")
	limit := flag.String("limit", "5/15m fixed block=15m,1h,24h", "wrong passwords, and how long more of them block")
	flag.Parse()
	failures, err := ratelimit.ParseLimit(*limit)
	if err != nil {
		log.Fatal(err)
	}
	var client redis.UniversalClient
	if *redisAddr != "" {
		client = redis.NewClient(&redis.Options{Addr: *redisAddr})
	}
	s, err := newLogin(failures, client, map[string]string{"ada": "correct horse", "grace": "battery staple"})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("curl -d 'account=ada&password=guess' http://%s/login: %v\n", *addr, failures)
	go func() { log.Fatal(serve(*operator, s.operator())) }()
	log.Fatal(serve(*addr, s.handler()))
}

func serve(addr string, h http.Handler) error {
	server := &http.Server{Addr: addr, Handler: h, ReadHeaderTimeout: 5 * time.Second}
	return server.ListenAndServe()
}
