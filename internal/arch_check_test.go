package internal_test

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
)

// A tree is a small module: the text of each file.
type tree map[string]string

func (t tree) fs() fstest.MapFS {
	fsys := fstest.MapFS{}
	for name, text := range t {
		fsys[name] = &fstest.MapFile{Data: []byte(text)}
	}
	return fsys
}

// with returns a copy of t that has one more file, or another text of one.
func (t tree) with(name, text string) tree {
	changed := maps.Clone(t)
	changed[name] = text
	return changed
}

// importing returns a file of package p that imports packages.
func importing(packages ...string) string {
	var b strings.Builder
	b.WriteString("package p\n")
	for _, imported := range packages {
		fmt.Fprintf(&b, "import %q\n", imported)
	}
	return b.String()
}

// sound is a module whose imports mayImport allows.
var sound = tree{
	"go.mod":                         "",
	"limiter.go":                     importing("net/http", module+"/internal/rule", module+"/internal/table", goRedis, xText+"/cases"),
	"limiter_test.go":                importing(module, module+"/storetest", module+"/internal/sim", testify+"/require", miniredis),
	"internal/arch_test.go":          importing("testing"),
	"internal/rule/rule.go":          importing("math"),
	"internal/rule/rule_test.go":     importing(module+"/internal/table", testify+"/require"),
	"internal/table/table.go":        importing(module + "/internal/rule"),
	"internal/snapshot/lock_unix.go": "//go:build unix\n\n" + importing(module+"/internal/table", xSys+"/unix"),
	"storetest/storetest.go":         importing(module, "testing"),
	"examples/redis/main.go":         importing(module, goRedis),

	// Not checked: what is in other modules, and what the go command ignores.
	"postgres/go.mod":             "",
	"postgres/store.go":           importing(module+"/internal/sim", "github.com/jackc/pgx/v5"),
	"internal/e2e/go.mod":         "",
	"internal/e2e/e2e_test.go":    importing(module, "github.com/chromedp/chromedp"),
	"internal/e2e/form/form.go":   importing(module),
	"internal/rule/testdata/a.go": "not Go",
	"_draft/a.go":                 "not Go",
	".git/a.go":                   "not Go",
	"_a.go":                       "not Go",
}

func TestImportsFound(t *testing.T) {
	pgx := "github.com/jackc/pgx/v5"
	for _, test := range []struct {
		name     string
		file     string // added to sound
		imported string
		want     string // the problem
	}{
		{"internal imports the root", "internal/table/a.go", module, "internal/table/a.go:2: imports " + module + ": nothing below internal may"},
		{"a test of internal imports the root", "internal/table/a_test.go", module, "internal/table/a_test.go:2: imports " + module + ": nothing below internal may"},
		{"a test of internal imports a public package", "internal/rule/a_test.go", module + "/storetest", "nothing below internal may"},
		{"a nested module below internal imports the root", "internal/pgtest/a.go", module, "nothing below internal may"},
		{"a file for another system", "internal/table/a_windows.go", module, "nothing below internal may"},
		{"a package that imports nothing", "internal/rule/a.go", module + "/internal/table", "internal/rule/a.go:2: package internal/rule imports internal/table, which its line"},
		{"the engine imports Redis", "internal/engine/a.go", module + "/internal/redisstore", "package internal/engine imports internal/redisstore"},
		{"the root imports the simulator", "a.go", module + "/internal/sim", "a.go:2: package . imports internal/sim"},
		{"the root imports a helper of tests", "a.go", module + "/internal/redistest", "package . imports internal/redistest"},
		{"the root imports a nested module", "a.go", module + "/postgres", "package . imports postgres"},
		{"storetest imports internal", "storetest/a.go", module + "/internal/rule", "package storetest imports internal/rule"},
		{"audit imports admin", "audit/a.go", module + "/admin", "package audit imports admin"},
		{"an example imports internal", "examples/redis/a.go", module + "/internal/rule", "package examples/redis imports internal/rule"},
		{"another module", "internal/table/a.go", goRedis, "package internal/table imports " + goRedis},
		{"another module in the root", "a.go", pgx, "package . imports " + pgx},
		{"another module in tests", "a_test.go", pgx, "tests of package . import " + pgx},
		{"a module of tests in the root", "a.go", testify + "/require", "package . imports " + testify + "/require"},
		{"a module of tests in a helper of tests", "internal/redistest/a.go", miniredis, "package internal/redistest imports " + miniredis},
		{"another major version", "a.go", "github.com/redis/go-redis/v10", "package . imports github.com/redis/go-redis/v10"},
		{"a package without a line", "internal/news/a.go", "fmt", "package internal/news has no line in mayImport"},
		{"a public package without a line", "news/a.go", "fmt", "package news has no line in mayImport"},
		{"a package of tests without a line", "internal/news/a_test.go", "fmt", "package internal/news has no line in mayImport"},
		{"a folder below one with a line", "internal/rule/news/a.go", "fmt", "package internal/rule/news has no line in mayImport"},
	} {
		t.Run(test.name, func(t *testing.T) {
			changed := sound.with("internal/pgtest/go.mod", "").with(test.file, importing(test.imported))
			sources, err := importsOf(changed.fs())
			if err != nil {
				t.Fatal(err)
			}
			problems := checkImports(sources, mayImport)
			if len(problems) != 1 || !strings.Contains(problems[0], test.want) {
				t.Errorf("problems %q, want one with %q", problems, test.want)
			}
		})
	}
}

