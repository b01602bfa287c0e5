package e2e_test

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// This file checks the code in the documentation: README.md, the pages in docs, and the
// READMEs of the examples. Each block names its language.
//
//   - go is type-checked, beside testdata/docs/given.go.
//   - sh and console (a session: "$ " before each command) are parsed by bash; folders, programs and modules that
//     the go command gets must be in this repository. The tests that they name are checked by internal/commands_test.go.
//   - json must be valid.
//   - text, sql, yaml and js are not checked here.

// A codeBlock is a fenced block of a page.
type codeBlock struct {
	page     string // its path in the repository
	line     int    // of the first line of code
	language string
	code     string
}

func (b codeBlock) String() string { return fmt.Sprintf("%s:%d", b.page, b.line) }

var fence = regexp.MustCompile("(?ms)^( *)```([a-z]*)\n(.*?)^ *```$")

// documentedCode returns the blocks of all pages.
func documentedCode(t *testing.T) (blocks []codeBlock) {
	for _, pattern := range []string{"*.md", "docs/*.md", "*/README.md", "examples/*/README.md"} {
		pages, err := filepath.Glob(filepath.Join("../..", pattern))
		require.NoError(t, err)
		for _, file := range pages {
			text, err := os.ReadFile(file)
			require.NoError(t, err)
			page, err := filepath.Rel("../..", file)
			require.NoError(t, err)
			blocks = append(blocks, blocksOf(filepath.ToSlash(page), string(text))...)
		}
	}
	return blocks
}

// blocksOf returns the blocks of a page. A block in a list is indented: its code is not.
func blocksOf(page, text string) (blocks []codeBlock) {
	for _, at := range fence.FindAllStringSubmatchIndex(text, -1) {
		blocks = append(blocks, codeBlock{
			page:     page,
			line:     strings.Count(text[:at[6]], "\n") + 1,
			language: text[at[4]:at[5]],
			code:     regexp.MustCompile("(?m)^"+text[at[2]:at[3]]).ReplaceAllString(text[at[6]:at[7]], ""),
		})
	}
	return blocks
}

func TestDocumentationNamesLanguages(t *testing.T) {
	languages := []string{"go", "sh", "console", "json", "sql", "yaml", "js", "text"}
	for _, b := range documentedCode(t) {
		if !slices.Contains(languages, b.language) {
			t.Errorf("%s: a block of %q; want one of %q", b, b.language, languages)
		}
		if b.language == "json" {
			for d := json.NewDecoder(strings.NewReader(b.code)); ; {
				var v any
				if err := d.Decode(&v); errors.Is(err, io.EOF) {
					break
				} else if err != nil {
					t.Errorf("%s: %v", b, err)
					break
				}
			}
		}
	}
}

const otelratelimit = "github.com/ratelimit-go/ratelimit/otelratelimit"

// importedByName lists the packages that the Go blocks use. A block that is no whole
// file has no imports: its packages are found by their names.
var importedByName = map[string]string{
	"redis":         "github.com/redis/go-redis/v9",
	"pgx":           "github.com/jackc/pgx/v5",
	"pgxpool":       "github.com/jackc/pgx/v5/pgxpool",
	"prometheus":    "github.com/prometheus/client_golang/prometheus",
	"promhttp":      "github.com/prometheus/client_golang/prometheus/promhttp",
	"ratelimit":     "github.com/ratelimit-go/ratelimit",
	"admin":         "github.com/ratelimit-go/ratelimit/admin",
	"audit":         "github.com/ratelimit-go/ratelimit/audit",
	"otelratelimit": otelratelimit,
	"postgres":      "github.com/ratelimit-go/ratelimit/postgres",
	"promratelimit": "github.com/ratelimit-go/ratelimit/promratelimit",
	"ratelimittest": "github.com/ratelimit-go/ratelimit/ratelimittest",
	"storekit":      "github.com/ratelimit-go/ratelimit/storekit",
	"storetest":     "github.com/ratelimit-go/ratelimit/storetest",
}

