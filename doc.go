// Package ratelimit limits how often clients may do something, in net/http
// servers: one limiter for each thing to be limited, made in code, wrapped around
// handlers.
//
//	login, err := ratelimit.New("login", ratelimit.Options{
//		Limits: []ratelimit.Limit{ratelimit.FixedWindow(5, time.Hour)},
//	})
//	...
//	mux.Handle("POST /login", login.Middleware(loginHandler))
//
// A [Limiter] counts units per key, by default requests per client address, under
// one or more [Limit] values, in a [Store]. Requests that do not fit are answered with
// 429, Retry-After and a body; all get the RateLimit fields of the IETF draft. Outside
// of HTTP, use [Limiter.Take].
//
// # Counters that are never shared and never lost
//
// Each limiter owns its name, its store and its store's prefix. A [Registry] refuses,
// when a limiter is built, to give one of them to a second limiter: two limiters
// cannot count into each other. Counters belong to the store and not to the limiter:
// [Memory] is one store per name for the life of the process, so that handlers can be
// rebuilt and configuration reloaded ([Reload]) without unlocking anybody. With
// [MemoryOptions].SnapshotFile counters outlive the process, too.
//
// # Several processes
//
// On Redis, [Options].Redis, limits hold across processes. While such a
// [RemoteStore] fails, [Options].OnFailure decides how requests are answered.
//
// # Words
//
//	limit     N units per window under one algorithm
//	limiter   a named set of limits over one space of keys, on one store
//	key       who is being limited, within a limiter
//	cost      the units that one request takes; 1 unless set otherwise
//	store     where counters live
//	prefix    the part of a backend that a store writes to
//	decision  the answer for one request; denied is a decision, not an error
//	block     a denial that lasts longer than the limit would: until a fixed instant
//
// # Testing
//
// Time is package time's, so that testing/synctest controls it. Limiters and memory
// stores both outlive what a test builds. So let tests make limiters with package
// ratelimittest: each has a registry and counters of its own, and ends with its test.
package ratelimit
