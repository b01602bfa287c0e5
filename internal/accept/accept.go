// Package accept reads an Accept header, only as far as needed to choose
// between JSON and plain text.
package accept

import (
	"strings"
)

// PrefersJSON reports whether a client prefers problem details in JSON (RFC 9457) to
// plain text. lines are the lines of the Accept header; see RFC 9110, section 12.5.1.
// If a client names JSON and accepts plain text with the same weight or a lower one,
// the result is true. If a client accepts anything, the result is false, because it
// may be a person with a browser.
func PrefersJSON(lines []string) bool {
	if len(lines) == 0 {
		return false
	}
	var json, text offer
	for _, line := range lines {
		if len(line) > maxLine {
			continue
		}
		for line != "" {
			var item string
			item, line, _ = strings.Cut(line, ",")
			name, q := mediaRange(item)
			switch {
			case strings.EqualFold(name, "application/problem+json"):
				json.see(named+1, q) // the type that would be sent, so more precise than application/json
			case strings.EqualFold(name, "application/json"):
				json.see(named, q)
			case strings.EqualFold(name, "text/plain"):
				text.see(named, q)
			case strings.EqualFold(name, "application/*"):
				json.see(2, q)
			case strings.EqualFold(name, "text/*"):
				text.see(2, q)
			case name == "*/*":
				json.see(1, q)
				text.see(1, q)
			}
		}
	}
	return json.q > text.q || json.q > 0 && json.q == text.q && json.precision >= named
}

// named is the precision of a range without a wildcard.
const named = 3

// offer is how much a client wants one form of answer. The most precise range
// that covers the form counts. If two ranges are equally precise, the higher
// weight counts.
type offer struct {
	precision int
	q         int
}

func (o *offer) see(precision, q int) {
	if precision > o.precision || precision == o.precision && q > o.q {
		*o = offer{precision, q}
	}
}

// mediaRange reads a range and its weight. A malformed weight counts as 0.
// Other parameters are ignored.
func mediaRange(s string) (name string, q int) {
	name, params, _ := strings.Cut(s, ";")
	q = full
	for params != "" {
		var param string
		param, params, _ = strings.Cut(params, ";")
		key, value, _ := strings.Cut(strings.TrimSpace(param), "=")
		if strings.EqualFold(strings.TrimSpace(key), "q") {
			q = weight(strings.TrimSpace(value))
		}
	}
	return strings.TrimSpace(name), q
}

// full is the weight 1, in billionths.
const full = 1_000_000_000

// weight reads a number from 0 to 1 in billionths. Anything else counts as 0.
// Digits after the ninth decimal are ignored; RFC 9110 allows three.
func weight(s string) (q int) {
	whole, decimals, _ := strings.Cut(s, ".")
	for unit := full / 10; decimals != ""; unit, decimals = unit/10, decimals[1:] {
		if decimals[0] < '0' || decimals[0] > '9' {
			return 0
		}
		q += int(decimals[0]-'0') * unit
	}
	switch {
	case whole == "0", whole == "" && q > 0:
		return q
	case whole == "1" && q == 0:
		return full
	}
	return 0
}

// maxLine is longer than any line that a browser sends. Longer lines are
// ignored.
const maxLine = 4096
