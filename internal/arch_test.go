// Package internal_test checks what the module's packages import, and which
// files of the root package depend on each other. It reads the sources; nothing
// is built.
//
// This file has the rules and the two tests of the module itself. The checks
// are in arch_imports_test.go and arch_files_test.go. arch_check_test.go shows
// that they find what they should. commands_test.go is about the go test commands
// of the documentation, and rules_test.go about docs/rules.md.
package internal_test

import (
	"go/build"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// module is the path of the module, and of its root package.
const module = "github.com/ratelimit-go/ratelimit"

// Modules that packages may import.
const (
	goRedis   = "github.com/redis/go-redis/v9"
	httpsnoop = "github.com/felixge/httpsnoop"
	miniredis = "github.com/alicebob/miniredis/v2"
	testify   = "github.com/stretchr/testify"
	xSys      = "golang.org/x/sys"
	xText     = "golang.org/x/text"
)

// anything, in a list of an allowance, allows every import.
const anything = "..."

// An allowance lists what the files of one package may import, in addition to the
// standard library. Its lists are separated by spaces.
type allowance struct {
	sameModule string // packages of this module, by folder; "." is the root package
	foreign    string // other modules
}

// testModules lists the modules that every test file may import.
const testModules = miniredis + " " + testify

// mayImport has a line for each package of the root module, and for each one
// below internal. A package without a line is an error, so that nothing is
// added without a decision about its place. A line whose package does not exist
// yet has no effect. "examples/..." is for all folders below examples.
//
// Module imports are checked for files that are not tests. Test files may
// import any package of the module; below internal, only packages of internal.
var mayImport = map[string]allowance{
	// Counting, and time.
	"internal/rule":     {},
	"internal/clock":    {},
	"internal/guard":    {},
	"internal/calendar": {},
	"internal/engine":   {sameModule: "internal/rule"},
	"internal/recent":   {sameModule: "internal/rule"},
	"internal/table":    {sameModule: "internal/rule"},
	"internal/filelock": {},
	"internal/snapshot": {sameModule: "internal/rule internal/table internal/filelock", foreign: xSys},

	// Redis.
	"internal/batch":       {},
	"internal/redisscript": {sameModule: "internal/rule", foreign: goRedis},
	"internal/redisstore":  {sameModule: "internal/batch internal/redisscript internal/rule internal/engine internal/clock internal/guard internal/calendar internal/recent", foreign: goRedis},

	// Every remote store.
	"internal/nearcache": {sameModule: "internal/rule internal/table"},
	"internal/breaker":   {},
	"internal/holds":     {sameModule: "internal/rule internal/engine internal/clock internal/guard"},
	"internal/remote":    {sameModule: "internal/nearcache internal/breaker internal/holds internal/rule internal/engine internal/clock internal/guard"},

	// HTTP.
	"internal/addr":   {},
	"internal/accept": {},

	// Tests, simulation and documentation.
	"internal":           {},
	"internal/chart":     {},
	"internal/sim":       {sameModule: "internal/breaker internal/nearcache internal/rule internal/batch internal/remote internal/redisstore"},
	"internal/redistest": {foreign: goRedis},
	"internal/pgtest":    {},
	"internal/e2e":       {sameModule: anything, foreign: anything},
	"internal/e2e/...":   {sameModule: anything, foreign: anything},

	// The root: all of internal that is not for tests or simulation.
	".": {
		sameModule: "internal/rule internal/clock internal/guard internal/calendar internal/engine internal/table internal/snapshot" +
			" internal/batch internal/redisscript internal/redisstore" +
			" internal/nearcache internal/breaker internal/holds internal/remote internal/addr internal/accept internal/recent",
		foreign: goRedis + " " + httpsnoop + " " + xText,
	},

	// Stores outside of the root.
	"internal/counting": {sameModule: "internal/rule"},

	// Public packages.
	"ratelimittest": {sameModule: "."},
	"storetest":     {sameModule: "."},
	"storekit":      {sameModule: ". internal/rule internal/batch internal/counting"},
	"audit":         {sameModule: ". internal/filelock internal/guard"},
	"admin":         {sameModule: ". audit internal/addr internal/accept"},

	// Programs.
	"cmd/ratelimit-sim": {sameModule: ". internal/sim internal/rule internal/chart"},
	"examples/...":      {sameModule: ".", foreign: goRedis},
}

// allowedCycles lists the groups of root files that may depend on each other in
// a cycle. All other files depend in one direction only.
var allowedCycles = [][]string{
	{"limiter.go", "registry.go"},
}

// TestImports checks the imports of every package against mayImport.
func TestImports(t *testing.T) {
	files, err := importsOf(os.DirFS(".."))
	if err != nil {
		t.Fatal(err)
	}
	for _, problem := range checkImports(files, mayImport) {
		t.Error(problem)
	}
}

// TestRootFiles checks the cycles among the root package's files against
// allowedCycles. With -v it lists which files each file depends on, and through
// which names.
func TestRootFiles(t *testing.T) {
	g, err := filesOf(os.DirFS(".."), buildContext(t))
	if err != nil {
		t.Fatal(err)
	}
	if testing.Verbose() {
		t.Log("an asterisk marks a dependency that is part of a cycle\n" + g.String())
	}
	if problems := checkCycles(g, allowedCycles); problems != nil {
		t.Error(strings.Join(problems, "\n"))
	}
}

// buildContext returns the context of this build. Its GOROOT is where the
// sources of the standard library are: a test that is built with -trimpath does
// not know, so the go command is asked.
func buildContext(t *testing.T) build.Context {
	context := build.Default
	if context.GOROOT == "" {
		out, err := exec.Command("go", "env", "GOROOT").Output()
		if err != nil {
			t.Fatal(err)
		}
		context.GOROOT = strings.TrimSpace(string(out))
	}
	return context
}
