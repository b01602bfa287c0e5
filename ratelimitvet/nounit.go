package ratelimitvet

import (
	"fmt"
	"go/ast"
	"go/constant"
	"go/types"
	"math"
	"time"

	"golang.org/x/tools/go/analysis"
)

// NoUnit reports durations without a unit.
var NoUnit = &analysis.Analyzer{
	Name: "nounit",
	Doc:  "report durations of limits and options that are written without a unit\n\nFixedWindow(5, 60) has a window of 60 nanoseconds.",
	Run: func(pass *analysis.Pass) (any, error) {
		inspect(pass, func(n ast.Node, _ []ast.Node) {
			switch n := n.(type) {
			case *ast.CallExpr:
				f := called(pass, n)
				if f == nil || f.Pkg() == nil || f.Pkg().Path() != root {
					return
				}
				for _, arg := range n.Args {
					checkUnit(pass, arg, true)
				}
			case *ast.CompositeLit:
				if t := pass.TypesInfo.TypeOf(n); t == nil || !isType(t, "Options") && !isType(t, "MemoryOptions") {
					return
				}
				for _, element := range n.Elts {
					if field, ok := element.(*ast.KeyValueExpr); ok {
						checkUnit(pass, field.Value, false)
					}
				}
			}
		})
		return nil, nil
	},
}

// checkUnit reports a constant duration that is a bare number. A negative one is a
// setting, such as no time at all, and has no unit. A window is most likely meant to be
// in seconds; an option such as Timeout may be in milliseconds, and has no suggested fix.
func checkUnit(pass *analysis.Pass, e ast.Expr, window bool) {
	tv := pass.TypesInfo.Types[e]
	if tv.Value == nil || tv.Type == nil || !isDuration(tv.Type) || constant.Sign(tv.Value) <= 0 || hasUnit(pass, e) {
		return
	}
	value, _ := constant.Int64Val(tv.Value)
	if value == math.MaxInt64 { // for ever
		return
	}
	d := analysis.Diagnostic{
		Pos: e.Pos(), End: e.End(),
		Message: fmt.Sprintf("%s is a duration of %v: write its unit, as in %s*time.Second", source(pass, e), time.Duration(value), source(pass, e)),
	}
	if _, isLiteral := ast.Unparen(e).(*ast.BasicLit); isLiteral && window && imported(pass, e, "time") {
		d.SuggestedFixes = fix("Make it seconds", e, source(pass, e)+"*time.Second")
	}
	report(pass, d)
}

func isDuration(t types.Type) bool {
	named, ok := types.Unalias(t).(*types.Named)
	return ok && named.Obj().Name() == "Duration" && named.Obj().Pkg() != nil && named.Obj().Pkg().Path() == "time"
}

// hasUnit reports whether a constant has a part that somebody has given the type
// Duration, such as time.Second or a constant of one's own.
func hasUnit(pass *analysis.Pass, e ast.Expr) (has bool) {
	ast.Inspect(e, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.Ident:
			c, ok := pass.TypesInfo.Uses[n].(*types.Const)
			has = has || ok && isDuration(c.Type())
		case *ast.CallExpr: // a conversion, such as time.Duration(60), is no unit
			has = has || !pass.TypesInfo.Types[n.Fun].IsType()
		}
		return true
	})
	return has
}

// imported reports whether the file around a node imports a package under its own name.
func imported(pass *analysis.Pass, n ast.Node, path string) bool {
	for _, file := range pass.Files {
		if file.FileStart <= n.Pos() && n.Pos() < file.FileEnd {
			for _, spec := range file.Imports {
				if spec.Name == nil && spec.Path.Value == `"`+path+`"` {
					return true
				}
			}
		}
	}
	return false
}