func init() {
	for _, p := range strings.Fields("context errors fmt log log/slog net/http net/http/httptest net/netip os os/signal strings sync/atomic syscall testing testing/synctest time") {
		importedByName[path.Base(p)] = p
	}
}

// TestGoInDocumentation type-checks the Go blocks.
func TestGoInDocumentation(t *testing.T) {
	check := newSnippetChecker(t)
	found := 0
	for _, b := range documentedCode(t) {
		if b.language != "go" {
			continue
		}
		found++
		if err := check.check(b); err != nil {
			t.Error(err)
		}
	}
	if found < 50 {
		t.Errorf("found %d blocks: the pages have more", found)
	}
}

// TestWrongGoInDocumentation checks the check.
func TestWrongGoInDocumentation(t *testing.T) {
	check := newSnippetChecker(t)
	for code, want := range map[string]string{
		"package main\n\nfunc main() {}\n":                           "",
		"package main\n\nimport \"os\"\n\nfunc main() { os.Gone() }": "undefined: os.Gone",
		"type Backend interface{ Update() }\nvar b Backend\n":        "",
		"err := login.Reset(ctx, key)":                               "",
		"if !login.Check(w, r) {\n\treturn\n}":                       "",
		"Shadow: true, MaxWait: 2 * time.Second,":                    "",
		"Shadow: 1,": "cannot use 1",
		"a, err := ratelimit.ParseLimit(key)\n…\nb, err := ratelimit.ParseLimit(key)\n...\nprintln(a, b)": "",
		"store, err := ratelimit.NewGoneStore(client)":                                                    "undefined: ratelimit.NewGoneStore",
		"gone.Reset(ctx, key)": "undefined: gone",
		"login.Reset(ctx)":     "not enough arguments",
		"err := login.Reset(ctx, key)\nerr := login.Reset(ctx, key)": "no new variables",
		"if login {": "expected",
	} {
		err := check.check(codeBlock{page: "a.md", line: 1, code: code})
		if got := fmt.Sprint(err); (err == nil) != (want == "") || !strings.Contains(got, want) {
			t.Errorf("%s: %v, want %q", code, err, want)
		}
	}
}

// A snippetChecker type-checks pieces of Go, which need not be whole files.
type snippetChecker struct {
	files    *token.FileSet
	given    []byte
	packages types.Importer
}

// newSnippetChecker builds the packages that the documentation uses.
func newSnippetChecker(t *testing.T) *snippetChecker {
	given, err := os.ReadFile("testdata/docs/given.go")
	require.NoError(t, err)
	exports := map[string]string{}
	list := func(folder string, packages ...string) {
		t.Helper()
		cmd := exec.Command("go", append([]string{"list", "-export", "-deps", "-f", "{{.ImportPath}}\t{{.Export}}"}, packages...)...)
		cmd.Dir = folder
		out, err := cmd.Output()
		if exit := new(exec.ExitError); errors.As(err, &exit) {
			t.Fatalf("go list: %s", exit.Stderr)
		}
		require.NoError(t, err)
		for line := range strings.Lines(string(out)) {
			if p, file, _ := strings.Cut(strings.TrimSpace(line), "\t"); exports[p] == "" {
				exports[p] = file
			}
		}
	}
	list(".", slices.DeleteFunc(slices.Collect(maps.Values(importedByName)), func(p string) bool { return p == otelratelimit })...)
	// This module does not require these.
	list("../../otelratelimit", otelratelimit)
	list("../../benchmarks", "github.com/go-chi/httprate", "github.com/ulule/limiter/v3", "github.com/ulule/limiter/v3/drivers/middleware/stdlib",
		"github.com/ulule/limiter/v3/drivers/store/memory", "github.com/didip/tollbooth/v7", "github.com/throttled/throttled/v2",
		"github.com/throttled/throttled/v2/store/memstore", "golang.org/x/time/rate")
	files := token.NewFileSet()
	return &snippetChecker{files, given, importer.ForCompiler(files, "gc", func(p string) (io.ReadCloser, error) {
		if exports[p] == "" {
			return nil, fmt.Errorf("importedByName has no %s", p)
		}
		return os.Open(exports[p])
	})}
}

