package ratelimit

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strconv"
)

const (
	plainText   = "text/plain; charset=utf-8"
	problemJSON = "application/problem+json"
)

// answer sends a response of the limiter's own.
func answer(w http.ResponseWriter, r *http.Request, status int, contentType string, body []byte) {
	h := w.Header()
	if len(h) > 3 { // more than the limiter's own
		for _, field := range [...]string{"Cache-Control", "Etag", "Last-Modified", "Content-Length"} {
			delete(h, field) // they were meant for the answer that is not sent
		}
	}
	values := [...]string{contentType, "nosniff", strconv.Itoa(len(body))} // the response's own, in one allocation
	h["Content-Type"], h["X-Content-Type-Options"] = values[0:1:1], values[1:2:2]
	if h["Content-Encoding"] == nil { // otherwise an outer handler compresses the body, and knows its length
		h["Content-Length"] = values[2:3:3]
	}
	w.WriteHeader(status)
	if r.Method != http.MethodHead {
		w.Write(body) // an error here is the client's connection: there is nobody to report it to
	}
}

// problemHead is the part of a denial's problem details that is the same for all:
// the type and title of draft 10, section 5, and status and detail of RFC 9457.
func problemHead(message string) []byte {
	detail, _ := json.Marshal(message)
	return fmt.Appendf(nil, `{"type":"https://iana.org/assignments/http-problem-types#quota-exceeded",`+
		`"title":"Request cannot be satisfied as assigned quota has been exceeded",`+
		`"status":%d,"detail":%s,"violated-policies":[`, http.StatusTooManyRequests, detail)
}

// problem completes the problem details with the limits that denied.
func problem(head []byte, p *policy, results []Result) []byte {
	b := slices.Clone(head)
	for i, r := range results {
		if r.RetryAfter == 0 {
			continue
		}
		if len(b) > len(head) {
			b = append(b, ',')
		}
		b = append(b, p.members[i].problem...)
	}
	return append(b, "]}"...)
}
