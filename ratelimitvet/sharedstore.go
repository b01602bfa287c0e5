package ratelimitvet

import (
	"fmt"
	"go/ast"
	"go/token"
	"go/types"
	"slices"

	"golang.org/x/tools/go/analysis"
)

// SharedStore reports a store, or a prefix, that is given to two limiters.
//
// A store that is given to New is traced back to its origin: a variable, a field, a
// parameter, or a constructor with a constant prefix. Two calls of New with one origin
// share it, unless only one of them can run. A function that gives a parameter to New
// does so for its callers: it has a fact, also for other packages. What cannot be traced
// is not reported.
var SharedStore = &analysis.Analyzer{
	Name:      "sharedstore",
	Doc:       "report stores and prefixes that are given to two limiters\n\nTwo limiters on one store count into each other. The second one is refused when the program runs.",
	FactTypes: []analysis.Fact{new(givesStore)},
	Run:       runSharedStore,
}

// givesStore is a fact about a function that makes a limiter with a store that it was
// given.
type givesStore struct{ Param int }

func (*givesStore) AFact()           {}
func (f *givesStore) String() string { return fmt.Sprintf("givesStore(%d)", f.Param) }

// An origin is where a store comes from. Two origins that are equal are one store, or two
// with one prefix.
type origin struct {
	object types.Object // a variable, field or parameter; or nil
	base   types.Object // of a field: the variable, or the type of the receiver
	prefix string       // of a constructor with a constant prefix, if object is nil
}

// A use is a call that gives a store to a limiter.
type use struct {
	call   *ast.CallExpr
	around []ast.Node
	origin origin
	name   string // of the limiter; empty if it is not constant
}

type sharedStore struct {
	pass   *analysis.Pass
	defs   map[types.Object][]ast.Expr // what is assigned to each variable; nil for what is not an expression of its own
	stores map[types.Object][]ast.Expr // what is assigned to the field Store of variables of Options
	gives  map[types.Object]int        // variables with a function that gives its i-th parameter to a limiter
	uses   []use
}

func runSharedStore(pass *analysis.Pass) (any, error) {
	s := &sharedStore{pass: pass, defs: map[types.Object][]ast.Expr{}, stores: map[types.Object][]ast.Expr{}, gives: map[types.Object]int{}}
	inspect(pass, func(n ast.Node, _ []ast.Node) { s.define(n) })
	// A function that was found to give a store makes uses of its calls, which may be in
	// functions that give a store.
	for found := -1; found != len(s.uses); {
		found = len(s.uses)
		s.uses = s.uses[:0]
		inspect(pass, s.collect)
	}
	for i, second := range s.uses {
		if s.inLoop(second) {
			reportf(pass, second.call.Pos(), "each limiter of this loop gets the same store%s: they would count into each other; %s", prefixText(second.origin), advice)
			continue
		}
		for _, first := range s.uses[:i] {
			if first.origin != second.origin || first.name != "" && first.name == second.name || exclusive(first, second) {
				continue
			}
			d := analysis.Diagnostic{
				Pos: second.call.Pos(), End: second.call.End(),
				Message: fmt.Sprintf("this limiter shares its store%s with the one of %s: they would count into each other; %s",
					prefixText(second.origin), line(pass, first.call.Pos()), advice),
				Related: []analysis.RelatedInformation{{Pos: first.call.Pos(), End: first.call.End(), Message: "the other limiter"}},
			}
			report(pass, d)
			break
		}
	}
	return nil, nil
}

const advice = "give each limiter a store with a prefix of its own, or leave Store out and set Redis, or neither"

func prefixText(o origin) string {
	if o.prefix == "" {
		return ""
	}
	return fmt.Sprintf(" (prefix %q)", o.prefix)
}

