package internal_test

import (
	"fmt"
	"io/fs"
	"os"
	"path"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
)

// This file checks the `go test` commands of the documentation: each -run and
// -bench names something that exists in the package of the command, and a subtest
// is a case of storetest's conformance suite. It also checks that the functions that
// the documentation names are in their files.

// TestDocumentedTestsExist reads README.md, BENCHMARKS.md, docs and the READMEs
// of examples.
func TestDocumentedTestsExist(t *testing.T) {
	commands, err := commandsOf(os.DirFS(".."), "*.md", "docs/*.md", "examples/*/README.md")
	if err != nil {
		t.Fatal(err)
	}
	if len(commands) < 30 {
		t.Errorf("found %d go test commands: the documents have more", len(commands))
	}
	for _, c := range commands {
		if err := c.check(os.DirFS("..")); err != nil {
			t.Error(err)
		}
	}
}

// TestMissingTestsAreFound checks the check.
func TestMissingTestsAreFound(t *testing.T) {
	module := fstest.MapFS{
		"go.mod":                   {},
		"a_test.go":                {Data: []byte("func TestRoot(t *testing.T) {}\nfunc ExampleNew() {}\nfunc BenchmarkTake(b *testing.B) {}\n")},
		"internal/x/x_test.go":     {Data: []byte("func TestX(t *testing.T) {}\n")},
		"internal/x/sub/s_test.go": {Data: []byte("func TestSub(t *testing.T) {}\n")},
		"examples/y/go.mod":        {},
		"examples/y/y_test.go":     {Data: []byte("func TestY(t *testing.T) {}\n")},
		"storetest/cases_x.go":     {Data: []byte("\t{\n\t\tname: \"denied\",\n\t},\n\t{\n\t\tname:  \"late-refund\",\n")},
	}
	for _, test := range []struct {
		command string
		want    string // part of the error; empty for none
	}{
		{"go test ./...", ""},
		{"go test .", ""},
		{"go test ./internal/x", ""},
		{"go test ./internal/z", "internal/z has no tests"},
		{"go test -run TestRoot .", ""},
		{"go test -run TestRoot", ""},
		{"go test -v -run=Root -count 5 .", ""},
		{"go test -run 'TestRoot|ExampleNew' .", ""},
		{"go test -run 'TestRoot|TestGone' .", "TestGone"},
		{"go test -run TestRoot/denied .", ""},
		{"go test -run TestRoot/late .", ""},
		{"go test -run 'TestRoot$/denied|gone' .", "no case of storetest matches gone"},
		{"go test -run xxx -bench Take/gone .", ""},
		{"go test -run TestX .", "TestX"},
		{"go test -run TestX ./internal/x", ""},
		{"go test -run TestSub ./internal/x", "TestSub"},
		{"go test -run TestSub ./internal/x/...", ""},
		{"go test -run TestY ./...", "TestY"}, // it is in another module
		{"cd examples/y && RATELIMIT_FAULTS=1 go test -run TestY . -args -update", ""},
		{"cd examples/y && go test -run TestRoot .", "TestRoot"},
		{"go test -run xxx -bench Take .", ""},
		{"go test -run '^$' -bench Take/a .", ""},
		{"go test -run xxx -bench Gone .", "Gone"},
		{"go test -run xxx .", "xxx"},
		{"go test -run 'Test(' .", "Test("},
		{"go test -c ./internal/x; ./x.test -test.run xxx", ""},
	} {
		for text, quoted := range map[string]string{
			"code":  "A claim (`" + test.command + "`, medians of 7).",
			"block": "    " + test.command + "   # what it shows",
		} {
			module["README.md"] = &fstest.MapFile{Data: []byte(quoted)}
			commands, err := commandsOf(module, "*.md")
			if err != nil || len(commands) != 1 {
				t.Errorf("%s, %s: found %v, %v", test.command, text, commands, err)
				continue
			}
			err = commands[0].check(module)
			if got := fmt.Sprint(err); (err == nil) != (test.want == "") || !strings.Contains(got, test.want) {
				t.Errorf("%s, %s: %v, want %q", test.command, text, err, test.want)
			}
		}
	}
}