func TestImportsAllowed(t *testing.T) {
	sources, err := importsOf(sound.fs())
	if err != nil {
		t.Fatal(err)
	}
	if len(sources) != 11 {
		t.Errorf("%d files read, want 11: %v", len(sources), sources)
	}
	if problems := checkImports(sources, mayImport); problems != nil {
		t.Errorf("problems %q, want none", problems)
	}
}

// layered is a module with one cycle of two files, a and b. c and d depend on
// each other in one direction only, d on c.
var layered = tree{
	"a.go":                  "package p\nfunc a() { b() }",
	"b.go":                  "package p\nfunc b() { a() }",
	"c.go":                  "package p\nimport \"sync/atomic\"\ntype T struct{ next atomic.Pointer[T]; F int }\nfunc c(n int) {}",
	"d.go":                  "package p\nfunc d() { c(1) }\nfunc (t *T) M() int { return t.F }",
	"d_test.go":             "package p\nfunc e() { f() }",
	"f_windows.go":          "package p\nfunc f() { d() }",
	"internal/rule/rule.go": "package rule\ntype Rule struct{ N int }\nfunc (r Rule) M() {}",
}

func TestCyclesFound(t *testing.T) {
	for _, test := range []struct {
		name string
		tree tree
		want []string // a part of each problem
	}{
		{"none", layered, nil},
		{"a function", layered.with("e.go", "package p\nfunc e() { d() }").with("c.go", layered["c.go"]+"\nfunc g() {\n\te() }"),
			[]string{": c.go, d.go, e.go\n\tc.go:6 uses e of e.go\n\td.go:2 uses c of c.go, and 2 more\n\te.go:2 uses d of d.go"}},
		{"a method", layered.with("c.go", layered["c.go"]+"\nfunc g(t *T) { t.M() }"), []string{"\n\tc.go:5 uses T.M of d.go\n"}},
		{"a method of what a generic method returns", layered.with("c.go", layered["c.go"]+"\nfunc g(t *T) { t.next.Load().M() }"), []string{"\n\tc.go:5 uses T.M of d.go\n"}},
		{"a method value", layered.with("c.go", layered["c.go"]+"\nvar g = (*T).M"), []string{"\n\tc.go:5 uses T.M of d.go\n"}},
		{"a promoted method", layered.with("c.go", layered["c.go"]+"\ntype U struct{ T }\nfunc g(u *U) { u.M() }"), []string{"\n\tc.go:6 uses T.M of d.go\n"}},
		{"a method in a function for another module", layered.with("c.go", strings.Replace(layered["c.go"], "import", "import \"example.com/hook\"\nimport", 1)+"\nfunc g(t *T) { hook.Wrap(hook.Hooks{Do: func() { t.M() }}) }"),
			[]string{"\n\tc.go:6 uses T.M of d.go\n"}},
		{"a method of an interface", layered.with("d.go", layered["d.go"]+"\ntype I interface{ Do() }").with("c.go", layered["c.go"]+"\nfunc g(i interface{ I }) { i.Do() }"),
			[]string{"\n\tc.go:5 uses I of d.go, and 1 more\n"}},
		{"a field", layered.with("d.go", layered["d.go"]+"\ntype V struct{ W int }\nfunc v() V { return V{} }\n").with("e.go", "package p\nvar e = v()").with("c.go", layered["c.go"]+"\nfunc g() { e.W++ }"),
			[]string{"\n\tc.go:5 uses V.W of d.go\n"}},
		{"a field's key", layered.with("d.go", layered["d.go"]+"\ntype V = struct{ W int }").with("c.go", layered["c.go"]+"\nvar g = V{W: 1}"),
			[]string{"\n\tc.go:5 uses V of d.go, and 1 more\n"}},
		{"a value of internal has a method of the same name", layered.with("c.go", "package p\nimport \""+module+"/internal/rule\"\ntype T struct{ rule.Rule; F int }\nfunc c(n int) { T{}.Rule.M() }"), nil},
		{"internal imports the root", layered.with("c.go", "package p\nimport \""+module+"/internal/rule\"\ntype T struct{ rule.Rule; F int }\nfunc c(n int) {}").
			with("internal/rule/a.go", "package rule\nimport \""+module+"\"\nvar x ratelimit.T"), nil},
		{"a longer cycle", layered.with("a.go", layered["a.go"]+"\nfunc g() { d() }").with("c.go", layered["c.go"]+"\nfunc h() { b() }"),
			[]string{": a.go, b.go, c.go, d.go\n\ta.go:3 uses d of d.go\n\tc.go:5 uses b of b.go\n\td.go:2 uses c of c.go, and 2 more"}},
		{"the allowed cycle is gone", layered.with("a.go", "package p\nfunc a() {}"), []string{"lists a.go, b.go, but not all of them are in one cycle"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			context := buildContext(t)
			context.GOOS = "linux"
			g, err := filesOf(test.tree.fs(), context)
			if err != nil {
				t.Fatal(err)
			}
			problems := checkCycles(g, [][]string{{"a.go", "b.go"}})
			for i, p := range problems {
				problems[i] = p + "\n"
			}
			if !slices.EqualFunc(problems, test.want, strings.Contains) {
				t.Errorf("problems %q, want %q in\n%v", problems, test.want, g)
			}
		})
	}
}