// check returns the errors in a block: a file, declarations, statements of a
// function that returns an error, or fields of [ratelimit.Options]. A line "…" or "..."
// is for code that is left out. Variables that are not used are no error.
func (c *snippetChecker) check(b codeBlock) error {
	b.code = regexp.MustCompile(`(?m)^\s*(…|\.\.\.)$`).ReplaceAllString(b.code, "")
	snippet, err := c.parse(b)
	if err != nil {
		return err
	}
	files := []*ast.File{snippet}
	if snippet.Name.Name != "main" {
		files = append(files, c.parseGiven(snippet))
	}
	var errs []error
	config := types.Config{Importer: c.packages, Error: func(err error) {
		if !unused.MatchString(err.Error()) {
			errs = append(errs, err)
		}
	}}
	config.Check(snippet.Name.Name, c.files, files, nil) // its error is the first one that config.Error has got
	return errors.Join(errs...)
}

// majorVersion matches the end of a module's path that is not in its package's name.
var majorVersion = regexp.MustCompile(`/v\d+$`)

// unused matches the errors that a block may have.
var unused = regexp.MustCompile(`declared and not used: \w+$`)

// parse parses the file that source makes of a block. Errors have the lines of the page.
func (c *snippetChecker) parse(b codeBlock) (*ast.File, error) {
	text, err := c.source(b)
	if err != nil {
		return nil, err
	}
	return parser.ParseFile(c.files, b.page, text, 0)
}

// source makes a file of a block, with the imports that it needs. If no form is right, the
// error is about statements.
func (c *snippetChecker) source(b codeBlock) (string, error) {
	code := fmt.Sprintf("//line %s:%d\n%s", path.Base(b.page), b.line, b.code) // in the folder of the page
	if strings.HasPrefix(b.code, "package ") {
		return code, nil
	}
	var first error
	for _, form := range []string{
		"package docs\nfunc _() (_ error) {\n%s\nreturn }",
		"package docs\n%s",
		"package docs\nvar _ = ratelimit.Options{\n%s\n}",
	} {
		text := fmt.Sprintf(form, code)
		file, err := parser.ParseFile(c.files, b.page, text, 0)
		if err != nil {
			first = cmp.Or(first, err)
			continue
		}
		// The packages are among the names that the file does not declare.
		imports := ""
		for _, name := range file.Unresolved {
			if p, ok := importedByName[name.Name]; ok && !strings.Contains(imports, " \""+p+"\"\n") {
				imports += "import " + name.Name + " \"" + p + "\"\n"
			}
		}
		return strings.Replace(text, "\n", "\n"+imports, 1), nil
	}
	return "", first
}

