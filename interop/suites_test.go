package interop_test

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/doc"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ratelimit-go/ratelimit/internal/redistest"
)

// This file runs the tests of other libraries on shims over this one. What is expected of
// them is in suites_table_test.go, and for readers in docs/judges.md.
//
// The tests are read from the module cache and written to a temporary directory, beside the shim
// and those files of the library that are used as they are. A go.mod like the one of this
// module replaces the library by that directory.

// A suite is the tests of a library, and what is expected of them.
type suite struct {
	module   string   // its path
	shim     string   // the folder below testdata/shims
	over     string   // what the shim is, for readers
	packages []string // folders of the tests that run
	theirs   []string // other files of the library that are used as they are
	redis    bool     // the tests need a server

	run     int // tests and subtests without subtests of their own
	differ  []difference
	leftOut []leftOut
}

// A difference is why some tests have another result than with the library.
type difference struct {
	tests []string
	why   string

	// prints is what each of the tests must print when it fails. Or changes turn assertions into
	// what is right here, so that the rest of the tests counts, too. The tests must
	// pass with them.
	prints  string
	changes []change
}

// A change replaces text in a file. The text must be there that many times; 0 means once.
type change struct {
	file, from, to string
	times          int
}

// A leftOut is why some functions are not run.
type leftOut struct {
	tests []string
	why   string
}

// nameOf returns the name of a test: its function and subtest. In packages below the root of
// the module, the folder and a period are before it.
func nameOf(folder, test string) string {
	if folder == "." {
		return test
	}
	return folder + "." + test
}

// omitted returns the functions that are left out.
func (s *suite) omitted() map[string]bool {
	names := make(map[string]bool)
	for _, l := range s.leftOut {
		for _, name := range l.tests {
			names[name] = true
		}
	}
	return names
}

// TestSuites runs the suites and compares the results with the table. It needs redis-server,
// and the module proxy unless all modules have been downloaded.
//
// Many of the tests measure real time, on a machine that may be busy. So a suite with
// an unexpected result is run again, twice at most. A data race is never forgiven.
func TestSuites(t *testing.T) {
	folders := moduleFolders(t)
	rows := make([]row, len(suites))
	t.Run("all", func(t *testing.T) { // ends when all suites have ended
		for i, s := range suites {
			t.Run(s.shim, func(t *testing.T) {
				t.Parallel()
				began := time.Now()
				var problems []string
				for attempt := 1; attempt <= 3; attempt++ {
					rows[i], problems = s.judge(t, folders[s.module])
					text := strings.Join(problems, "\n")
					if text == "" {
						break
					}
					t.Logf("attempt %d:\n%s", attempt, text)
					if strings.Contains(text, dataRace) {
						break
					}
				}
				if len(problems) > 0 {
					t.Errorf("%d problems", len(problems))
				}
				t.Log(time.Since(began).Round(100 * time.Millisecond))
			})
		}
	})
	t.Logf("\n%s", tableOf(slices.DeleteFunc(rows, func(r row) bool { return r.name == "" }))) // without suites that -run excludes
}

// moduleFolders returns where the module cache has each module. It downloads modules that are
// missing.
func moduleFolders(t *testing.T) map[string]string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "mod", "download", "-json")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	folders := make(map[string]string)
	for decoder := json.NewDecoder(bytes.NewReader(out)); ; {
		var module struct{ Path, Dir, Error string }
		if err := decoder.Decode(&module); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatalf("go mod download: %v: %s", err, out)
		}
		if module.Error != "" {
			fmt.Fprintln(&stderr, module.Error)
		}
		folders[module.Path] = module.Dir
	}
	if err != nil {
		if os.Getenv("RATELIMIT_REQUIRE_SUITES") != "" {
			t.Fatalf("modules cannot be downloaded, and RATELIMIT_REQUIRE_SUITES is set: %v\n%s", err, &stderr)
		}
		t.Skipf("modules cannot be downloaded: %v\n%s", err, &stderr)
	}
	return folders
}

// judge runs the suite once. It returns its row of the table, and what is not as the
// table says.
func (s *suite) judge(t *testing.T, library string) (r row, problems []string) {
	t.Helper()
	addr := ""
	if s.redis {
		addr = redistest.Start(t).Addr
	}
	folder, files := t.TempDir(), testFiles(t, library)
	s.write(t, library, folder, files, addr)
	results, problems := s.test(t, folder, addr)
	problems = append(problems, s.checkInventory(files, results)...)
	r, unexpected := s.compare(results)
	return r, append(problems, unexpected...)
}