// define notes what is assigned to variables, and to the field Store of Options.
func (s *sharedStore) define(n ast.Node) {
	note := func(left ast.Expr, right ast.Expr) {
		switch left := ast.Unparen(left).(type) {
		case *ast.Ident:
			if obj := s.pass.TypesInfo.ObjectOf(left); obj != nil {
				s.defs[obj] = append(s.defs[obj], right)
			}
		case *ast.SelectorExpr:
			base := identOf(left.X)
			if base != nil && right != nil && left.Sel.Name == "Store" && isType(s.pass.TypesInfo.TypeOf(base), "Options") {
				obj := s.pass.TypesInfo.ObjectOf(base)
				s.stores[obj] = append(s.stores[obj], right)
			}
		}
	}
	switch n := n.(type) {
	case *ast.AssignStmt:
		for i, left := range n.Lhs {
			switch {
			case len(n.Lhs) == len(n.Rhs):
				note(left, n.Rhs[i])
			case i == 0: // store, err := NewRedisStore(...)
				note(left, n.Rhs[0])
			default:
				note(left, nil)
			}
		}
	case *ast.ValueSpec:
		for i, name := range n.Names {
			switch {
			case len(n.Names) == len(n.Values):
				note(name, n.Values[i])
			case len(n.Values) == 1 && i == 0:
				note(name, n.Values[0])
			case len(n.Values) == 1:
				note(name, nil)
			}
		}
	case *ast.RangeStmt:
		for _, left := range []ast.Expr{n.Key, n.Value} {
			if left != nil {
				note(left, nil)
			}
		}
	case *ast.UnaryExpr: // what has its address taken may be assigned anywhere
		if n.Op == token.AND {
			note(n.X, nil)
		}
	}
}

// collect adds a call that gives a store to a limiter.
func (s *sharedStore) collect(n ast.Node, around []ast.Node) {
	call, ok := n.(*ast.CallExpr)
	if !ok {
		return
	}
	var store ast.Expr
	if f := called(s.pass, call); isNew(f) && len(call.Args) == 2 {
		store = s.storeOf(call.Args[1], 0)
	} else if i, ok := s.givenBy(call, f); ok && i < len(call.Args) {
		store = call.Args[i]
		if isType(s.pass.TypesInfo.TypeOf(store), "Options") {
			store = s.storeOf(store, 0)
		}
	}
	if store == nil {
		return
	}
	o, ok := s.trace(store, 0)
	if !ok {
		return
	}
	s.noteParameter(o.object, around)
	u := use{call: call, around: slices.Clone(around), origin: o}
	for _, arg := range call.Args {
		if name, ok := text(s.pass, arg); ok {
			u.name = name
			break
		}
	}
	s.uses = append(s.uses, u)
}

// givenBy returns which argument of a call goes to a limiter as its store.
func (s *sharedStore) givenBy(call *ast.CallExpr, f *types.Func) (i int, ok bool) {
	var fact givesStore
	if f != nil && s.pass.ImportObjectFact(f, &fact) {
		return fact.Param, true
	}
	if id := identOf(call.Fun); id != nil {
		i, ok = s.gives[s.pass.TypesInfo.ObjectOf(id)]
	}
	return i, ok
}

// noteParameter notes that a function around gives a limiter its parameter obj. Then each
// call of the function is a use, too. The function is declared, or the only value of a variable.
func (s *sharedStore) noteParameter(obj types.Object, around []ast.Node) {
	for _, n := range slices.Backward(around) {
		switch n := n.(type) {
		case *ast.FuncDecl:
			f := s.pass.TypesInfo.Defs[n.Name].(*types.Func)
			if i, ok := indexOf(f.Signature().Params(), obj); ok {
				s.pass.ExportObjectFact(f, &givesStore{i})
			}
		case *ast.FuncLit:
			i, ok := indexOf(s.pass.TypesInfo.TypeOf(n).(*types.Signature).Params(), obj)
			for v, defs := range s.defs {
				if ok && len(defs) == 1 && defs[0] == ast.Expr(n) {
					s.gives[v] = i
				}
			}
		}
	}
}

func indexOf(params *types.Tuple, obj types.Object) (i int, ok bool) {
	for i := range params.Len() {
		if params.At(i) == obj {
			return i, true
		}
	}
	return 0, false
}

// deep is how many steps a store is traced at most: a variable may be defined by itself.
const deep = 20

