package main

import (
	"context"
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/ratelimit-go/ratelimit"
	"github.com/ratelimit-go/ratelimit/ratelimittest"
)

// start serves behind two limiters, and returns a client.
func start(t *testing.T, calls, streams ratelimit.Options) grpc_health_v1.HealthClient {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	server := newServer(ratelimittest.New(t, calls), ratelimittest.New(t, streams))
	go server.Serve(listener)
	t.Cleanup(server.Stop)
	conn, err := grpc.NewClient(listener.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	require.NoError(t, err)
	t.Cleanup(func() { conn.Close() })
	return grpc_health_v1.NewHealthClient(conn)
}

var (
	three = ratelimit.Options{Limits: []ratelimit.Limit{ratelimit.FixedWindow(3, time.Hour).Named("calls")}}
	one   = ratelimit.Options{Limits: []ratelimit.Limit{ratelimit.InFlight(1, time.Minute).Named("streams")}}
)

func TestFourthCallIsDenied(t *testing.T) {
	client := start(t, three, one)
	for _, left := range []string{"2", "1", "0"} {
		var header metadata.MD
		_, err := client.Check(t.Context(), nil, grpc.Header(&header))
		require.NoError(t, err)
		require.Len(t, header.Get("ratelimit"), 1)
		require.Regexp(t, `^"calls";r=`+left+`;t=\d+$`, header.Get("ratelimit")[0])
		require.Equal(t, []string{`"calls";q=3;w=3600`}, header.Get("ratelimit-policy"))
	}
	var header metadata.MD
	ctx := metadata.AppendToOutgoingContext(t.Context(), "x-forwarded-for", "203.0.113.9") // from no trusted proxy
	_, err := client.Check(ctx, nil, grpc.Header(&header))
	require.Equal(t, codes.ResourceExhausted, status.Code(err))
	require.Len(t, status.Convert(err).Details(), 1)
	retry := status.Convert(err).Details()[0].(*errdetails.RetryInfo).RetryDelay.AsDuration()
	require.Greater(t, retry, 59*time.Minute)
	require.LessOrEqual(t, retry, time.Hour)
	require.Len(t, header.Get("retry-after"), 1)
}

func TestKeysReadMetadata(t *testing.T) {
	options := three
	options.Key = ratelimit.HeaderKey("X-API-Key")
	client := start(t, options, one)
	for _, key := range []string{"ada", "grace"} {
		ctx := metadata.AppendToOutgoingContext(t.Context(), "x-api-key", key)
		for range 3 {
			_, err := client.Check(ctx, nil)
			require.NoError(t, err)
		}
		_, err := client.Check(ctx, nil)
		require.Equal(t, codes.ResourceExhausted, status.Code(err))
	}
	_, err := client.Check(t.Context(), nil)
	require.Equal(t, codes.InvalidArgument, status.Code(err))
}

func TestOnlyFailuresCount(t *testing.T) {
	options := three
	options.Count = func(_ *http.Request, status int) bool { return status >= 400 }
	client := start(t, options, one)
	for range 10 {
		_, err := client.Check(t.Context(), nil)
		require.NoError(t, err)
	}
	for range 3 {
		_, err := client.Check(t.Context(), &grpc_health_v1.HealthCheckRequest{Service: "unknown"})
		require.Equal(t, codes.NotFound, status.Code(err))
	}
	_, err := client.Check(t.Context(), nil)
	require.Equal(t, codes.ResourceExhausted, status.Code(err))
}

func TestStreamsHoldTheirPlace(t *testing.T) {
	client := start(t, three, one)
	open := func() (cancel func(), err error) {
		ctx, cancel := context.WithCancel(t.Context())
		stream, err := client.Watch(ctx, nil)
		require.NoError(t, err)
		_, err = stream.Recv()
		return cancel, err
	}
	leave, err := open()
	require.NoError(t, err)
	_, err = open()
	require.Equal(t, codes.ResourceExhausted, status.Code(err))
	leave()
	require.Eventually(t, func() bool {
		_, err := open()
		return err == nil
	}, 20*time.Second, 10*time.Millisecond)
}

func TestStatusOfEveryCode(t *testing.T) {
	for code := range codes.Code(17) {
		failed := code != codes.OK
		require.Equal(t, failed, httpStatus(code) >= 400, code)
	}
}
