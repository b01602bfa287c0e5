package ratelimitvet

import (
	"fmt"
	"go/ast"
	"go/types"
	"net/textproto"
	"slices"

	"golang.org/x/tools/go/analysis"
)

// RawAddress reports keys that read the address of a request, or a forwarding header,
// by themselves.
var RawAddress = &analysis.Analyzer{
	Name: "rawaddress",
	Doc: "report functions for Options.Key that read RemoteAddr or a forwarding header by themselves\n\n" +
		"RemoteAddr has a port, so each connection would have a counter of its own. A forwarding header can be written by any client. ratelimit.ClientIP does it right.",
	Run: runRawAddress,
}

// forwardingHeaders are the header fields in which proxies write their client's address.
var forwardingHeaders = []string{
	"X-Forwarded-For", "X-Real-Ip", "Forwarded", "Cf-Connecting-Ip", "Cf-Connecting-Ipv6", "True-Client-Ip", "X-Client-Ip", "X-Cluster-Client-Ip",
	"Fastly-Client-Ip", "Fly-Client-Ip", "X-Azure-Clientip", "X-Azure-Socketip", "X-Appengine-User-Ip", "X-Original-Forwarded-For", "X-Envoy-External-Address",
	"Cloudfront-Viewer-Address",
}

func runRawAddress(pass *analysis.Pass) (any, error) {
	declared := map[types.Object]*ast.FuncDecl{}
	inspect(pass, func(n ast.Node, _ []ast.Node) {
		if f, ok := n.(*ast.FuncDecl); ok && f.Body != nil {
			declared[pass.TypesInfo.Defs[f.Name]] = f
		}
	})
	reported := map[ast.Node]bool{} // a function may be a key at several places
	check := func(e ast.Expr) {
		switch e := ast.Unparen(e).(type) {
		case *ast.FuncLit:
			checkKey(pass, e, e.Type, e.Body, reported)
		case *ast.Ident:
			if f := declared[pass.TypesInfo.Uses[e]]; f != nil {
				checkKey(pass, nil, f.Type, f.Body, reported)
			}
		case *ast.SelectorExpr:
			if f := declared[pass.TypesInfo.Uses[e.Sel]]; f != nil {
				checkKey(pass, nil, f.Type, f.Body, reported)
			}
		}
	}
	inspect(pass, func(n ast.Node, _ []ast.Node) {
		switch n := n.(type) {
		case *ast.CallExpr:
			f := called(pass, n)
			if isFunc(f, "HeaderKey") && len(n.Args) == 1 {
				if name, ok := text(pass, n.Args[0]); ok && isForwarding(name) {
					reportf(pass, n.Pos(), "HeaderKey(%q) trusts what any client writes: use ratelimit.ClientIP with this Header, and TrustedProxies or TrustedHops", name)
				}
			}
			if isFunc(f, "FirstKey", "JoinKeys", "NamedKey") || pass.TypesInfo.Types[n.Fun].IsType() && isType(pass.TypesInfo.TypeOf(n), "KeyFunc") {
				for _, arg := range n.Args {
					check(arg)
				}
			}
		case *ast.CompositeLit:
			if t := pass.TypesInfo.TypeOf(n); t == nil || !isType(t, "Options") {
				return
			}
			for _, element := range n.Elts {
				if field, ok := element.(*ast.KeyValueExpr); ok && isName(field.Key, "Key") {
					check(field.Value)
				}
			}
		case *ast.AssignStmt:
			for i, left := range n.Lhs {
				if s, ok := left.(*ast.SelectorExpr); ok && len(n.Lhs) == len(n.Rhs) && s.Sel.Name == "Key" && isType(pass.TypesInfo.TypeOf(s.X), "Options") {
					check(n.Rhs[i])
				}
			}
		}
	})
	return nil, nil
}

// checkKey reports what the body of a key function reads. literal is nil if the function
// is declared elsewhere.
func checkKey(pass *analysis.Pass, literal *ast.FuncLit, f *ast.FuncType, body *ast.BlockStmt, reported map[ast.Node]bool) {
	if len(f.Params.List) != 1 || reported[body] {
		return
	}
	reported[body] = true
	var reads []analysis.Diagnostic
	others := false // whether it reads anything else of the request
	ast.Inspect(body, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.SelectorExpr:
			if t := pass.TypesInfo.TypeOf(n.X); t == nil || t.String() != "*net/http.Request" {
				return true
			}
			if n.Sel.Name == "RemoteAddr" {
				reads = append(reads, analysis.Diagnostic{Pos: n.Pos(), End: n.End(), Message: "this key reads RemoteAddr by itself: it is a proxy's address or has a port, and an IPv6 client has 2^64 of them; use ratelimit.ClientIP{}.Key"})
			} else {
				others = true
			}
		case *ast.CallExpr: // r.Header.Get("X-Forwarded-For"), or Values
			s, ok := n.Fun.(*ast.SelectorExpr)
			if !ok || len(n.Args) != 1 || pass.TypesInfo.TypeOf(s.X) == nil || pass.TypesInfo.TypeOf(s.X).String() != "net/http.Header" {
				return true
			}
			if name, ok := text(pass, n.Args[0]); ok && isForwarding(name) {
				reads = append(reads, forwarding(n, name))
			}
		case *ast.IndexExpr: // r.Header["X-Forwarded-For"]
			if t := pass.TypesInfo.TypeOf(n.X); t != nil && t.String() == "net/http.Header" {
				if name, ok := text(pass, n.Index); ok && isForwarding(name) {
					reads = append(reads, forwarding(n, name))
				}
			}
		}
		return true
	})
	for i, d := range reads {
		if literal != nil && i == 0 && len(reads) == 1 && !others {
			d.SuggestedFixes = fix("Use ratelimit.ClientIP", literal, "ratelimit.ClientIP{}.Key")
		}
		report(pass, d)
	}
}

func forwarding(n ast.Node, name string) analysis.Diagnostic {
	return analysis.Diagnostic{Pos: n.Pos(), End: n.End(), Message: fmt.Sprintf(
		"this key reads %s by itself: any client can write it; use ratelimit.ClientIP with TrustedProxies or TrustedHops", name)}
}

func isForwarding(name string) bool {
	return slices.Contains(forwardingHeaders, textproto.CanonicalMIMEHeaderKey(name))
}

func isName(e ast.Expr, name string) bool {
	id, ok := e.(*ast.Ident)
	return ok && id.Name == name
}
