package main

import (
	"context"
	"net/http"
	"net/textproto"
	"net/url"
	"strings"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/ratelimit-go/ratelimit"
)

// Unary returns an interceptor that admits calls or ends them with
// codes.ResourceExhausted and a RetryInfo. The call is an *http.Request for the limiter: a
// POST to the full method, with the peer's address and the metadata as header fields. So
// Options.Key, Cost, Skip and LimitsFor work as in an HTTP server. Options.Count gets the
// HTTP status that is closest to the code of the answer.
//
// The RateLimit fields are header metadata of the answer. In handlers,
// ratelimit.DecisionFrom finds the decision in the context.
func Unary(limiter *ratelimit.Limiter) grpc.UnaryServerInterceptor {
	return func(ctx context.Context, request any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (answer any, err error) {
		err = within(ctx, limiter, info.FullMethod, func(ctx context.Context) error {
			answer, err = handler(ctx, request)
			return err
		})
		return answer, err
	}
}

// Stream is Unary for streams. A stream is counted once, when it is opened, and has a hold
// of a ratelimit.InFlight limit until it is over. To limit its messages, take units of
// another limiter in the handler.
func Stream(limiter *ratelimit.Limiter) grpc.StreamServerInterceptor {
	return func(server any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
		return within(stream.Context(), limiter, info.FullMethod, func(ctx context.Context) error {
			return handler(server, admittedStream{stream, ctx})
		})
	}
}

type admittedStream struct {
	grpc.ServerStream
	ctx context.Context
}

func (s admittedStream) Context() context.Context { return s.ctx }

// within asks the limiter, and calls the handler of an admitted call.
func within(ctx context.Context, limiter *ratelimit.Limiter, method string, handler func(context.Context) error) error {
	ctx, over := context.WithCancel(ctx) // for the limiter, the call ends when its handler returns
	defer over()
	r, w := requestOf(ctx, method), &refusal{header: make(http.Header)}
	admitted := limiter.Check(w, r)
	ctx = r.Context() // with the decision
	if err := grpc.SetHeader(ctx, w.fields()); err != nil {
		return err
	}
	if !admitted {
		return w.status(ctx)
	}
	responded := http.StatusInternalServerError // if the handler panics
	defer func() {
		limiter.Responded(ctx, responded) // an error means that the call is exempt
	}()
	err := handler(ctx)
	responded = httpStatus(status.Code(err))
	return err
}

// requestOf returns the request that the limiter decides.
func requestOf(ctx context.Context, method string) *http.Request {
	r := &http.Request{
		Method: http.MethodPost,
		URL:    &url.URL{Path: method},
		Proto:  "HTTP/2.0", ProtoMajor: 2,
		Header: make(http.Header),
		Body:   http.NoBody,
	}
	if p, ok := peer.FromContext(ctx); ok {
		r.RemoteAddr = p.Addr.String()
	}
	if fields, ok := metadata.FromIncomingContext(ctx); ok {
		for name, values := range fields {
			if name == ":authority" && len(values) == 1 {
				r.Host = values[0]
			} else if !strings.HasPrefix(name, ":") {
				r.Header[textproto.CanonicalMIMEHeaderKey(name)] = values
			}
		}
	}
	return r.WithContext(ctx)
}

// A refusal is the http.ResponseWriter for the limiter. A call has no response of HTTP, so
// it keeps the status, and leaves out the body.
type refusal struct {
	header http.Header
	code   int
}

func (w *refusal) Header() http.Header         { return w.header }
func (w *refusal) WriteHeader(status int)      { w.code = status }
func (w *refusal) Write(p []byte) (int, error) { return len(p), nil }

// fields returns the header fields of the limiter, as metadata.
func (w *refusal) fields() metadata.MD {
	md := metadata.MD{}
	for name, values := range w.header {
		if name == "Retry-After" || strings.Contains(name, "Ratelimit") {
			md.Append(name, values...)
		}
	}
	return md
}

// status returns the error for a call that was not admitted.
func (w *refusal) status(ctx context.Context) error {
	switch w.code {
	case http.StatusBadRequest:
		return status.Error(codes.InvalidArgument, "the call has no key")
	case http.StatusInternalServerError:
		return status.Error(codes.Internal, "the call could not be decided")
	case http.StatusServiceUnavailable:
		return status.Error(codes.Unavailable, "the call could not be decided, please try again later")
	}
	denied := status.New(codes.ResourceExhausted, "too many calls, please try again later")
	if d, ok := ratelimit.DecisionFrom(ctx); ok && d.RetryAfter != ratelimit.Never {
		if with, err := denied.WithDetails(&errdetails.RetryInfo{RetryDelay: durationpb.New(d.RetryAfter)}); err == nil {
			denied = with
		}
	}
	return denied.Err()
}

// httpStatus returns the HTTP status that is closest to a code, by the mapping in
// google/rpc/code.proto.
func httpStatus(code codes.Code) int {
	switch code {
	case codes.OK:
		return http.StatusOK
	case codes.Canceled:
		return 499
	case codes.InvalidArgument, codes.FailedPrecondition, codes.OutOfRange:
		return http.StatusBadRequest
	case codes.Unauthenticated:
		return http.StatusUnauthorized
	case codes.PermissionDenied:
		return http.StatusForbidden
	case codes.NotFound:
		return http.StatusNotFound
	case codes.AlreadyExists, codes.Aborted:
		return http.StatusConflict
	case codes.ResourceExhausted:
		return http.StatusTooManyRequests
	case codes.Unimplemented:
		return http.StatusNotImplemented
	case codes.Unavailable:
		return http.StatusServiceUnavailable
	case codes.DeadlineExceeded:
		return http.StatusGatewayTimeout
	}
	return http.StatusInternalServerError
}