// TestDocumentedFunctionsExist reads docs, where "internal/x/x.go:f" in a code span
// names a function or a variable.
func TestDocumentedFunctionsExist(t *testing.T) {
	found, missing, err := functionsOf(os.DirFS(".."), "docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	if found < 30 {
		t.Errorf("found %d functions: the documents have more", found)
	}
	for _, m := range missing {
		t.Error(m)
	}
}

// TestMissingFunctionsAreFound checks the check.
func TestMissingFunctionsAreFound(t *testing.T) {
	module := fstest.MapFS{
		"internal/x/x.go": {Data: []byte("var Settings = 1\nfunc f() {}\nfunc (x *X) Do(n int) {}\nfunc form() { gone() }\n")},
		"take.lua":        {Data: []byte("local function shift(n) end\n")},
	}
	for name, isThere := range map[string]bool{
		"internal/x/x.go:f": true, "internal/x/x.go:Do": true, "internal/x/x.go:Settings": true, "take.lua:shift": true,
		"internal/x/x.go:gone": false, "internal/x/x.go:fo": false, "internal/y.go:f": false, "take.lua:n": false,
	} {
		module["a.md"] = &fstest.MapFile{Data: []byte("It waits (`" + name + "`, or not).")}
		found, missing, err := functionsOf(module, "*.md")
		if err != nil || found != 1 || (len(missing) == 0) != isThere {
			t.Errorf("%s: found %d, missing %v, %v", name, found, missing, err)
		}
	}
}

// inFile matches a code span that is a file and the name of a function in it.
var inFile = regexp.MustCompile("`([\\w./]+\\.(?:go|lua)):(\\w+)`")

// functionsOf counts the functions that are named in the files of a pattern, and returns
// the missing ones.
func functionsOf(fsys fs.FS, pattern string) (found int, missing []string, err error) {
	files, err := fs.Glob(fsys, pattern)
	if err != nil {
		return 0, nil, err
	}
	for _, file := range files {
		text, err := fs.ReadFile(fsys, file)
		if err != nil {
			return 0, nil, err
		}
		for _, m := range inFile.FindAllStringSubmatch(string(text), -1) {
			found++
			source, _ := fs.ReadFile(fsys, m[1]) // no text if the file is missing
			declared := regexp.MustCompile(`(?m)^\s*(?:local )?(?:var |func(?:tion)? (?:\([^)]*\) )?)` + m[2] + `\b`)
			if !declared.Match(source) {
				missing = append(missing, fmt.Sprintf("%s: %s has no %s", file, m[1], m[2]))
			}
		}
	}
	return found, missing, nil
}

// testCommand is a `go test` command in a document.
type testCommand struct {
	position string // file:line
	folder   string // where it runs
	pattern  string // of its packages, such as "./..."
	run      string // empty if there is none
	bench    string
}

// inCode matches a go test command in a code span or on a line of a code block,
// with the folder and the arguments.
var inCode = regexp.MustCompile("(?:`|^(?:    |\t)?)(?:cd ([^ ]+) && )?(?:[A-Z_]+=[^ ]+ )*go test\\b([^`;#]*)")

// argument matches an argument, which may be in single quotes.
var argument = regexp.MustCompile(`(?:'[^']*'|[^ '])+`)

// commandsOf returns the commands in the files that match the patterns.
func commandsOf(fsys fs.FS, patterns ...string) (commands []testCommand, err error) {
	for _, pattern := range patterns {
		files, err := fs.Glob(fsys, pattern)
		if err != nil {
			return nil, err
		}
		for _, file := range files {
			text, err := fs.ReadFile(fsys, file)
			if err != nil {
				return nil, err
			}
			for i, line := range strings.Split(string(text), "\n") {
				for _, m := range inCode.FindAllStringSubmatch(line, -1) {
					commands = append(commands, parseCommand(fmt.Sprintf("%s:%d", file, i+1), m[1], m[2]))
				}
			}
		}
	}
	return commands, nil
}

