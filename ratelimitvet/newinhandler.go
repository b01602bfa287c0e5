package ratelimitvet

import (
	"go/ast"
	"go/types"
	"slices"

	"golang.org/x/tools/go/analysis"
)

// NewInHandler reports limiters and stores that are made in an HTTP handler.
var NewInHandler = &analysis.Analyzer{
	Name: "newinhandler",
	Doc: "report limiters and stores that are made in an HTTP handler\n\n" +
		"The second request would make a second limiter of the same name, which is refused. Make the limiter once, where the routes are built.",
	FactTypes: []analysis.Fact{new(makes)},
	Run:       runNewInHandler,
}

// makes is a fact about functions that make a limiter or a store and return it.
type makes struct{}

func (*makes) AFact()         {}
func (*makes) String() string { return "makes" }

func runNewInHandler(pass *analysis.Pass) (any, error) {
	makesOne := func(f *types.Func) bool {
		return isNew(f) || isFunc(f, "NewMemoryStore", "NewRedisStore") || f != nil && pass.ImportObjectFact(f, new(makes))
	}
	// A function that returns what it makes is a maker. Its callers may be makers, too.
	for again := true; again; {
		again = false
		inspect(pass, func(n ast.Node, around []ast.Node) {
			call, ok := n.(*ast.CallExpr)
			if !ok || !makesOne(called(pass, call)) {
				return
			}
			for i := len(around) - 1; i >= 0; i-- {
				if _, isLit := around[i].(*ast.FuncLit); isLit {
					return
				}
				decl, ok := around[i].(*ast.FuncDecl)
				if !ok {
					continue
				}
				f := pass.TypesInfo.Defs[decl.Name].(*types.Func)
				if !returnsLimiter(f) || pass.ImportObjectFact(f, new(makes)) {
					return
				}
				pass.ExportObjectFact(f, new(makes))
				again = true
				return
			}
		})
	}
	inspect(pass, func(n ast.Node, around []ast.Node) {
		call, ok := n.(*ast.CallExpr)
		if !ok || !makesOne(called(pass, call)) || !inHandler(pass, around) {
			return
		}
		reportf(pass, call.Pos(), "%s in an HTTP handler: a second request would make a second one, which is refused; make it once, where the routes are built",
			source(pass, call.Fun))
	})
	return nil, nil
}

// returnsLimiter reports whether a function returns a limiter or one of the library's
// stores.
func returnsLimiter(f *types.Func) bool {
	for v := range f.Signature().Results().Variables() {
		for _, name := range []string{"Limiter", "Store", "RemoteStore", "MemoryStore", "RedisStore"} {
			if isType(v.Type(), name) {
				return true
			}
		}
	}
	return false
}

// inHandler reports whether a node is executed by an HTTP handler in each request. A
// function inside of the handler that gets a registry is for Reload, and one for
// sync.Once, sync.OnceFunc and sync.OnceValue runs once.
func inHandler(pass *analysis.Pass, around []ast.Node) bool {
	for i := len(around) - 1; i >= 0; i-- {
		var f *types.Signature
		switch n := around[i].(type) {
		case *ast.FuncLit:
			f, _ = pass.TypesInfo.TypeOf(n).(*types.Signature)
			if i > 0 {
				if call, ok := around[i-1].(*ast.CallExpr); ok && runsOnce(called(pass, call)) {
					return false
				}
			}
		case *ast.FuncDecl:
			if obj, ok := pass.TypesInfo.Defs[n.Name].(*types.Func); ok {
				f = obj.Signature()
			}
		}
		if f == nil {
			continue
		}
		for p := range f.Params().Variables() {
			if isType(p.Type(), "Registry") {
				return false
			}
		}
		if handlesHTTP(f) || f.Params().Len() == 1 && slices.Contains(contexts, f.Params().At(0).Type().String()) {
			return true
		}
	}
	return false
}

// contexts are what handlers of frameworks get in place of a response and a request.
var contexts = []string{
	"*github.com/gin-gonic/gin.Context",
	"*github.com/labstack/echo/v5.Context",
	"github.com/labstack/echo/v4.Context",
	"github.com/gofiber/fiber/v3.Ctx",
	"*github.com/gofiber/fiber/v2.Ctx",
}

func runsOnce(f *types.Func) bool {
	if f == nil || f.Pkg() == nil || f.Pkg().Path() != "sync" {
		return false
	}
	switch f.Name() {
	case "Do", "OnceFunc", "OnceValue", "OnceValues":
		return true
	}
	return false
}
