package internal_test

import (
	"fmt"
	"go/parser"
	"go/token"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"
)

// A source is what a Go file imports.
type source struct {
	folder  string // from the module's root, "." for the root itself
	name    string
	imports []importLine
}

// An importLine is an import in a source.
type importLine struct {
	path string
	line int
}

func (s source) isTest() bool { return strings.HasSuffix(s.name, "_test.go") }

// importsOf reads the imports of all Go files of a module, for all operating
// systems. It leaves out nested modules, except below internal, and what the go
// command ignores: testdata, and names that begin with a dot or an underscore.
func importsOf(fsys fs.FS) ([]source, error) {
	var sources []source
	err := fs.WalkDir(fsys, ".", func(name string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		ignored := name != "." && strings.ContainsAny(entry.Name()[:1], "._")
		if entry.IsDir() {
			if ignored || entry.Name() == "testdata" || isNestedModule(fsys, name) && !isInternal(name) {
				return fs.SkipDir
			}
			return nil
		}
		if ignored || path.Ext(name) != ".go" {
			return nil
		}
		s, err := readImports(fsys, name)
		sources = append(sources, s)
		return err
	})
	return sources, err
}

func isNestedModule(fsys fs.FS, folder string) bool {
	_, err := fs.Stat(fsys, path.Join(folder, "go.mod"))
	return folder != "." && err == nil
}

func isInternal(folder string) bool {
	return folder == "internal" || strings.HasPrefix(folder, "internal/")
}

func isE2E(folder string) bool {
	return folder == "internal/e2e" || strings.HasPrefix(folder, "internal/e2e/")
}

func readImports(fsys fs.FS, name string) (source, error) {
	text, err := fs.ReadFile(fsys, name)
	if err != nil {
		return source{}, err
	}
	fset := token.NewFileSet()
	file, err := parser.ParseFile(fset, name, text, parser.ImportsOnly)
	if err != nil {
		return source{}, err
	}
	s := source{folder: path.Dir(name), name: path.Base(name)}
	for _, spec := range file.Imports {
		imported, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			return source{}, err
		}
		s.imports = append(s.imports, importLine{imported, fset.Position(spec.Pos()).Line})
	}
	return s, nil
}

// checkImports returns a line for each import that rules do not allow, and for
// each package without a rule.
func checkImports(sources []source, rules map[string]allowance) []string {
	var problems []string
	reported := map[string]bool{}
	for _, s := range sources {
		allowed, ok := ruleFor(s.folder, rules)
		if !ok {
			if !reported[s.folder] {
				problems = append(problems, fmt.Sprintf("package %s has no line in mayImport (internal/arch_test.go): add one with what it may import", s.folder))
			}
			reported[s.folder] = true
			continue
		}
		for _, imported := range s.imports {
			if reason := forbidden(s, imported.path, allowed); reason != "" {
				problems = append(problems, fmt.Sprintf("%s:%d: %s", path.Join(s.folder, s.name), imported.line, reason))
			}
		}
	}
	return problems
}

// ruleFor returns the rule of a folder. If it has none, ruleFor returns the
// rule of the nearest folder above it whose rule ends in "/...".
func ruleFor(folder string, rules map[string]allowance) (allowance, bool) {
	rule, ok := rules[folder]
	for above := path.Dir(folder); !ok && above != "."; above = path.Dir(above) {
		rule, ok = rules[above+"/..."]
	}
	return rule, ok
}

// forbidden returns why a file may not import a package, or "" if it may.
func forbidden(s source, imported string, allowed allowance) string {
	switch importedFolder, sameModule := ownFolder(imported); {
	case isStandard(imported):
		return ""
	case sameModule && isInternal(s.folder) && !isE2E(s.folder) && !isInternal(importedFolder):
		return fmt.Sprintf("imports %s: nothing below internal may import the root package or another public one, except internal/e2e", imported)
	case sameModule && !s.isTest() && !lists(allowed.sameModule, func(folder string) bool { return folder == importedFolder }):
		return fmt.Sprintf("package %s imports %s, which its line in mayImport (internal/arch_test.go) does not allow", s.folder, importedFolder)
	case !sameModule && !s.isTest() && !lists(allowed.foreign, within(imported)):
		return fmt.Sprintf("package %s imports %s, which its line in mayImport (internal/arch_test.go) does not allow", s.folder, imported)
	case !sameModule && s.isTest() && !lists(allowed.foreign+" "+testModules, within(imported)):
		return fmt.Sprintf("tests of package %s import %s, which neither testModules nor the package's line in mayImport (internal/arch_test.go) allows", s.folder, imported)
	}
	return ""
}

// isStandard reports whether a package is in the standard library: the first
// part of its path has no dot.
func isStandard(imported string) bool {
	first, _, _ := strings.Cut(imported, "/")
	return !strings.Contains(first, ".")
}

// ownFolder returns the folder of a package of this module.
func ownFolder(imported string) (folder string, ok bool) {
	if imported == module {
		return ".", true
	}
	return strings.CutPrefix(imported, module+"/")
}

// within returns a function that reports whether a package is in a module.
func within(imported string) func(string) bool {
	return func(module string) bool {
		return imported == module || strings.HasPrefix(imported, module+"/")
	}
}

// lists reports whether a list of an allowance has an element that matches.
func lists(list string, match func(string) bool) bool {
	return slices.ContainsFunc(strings.Fields(list), func(element string) bool { return element == anything || match(element) })
}
