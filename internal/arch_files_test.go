package internal_test

import (
	"cmp"
	"fmt"
	"go/ast"
	"go/build"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// A fileGraph has, for each file of a package, the files that it depends on.
// A file depends on another one if it uses a name that the other one declares:
// of the package, of a method, or of a struct's field. Uses are in the order of
// their lines, with the first use of each name only.
type fileGraph map[string]map[string][]use

// A use is a name, such as "Limiter.Take", and where a file uses it first.
type use struct {
	name string
	line int
}

// filesOf returns the graph of the root package's files, without tests, as they
// are built in the given context.
//
// The package and all that it imports are type-checked from their sources. Of
// imported packages, only the declarations are. Packages of other modules are
// taken to be empty, so that their sources need not be there: the checker
// passes over what it cannot resolve then. No dependency between files is lost,
// as long as no value of the package's own types passes through a generic
// function of another module.
func filesOf(fsys fs.FS, context build.Context) (fileGraph, error) {
	context.CgoEnabled = false
	c := &checker{fsys: fsys, context: context, fset: token.NewFileSet(), imported: map[string]*types.Package{
		module: types.NewPackage(module, "ratelimit"), // for a package that imports the root: TestImports reports it
	}}
	files, err := c.parse(fsys, ".")
	if err != nil {
		return nil, err
	}
	info := &types.Info{Uses: map[*ast.Ident]types.Object{}}
	c.check(module, files, info)
	if c.err != nil {
		return nil, c.err
	}

	g := fileGraph{}
	names := map[token.Pos]string{}
	for _, file := range files {
		g[c.fset.Position(file.Pos()).Filename] = map[string][]use{}
		qualifiedNames(file, names)
	}
	for ident, object := range info.Uses {
		if object.Pkg() == nil || object.Pkg().Path() != module {
			continue
		}
		from, to := c.fset.Position(ident.Pos()), c.fset.Position(object.Pos())
		if from.Filename == to.Filename || !to.IsValid() {
			continue
		}
		name := cmp.Or(names[object.Pos()], object.Name())
		g[from.Filename][to.Filename] = append(g[from.Filename][to.Filename], use{name, from.Line})
	}
	for _, dependencies := range g {
		for file, uses := range dependencies {
			dependencies[file] = firstUses(uses)
		}
	}
	return g, nil
}

// firstUses keeps the first use of each name, in the order of lines.
func firstUses(uses []use) []use {
	slices.SortFunc(uses, func(a, b use) int { return cmp.Or(cmp.Compare(a.name, b.name), cmp.Compare(a.line, b.line)) })
	uses = slices.CompactFunc(uses, func(a, b use) bool { return a.name == b.name })
	slices.SortStableFunc(uses, func(a, b use) int { return cmp.Compare(a.line, b.line) })
	return uses
}

// qualifiedNames adds the names of a file's methods and fields with the type
// that they belong to, by the position of their declaration.
func qualifiedNames(file *ast.File, names map[token.Pos]string) {
	for _, decl := range file.Decls {
		switch decl := decl.(type) {
		case *ast.FuncDecl:
			if decl.Recv == nil {
				continue
			}
			receiver := strings.TrimPrefix(types.ExprString(decl.Recv.List[0].Type), "*")
			receiver, _, _ = strings.Cut(receiver, "[")
			names[decl.Name.Pos()] = receiver + "." + decl.Name.Name
		case *ast.GenDecl:
			for _, spec := range decl.Specs {
				spec, ok := spec.(*ast.TypeSpec)
				if !ok {
					continue
				}
				ast.Inspect(spec.Type, func(n ast.Node) bool {
					if field, ok := n.(*ast.Field); ok {
						for _, name := range field.Names {
							names[name.Pos()] = spec.Name.Name + "." + name.Name
						}
					}
					return true
				})
			}
		}
	}
}

// A checker type-checks packages from their sources, each once. It is the
// types.Importer of the packages that it checks.
type checker struct {
	fsys     fs.FS // the module
	context  build.Context
	fset     *token.FileSet
	imported map[string]*types.Package
	err      error // the first package that could not be read
}

// parse parses the files of a folder that the context builds, without tests.
func (c *checker) parse(fsys fs.FS, folder string) ([]*ast.File, error) {
	context := c.context
	context.JoinPath = path.Join
	context.OpenFile = func(name string) (io.ReadCloser, error) { return fsys.Open(name) }
	entries, err := fs.ReadDir(fsys, folder)
	if err != nil {
		return nil, err
	}
	var files []*ast.File
	for _, entry := range entries {
		name := path.Join(folder, entry.Name())
		if path.Ext(name) != ".go" || strings.HasSuffix(name, "_test.go") {
			continue
		}
		if built, err := context.MatchFile(folder, entry.Name()); err != nil || !built {
			if err != nil {
				return nil, err
			}
			continue
		}
		text, err := fs.ReadFile(fsys, name)
		if err != nil {
			return nil, err
		}
		file, err := parser.ParseFile(c.fset, name, text, parser.SkipObjectResolution)
		if err != nil {
			return nil, err
		}
		files = append(files, file)
	}
	return files, nil
}

// check type-checks a package, as far as that is possible. Without info, it
// leaves out the bodies of functions.
func (c *checker) check(importPath string, files []*ast.File, info *types.Info) *types.Package {
	config := types.Config{
		Importer:         c,
		IgnoreFuncBodies: info == nil,
		Error:            func(error) {}, // packages of other modules are empty
	}
	checked, _ := config.Check(importPath, c.fset, files, info)
	return checked
}

// Import is for the type checker.
func (c *checker) Import(importPath string) (*types.Package, error) {
	if importPath == "unsafe" {
		return types.Unsafe, nil
	}
	if known := c.imported[importPath]; known != nil {
		return known, nil
	}
	var files []*ast.File
	var err error
	if folder, ok := ownFolder(importPath); ok {
		files, err = c.parse(c.fsys, folder)
	} else if isStandard(importPath) {
		files, err = c.parse(os.DirFS(filepath.Join(c.context.GOROOT, "src")), importPath)
	} else if vendored := path.Join("vendor", importPath); strings.HasPrefix(importPath, "golang.org/x/") {
		// The standard library has its own copies of some of these packages.
		files, _ = c.parse(os.DirFS(filepath.Join(c.context.GOROOT, "src")), vendored)
	}
	if err != nil {
		if c.err == nil {
			c.err = fmt.Errorf("import %s: %w", importPath, err)
		}
		return nil, err
	}
	c.imported[importPath] = types.NewPackage(importPath, path.Base(importPath)) // ends a cycle of imports
	c.imported[importPath] = c.check(importPath, files, nil)
	return c.imported[importPath], nil
}

// cycles returns the groups of files that depend on each other, directly or
// through other files of the group.
func (g fileGraph) cycles() [][]string {
	reached := map[string]map[string]bool{}
	for file := range g {
		reached[file] = map[string]bool{}
		g.reach(file, reached[file])
	}
	var groups [][]string
	grouped := map[string]bool{}
	for _, file := range slices.Sorted(maps.Keys(g)) {
		if grouped[file] || !reached[file][file] {
			continue
		}
		var group []string
		for _, other := range slices.Sorted(maps.Keys(reached[file])) {
			if reached[other][file] {
				group = append(group, other)
				grouped[other] = true
			}
		}
		groups = append(groups, group)
	}
	return groups
}

// reach adds the files that a file depends on, directly or through others.
func (g fileGraph) reach(file string, reached map[string]bool) {
	for dependency := range g[file] {
		if !reached[dependency] {
			reached[dependency] = true
			g.reach(dependency, reached)
		}
	}
}

// checkCycles returns a problem for each cycle that is not within an allowed
// one, and for each allowed one that is no cycle any more.
func checkCycles(g fileGraph, allowed [][]string) []string {
	var problems []string
	cycles := g.cycles()
	for _, cycle := range cycles {
		if !slices.ContainsFunc(allowed, func(a []string) bool { return containsAll(a, cycle) }) {
			problems = append(problems, g.describe(cycle, allowed))
		}
	}
	for _, a := range allowed {
		if !slices.ContainsFunc(cycles, func(cycle []string) bool { return containsAll(cycle, a) }) {
			problems = append(problems, fmt.Sprintf("allowedCycles (internal/arch_test.go) lists %s, but not all of them are in one cycle now: list only the files that are", strings.Join(a, ", ")))
		}
	}
	return problems
}

// describe lists the dependencies of a cycle, with an example for each. It
// leaves out those within an allowed cycle.
func (g fileGraph) describe(cycle []string, allowed [][]string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "these files of the root package depend on each other, which allowedCycles (internal/arch_test.go) does not allow: %s", strings.Join(cycle, ", "))
	for _, from := range cycle {
		for _, to := range cycle {
			uses := g[from][to]
			if len(uses) == 0 || slices.ContainsFunc(allowed, func(a []string) bool { return containsAll(a, []string{from, to}) }) {
				continue
			}
			fmt.Fprintf(&b, "\n\t%s:%d uses %s of %s", from, uses[0].line, uses[0].name, to)
			if len(uses) > 1 {
				fmt.Fprintf(&b, ", and %d more", len(uses)-1)
			}
		}
	}
	return b.String()
}

// String lists all dependencies, each name with the line that uses it first. An
// asterisk marks dependencies within a cycle.
func (g fileGraph) String() string {
	cycles := g.cycles()
	var b strings.Builder
	for _, from := range slices.Sorted(maps.Keys(g)) {
		fmt.Fprintf(&b, "%s\n", from)
		for _, to := range slices.Sorted(maps.Keys(g[from])) {
			mark := ' '
			if slices.ContainsFunc(cycles, func(cycle []string) bool { return containsAll(cycle, []string{from, to}) }) {
				mark = '*'
			}
			fmt.Fprintf(&b, "\t%c %s:", mark, to)
			for _, use := range g[from][to] {
				fmt.Fprintf(&b, " %s:%d", use.name, use.line)
			}
			b.WriteByte('\n')
		}
	}
	return b.String()
}

func containsAll(all, some []string) bool {
	return !slices.ContainsFunc(some, func(file string) bool { return !slices.Contains(all, file) })
}
