package interop_test

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
)

// TestNpmParserReadsEachStyle reads the fields of each style with the npm package
// ratelimit-header-parser. It needs node, and the package in the node_modules directory
// that RATELIMIT_NODE_MODULES names, or NODE_PATH if that is not set.
func TestNpmParserReadsEachStyle(t *testing.T) {
	node, err := exec.LookPath("node")
	if err != nil {
		t.Skip("node is not installed")
	}
	modules := os.Getenv("RATELIMIT_NODE_MODULES")
	if modules == "" {
		modules = os.Getenv("NODE_PATH")
	}
	if _, err := os.Stat(filepath.Join(modules, "ratelimit-header-parser")); modules == "" || err != nil {
		t.Skip("npm package ratelimit-header-parser: not found in RATELIMIT_NODE_MODULES or NODE_PATH")
	}
	type info struct {
		Limit, Used, Remaining *int64
		InSeconds              *float64 // until the reset
	}
	styles := map[string]Headers{
		"7": HeadersDraft7, "6": HeadersDraft6, "legacy": HeadersLegacy,
		"7, 6 and legacy": HeadersDraft7 | HeadersDraft6 | HeadersLegacy, "6 and legacy": HeadersDraft6 | HeadersLegacy,
		"none": HeadersNone, "10": HeadersDraft10,
	}
	sets := make(map[string]map[string]string) // header fields by style
	for name, style := range styles {
		l := newLimiter(t, name, Options{Limits: []Limit{FixedWindow(5, time.Hour)}, Headers: style})
		sets[name] = make(map[string]string)
		for field, values := range fieldsOf(l) {
			sets[name][field] = values[0]
		}
	}
	for name, style := range map[string]Headers{"in flight, 7": HeadersDraft7, "in flight, 6": HeadersDraft6, "in flight, legacy": HeadersLegacy} {
		styles[name] = style
		l := newLimiter(t, name, Options{Limits: []Limit{InFlight(5, time.Hour)}, Headers: style})
		sets[name] = make(map[string]string)
		for field, values := range fieldsOf(l) {
			sets[name][field] = values[0]
		}
	}
	input, err := json.Marshal(sets)
	require.NoError(t, err)
	cmd := exec.CommandContext(t.Context(), node, "testdata/ratelimit-header-parser.js", string(input))
	cmd.Env = append(os.Environ(), "NODE_PATH="+modules)
	cmd.Stderr = os.Stderr
	output, err := cmd.Output()
	require.NoError(t, err)
	var got map[string]*info
	require.NoError(t, json.Unmarshal(output, &got), string(output))

	assert.Nil(t, got["none"])
	for name := range styles {
		switch read := got[name]; name {
		case "none":
		case "10":
			// Version 0.1.0 of the package does not know draft 10. It must not read a wrong
			// number from its fields.
			require.NotNil(t, read)
			assert.Nil(t, read.Limit)
			assert.Nil(t, read.Remaining)
		default:
			require.NotNil(t, read, name)
			assert.EqualValues(t, 5, *read.Limit, name)
			assert.EqualValues(t, 1, *read.Used, name)
			assert.EqualValues(t, 4, *read.Remaining, name)
			assert.InDelta(t, 3600, *read.InSeconds, 60, name)
		}
	}
}
