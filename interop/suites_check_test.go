package interop_test

import (
	"maps"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestSuiteProblemsAreFound checks the comparison of results with the table.
func TestSuiteProblemsAreFound(t *testing.T) {
	s := &suite{
		run: 3,
		differ: []difference{
			{tests: []string{"TestA/x"}, prints: "boom"},
			{tests: []string{"TestB"}, changes: []change{{}}},
		},
		leftOut: []leftOut{{tests: []string{"TestC"}}},
	}
	asExpected := map[string]result{"TestA/x": {action: "fail", output: "boom"}, "TestB": {action: "pass"}, "d.TestD": {action: "pass"}}
	r, problems := s.compare(asExpected)
	require.Empty(t, problems)
	require.Equal(t, row{run: 3, passed: 1, expected: 2, leftOut: 1}, r)
	require.Equal(t, r, s.row())

	for _, test := range []struct {
		name, action, output, want string
	}{
		{"TestA/x", "pass", "", "no difference any more"},
		{"TestA/x", "fail", "another line", "another difference"},
		{"TestA/x", "", "", "has not run"},
		{"TestB", "fail", "", "although its assertions"},
		{"d.TestD", "fail", "why", "d.TestD: fail\nwhy"},
		{"d.TestD", "skip", "", "d.TestD: skip"},
		{"d.TestD", "", "", "2 tests have run, and the table has 3"},
		{"TestE", "pass", "", "4 tests have run, and the table has 3"},
	} {
		results := maps.Clone(asExpected)
		results[test.name] = result{action: test.action, output: test.output}
		if test.action == "" {
			delete(results, test.name)
		}
		_, problems := s.compare(results)
		require.NotEmpty(t, problems, test.want)
		assert.Contains(t, problems[len(problems)-1]+problems[0], test.want)
	}
}

// TestOmittedTestsAreListed checks that a test neither vanishes from a suite nor stays in the
// table for nothing, and that the rest of a file compiles without the tests that are left out.
func TestOmittedTestsAreListed(t *testing.T) {
	library := t.TempDir()
	write := func(name, text string) {
		require.NoError(t, os.MkdirAll(filepath.Dir(filepath.Join(library, name)), 0o777))
		require.NoError(t, os.WriteFile(filepath.Join(library, name), []byte(text), 0o666))
	}
	write("sub/a_test.go", "package sub\n\nimport (\n\t\"fmt\"\n\t\"testing\"\n)\n\n"+
		"// TestA does.\nfunc TestA(t *testing.T) { fmt.Println() }\n\nfunc TestB(t *testing.T) {}\n\n"+
		"func ExampleC() {\n\t// Output: 1\n}\n\nfunc ExampleD() {}\n\nfunc BenchmarkE(b *testing.B) {}\n")
	write("sub/help_test.go", "package sub\n\nfunc help() {}\n")
	files := testFiles(t, library)
	require.Len(t, files, 2)
	results := map[string]result{"sub.TestB/x": {function: "sub.TestB"}, "sub.ExampleC": {function: "sub.ExampleC"}}

	for _, test := range []struct{ leftOut, want string }{
		{"sub.TestA", ""},
		{"sub.TestX", "sub.TestX is left out, and the library has no such test"},
		{"sub.TestB", "sub.TestB: has run: true, is left out: true"},
		{"", "sub.TestA: has run: false, is left out: false"},
	} {
		s := &suite{leftOut: []leftOut{{tests: []string{test.leftOut}}}}
		problems := s.checkInventory(files, results)
		if test.want == "" {
			assert.Empty(t, problems)
		} else {
			assert.Contains(t, problems, test.want)
		}
	}

	text, ok := files[0].without(map[string]bool{"sub.TestA": true})
	require.True(t, ok)
	require.Equal(t, "package sub\n\nimport (\n\t_ \"fmt\"\n\t\"testing\"\n)\n\n"+
		"// TestA does.\n\n\nfunc TestB(t *testing.T) {}\n\n"+
		"func ExampleC() {\n\t// Output: 1\n}\n\nfunc ExampleD() {}\n\nfunc BenchmarkE(b *testing.B) {}\n", string(text))
	_, ok = files[0].without(map[string]bool{"sub.TestA": true, "sub.TestB": true, "sub.ExampleC": true})
	require.False(t, ok, "no test is left")
	_, ok = files[1].without(nil)
	require.True(t, ok, "a file of helpers")
}
