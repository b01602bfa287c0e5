package addr

import (
	"strings"
)

// maxElements is how many elements of one line of Forwarded are read, counted
// from the end. No chain of proxies is that long.
const maxElements = 32

// forwarded visits the "for" parameters of Forwarded (RFC 7239), over all lines
// from the last to the first, and in each line from the last element to the first.
// An element without a "for" parameter, or with a malformed one, is visited as "".
func forwarded(lines []string, visit func(string) bool) {
	for i := len(lines) - 1; i >= 0; i-- {
		// Quoted strings can only be parsed from the left, but the elements are
		// visited from the right. So keep the last maxElements of them.
		var last [maxElements]string
		n, rest := 0, lines[i]
		for more := true; more; n++ {
			last[n%maxElements], rest, more = forwardedElement(rest)
		}
		for k := range min(n, maxElements) {
			if !visit(last[(n-1-k)%maxElements]) {
				return
			}
		}
		if n > maxElements {
			visit("")
			return
		}
	}
}

// forwardedElement reads one element, up to a comma, and returns its "for" value.
// If the element is malformed, it returns "" and skips the rest of the line:
// after a missing quotation mark, the rest cannot be parsed reliably.
func forwardedElement(s string) (node, rest string, more bool) {
	found := 0
	for {
		s = strings.TrimLeft(s, " \t")
		end := strings.IndexAny(s, "=;,")
		if end < 0 { // a rest without a parameter: nothing, or malformed
			if strings.TrimRight(s, " \t") != "" {
				node = ""
			}
			return node, "", false
		}
		name := s[:end]
		separator := s[end]
		s = s[end+1:]
		if separator == '=' {
			value, tail, ok := forwardedValue(s)
			if !ok {
				return "", "", false
			}
			if strings.EqualFold(name, "for") {
				if found++; found == 1 {
					node = withoutHiddenPort(value)
				} else {
					node = "" // "for" twice in one element: trust neither
				}
			}
			tail = strings.TrimLeft(tail, " \t")
			if tail == "" {
				return node, "", false
			}
			separator, s = tail[0], tail[1:]
		} else if strings.TrimRight(name, " \t") != "" {
			return "", "", false
		}
		switch separator {
		case ',':
			return node, s, true
		case ';':
		default:
			return "", "", false
		}
	}
}

// forwardedValue reads a token or a quoted string. It also accepts a colon and
// brackets in a token. RFC 7239 requires quotes around them, but some proxies
// omit the quotes.
func forwardedValue(s string) (value, rest string, ok bool) {
	if !strings.HasPrefix(s, `"`) {
		end := strings.IndexAny(s, " \t;,\"")
		if end < 0 {
			end = len(s)
		}
		return s[:end], s[end:], end > 0
	}
	for i := 1; i < len(s); i++ {
		switch s[i] {
		case '\\':
			i++ // no address needs an escape: the value will not parse as one
		case '"':
			return s[1:i], s[i+1:], true
		}
	}
	return "", "", false
}

// withoutHiddenPort removes the obfuscated port that RFC 7239, section 6.3, allows
// after an address, as in "192.0.2.1:_p1". No address has a colon before an
// underscore.
func withoutHiddenPort(node string) string {
	if host, _, ok := strings.Cut(node, ":_"); ok {
		return host
	}
	return node
}
