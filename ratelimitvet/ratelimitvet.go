// Package ratelimitvet finds mistakes with package ratelimit before a program runs:
//
//   - sharedstore: one store, or one prefix, that is given to two limiters
//   - newinhandler: a limiter or store that is made in an HTTP handler
//   - rawaddress: a key that reads RemoteAddr or a forwarding header by itself
//   - ignoredcheck: a result of Limiter.Check that nobody looks at
//   - nounit: a duration without a unit, as in FixedWindow(5, 60)
//   - corsinside: CORS middleware inside of a limiter
//
// The command is in cmd/ratelimitvet:
//
//	go install github.com/ratelimit-go/ratelimit/ratelimitvet/cmd/ratelimitvet@latest
//	go vet -vettool=$(which ratelimitvet) ./...
//
// The analyzers look at one package at a time, and know which functions of other packages
// give a store to a limiter. They report what is certainly wrong if the code
// runs, and stay silent where they cannot know. They do not look at test files, which may
// build on purpose what must be refused. A comment keeps one of them from reporting a line, or the
// line after it:
//
//	//ratelimitvet:ignore this store is shared to show what happens
package ratelimitvet

import (
	"fmt"
	"go/ast"
	"go/constant"
	"go/token"
	"go/types"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/tools/go/analysis"
	"golang.org/x/tools/go/types/typeutil"
)

// Analyzers returns all analyzers.
func Analyzers() []*analysis.Analyzer {
	return []*analysis.Analyzer{SharedStore, NewInHandler, RawAddress, IgnoredCheck, NoUnit, CORSInside}
}

// root is the path of the library's package.
const root = "github.com/ratelimit-go/ratelimit"

// A visit is a node of the syntax tree with the nodes around it, the outermost first.
type visit func(n ast.Node, around []ast.Node)

// inspect visits all nodes of a package's files except test files.
func inspect(pass *analysis.Pass, f visit) {
	for _, file := range pass.Files {
		if strings.HasSuffix(pass.Fset.File(file.FileStart).Name(), "_test.go") {
			continue
		}
		var around []ast.Node
		ast.Inspect(file, func(n ast.Node) bool {
			if n == nil {
				around = around[:len(around)-1]
				return true
			}
			f(n, around)
			around = append(around, n)
			return true
		})
	}
}

// called returns the function or method that a call calls, if it is declared somewhere.
func called(pass *analysis.Pass, call *ast.CallExpr) *types.Func {
	return typeutil.StaticCallee(pass.TypesInfo, call)
}

// isFunc reports whether f is a function of the library's root package with one of the
// names.
func isFunc(f *types.Func, names ...string) bool {
	return f != nil && f.Pkg() != nil && f.Pkg().Path() == root && f.Signature().Recv() == nil && slices.Contains(names, f.Name())
}

// isMethod reports whether f is a method of a type of the library's root package.
func isMethod(f *types.Func, typ string, names ...string) bool {
	return f != nil && f.Signature().Recv() != nil && isType(f.Signature().Recv().Type(), typ) && slices.Contains(names, f.Name())
}

// isNew reports whether f makes a limiter.
func isNew(f *types.Func) bool { return isFunc(f, "New") || isMethod(f, "Registry", "New") }

// isType reports whether t, or what it points to, is a type of the library's root
// package.
func isType(t types.Type, name string) bool {
	if p, ok := types.Unalias(t).(*types.Pointer); ok {
		t = p.Elem()
	}
	named, ok := types.Unalias(t).(*types.Named)
	if !ok {
		return false
	}
	obj := named.Obj()
	return obj.Name() == name && obj.Pkg() != nil && obj.Pkg().Path() == root
}

// isHandler reports whether values of a type serve HTTP: they are an http.Handler, or a
// function with its parameters.
func isHandler(t types.Type) bool {
	if t == nil {
		return false
	}
	obj, _, _ := types.LookupFieldOrMethod(t, true, nil, "ServeHTTP")
	if f, ok := obj.(*types.Func); ok {
		return handlesHTTP(f.Signature())
	}
	f, ok := t.Underlying().(*types.Signature)
	return ok && handlesHTTP(f)
}

// handlesHTTP reports whether a function has the parameters of an HTTP handler.
func handlesHTTP(f *types.Signature) bool {
	p := f.Params()
	return p.Len() == 2 && p.At(0).Type().String() == "net/http.ResponseWriter" && p.At(1).Type().String() == "*net/http.Request"
}

// text returns the value of a constant string.
func text(pass *analysis.Pass, e ast.Expr) (string, bool) {
	v := pass.TypesInfo.Types[e].Value
	if v == nil || v.Kind() != constant.String {
		return "", false
	}
	return constant.StringVal(v), true
}

// source returns the text of a node.
func source(pass *analysis.Pass, n ast.Node) string {
	file := pass.Fset.File(n.Pos())
	content, err := pass.ReadFile(file.Name())
	if err != nil {
		return ""
	}
	return string(content[file.Offset(n.Pos()):file.Offset(n.End())])
}

// report reports a mistake, unless its line or the line before has the comment
//
//	//ratelimitvet:ignore reason
func report(pass *analysis.Pass, d analysis.Diagnostic) {
	at := pass.Fset.Position(d.Pos)
	for _, file := range pass.Files {
		if d.Pos < file.FileStart || file.FileEnd <= d.Pos {
			continue
		}
		for _, group := range file.Comments {
			for _, c := range group.List {
				reason, ok := strings.CutPrefix(c.Text, "//ratelimitvet:ignore ")
				lines := at.Line - pass.Fset.Position(c.Pos()).Line
				if ok && strings.TrimSpace(reason) != "" && (lines == 0 || lines == 1) {
					return
				}
			}
		}
	}
	pass.Report(d)
}

func reportf(pass *analysis.Pass, pos token.Pos, format string, args ...any) {
	report(pass, analysis.Diagnostic{Pos: pos, Message: fmt.Sprintf(format, args...)})
}

// fix returns a suggested fix that replaces a node.
func fix(message string, n ast.Node, text string) []analysis.SuggestedFix {
	return []analysis.SuggestedFix{{Message: message, TextEdits: []analysis.TextEdit{{Pos: n.Pos(), End: n.End(), NewText: []byte(text)}}}}
}

// line returns where a position is, as file:line without folders.
func line(pass *analysis.Pass, pos token.Pos) string {
	p := pass.Fset.Position(pos)
	return p.Filename[strings.LastIndexAny(p.Filename, `/\`)+1:] + ":" + strconv.Itoa(p.Line)
}