// storeOf returns the expression of the field Store in an expression of Options, or the parameter
// that is the whole Options. It is nil if there is none or it is not known.
func (s *sharedStore) storeOf(options ast.Expr, depth int) ast.Expr {
	if depth > deep {
		return nil
	}
	switch e := ast.Unparen(options).(type) {
	case *ast.CompositeLit:
		return s.field(e, func(key string, _ ast.Expr) bool { return key == "Store" })
	case *ast.Ident:
		obj := s.pass.TypesInfo.ObjectOf(e)
		stores := s.stores[obj] // opts.Store = store
		defs := s.defs[obj]
		switch {
		case len(stores) == 1 && len(defs) <= 1:
			return stores[0]
		case len(stores) == 0 && len(defs) == 1 && defs[0] != nil:
			return s.storeOf(defs[0], depth+1)
		case len(stores) == 0 && len(defs) == 0 && isType(s.pass.TypesInfo.TypeOf(e), "Options"):
			return e // a parameter
		}
	case *ast.CallExpr: // options(store)
		return s.onlyStore(e.Args)
	}
	return nil
}

// trace returns the origin of a store. ok is false if it is not known, or if there is a
// new store each time.
func (s *sharedStore) trace(store ast.Expr, depth int) (o origin, ok bool) {
	if depth > deep {
		return o, false
	}
	switch e := ast.Unparen(store).(type) {
	case *ast.Ident:
		obj, isVar := s.pass.TypesInfo.ObjectOf(e).(*types.Var)
		if !isVar {
			return o, false
		}
		defs := s.defs[obj]
		switch {
		case len(defs) == 0: // a parameter, or a variable of another package. What nobody sets is nil
			return origin{object: obj}, obj.Kind() == types.ParamVar || obj.Pkg() != s.pass.Pkg
		case len(defs) > 1 || defs[0] == nil:
			return o, false
		}
		if _, isNil := s.pass.TypesInfo.Uses[identOf(defs[0])].(*types.Nil); isNil {
			return o, false
		}
		if o, ok := s.trace(defs[0], depth+1); ok {
			return o, true
		}
		return origin{object: obj}, true // one instance, wherever it comes from
	case *ast.SelectorExpr:
		if obj, ok := s.pass.TypesInfo.Uses[e.Sel].(*types.Var); ok {
			if base := identOf(e.X); base != nil {
				return origin{object: obj, base: s.base(base)}, true
			}
		}
	case *ast.UnaryExpr: // &wrapper{store}
		return s.trace(e.X, depth+1)
	case *ast.CompositeLit:
		if inner := s.field(e, func(_ string, value ast.Expr) bool { return isStore(s.pass.TypesInfo.TypeOf(value)) }); inner != nil {
			return s.trace(inner, depth+1)
		}
	case *ast.CallExpr:
		if prefix, ok := s.prefix(e); ok {
			return origin{prefix: prefix}, true
		}
		// A wrapper is made of the store that it wraps.
		if inner := s.onlyStore(e.Args); inner != nil {
			return s.trace(inner, depth+1)
		}
	}
	return o, false
}

// base returns what identifies the struct of a field: its variable, or the type if it is
// the receiver of a method, which has another variable in each method.
func (s *sharedStore) base(id *ast.Ident) types.Object {
	obj := s.pass.TypesInfo.ObjectOf(id)
	v, ok := obj.(*types.Var)
	if !ok || v.Kind() != types.RecvVar {
		return obj
	}
	t := v.Type()
	if p, ok := t.(*types.Pointer); ok {
		t = p.Elem()
	}
	if named, ok := t.(*types.Named); ok {
		return named.Obj()
	}
	return obj
}

// prefix returns the constant prefix of a call that makes a store, as it is in a
// conflict's error.
func (s *sharedStore) prefix(call *ast.CallExpr) (string, bool) {
	f := called(s.pass, call)
	if f == nil || f.Pkg() == nil || f.Signature().Recv() != nil {
		return "", false
	}
	at := -1
	switch f.Pkg().Path() + "." + f.Name() {
	case root + ".NewRedisStore", root + "/postgres.NewStore":
		at = 1
	case root + ".Memory", root + ".NewMemoryStore", root + "/storekit.New":
		at = 0
	}
	if at < 0 || at >= len(call.Args) {
		return "", false
	}
	prefix, ok := text(s.pass, call.Args[at])
	if f.Name() == "Memory" || f.Name() == "NewMemoryStore" {
		prefix = "memory:" + prefix
	}
	return prefix, ok
}

