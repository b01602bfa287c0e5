// Package admin is a page for operators: which limiters there are, how much they admit and
// deny, which keys they deny most, and why one key is denied. An operator can unblock a key, block
// it, give units back, and change limits, each with a reason for the audit trail.
//
//	mux.Handle("/admin/", admin.Handler(admin.Options{
//		Actor: func(r *http.Request) (string, bool) { return sessions.Operator(r) },
//		Audit: trail, // an *audit.Trail
//	}))
//
// The page is closed by default. Without [Options.Actor] it changes nothing, and answers only
// requests from this machine. It needs no JavaScript; with it, the numbers are refreshed every
// 5 seconds. A client that prefers JSON gets each page as JSON.
//
// The numbers are of one process. Counters in Redis or PostgreSQL are shared, so that what an
// operator does to a key holds for all processes. No page lists the keys of a store.
//
// docs/admin.md shows the pages, and how to mount them.
package admin