// write makes the module in a folder: tests of the given files, shim, and files of the library.
func (s *suite) write(t *testing.T, library, folder string, files []*testFile, redisAddr string) {
	t.Helper()
	changes := make(map[string][]change)
	for _, d := range s.differ {
		for _, c := range d.changes {
			changes[c.file] = append(changes[c.file], c)
		}
	}
	save := func(file string, text []byte) {
		for _, c := range changes[file] {
			require.Equal(t, max(1, c.times), bytes.Count(text, []byte(c.from)), "%s: %s", file, c.from)
			text = bytes.ReplaceAll(text, []byte(c.from), []byte(c.to))
		}
		delete(changes, file)
		file = filepath.Join(folder, filepath.FromSlash(file))
		require.NoError(t, os.MkdirAll(filepath.Dir(file), 0o777))
		require.NoError(t, os.WriteFile(file, text, 0o666))
	}
	for _, file := range append(slices.Clone(s.theirs), "go.mod") {
		text, err := os.ReadFile(filepath.Join(library, file))
		require.NoError(t, err)
		save(file, text)
	}
	for _, file := range files {
		if !slices.Contains(s.packages, path.Dir(file.name)) {
			continue
		}
		if text, ok := file.without(s.omitted()); ok {
			for _, fixed := range []string{`":6379"`, `"localhost:6379"`} {
				text = bytes.ReplaceAll(text, []byte(fixed), fmt.Appendf(nil, "%q", redisAddr))
			}
			save(file.name, text)
		}
	}
	require.Empty(t, changes, "files that are not there")
	require.NoError(t, os.CopyFS(folder, os.DirFS(filepath.Join("testdata/shims", s.shim))))

	root, err := filepath.Abs("..")
	require.NoError(t, err)
	mod, err := os.ReadFile("go.mod")
	require.NoError(t, err)
	mod = bytes.ReplaceAll(mod, []byte("=> .."), []byte("=> "+root))
	mod = fmt.Appendf(mod, "\nreplace %s => %s\n", s.module, folder)
	sum, err := os.ReadFile("go.sum")
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(folder, "suite.mod"), mod, 0o666))
	require.NoError(t, os.WriteFile(filepath.Join(folder, "suite.sum"), sum, 0o666))
}

const dataRace = "WARNING: DATA RACE"

// A result is what became of a test: pass, fail or skip; what it has printed; and the name
// of its function.
type result struct{ action, output, function string }

// test runs the tests in a folder and returns the results of those without subtests. A test
// that fails by itself, although its subtests pass, is one of them.
func (s *suite) test(t *testing.T, folder, redisAddr string) (results map[string]result, problems []string) {
	t.Helper()
	args := []string{"test", "-modfile=" + filepath.Join(folder, "suite.mod"), "-json", "-count=1", "-vet=off", "-timeout=2m"}
	if raceDetector {
		args = append(args, "-race")
	}
	for _, p := range s.packages {
		args = append(args, path.Join(s.module, p))
	}
	cmd := exec.CommandContext(t.Context(), "go", args...)
	cmd.Env = append(os.Environ(), "REDIS_URI=redis://"+redisAddr)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, runErr := cmd.Output()

	results = make(map[string]result)
	failed := make(map[string]bool) // folders and tests in which a test has failed
	parents := make(map[string]bool)
	var other strings.Builder // output of no test
	for decoder := json.NewDecoder(bytes.NewReader(out)); ; {
		var e struct{ Action, Package, Test, Output string }
		if err := decoder.Decode(&e); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatalf("go test: %v: %s\n%s", err, out, &stderr)
		}
		folder := cmp.Or(strings.TrimPrefix(strings.TrimPrefix(e.Package, s.module), "/"), ".")
		if e.Test == "" {
			other.WriteString(e.Output)
			if e.Action == "fail" && !failed[folder] {
				problems = append(problems, fmt.Sprintf("the tests in %s did not run: go test: %v\n%s\n%s", folder, runErr, &other, &stderr))
			}
			continue
		}
		name := nameOf(folder, e.Test)
		function, _, _ := strings.Cut(e.Test, "/")
		r := results[name]
		r.output += e.Output
		r.function = nameOf(folder, function)
		switch e.Action {
		case "pass", "fail", "skip":
			r.action = e.Action
			parent := folder
			if i := strings.LastIndex(e.Test, "/"); i >= 0 {
				parent = nameOf(folder, e.Test[:i])
				parents[parent] = true
			}
			failed[parent] = failed[parent] || e.Action == "fail"
		}
		results[name] = r
	}
	if race := bytes.Index(out, []byte(dataRace)); race >= 0 { // also in a test that is expected to fail
		problems = append(problems, string(out[race:min(len(out), race+5000)]))
	}
	if len(results) == 0 {
		problems = append(problems, fmt.Sprintf("no test has run: go test: %v\n%s\n%s", runErr, &other, &stderr))
	}
	maps.DeleteFunc(results, func(name string, r result) bool {
		return parents[name] && (r.action != "fail" || failed[name])
	})
	return results, problems
}

