package rule

import (
	"strconv"
	"strings"
	"time"
)

// Text forms, which log lines, configuration files and the names of Redis keys
// share.

var kindNames = [...]string{Fixed: "fixed", Sliding: "sliding", Bucket: "bucket", Rolling: "rolling", Calendar: "calendar", InFlight: "inflight"}

// String returns "fixed", "sliding", "bucket", "rolling", "calendar" or "inflight", and ""
// for the zero Kind.
func (k Kind) String() string { return kindNames[k] }

// String returns the limit as in "5/1h fixed" or "10/1s bucket burst=20", and
// "no limit" for the zero Limit.
func (l Limit) String() string {
	if l.Kind == 0 {
		return "no limit"
	}
	b := strconv.AppendInt(nil, l.N, 10)
	b = append(b, '/')
	b = append(b, FormatSpan(l.Window)...) // of a calendar, the length of the present period
	b = append(b, ' ')
	b = append(b, l.Kind.String()...)
	if l.Kind == Bucket {
		b = append(b, " burst="...)
		b = strconv.AppendInt(b, l.Burst, 10)
	}
	return string(b)
}

// FormatSpan returns a span as [time.Duration] writes it, without the zero parts
// at its end: 1h for 1h0m0s.
func FormatSpan(nanoseconds int64) string {
	s := time.Duration(nanoseconds).String()
	if strings.HasSuffix(s, "m0s") {
		s = s[:len(s)-2]
	}
	if strings.HasSuffix(s, "h0m") {
		s = s[:len(s)-2]
	}
	return s
}
