// Package counting works out how a ratelimit.Limit counts, for stores outside of the root
// package: the name of its counter and its rule.
package counting

import (
	"fmt"
	"time"

	"github.com/ratelimit-go/ratelimit/internal/rule"
)

// A Source is a ratelimit.Limit.
type Source interface {
	MarshalText() ([]byte, error)
	Algorithm() string
	N() int64
	Window() time.Duration
	Burst() int64
	Calendar() string
	Period(at time.Time) (begin, end time.Time, ok bool)
	Ladder() []time.Duration
}

// Limit is how a valid limit counts. It never changes.
type Limit struct {
	// Name identifies the counter: the algorithm and the window, such as "fixed-1h", or what
	// ratelimit.Limit.Calendar returns.
	Name string

	// Rule is the counting rule. For a calendar it has no period: see At.
	Rule rule.Limit

	// Ladder is nil if the limit starts no blocks.
	Ladder *rule.Ladder

	source Source
}

var kinds = map[string]rule.Kind{
	"fixed": rule.Fixed, "sliding": rule.Sliding, "bucket": rule.Bucket, "rolling": rule.Rolling, "calendar": rule.Calendar,
}

// New returns how a limit counts. It returns an error if the limit is not valid, or is one
// that no store gets to see.
func New(l Source) (*Limit, error) {
	if _, err := l.MarshalText(); err != nil { // which checks it
		return nil, err
	}
	c := &Limit{Name: l.Calendar(), Rule: rule.Limit{Kind: kinds[l.Algorithm()], N: l.N(), Window: int64(l.Window())}, source: l}
	switch c.Rule.Kind {
	case 0:
		return nil, fmt.Errorf("limit %v does not count units: a limiter hands it to no store", l)
	case rule.Bucket:
		c.Rule.Burst = l.Burst()
	}
	if c.Name == "" {
		c.Name = l.Algorithm() + "-" + rule.FormatSpan(c.Rule.Window)
	}
	if rungs := l.Ladder(); len(rungs) > 0 {
		c.Ladder = &rule.Ladder{N: len(rungs)}
		for i, d := range rungs {
			c.Ladder.Rungs[i] = int64(d)
		}
	}
	return c, nil
}

// At returns the counting rule at an instant, which is in the years 1970 to 2116. For a
// calendar it has the period that the instant is in.
func (l *Limit) At(now time.Time) rule.Limit {
	r := l.Rule
	if r.Kind == rule.Calendar {
		begin, end, _ := l.source.Period(now)
		r.Window, r.Burst = int64(end.Sub(begin)), end.UnixNano()
	}
	return r
}