// TestTestsInDocumentation runs the tests that two guides show.
func TestTestsInDocumentation(t *testing.T) {
	c := newSnippetChecker(t)
	dir, err := os.MkdirTemp(".", "_docs-*") // in a module that requires the library
	require.NoError(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	require.NoError(t, os.WriteFile(filepath.Join(dir, "given.go"), c.given, 0o600))
	found := 0
	for _, b := range documentedCode(t) {
		if b.page != "docs/testing.md" && b.page != "docs/getting-started.md" || !strings.HasPrefix(b.code, "func Test") {
			continue
		}
		source, err := c.source(b)
		require.NoError(t, err)
		found++
		require.NoError(t, os.WriteFile(filepath.Join(dir, fmt.Sprintf("block%d_test.go", found)), []byte(source), 0o600))
	}
	require.GreaterOrEqual(t, found, 3)
	out, err := exec.Command("go", "test", "-v", "./"+filepath.ToSlash(dir)).CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.Equal(t, found, strings.Count(string(out), "--- PASS: Test"), "%s", out)
}

// parseGiven returns the file of given names. Names that the snippet declares are left out.
func (c *snippetChecker) parseGiven(snippet *ast.File) *ast.File {
	given, err := parser.ParseFile(c.files, "given.go", c.given, 0)
	if err != nil {
		panic(err) // the file is part of this package
	}
	imported := map[string]bool{}
	for _, spec := range snippet.Imports {
		p := majorVersion.ReplaceAllString(strings.Trim(spec.Path.Value, `"`), "")
		imported[path.Base(p)] = true
	}
	declared := func(name *ast.Ident) bool { return imported[name.Name] || snippet.Scope.Lookup(name.Name) != nil }
	given.Decls = slices.DeleteFunc(given.Decls, func(d ast.Decl) bool {
		switch d := d.(type) {
		case *ast.FuncDecl:
			return declared(d.Name)
		case *ast.GenDecl:
			d.Specs = slices.DeleteFunc(d.Specs, func(s ast.Spec) bool {
				switch s := s.(type) {
				case *ast.TypeSpec:
					return declared(s.Name)
				case *ast.ValueSpec:
					for _, name := range s.Names {
						if declared(name) {
							name.Name = "_"
						}
					}
				}
				return false
			})
		}
		return false
	})
	return given
}

// TestShellInDocumentation checks the commands of the pages.
func TestShellInDocumentation(t *testing.T) {
	found := 0
	for _, b := range documentedCode(t) {
		code := b.code
		switch b.language {
		case "console":
			var commands []string
			for line := range strings.Lines(code) {
				if command, ok := strings.CutPrefix(line, "$ "); ok {
					commands = append(commands, command)
				}
			}
			if len(commands) == 0 {
				t.Errorf("%s: a console without a line that begins with \"$ \"", b)
			}
			code = strings.Join(commands, "")
		case "sh":
		default:
			continue
		}
		found++
		if err := checkShell(os.DirFS("../.."), code); err != nil {
			t.Errorf("%s: %v", b, err)
		}
	}
	if found < 10 {
		t.Errorf("found %d blocks: the pages have more", found)
	}
}

// TestWrongShellInDocumentation checks the check.
func TestWrongShellInDocumentation(t *testing.T) {
	for code, want := range map[string]string{
		"go run ./examples/quickstart -redis localhost:6379 # on Redis": "",
		"go run -C examples/operations .":                               "",
		"cd benchmarks && go run ./cmd/report -only redis":              "",
		"go get github.com/ratelimit-go/ratelimit/promratelimit":        "",
		"go run ./examples/gone":                                        "examples/gone",
		"cd gone && go run .":                                           "gone",
		"go run -C examples/gone .":                                     "examples/gone",
		"go get github.com/ratelimit-go/ratelimit/gone":                 "no module",
		"curl 'http://127.0.0.1:8080/":                                  "unexpected EOF",
	} {
		err := checkShell(os.DirFS("../.."), code)
		if got := fmt.Sprint(err); (err == nil) != (want == "") || !strings.Contains(got, want) {
			t.Errorf("%s: %v, want %q", code, err, want)
		}
	}
}

// goCommand matches a command that runs a program of the repository or gets a module
// of it.
var goCommand = regexp.MustCompile(`(?m)(?:^|; *)(?:cd (\S+) && )?go (?:run (?:-C (\S+) )?(\.\S*)|get github\.com/ratelimit-go/ratelimit(\S*))`)

// checkShell returns an error if bash cannot parse the code, or if a program or module
// of a go command is not in the repository.
func checkShell(repository fs.FS, code string) error {
	bash := exec.Command("bash", "-n")
	bash.Stdin = strings.NewReader(code)
	if out, err := bash.CombinedOutput(); err != nil {
		return fmt.Errorf("bash -n: %s", out)
	}
	for _, m := range goCommand.FindAllStringSubmatch(code, -1) {
		folder, isModule := path.Join(m[1], m[2], m[3]), m[3] == ""
		if isModule {
			folder = path.Join(".", m[4])
			if _, err := fs.Stat(repository, path.Join(folder, "go.mod")); err != nil {
				return fmt.Errorf("no module %s: %w", folder, err)
			}
			continue
		}
		if files, _ := fs.Glob(repository, path.Join(folder, "*.go")); len(files) == 0 {
			return fmt.Errorf("no program in %s", folder)
		}
	}
	return nil
}