// parseCommand reads the arguments of go test. A flag may have its value after
// a space or after "=". If another flag has a separate value, that value is
// ignored, unless it is a package's path.
func parseCommand(position, folder, arguments string) testCommand {
	c := testCommand{position: position, folder: path.Clean(folder), pattern: "."}
	args := argument.FindAllString(arguments, -1)
	for i := 0; i < len(args) && args[i] != "-args"; i++ {
		name, value, hasValue := strings.Cut(args[i], "=")
		if (name == "-run" || name == "-bench") && !hasValue && i+1 < len(args) {
			i++
			value = args[i]
		}
		value = strings.Trim(value, "'")
		switch {
		case name == "-run":
			c.run = value
		case name == "-bench":
			c.bench = value
		case name == "." || strings.HasPrefix(name, "./"):
			c.pattern = name
		}
	}
	return c
}

// check returns an error if the command runs nothing. Every alternative of -run
// and of -bench must match, and so must every alternative of the subtests that
// -run names after a slash. With -bench, a -run that matches nothing turns the
// tests off.
func (c testCommand) check(fsys fs.FS) error {
	names, err := c.names(fsys)
	if err != nil {
		return err
	}
	if len(names) == 0 {
		return fmt.Errorf("%s: %s has no tests", c.position, path.Join(c.folder, c.pattern))
	}
	if c.bench != "" {
		return c.matches(c.bench, "Benchmark", names)
	}
	if _, subtests, found := strings.Cut(c.run, "/"); found {
		if err := c.checkCases(fsys, subtests); err != nil {
			return err
		}
	}
	return c.matches(c.run, "Test|Example|Fuzz", names)
}

// caseName matches the name of a case in storetest/cases_*.go.
var caseName = regexp.MustCompile(`(?m)^\t\tname:\s+"(.+)"`)

// checkCases checks that each alternative of a pattern matches a case of the
// conformance suite.
func (c testCommand) checkCases(fsys fs.FS, pattern string) error {
	files, err := fs.Glob(fsys, "storetest/cases_*.go")
	if err != nil {
		return err
	}
	var cases [][]string
	for _, file := range files {
		text, err := fs.ReadFile(fsys, file)
		if err != nil {
			return err
		}
		cases = append(cases, caseName.FindAllStringSubmatch(string(text), -1)...)
	}
	for _, alternative := range strings.Split(pattern, "|") {
		re, err := regexp.Compile(alternative)
		if err != nil {
			return fmt.Errorf("%s: %v", c.position, err)
		}
		if !slices.ContainsFunc(cases, func(m []string) bool { return re.MatchString(m[1]) }) {
			return fmt.Errorf("%s: no case of storetest matches %s", c.position, alternative)
		}
	}
	return nil
}

// matches checks that each alternative of a pattern matches a name that begins
// with one of the kinds.
func (c testCommand) matches(pattern, kinds string, names []string) error {
	pattern, _, _ = strings.Cut(pattern, "/")
	kind := regexp.MustCompile("^(" + kinds + ")")
	for _, alternative := range strings.Split(pattern, "|") {
		re, err := regexp.Compile(alternative)
		if err != nil {
			return fmt.Errorf("%s: %v", c.position, err)
		}
		if !slices.ContainsFunc(names, func(name string) bool { return kind.MatchString(name) && re.MatchString(name) }) {
			return fmt.Errorf("%s: nothing in %s matches %s", c.position, path.Join(c.folder, c.pattern), alternative)
		}
	}
	return nil
}

// testFunc matches the declaration of what go test runs.
var testFunc = regexp.MustCompile(`(?m)^func ((?:Test|Example|Fuzz|Benchmark)\w*)\(`)

// names returns the tests, examples, fuzz targets and benchmarks of the
// command's packages. A pattern does not reach into other modules.
func (c testCommand) names(fsys fs.FS) (names []string, err error) {
	folder, below := strings.CutSuffix(path.Join(c.folder, c.pattern), "/...")
	if folder == "..." {
		folder, below = ".", true
	}
	if _, err := fs.Stat(fsys, folder); err != nil {
		return nil, nil
	}
	err = fs.WalkDir(fsys, folder, func(name string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.IsDir() && name != folder {
			if !below || isNestedModule(fsys, name) || strings.HasPrefix(entry.Name(), ".") {
				return fs.SkipDir
			}
		}
		if !strings.HasSuffix(name, "_test.go") {
			return nil
		}
		text, err := fs.ReadFile(fsys, name)
		for _, m := range testFunc.FindAllStringSubmatch(string(text), -1) {
			names = append(names, m[1])
		}
		return err
	})
	return names, err
}
