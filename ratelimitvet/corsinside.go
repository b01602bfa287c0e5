package ratelimitvet

import (
	"go/ast"
	"slices"
	"strings"

	"golang.org/x/tools/go/analysis"
)

// CORSInside reports CORS middleware inside of a limiter, if both are in one expression.
var CORSInside = &analysis.Analyzer{
	Name: "corsinside",
	Doc: "report CORS middleware inside of a limiter\n\n" +
		"A denial then has no CORS fields, so that scripts of other origins cannot read it, and preflights are counted.",
	Run: func(pass *analysis.Pass) (any, error) {
		inspect(pass, func(n ast.Node, _ []ast.Node) {
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return
			}
			if isMethod(called(pass, call), "Limiter", "Middleware") && len(call.Args) == 1 {
				if inner, ok := ast.Unparen(call.Args[0]).(*ast.CallExpr); ok {
					if cors := corsCall(pass, inner); cors != nil {
						reportCORS(pass, call, inner, cors)
					}
				}
				return
			}
			// A list of middleware, such as router.Use(limiter.Middleware, cors.Handler(...)): the first one is
			// the outermost one.
			limiter := false
			for _, arg := range call.Args {
				if selector, ok := ast.Unparen(arg).(*ast.SelectorExpr); ok {
					if s := pass.TypesInfo.Selections[selector]; s != nil && selector.Sel.Name == "Middleware" && isType(s.Recv(), "Limiter") {
						limiter = true
						continue
					}
				}
				if limiter && namesCORS(pass, arg) {
					reportf(pass, arg.Pos(), "%s: put it before the limiter's Middleware", corsMessage)
				}
			}
		})
		return nil, nil
	},
}

const corsMessage = "CORS middleware inside of a limiter: scripts of other origins cannot read a denial, and preflights are counted"

// reportCORS reports limiter.Middleware(cors(h)).
func reportCORS(pass *analysis.Pass, limiter, inner, cors *ast.CallExpr) {
	d := analysis.Diagnostic{Pos: limiter.Pos(), End: limiter.End(), Message: corsMessage + ": wrap it around the limiter"}
	if cors == inner && len(inner.Args) == 1 {
		outside, within := source(pass, inner.Fun), source(pass, limiter.Fun)
		d.SuggestedFixes = fix("Wrap it around the limiter", limiter, outside+"("+within+"("+source(pass, inner.Args[0])+"))")
	}
	report(pass, d)
}

// corsCall returns the call that is CORS middleware: call itself, or one in the
// arguments of other middleware between.
func corsCall(pass *analysis.Pass, call *ast.CallExpr) *ast.CallExpr {
	if isMethod(called(pass, call), "Limiter", "Middleware") {
		return nil // another limiter: it is reported by itself
	}
	if namesCORS(pass, call.Fun) && slices.ContainsFunc(call.Args, func(arg ast.Expr) bool { return isHandler(pass.TypesInfo.TypeOf(arg)) }) {
		return call
	}
	for _, arg := range call.Args {
		if inner, ok := ast.Unparen(arg).(*ast.CallExpr); ok {
			if found := corsCall(pass, inner); found != nil {
				return found
			}
		}
	}
	return nil
}

// namesCORS reports whether an expression is of a package, function, variable or type
// that has CORS in its name. That is so for github.com/rs/cors, github.com/go-chi/cors,
// github.com/jub0bs/cors and handlers.CORS of github.com/gorilla/handlers.
func namesCORS(pass *analysis.Pass, e ast.Expr) (found bool) {
	ast.Inspect(e, func(n ast.Node) bool {
		if _, isFunc := n.(*ast.FuncLit); isFunc {
			return false
		}
		id, ok := n.(*ast.Ident)
		if !ok || found {
			return !found
		}
		names := []string{id.Name}
		if obj := pass.TypesInfo.Uses[id]; obj != nil {
			if t := obj.Type(); t != nil {
				names = append(names, t.String()[strings.LastIndexByte(t.String(), '/')+1:])
			}
		}
		for _, name := range names {
			if hasWord(name, "cors") {
				found = true
			}
		}
		return !found
	})
	return found
}

// hasWord reports whether a word is at the beginning of a name, or after a capital
// letter: "cors", "withCORS" and "corsHandler" have the word cors, "scorsese" does not.
func hasWord(name, word string) bool {
	for i := 0; i+len(word) <= len(name); i++ {
		if !strings.EqualFold(name[i:i+len(word)], word) {
			continue
		}
		before := i == 0 || !isLetter(name[i-1]) || 'A' <= name[i] && name[i] <= 'Z'
		rest := name[i+len(word):]
		after := rest == "" || !isLetter(rest[0]) || 'A' <= rest[0] && rest[0] <= 'Z'
		if before && after {
			return true
		}
	}
	return false
}

func isLetter(c byte) bool { return 'a' <= c|0x20 && c|0x20 <= 'z' }
