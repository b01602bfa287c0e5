package ratelimitvet

import (
	"go/ast"

	"golang.org/x/tools/go/analysis"
)

// IgnoredCheck reports calls of Limiter.Check whose result nobody looks at.
var IgnoredCheck = &analysis.Analyzer{
	Name: "ignoredcheck",
	Doc:  "report calls of Limiter.Check whose result is ignored\n\nIf Check returns false, it has answered the request, and the handler must return.",
	Run: func(pass *analysis.Pass) (any, error) {
		inspect(pass, func(n ast.Node, around []ast.Node) {
			var call *ast.CallExpr
			switch n := n.(type) {
			case *ast.ExprStmt:
				call, _ = ast.Unparen(n.X).(*ast.CallExpr)
			case *ast.AssignStmt:
				if len(n.Lhs) == 1 && len(n.Rhs) == 1 {
					if name, ok := n.Lhs[0].(*ast.Ident); ok && name.Name == "_" {
						call, _ = ast.Unparen(n.Rhs[0]).(*ast.CallExpr)
					}
				}
			case *ast.GoStmt:
				call = n.Call
			case *ast.DeferStmt:
				call = n.Call
			}
			if call == nil || !isMethod(called(pass, call), "Limiter", "Check") {
				return
			}
			d := analysis.Diagnostic{
				Pos: n.Pos(), End: n.End(),
				Message: "the result of Check is ignored: a denied request has its answer, and goes on to the handler nevertheless; return if Check returns false",
			}
			switch n.(type) {
			case *ast.ExprStmt, *ast.AssignStmt:
				if returnsNothing(around) {
					d.SuggestedFixes = fix("Return if the request is denied", n, "if !"+source(pass, call)+" {\n\treturn\n}")
				}
			}
			report(pass, d)
		})
		return nil, nil
	},
}

// returnsNothing reports whether the innermost function has no results.
func returnsNothing(around []ast.Node) bool {
	for i := len(around) - 1; i >= 0; i-- {
		switch f := around[i].(type) {
		case *ast.FuncLit:
			return f.Type.Results == nil
		case *ast.FuncDecl:
			return f.Type.Results == nil
		}
	}
	return false
}
