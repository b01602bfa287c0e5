package accept_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/ratelimit-go/ratelimit/internal/accept"
)

func TestPrefersJSON(t *testing.T) {
	for _, test := range []struct {
		name  string
		lines []string
		want  bool
	}{
		{"no header", nil, false},
		{"an empty line", []string{""}, false},
		{"JSON", []string{"application/json"}, true},
		{"problem details", []string{"application/problem+json"}, true},
		{"text", []string{"text/plain"}, false},
		{"anything: curl", []string{"*/*"}, false},
		{"a browser", []string{"text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8"}, false},
		{"axios", []string{"application/json, text/plain, */*"}, true},
		{"jQuery", []string{"application/json, text/javascript, */*; q=0.01"}, true},
		{"text first: the order does not matter", []string{"text/plain, application/json"}, true},
		{"text more gladly", []string{"application/json;q=0.9, text/plain"}, false},
		{"JSON more gladly", []string{"text/plain;q=0.9, application/json"}, true},
		{"a hair more", []string{"text/plain;q=0.999, application/json;q=1.000"}, true},
		{"JSON refused", []string{"application/json;q=0, */*"}, false},
		{"JSON refused, nothing else named", []string{"application/json;q=0"}, false},
		{"JSON refused with decimals", []string{"application/json;q=0.000"}, false},
		{"problem details refused, JSON wanted", []string{"application/problem+json;q=0, application/json"}, false},
		{"the same, the other way round", []string{"application/json, application/problem+json;q=0"}, false},
		{"problem details wanted, JSON refused", []string{"application/json;q=0, application/problem+json"}, true},
		{"text refused", []string{"text/plain;q=0, */*"}, true},
		{"all refused", []string{"*/*;q=0"}, false},
		{"every application type", []string{"application/*"}, true},
		{"every text", []string{"text/*"}, false},
		{"every application type, or text", []string{"application/*, text/*"}, false},
		{"what is more precise counts", []string{"application/*;q=0.1, application/json, text/plain;q=0.5"}, true},
		{"also where it is less wanted", []string{"application/*, application/json;q=0.1, text/plain;q=0.5"}, false},
		{"text by a wildcard", []string{"application/json;q=0.5, text/*;q=0.6"}, false},
		{"JSON named, text by the same wildcard weight", []string{"application/json;q=0.5, */*;q=0.5"}, true},
		{"JSON named, anything better liked", []string{"application/json;q=0.5, */*;q=0.6"}, false},
		{"two lines", []string{"text/plain;q=0.5", "application/json"}, true},
		{"upper case", []string{"APPLICATION/JSON;Q=0.7, TEXT/PLAIN;Q=0.6"}, true},
		{"white space", []string{" \tapplication/json \t; \tq=0.7 ,text/plain ; q=0.8"}, false},
		{"other parameters", []string{"application/json;version=1;q=0.9;x=y, text/plain;format=flowed;q=0.8"}, true},
		{"only alike", []string{"application/jsonp, application/json5, xapplication/json, application/json/"}, false},
		{"other JSON", []string{"application/vnd.api+json"}, false},
		{"empty members", []string{",, application/json ,,"}, true},
		{"no media range", []string{"json"}, false},
		{"a weight without a number", []string{"application/json;q="}, false},
		{"a weight that is no number", []string{"application/json;q=high"}, false},
		{"NaN", []string{"application/json;q=NaN"}, false},
		{"a weight above 1", []string{"application/json;q=1.1"}, false},
		{"infinity", []string{"application/json;q=Inf"}, false},
		{"a weight below 0", []string{"application/json;q=-1"}, false},
		{"a weight of many digits", []string{"application/json;q=0." + strings.Repeat("9", 100) + ",text/plain;q=0.9"}, true},
		{"a weight with an exponent", []string{"application/json;q=1e0"}, false},
		{"a weight of digits and junk", []string{"application/json;q=0.9x"}, false},
		{"a weight without its zero", []string{"application/json;q=.5"}, true},
		{"a weight that is a point", []string{"application/json;q=."}, false},
		{"a weight of 1 and a point", []string{"application/json;q=1."}, true},
		{"a third, as machines write it", []string{"application/json;q=0.3333333333333333"}, true},
		{"a bad weight spoils no other member", []string{"text/plain;q=x, application/json;q=0.1"}, true},
	} {
		if got := accept.PrefersJSON(test.lines); got != test.want {
			t.Errorf("%s: %q: %t, want %t", test.name, test.lines, got, test.want)
		}
	}
}

// TestJunkIsNotCopied: reading what an attacker sends allocates nothing.
func TestJunkIsNotCopied(t *testing.T) {
	for _, junk := range []string{"APPLICATION/JSONX", "a/b;q=x", "a;q=1.2.3,", ";", "\xc3\x89,", ";q=1", "application/json;Q=-1,", ",", `"`} {
		lines := []string{strings.Repeat(junk, 10_000)}
		if n := testing.AllocsPerRun(10, func() { accept.PrefersJSON(lines) }); n > 0 {
			t.Errorf("%q: %v allocations", junk, n)
		}
	}
}

// weights, in ascending order of their value.
var weights = []string{"0", "0.001", "0.5", "0.999", "1"}

// TestPrefersJSONReference checks every small header against a simple form of
// the rule: the most precise range decides for each form.
func TestPrefersJSONReference(t *testing.T) {
	const unnamed = 0
	// How much is each range wanted, by place in weights plus 1, or not named?
	ranges := []string{"application/problem+json", "application/json", "application/*", "text/plain", "text/*", "*/*"}
	total := 1
	for range ranges {
		total *= 4
	}
	for n := range total {
		var items []string
		var of [6]int
		for i, left := 0, n; i < len(ranges); i, left = i+1, left/4 {
			of[i] = left % 4
			if of[i] != unnamed {
				items = append(items, ranges[i]+";q="+weights[of[i]-1])
			}
		}
		first := func(places ...int) (w, at int) {
			for _, i := range places {
				if of[i] != unnamed {
					return of[i] - 1, i
				}
			}
			return 0, -1
		}
		json, by := first(0, 1, 2, 5)
		text, _ := first(3, 4, 5)
		want := json > text || json == text && json > 0 && (by == 0 || by == 1)
		if got := accept.PrefersJSON([]string{strings.Join(items, ",")}); got != want {
			t.Fatalf("%q: %t, want %t", items, got, want)
		}
	}
}

// FuzzPrefersJSON: neither the split of a list over lines nor its order matters
// (RFC 9110, sections 5.3 and 12.5.1).
func FuzzPrefersJSON(f *testing.F) {
	for _, s := range []string{"", "application/json, text/plain;q=0.5", "*/*;q=1,text/*;q=0.1", "a;q=\"x,y\";;,,", "application/json;q=1;q=0", "\x00\xff,é/é;q=é"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got := accept.PrefersJSON([]string{s})
		lines := strings.Split(s, ",")
		if accept.PrefersJSON(lines) != got {
			t.Errorf("%q: %t as one line, and not as several", s, got)
		}
		slices.Reverse(lines)
		if accept.PrefersJSON(lines) != got {
			t.Errorf("%q: %t as it stands, and not in reverse", s, got)
		}
		if accept.PrefersJSON(append(lines, "image/png", "application/jsonx", "text/plainx;q=1")) != got {
			t.Errorf("%q: %t, and not with other types", s, got)
		}
		if got && !accept.PrefersJSON(append(lines, "application/problem+json")) {
			t.Errorf("%q: wants JSON, and not if it says so once more", s)
		}
	})
}
