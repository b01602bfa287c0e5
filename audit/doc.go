// Package audit keeps a trail of what limiters refuse and of what operators do to them: which
// key was denied, when and under which limit, and which key was unblocked, by whom and why.
//
// A [Trail] turns the events of limiters into records and writes them to a [Sink]: a file of
// JSON lines ([OpenFile]), a logger ([NewLogSink]), or a sink of one's own.
//
//	file, err := audit.OpenFile("audit.jsonl")
//	…
//	secrets, err := audit.OpenSecrets("audit.secrets", 90*24*time.Hour)
//	…
//	trail, err := audit.New(audit.Options{Sink: file, Secrets: secrets, Service: "shop"})
//	…
//	limiter, err := ratelimit.New("login", ratelimit.Options{
//		Limits:  []ratelimit.Limit{ratelimit.FixedWindow(5, time.Minute)},
//		Observe: trail.Observe,
//		Audit:   trail,
//	})
//
// Denials never wait for the trail: records go through a bounded queue, and what does not fit
// is counted in a record of its own. Calls of operators do wait: what cannot be recorded is
// not done.
//
// docs/audit.md says what is recorded and what is not, for how long, and what it means for
// personal data.
package audit
