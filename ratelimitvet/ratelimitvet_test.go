package ratelimitvet_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/tools/go/analysis"
	"golang.org/x/tools/go/analysis/analysistest"

	"github.com/ratelimit-go/ratelimit/ratelimitvet"
)

// all runs all analyzers: packages are loaded once for them.
var all = &analysis.Analyzer{
	Name: "all", Doc: "all analyzers",
	Run: func(pass *analysis.Pass) (any, error) {
		for _, a := range ratelimitvet.Analyzers() {
			if _, err := a.Run(pass); err != nil {
				return nil, err
			}
		}
		return nil, nil
	},
}

func init() {
	for _, a := range ratelimitvet.Analyzers() {
		all.FactTypes = append(all.FactTypes, a.FactTypes...)
	}
}

// The analyzers find what the comments in testdata want, and nothing else: in particular
// nothing in testdata/services, which are as in public examples and have no mistake. A
// file with .golden is what the suggested fixes make of the file beside it.
func TestAnalyzers(t *testing.T) {
	dir, err := filepath.Abs("testdata")
	if err != nil {
		t.Fatal(err)
	}
	analysistest.RunWithSuggestedFixes(t, dir, all, "./...")
}

// TestGoVet builds the command, and runs it under go vet.
func TestGoVet(t *testing.T) {
	tool := filepath.Join(t.TempDir(), "ratelimitvet")
	if out, err := exec.Command("go", "build", "-o", tool, "./cmd/ratelimitvet").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	vet := func(pattern string) (string, error) {
		cmd := exec.Command("go", "vet", "-vettool="+tool, pattern)
		cmd.Dir = "testdata"
		cmd.Env = append(os.Environ(), "GOFLAGS=-mod=mod", "GOWORK=off")
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	if out, err := vet("./services/..."); err != nil {
		t.Errorf("services: %v\n%s", err, out)
	}
	out, err := vet("./sharedstore/...")
	if err == nil {
		t.Error("go vet succeeds")
	}
	for _, want := range []string{"shapes.go:", "shares its store", "each limiter of this loop"} {
		if !strings.Contains(out, want) {
			t.Errorf("go vet does not say %q:\n%s", want, out)
		}
	}
}