// field returns the value of the only field that matches.
func (s *sharedStore) field(literal *ast.CompositeLit, match func(key string, value ast.Expr) bool) (found ast.Expr) {
	for _, element := range literal.Elts {
		key, value := "", element
		if field, ok := element.(*ast.KeyValueExpr); ok {
			value = field.Value
			if id := identOf(field.Key); id != nil {
				key = id.Name
			}
		}
		if match(key, value) {
			if found != nil {
				return nil
			}
			found = value
		}
	}
	return found
}

// onlyStore returns the only argument that is a store.
func (s *sharedStore) onlyStore(args []ast.Expr) (found ast.Expr) {
	for _, arg := range args {
		if !isStore(s.pass.TypesInfo.TypeOf(arg)) {
			continue
		}
		if found != nil {
			return nil
		}
		found = arg
	}
	return found
}

// isStore reports whether a type has the methods of a Store that only stores have.
func isStore(t types.Type) bool {
	if t == nil {
		return false
	}
	for _, method := range []string{"Take", "Prefix"} {
		if obj, _, _ := types.LookupFieldOrMethod(t, true, nil, method); obj == nil {
			return false
		}
	}
	return !isType(t, "Limiter")
}

func identOf(e ast.Expr) *ast.Ident {
	id, _ := ast.Unparen(e).(*ast.Ident)
	return id
}

// inLoop reports whether a use is in a range loop that makes limiters of several names,
// and its store is from outside of the loop.
func (s *sharedStore) inLoop(u use) bool {
	for _, n := range slices.Backward(u.around) {
		switch n := n.(type) {
		case *ast.FuncLit, *ast.FuncDecl:
			return false
		case *ast.RangeStmt:
			if u.name != "" || !s.mentions(u.call, n) {
				continue
			}
			o := u.origin.object
			if u.origin.base != nil {
				o = u.origin.base
			}
			if o == nil || o.Pos() < n.Pos() || n.End() < o.Pos() {
				return true
			}
		}
	}
	return false
}

// mentions reports whether an argument of a call has a variable of the loop, as a name
// does that is different in each round.
func (s *sharedStore) mentions(call *ast.CallExpr, loop *ast.RangeStmt) (found bool) {
	for _, arg := range call.Args {
		if t := s.pass.TypesInfo.TypeOf(arg); t == nil || t.Underlying() != types.Typ[types.String] {
			continue
		}
		ast.Inspect(arg, func(n ast.Node) bool {
			if id, ok := n.(*ast.Ident); ok {
				obj := s.pass.TypesInfo.ObjectOf(id)
				for _, v := range []ast.Expr{loop.Key, loop.Value} {
					if v != nil && identOf(v) != nil && s.pass.TypesInfo.ObjectOf(identOf(v)) == obj {
						found = true
					}
				}
			}
			return true
		})
	}
	return found
}

// exclusive reports whether at most one of two uses can run: they are in different
// branches, or the first one is in a branch that returns.
func exclusive(first, second use) bool {
	i := 0
	for i < len(first.around) && i < len(second.around) && first.around[i] == second.around[i] {
		i++
	}
	if i == 0 || i == len(first.around) || i == len(second.around) {
		return false
	}
	switch common := first.around[i-1].(type) {
	case *ast.IfStmt:
		return first.around[i] == common.Body && second.around[i] == common.Else
	case *ast.BlockStmt:
		_, a := first.around[i].(*ast.CaseClause)
		_, b := second.around[i].(*ast.CaseClause)
		_, c := first.around[i].(*ast.CommClause)
		if a && b || c {
			return true
		}
	}
	for _, n := range first.around[i:] {
		var body []ast.Stmt
		switch n := n.(type) {
		case *ast.FuncLit, *ast.FuncDecl:
			return false
		case *ast.BlockStmt:
			body = n.List
		case *ast.CaseClause:
			body = n.Body
		default:
			continue
		}
		if len(body) > 0 {
			if _, returns := body[len(body)-1].(*ast.ReturnStmt); returns {
				return true
			}
		}
	}
	return false
}
