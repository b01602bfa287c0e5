// Package accept reads the one thing that the library asks of an Accept header.
package accept

import (
	"strings"
)

// PrefersJSON reports whether a client would rather have problem details in JSON
// (RFC 9457) than plain text, by the Accept header's lines as in RFC 9110, section
// 12.5.1. A client that names JSON and takes plain text no more gladly does; one that
// takes anything does not, because it may well be a person.
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
				json.see(named+1, q) // what would be sent; application/json may mean it
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

// offer is how much one form of answer is wanted: by the most precise range that
// covers it, and of two that are as precise, by the better one.
type offer struct {
	precision int
	q         int
}

func (o *offer) see(precision, q int) {
	if precision > o.precision || precision == o.precision && q > o.q {
		*o = offer{precision, q}
	}
}

// mediaRange reads a range and its weight. A weight that is malformed makes it
// unwanted; other parameters do not matter.
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

// full is the weight of a range that is wanted without reserve.
const full = 1_000_000_000

// weight reads a number from 0 to 1 in billionths, and anything else as 0. Further
// decimals are not looked at; RFC 9110 has three.
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

// maxLine is longer than what any browser sends. A longer line has no say.
const maxLine = 4096
