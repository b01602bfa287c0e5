package ratelimit

import (
	"net/http"
	"path"
	"reflect"
	"runtime"
	"strconv"
	"strings"
)

// This file reads the stack of the calling goroutine.

// callSite returns file:line of the innermost call from outside this package, and
// whether an HTTP request is being served further out.
func callSite() (site string, inHandler bool) {
	var pcs [64]uintptr
	frames := runtime.CallersFrames(pcs[:runtime.Callers(2, pcs[:])])
	for {
		f, more := frames.Next()
		if site == "" && f.Function != "" && !strings.HasPrefix(f.Function, packagePrefix) {
			site = f.File + ":" + strconv.Itoa(f.Line)
		}
		if strings.HasPrefix(f.Function, "net/http.") && strings.HasSuffix(f.Function, ".ServeHTTP") {
			inHandler = true
		}
		if !more {
			return site, inHandler
		}
	}
}

// mountedInMux reports whether a limiter's handler has called us, and an
// [http.ServeMux] has called that handler with nothing in between but handlers of
// net/http and of this package. What this package's functions called before the
// handler plays no part: a KeyFunc may be anybody's.
//
// If a function is inlined that returns a handler, the handler's name is one of the
// package that has called it. So Middleware returns a named type; a handler of net/http
// is recognised by its file.
func mountedInMux() bool {
	var pcs [64]uintptr
	frames := runtime.CallersFrames(pcs[:runtime.Callers(2, pcs[:])])
	inLimiter := false
	for {
		f, more := frames.Next()
		switch {
		case f.Function == "net/http.(*ServeMux).ServeHTTP":
			return inLimiter
		case strings.HasPrefix(f.Function, packagePrefix+"(*Limiter)."):
			inLimiter = true
		case inLimiter && !strings.HasPrefix(f.Function, packagePrefix) && path.Dir(f.File) != netHTTP:
			return false
		}
		if !more {
			return false
		}
	}
}

// netHTTP is the folder of net/http's files.
var netHTTP = func() string {
	file, _ := runtime.FuncForPC(reflect.ValueOf(http.NotFound).Pointer()).FileLine(0)
	return path.Dir(file)
}()

// packagePrefix begins the names of this package's functions in a stack.
var packagePrefix = reflect.TypeFor[here]().PkgPath() + "."

type here struct{}
