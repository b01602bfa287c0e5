// Command grpc serves the health service of gRPC behind limiters: three calls per minute
// and client, and one stream at the same time.
//
//	cd examples/grpc && go run .
package main

import (
	"flag"
	"fmt"
	"log"
	"net"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"

	"github.com/ratelimit-go/ratelimit"
)

func main() {
	addr := flag.String("addr", "127.0.0.1:8080", "`address` to listen on")
	flag.Parse()
	calls := ratelimit.Must(ratelimit.New("calls", ratelimit.Options{
		Limits: []ratelimit.Limit{ratelimit.FixedWindow(3, time.Minute)},
	}))
	streams := ratelimit.Must(ratelimit.New("streams", ratelimit.Options{
		Limits: []ratelimit.Limit{ratelimit.InFlight(1, 30*time.Second)},
	}))
	listener, err := net.Listen("tcp", *addr)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("grpcurl -v -plaintext -proto grpc/health/v1/health.proto %s grpc.health.v1.Health/Check\n", *addr)
	log.Fatal(newServer(calls, streams).Serve(listener))
}

func newServer(calls, streams *ratelimit.Limiter) *grpc.Server {
	server := grpc.NewServer(grpc.UnaryInterceptor(Unary(calls)), grpc.StreamInterceptor(Stream(streams)))
	grpc_health_v1.RegisterHealthServer(server, health.NewServer())
	return server
}