// compare compares results with the table.
func (s *suite) compare(results map[string]result) (r row, problems []string) {
	problem := func(format string, args ...any) { problems = append(problems, fmt.Sprintf(format, args...)) }
	r = s.row()
	if len(results) != r.run {
		problem("%d tests have run, and the table has %d: %q", len(results), r.run, slices.Sorted(maps.Keys(results)))
	}
	r.run, r.passed, r.expected = len(results), 0, 0
	rest := maps.Clone(results)
	for _, d := range s.differ {
		for _, name := range d.tests {
			result, ok := rest[name]
			delete(rest, name)
			switch {
			case !ok:
				problem("%s has not run, and the table expects a difference", name)
			case d.changes != nil && result.action != "pass":
				problem("%s: %s, although its assertions say what is right here\n%s", name, result.action, result.output)
			case d.changes == nil && result.action != "fail":
				problem("%s: %s. There is no difference any more: %s", name, result.action, d.why)
			case d.changes == nil && !strings.Contains(result.output, d.prints):
				problem("%s: another difference than the expected one, which prints %q\n%s", name, d.prints, result.output)
			default:
				r.expected++
			}
		}
	}
	for name, result := range rest {
		if result.action == "pass" {
			r.passed++
		} else {
			problem("%s: %s\n%s", name, cmp.Or(result.action, "has not ended"), result.output)
		}
	}
	r.unexpected = r.run - r.passed - r.expected
	return r, problems
}

// checkInventory checks that each test in a library's files has run or is left out.
func (s *suite) checkInventory(files []*testFile, results map[string]result) (problems []string) {
	run := make(map[string]bool)
	for _, r := range results {
		run[r.function] = true
	}
	omitted := s.omitted()
	for _, file := range files {
		for name := range file.tests {
			if run[name] == omitted[name] {
				problems = append(problems, fmt.Sprintf("%s: has run: %t, is left out: %t", name, run[name], omitted[name]))
			}
			delete(omitted, name)
		}
	}
	for name := range omitted {
		problems = append(problems, name+" is left out, and the library has no such test")
	}
	return problems
}

// A testFile is a file with tests.
type testFile struct {
	name  string // from the module's root
	text  []byte
	tree  *ast.File
	tests map[string]*ast.FuncDecl // examples only if they run
}

// testFiles reads the test files of a library.
func testFiles(t *testing.T, library string) (files []*testFile) {
	t.Helper()
	root := os.DirFS(library)
	require.NoError(t, fs.WalkDir(root, ".", func(name string, entry fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(name, "_test.go") {
			return err
		}
		text, err := fs.ReadFile(root, name)
		if err != nil {
			return err
		}
		fset := token.NewFileSet()
		tree, err := parser.ParseFile(fset, name, text, parser.ParseComments)
		if err != nil {
			return err
		}
		examples := make(map[string]bool)
		for _, e := range doc.Examples(tree) {
			examples["Example"+e.Name] = e.Output != "" || e.EmptyOutput
		}
		f := &testFile{name: name, text: text, tree: tree, tests: make(map[string]*ast.FuncDecl)}
		for _, decl := range tree.Decls {
			if function, ok := decl.(*ast.FuncDecl); ok && (examples[function.Name.Name] || strings.HasPrefix(function.Name.Name, "Test")) {
				f.tests[nameOf(path.Dir(name), function.Name.Name)] = function
			}
		}
		files = append(files, f)
		return nil
	}))
	return files
}

// without returns the text without some tests. ok is false if the file has tests and all of them are
// among these. An import that only these tests use becomes a blank one.
func (f *testFile) without(omitted map[string]bool) (text []byte, ok bool) {
	ok = len(f.tests) == 0
	rest := *f.tree
	var cuts []ast.Node
	for name, function := range f.tests {
		if omitted[name] {
			cuts = append(cuts, function)
			rest.Decls = slices.DeleteFunc(slices.Clone(rest.Decls), func(d ast.Decl) bool { return d == ast.Decl(function) })
		} else {
			ok = true
		}
	}
	before, after := qualifiers(f.tree), qualifiers(&rest)
	for _, spec := range f.tree.Imports {
		name := path.Base(strings.Trim(spec.Path.Value, `"`))
		if spec.Name != nil {
			name = spec.Name.Name
		}
		if before[name] && !after[name] {
			cuts = append(cuts, spec)
		}
	}
	slices.SortFunc(cuts, func(a, b ast.Node) int { return int(b.Pos() - a.Pos()) })
	text = slices.Clone(f.text)
	for _, node := range cuts { // from the last one on, so that the others keep their places
		begin, end, with := int(node.Pos())-1, int(node.End())-1, ""
		if spec, ok := node.(*ast.ImportSpec); ok {
			with = "_ " + spec.Path.Value
		}
		text = slices.Replace(text, begin, end, []byte(with)...)
	}
	return text, ok
}

// qualifiers returns the names before a period.
func qualifiers(file *ast.File) map[string]bool {
	names := make(map[string]bool)
	ast.Inspect(file, func(n ast.Node) bool {
		if selector, ok := n.(*ast.SelectorExpr); ok {
			if x, ok := selector.X.(*ast.Ident); ok {
				names[x.Name] = true
			}
		}
		return true
	})
	return names
}
