package ratelimit_test

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
)

// This file checks the text of docs/limits.md. Its pictures are checked by
// limits_picture_test.go, and its translations by limits_vendors_test.go.

// limitsPage returns docs/limits.md.
func limitsPage(t *testing.T) string {
	page, err := os.ReadFile("docs/limits.md")
	require.NoError(t, err)
	return strings.ReplaceAll(string(page), "\r\n", "\n")
}

// TestSnippetsOfLimitsPage checks that each snippet is in example_limits_test.go, apart
// from the indentation and the Logger.
func TestSnippetsOfLimitsPage(t *testing.T) {
	source, err := os.ReadFile("example_limits_test.go")
	require.NoError(t, err)
	indent := regexp.MustCompile(`(?m)^\t+Logger: +discard,\r?\n|^\t+|\r`)
	examples := indent.ReplaceAllString(string(source), "")
	snippets := regexp.MustCompile("(?s)```go\n(.*?)```").FindAllStringSubmatch(limitsPage(t), -1)
	require.GreaterOrEqual(t, len(snippets), 4)
	for _, snippet := range snippets {
		require.Contains(t, examples, indent.ReplaceAllString(snippet[1], ""))
	}
}

// TestLimitsOfLimitsPage checks each limit in a code span: it is valid, and a limit in code
// with a limit in text beside it in a table is the same limit.
func TestLimitsOfLimitsPage(t *testing.T) {
	page := limitsPage(t)
	code := regexp.MustCompile("`((?:FixedWindow|SlidingWindow|TokenBucket|Rolling|Daily|Weekly|Monthly|InFlight)\\([^`]*)`(?: \\| `([^`]*)`)?").FindAllStringSubmatch(page, -1)
	pairs := 0
	for _, m := range code {
		limit, err := limitInCode(m[1])
		require.NoError(t, err, m[1])
		parsed, err := ParseLimit(limit.String())
		require.NoError(t, err, m[1])
		require.Equal(t, limit, parsed)
		if m[2] != "" {
			pairs++
			require.Equal(t, m[2], limit.String(), m[1])
		}
	}
	require.GreaterOrEqual(t, pairs, 15)

	text := regexp.MustCompile("`(\\d+/(?:\\d|day|week|month)[^`]*)`").FindAllStringSubmatch(page, -1)
	require.GreaterOrEqual(t, len(text), 30)
	for _, m := range text {
		limit, err := ParseLimit(m[1])
		require.NoError(t, err)
		require.Equal(t, m[1], limit.String())
	}
}

// limitInCode evaluates an expression such as FixedWindow(5, time.Hour).Block(time.Minute).
func limitInCode(text string) (limit Limit, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%v", r)
		}
	}()
	e, err := parser.ParseExpr(text)
	if err != nil {
		return limit, err
	}
	call := e.(*ast.CallExpr)
	var block []time.Duration
	if method, ok := call.Fun.(*ast.SelectorExpr); ok {
		if method.Sel.Name != "Block" {
			return limit, fmt.Errorf("method %s", method.Sel.Name)
		}
		for _, arg := range call.Args {
			block = append(block, time.Duration(numberInCode(arg)))
		}
		call = method.X.(*ast.CallExpr)
	}
	n := numberInCode(call.Args[0])
	window := func() time.Duration { return time.Duration(numberInCode(call.Args[1])) }
	switch call.Fun.(*ast.Ident).Name {
	case "FixedWindow":
		limit = FixedWindow(n, window())
	case "SlidingWindow":
		limit = SlidingWindow(n, window())
	case "Rolling":
		limit = Rolling(n, window())
	case "InFlight":
		limit = InFlight(n, window())
	case "TokenBucket":
		limit = TokenBucket(n, window(), numberInCode(call.Args[2]))
	case "Daily":
		limit = Daily(n, zoneInCode(call.Args[1]))
	case "Weekly":
		limit = Weekly(n, time.Weekday(numberInCode(call.Args[1])), zoneInCode(call.Args[2]))
	case "Monthly":
		limit = Monthly(n, int(numberInCode(call.Args[1])), zoneInCode(call.Args[2]))
	}
	if block != nil {
		limit = limit.Block(block...)
	}
	return limit, nil
}

// zoneInCode evaluates nil, or a variable with the name of the zone's city.
func zoneInCode(e ast.Expr) *time.Location {
	name := e.(*ast.Ident).Name
	if name == "nil" {
		return nil
	}
	zone, err := time.LoadLocation(map[string]string{"berlin": "Europe/Berlin"}[name])
	if err != nil || name != "berlin" {
		panic(fmt.Sprintf("zone %s: %v", name, err))
	}
	return zone
}

// numberInCode evaluates a number, a constant of package time, or a product of them.
func numberInCode(e ast.Expr) int64 {
	switch e := e.(type) {
	case *ast.BasicLit:
		n, err := strconv.ParseInt(e.Value, 0, 64) // 0: with underscores
		if err != nil {
			panic(err)
		}
		return n
	case *ast.SelectorExpr:
		return int64(map[string]time.Duration{
			"Millisecond": time.Millisecond, "Second": time.Second, "Minute": time.Minute, "Hour": time.Hour,
			"Monday": time.Duration(time.Monday),
		}[e.Sel.Name])
	case *ast.BinaryExpr:
		if e.Op == token.MUL {
			return numberInCode(e.X) * numberInCode(e.Y)
		}
	}
	panic(fmt.Sprintf("%T in a limit", e))
}

// TestPicturesOfLimitsPage checks that the page shows each picture, and that a picture's
// numbers in the text are the picture's.
func TestPicturesOfLimitsPage(t *testing.T) {
	page := limitsPage(t)
	for _, name := range []string{"fixed", "sliding", "bucket", "rolling", "calendar", "inflight", "block"} {
		require.Contains(t, page, "](limits-"+name+".svg)")
	}
	for name, within := range map[string]string{
		"fixed": "within 10 s", "sliding": "within 10 s", "bucket": "within 10 s", "rolling": "within 10 s", "calendar": "within 24 h", "inflight": "at the same time",
	} {
		svg, err := os.ReadFile("docs/limits-" + name + ".svg")
		require.NoError(t, err)
		numbers := regexp.MustCompile(`: (\d+ of \d+) requests admitted, at most (\d+) of them`).FindSubmatch(svg)
		require.NotNil(t, numbers)
		require.Contains(t, page, fmt.Sprintf("(limits-%s.svg)\n\nIt admits %s requests, and at most %s of them %s.", name, numbers[1], numbers[2], within))
	}
}
