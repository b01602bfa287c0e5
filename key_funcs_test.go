package ratelimit_test

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
)

func TestKeyFuncsReadTheirPartOfTheRequest(t *testing.T) {
	for _, test := range []struct {
		name   string
		key    KeyFunc
		fields []string
		want   string // "" for no key
	}{
		{"header", HeaderKey("X-API-Key"), []string{"X-API-Key: abc"}, "abc"},
		{"header, another spelling", HeaderKey("x-api-key"), []string{"X-Api-Key: abc"}, "abc"},
		{"header, absent", HeaderKey("X-API-Key"), nil, ""},
		{"header, empty", HeaderKey("X-API-Key"), []string{"X-API-Key: "}, ""},
		{"header, twice", HeaderKey("X-API-Key"), []string{"X-API-Key: abc", "X-API-Key: def"}, ""},
		{"header, twice the same", HeaderKey("X-API-Key"), []string{"X-API-Key: abc", "X-API-Key: abc"}, ""},
		{"header, as it is", HeaderKey("X-API-Key"), []string{"X-API-Key: A,b:c \\\xff"}, "A,b:c \\\xff"},
		{"cookie", CookieKey("session"), []string{"Cookie: a=b; session=abc"}, "abc"},
		{"cookie, quoted", CookieKey("session"), []string{`Cookie: session="abc"`}, "abc"},
		{"cookie, absent", CookieKey("session"), []string{"Cookie: a=b"}, ""},
		{"cookie, another spelling", CookieKey("session"), []string{"Cookie: Session=abc"}, ""},
		{"cookie, empty", CookieKey("session"), []string{"Cookie: session="}, ""},
		{"cookie, twice", CookieKey("session"), []string{"Cookie: session=abc; session=def"}, ""},
		{"cookie, twice in two fields", CookieKey("session"), []string{"Cookie: session=abc", "Cookie: session=def"}, ""},
		{"static", StaticKey("all"), nil, "all"},
		{"no fn has one", FirstKey(HeaderKey("A"), CookieKey("b")), nil, ""},
		{"the first", FirstKey(HeaderKey("A"), CookieKey("b")), []string{"A: x", "Cookie: b=y"}, "0=x"},
		{"the second", FirstKey(HeaderKey("A"), CookieKey("b")), []string{"Cookie: b=x"}, "1=x"},
		{"an empty key is passed over", FirstKey(emptyKey, CookieKey("b")), []string{"Cookie: b=x"}, "1=x"},
		{"by name, the first", FirstKey(NamedKey("user", HeaderKey("A")), NamedKey("ip", ClientIP{}.Key)), []string{"A: x"}, "user=x"},
		{"by name, the second", FirstKey(NamedKey("user", HeaderKey("A")), NamedKey("ip", ClientIP{}.Key)), nil, "ip=" + httpKey},
		{"by name, in front", FirstKey(HeaderKey("B"), NamedKey("user", HeaderKey("A")), NamedKey("ip", ClientIP{}.Key)), nil, "ip=" + httpKey},
		{"some by name", FirstKey(NamedKey("user", HeaderKey("A")), ClientIP{}.Key), nil, "1=" + httpKey},
		{"by name, alone", NamedKey("user", HeaderKey("A")), []string{"A: x"}, "x"},
		{"by name, joined", JoinKeys(NamedKey("user", HeaderKey("A")), StaticKey("c")), []string{"A: x"}, "x,c"},
		{"by the name outside", FirstKey(NamedKey("a", NamedKey("b", HeaderKey("A")))), []string{"A: x"}, "a=x"},
		{"named functions of a named one", FirstKey(NamedKey("a", FirstKey(NamedKey("b", HeaderKey("A"))))), []string{"A: x"}, "a=b=x"},
		{"by a name of other letters", FirstKey(NamedKey("é 1", HeaderKey("A"))), []string{"A: x"}, "é 1=x"},
		{"host", HeaderKey("Host"), nil, "example.com"},
		{"host, in small letters", HeaderKey("host"), nil, "example.com"},
		{"all are joined", JoinKeys(HeaderKey("A"), CookieKey("b"), StaticKey("c")), []string{"A: x", "Cookie: b=y"}, "x,y,c"},
		{"one joined", JoinKeys(HeaderKey("A")), []string{"A: x,y"}, `x\,y`},
		{"not all are there", JoinKeys(HeaderKey("A"), CookieKey("b")), []string{"A: x"}, ""},
		{"one is empty", JoinKeys(HeaderKey("A"), emptyKey), []string{"A: x"}, ""},
	} {
		got, err := test.key(httpRequest("GET", test.fields...))
		assert.Equal(t, test.want, got, test.name)
		if test.want == "" && err != nil {
			assert.ErrorIs(t, err, ErrNoKey, test.name)
			assert.NotContains(t, err.Error(), "abc", test.name)
		}
		if test.want != "" {
			assert.NoError(t, err, test.name)
		}

		// An empty key or no key is the client's error.
		w := httptest.NewRecorder()
		l := httpLimiter(t, Options{Limits: []Limit{FixedWindow(5, time.Hour)}, Key: test.key})
		l.Middleware(httpServed).ServeHTTP(w, httpRequest("GET", test.fields...))
		require.NoError(t, l.Close())
		assert.Equal(t, map[bool]int{true: 400, false: 204}[test.want == ""], w.Code, test.name)
	}
}

// TestFirstKeyAndJoinKeysPassErrorsOn checks that FirstKey skips a function
// that finds no key, but not an exemption or another error.
func TestFirstKeyAndJoinKeysPassErrorsOn(t *testing.T) {
	fails := func(err error) KeyFunc { return func(*http.Request) (string, error) { return "", err } }
	wrong := errors.New("wrong")
	for _, test := range []struct {
		name string
		key  KeyFunc
		want error
		code int
	}{
		{"exempt first", FirstKey(fails(ErrExempt), StaticKey("x")), ErrExempt, 204},
		{"exempt later", FirstKey(fails(ErrNoKey), fails(fmt.Errorf("staff: %w", ErrExempt))), ErrExempt, 204},
		{"too late", FirstKey(StaticKey("x"), fails(ErrExempt)), nil, 204},
		{"wrong first", FirstKey(fails(wrong), StaticKey("x")), wrong, 500},
		{"not asked", FirstKey(StaticKey("x"), fails(wrong)), nil, 204},
		{"joined, exempt", JoinKeys(StaticKey("x"), fails(ErrExempt)), ErrExempt, 204},
		{"joined, wrong", JoinKeys(fails(wrong), fails(ErrExempt)), wrong, 500},
		{"joined, no key", JoinKeys(fails(ErrNoKey), fails(wrong)), ErrNoKey, 400},
		{"exempt is not no key", fails(errors.Join(ErrExempt)), ErrExempt, 204},
	} {
		_, err := test.key(httpRequest("GET"))
		assert.ErrorIs(t, err, test.want, test.name)
		w := httptest.NewRecorder()
		l := httpLimiter(t, Options{Limits: []Limit{FixedWindow(50, time.Hour)}, Key: test.key})
		l.Middleware(httpServed).ServeHTTP(w, httpRequest("GET"))
		require.NoError(t, l.Close())
		assert.Equal(t, test.code, w.Code, test.name)
		assert.Equal(t, test.want == nil, w.Header()["Ratelimit"] != nil, test.name)
	}
	assert.NotErrorIs(t, ErrExempt, ErrNoKey)
}

// TestPatternKeyIsOnePerRoute spells paths in different ways. Without a route
// there is no key.
func TestPatternKeyIsOnePerRoute(t *testing.T) {
	log := new(logged)
	l := httpLimiter(t, Options{Limits: []Limit{FixedWindow(50, time.Hour)}, Key: PatternKey, Logger: log.logger()})
	mux := http.NewServeMux()
	var keys []string
	mux.Handle("GET /users/{id}", l.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		key, err := PatternKey(r)
		require.NoError(t, err)
		keys = append(keys, key)
	})))
	mux.Handle("/files/", l.Middleware(httpServed))
	for _, path := range []string{"/users/1", "/users/2", "/users/%31", "/users/1?x=y"} {
		mux.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", path, nil))
	}
	mux.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/files/a/b", nil))
	assert.Equal(t, []string{"GET /users/{id}", "GET /users/{id}", "GET /users/{id}", "GET /users/{id}"}, keys)
	assert.EqualValues(t, 46, leftOf(t, l, "GET /users/{id}"))
	assert.EqualValues(t, 49, leftOf(t, l, "/files/"))
	assert.Empty(t, log.codes())

	w := httptest.NewRecorder()
	l.Middleware(mux).ServeHTTP(w, httptest.NewRequest("GET", "/users/1", nil))
	assert.Equal(t, http.StatusInternalServerError, w.Code)
	assert.Equal(t, []Code{CodeOptionFailed}, log.codes())
	assert.Contains(t, log.text(), "put the limiter around the handlers registered with a ServeMux")
	assert.NotContains(t, log.text(), "/users/1")
}

// joinedOf joins parts, each as the key of its own function.
func joinedOf(t testing.TB, join func(...KeyFunc) KeyFunc, parts ...string) string {
	var fns []KeyFunc
	for _, part := range parts {
		fns = append(fns, StaticKey(part))
	}
	key, err := join(fns...)(httpRequest("GET"))
	require.NoError(t, err)
	require.NotEmpty(t, key)
	return key
}

// split splits a joined key like a reader: at commas that are not escaped.
func split(key string) []string {
	parts := []string{""}
	for escaped := false; key != ""; key = key[1:] {
		switch c := key[0]; {
		case !escaped && c == '\\':
			escaped = true
			continue
		case !escaped && c == ',':
			parts = append(parts, "")
		default:
			parts[len(parts)-1] += string([]byte{c})
		}
		escaped = false
	}
	return parts
}

// FuzzJoinKeys reads the joined keys back, so no two lists give the same key.
func FuzzJoinKeys(f *testing.F) {
	for _, parts := range [][3]string{{"a:b", "c", "d"}, {"a", "b:c", "d"}, {"a,b", "c", `\`}, {"a", "b,c", `\,`}, {`a\`, ",b", `\\,`}, {",", ",", ","}, {"\x00", "\xff", "é"}} {
		f.Add(parts[0], parts[1], parts[2])
	}
	f.Fuzz(func(t *testing.T, a, b, c string) {
		if a == "" || b == "" || c == "" {
			return
		}
		for _, parts := range [][]string{{a}, {a, b}, {b, a}, {a, b, c}, {c, a + b}, {a + "," + b, c}, {a, b + "," + c}} {
			assert.Equal(t, parts, split(joinedOf(t, JoinKeys, parts...)))
		}
		nested := JoinKeys(JoinKeys(StaticKey(a), StaticKey(b)), StaticKey(c))
		other := JoinKeys(StaticKey(a), JoinKeys(StaticKey(b), StaticKey(c)))
		k1, _ := nested(httpRequest("GET"))
		k2, _ := other(httpRequest("GET"))
		if k1 == k2 {
			t.Errorf("((%q, %q), %q) and (%q, (%q, %q)) are both %q", a, b, c, a, b, c, k1)
		}
	})
}

// TestFirstKeysOfTwoFunctionsDiffer makes keys up to look like the keys of
// another function.
func TestFirstKeysOfTwoFunctionsDiffer(t *testing.T) {
	originOf := make(map[string]string)
	values := []string{"192.0.2.1", "0=192.0.2.1", "1=192.0.2.1", "1", "0", "=", "10=x", "x"}
	for index := range 12 {
		for _, value := range values {
			fns := make([]KeyFunc, index, index+1)
			for i := range fns {
				fns[i] = HeaderKey("Absent")
			}
			key, err := FirstKey(append(fns, StaticKey(value))...)(httpRequest("GET"))
			require.NoError(t, err)
			what := strconv.Itoa(index) + " " + value
			assert.Empty(t, originOf[key], "%q of %s", key, what)
			originOf[key] = what
			assert.True(t, strings.HasSuffix(key, value))
		}
	}
}

func TestMissingKeyFuncsAreRefused(t *testing.T) {
	for _, key := range []KeyFunc{JoinKeys(), FirstKey(), FirstKey(nil), JoinKeys(StaticKey("x"), nil), FirstKey(HeaderKey("x"), JoinKeys())} {
		var reg Registry
		_, err := reg.New(t.Name(), Options{Limits: []Limit{FixedWindow(1, time.Hour)}, Key: key})
		assert.ErrorContains(t, err, `ratelimit: limiter "TestMissingKeyFuncsAreRefused": Options.Key: `)
	}
}

func TestKeyFuncsAreCalledForRequestsOnly(t *testing.T) {
	mine := func(*http.Request) (string, error) { panic("not a request") }
	for _, key := range []KeyFunc{mine, JoinKeys(mine), FirstKey(ClientIP{}.Key, JoinKeys(mine, mine))} {
		l := httpLimiter(t, Options{Limits: []Limit{FixedWindow(1, time.Hour)}, Key: key})
		require.NoError(t, l.Close())
	}
}

func TestRequestCannotPassForAProbe(t *testing.T) {
	for _, peer := range []string{"probe", "@probe", "\x00", " \x00probe"} {
		_, err := ClientIP{}.Key(from(peer))
		assert.ErrorIs(t, err, ErrNoKey, "%q", peer)
	}
}

// TestKeysThatCanNeverWorkAreRefused checks that New refuses functions that cannot give
// any request a key, and functions whose keys would have the same mark, in any combination.
func TestKeysThatCanNeverWorkAreRefused(t *testing.T) {
	a := HeaderKey("A")
	for _, test := range []struct {
		key  KeyFunc
		want string
	}{
		{StaticKey(""), `StaticKey(""): no request would have a key: give it a text`},
		{HeaderKey(""), `HeaderKey(""): this is no header's name`},
		{HeaderKey("X Key"), `HeaderKey("X Key"): this is no header's name`},
		{HeaderKey("X-Key:"), `HeaderKey("X-Key:"): this is no header's name`},
		{HeaderKey("ключ"), `this is no header's name`},
		{HeaderKey("Trailer"), `HeaderKey("Trailer"): net/http takes this header out of requests`},
		{HeaderKey("transfer-encoding"), `HeaderKey("Transfer-Encoding"): net/http takes this header out of requests`},
		{CookieKey(""), `CookieKey(""): this is no cookie's name`},
		{CookieKey("a=b"), `CookieKey("a=b"): this is no cookie's name`},
		{CookieKey("a;b"), `CookieKey("a;b"): this is no cookie's name`},
		{NamedKey("", a), "the name of a NamedKey is empty"},
		{NamedKey("1", a), `the name of a NamedKey is "1", which is what the function at this position has without a name`},
		{NamedKey("a=b", a), `the name of a NamedKey is "a=b": it ends with a '=' in keys`},
		{NamedKey("a\nb", a), "has a control or invisible character"},
		{NamedKey(strings.Repeat("a", 129), a), "is 129 bytes long: want at most 128"},
		{NamedKey("a", nil), "function 1 of NamedKey is nil"},
		{NamedKey("a", HeaderKey("")), `HeaderKey(""): this is no header's name`},
		{FirstKey(NamedKey("a", a), HeaderKey("B"), NamedKey("a", HeaderKey("C"))), `functions 1 and 3 of FirstKey have the same name "a"`},
		{FirstKey(NamedKey("0", a)), `the name of a NamedKey is "0"`},
		{FirstKey(), "FirstKey has no functions"},
		{JoinKeys(), "JoinKeys has no functions"},
		{JoinKeys(a, nil), "function 2 of JoinKeys is nil"},
	} {
		for nesting, key := range map[string]KeyFunc{
			"itself": test.key, "joined": JoinKeys(a, test.key), "first": FirstKey(a, test.key), "named": NamedKey("n", test.key),
			"deep": JoinKeys(StaticKey("x"), FirstKey(NamedKey("m", JoinKeys(a, test.key)))),
		} {
			opts := quiet(hour)
			opts.Key = key
			_, err := new(Registry).New(t.Name(), opts)
			assert.ErrorContains(t, err, "Options.Key: ", nesting)
			assert.ErrorContains(t, err, test.want, nesting)
		}
	}
}

// TestNamesOfKeysStay adds a function before others. A client keeps its counter, and no
// client gets the counter of another.
func TestNamesOfKeysStay(t *testing.T) {
	user, ip := NamedKey("user", HeaderKey("User")), NamedKey("ip", ClientIP{}.Key)
	key := FirstKey(user, ip)
	l := httpLimiter(t, Options{Limits: []Limit{hour}, Key: func(r *http.Request) (string, error) { return key(r) }})
	h := l.Middleware(httpServed)
	httpAnswer(h, httpRequest("GET"))
	httpAnswer(h, httpRequest("GET", "User: "+httpKey))
	key = FirstKey(NamedKey("token", HeaderKey("Token")), user, ip)
	assert.Contains(t, httpAnswer(h, httpRequest("GET")), ";r=3;")
	assert.Contains(t, httpAnswer(h, httpRequest("GET", "User: "+httpKey)), ";r=3;")
	assert.Contains(t, httpAnswer(h, httpRequest("GET", "Token: "+httpKey)), ";r=4;")
}

// TestHostIsAKeyOverANetwork uses the Host header as a key. net/http removes it from the
// header fields of a request, in both protocols.
func TestHostIsAKeyOverANetwork(t *testing.T) {
	overNetwork(t, func(t *testing.T, start func(http.Handler) *httptest.Server) {
		l := httpLimiter(t, Options{Limits: []Limit{hour}, Key: HeaderKey("Host")})
		s := start(l.Middleware(httpServed))
		for _, host := range []string{"Shop.example", "shop.EXAMPLE"} {
			r, err := http.NewRequest("GET", s.URL, nil)
			require.NoError(t, err)
			r.Host = host
			answer, err := s.Client().Do(r)
			require.NoError(t, err)
			answer.Body.Close()
			assert.Equal(t, 204, answer.StatusCode)
		}
		assert.EqualValues(t, 3, leftOf(t, l, "shop.example"))
	})
}

// TestPatternKeyOfAnUnknownRoute: the pattern of a router may have no path, for a request that
// matches none of its routes.
func TestPatternKeyOfAnUnknownRoute(t *testing.T) {
	for _, pattern := range []string{"GET ", "GET", "*", "..."} {
		r := httptest.NewRequest("GET", "/x", nil)
		r.Pattern = pattern
		key, err := PatternKey(r)
		require.NoError(t, err)
		require.Equal(t, pattern, key)
	}
	r := httptest.NewRequest("GET", "/x", nil)
	r.Pattern = "...}"
	_, err := PatternKey(r)
	require.ErrorContains(t, err, "subtree")
}

// TestPatternKeyOfARouterInAMuxIsAnError mounts routers that do not set r.Pattern in a
// ServeMux. All of their routes would share the mux's pattern. Routers that set it, and a
// limiter that is registered with the mux itself, have their own patterns.
func TestPatternKeyOfARouterInAMuxIsAnError(t *testing.T) {
	pass := func(next http.Handler) http.Handler { return next }
	strip := func(next http.Handler) http.Handler { return http.StripPrefix("/api", next) }
	router := func(next http.Handler) http.Handler { // not from net/http
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { next.ServeHTTP(w, r) })
	}
	typed := func(next http.Handler) http.Handler { return &routerOfAnotherMake{next} }
	inner := func(next http.Handler) http.Handler {
		mux := http.NewServeMux()
		mux.Handle("GET /api/users/{id}", next)
		mux.Handle("GET /users/{id}", next)
		return mux
	}
	setsPattern := func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { r.Pattern = "/api/users/{id}"; next.ServeHTTP(w, r) })
	}
	for _, test := range []struct {
		name, pattern string
		between       func(http.Handler) http.Handler
		path          string
		want          string // the key; empty for an error
	}{
		{"a router", "/", router, "/api/users/7", ""},
		{"a router of its own type", "/", typed, "/api/users/7", ""},
		{"a router in a subtree", "/api/", router, "/api/users/7", ""},
		{"a router with a method", "GET /api/", router, "/api/users/7", ""},
		{"a router with a host", "example.com/", router, "/api/users/7", ""},
		{"a router behind a wildcard", "/api/{rest...}", router, "/api/users/7", ""},
		{"a router without its prefix", "/api/", func(next http.Handler) http.Handler { return strip(router(next)) }, "/api/users/7", ""},
		{"in a timeout", "/api/", func(next http.Handler) http.Handler { return http.TimeoutHandler(router(next), time.Hour, "") }, "/api/users/7", ""},
		{"a router's own root", "/api/", router, "/api/", "/api/"},
		{"a ServeMux", "/", inner, "/api/users/7", "GET /api/users/{id}"},
		{"a ServeMux without its prefix", "/api/", func(next http.Handler) http.Handler { return strip(inner(next)) }, "/api/users/7", "GET /users/{id}"},
		{"a router that sets the pattern", "/", setsPattern, "/api/users/7", "/api/users/{id}"},
		{"the limiter itself", "/api/", pass, "/api/users/7", "/api/"},
		{"the limiter itself, wildcard", "GET /api/{rest...}", pass, "/api/users/7", "GET /api/{rest...}"},
		{"the limiter without the prefix", "/api/", strip, "/api/users/7", "/api/"},
		{"one route, whatever is between", "/api/users/{id}", router, "/api/users/7", "/api/users/{id}"},
		{"one path, whatever is between", "/api/users/{$}", router, "/api/users/", "/api/users/{$}"},
	} {
		for kind, key := range map[string]KeyFunc{
			"": PatternKey, " joined": JoinKeys(PatternKey, StaticKey("x")),
			" in a function": func(r *http.Request) (string, error) { return PatternKey(r) },
		} {
			log := new(logged)
			var got string
			l := httpLimiterNamed(t, test.name+kind, Options{Limits: []Limit{hour}, Logger: log.logger(), Key: func(r *http.Request) (key2 string, err error) {
				key2, err = key(r)
				got = strings.TrimSuffix(key2, ",x")
				return key2, err
			}})
			mux := http.NewServeMux()
			mux.Handle(test.pattern, test.between(l.Middleware(httpServed)))
			w := httptest.NewRecorder()
			mux.ServeHTTP(w, httptest.NewRequest("GET", test.path, nil))
			if assert.Equal(t, test.want, got, test.name+kind); test.want == "" {
				assert.Equal(t, 500, w.Code, test.name+kind)
				assert.Equal(t, []Code{CodeOptionFailed}, log.codes())
				assert.Contains(t, log.text(), "would share this key")
				assert.NotContains(t, log.text(), "users/7")
			} else {
				assert.Equal(t, 204, w.Code, test.name+kind)
			}
		}
	}
}

// routerOfAnotherMake is a router that does not set r.Pattern.
type routerOfAnotherMake struct{ next http.Handler }

func (m *routerOfAnotherMake) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	m.next.ServeHTTP(w, r)
}

// TestFirstKeyInAFunctionIsChecked has a FirstKey that New cannot see into. It refuses
// to give two functions' keys one mark.
func TestFirstKeyInAFunctionIsChecked(t *testing.T) {
	for _, first := range []KeyFunc{
		FirstKey(NamedKey("1", HeaderKey("X-Key")), ClientIP{}.Key),
		FirstKey(NamedKey("ip", HeaderKey("X-Key")), NamedKey("ip", ClientIP{}.Key)),
		FirstKey(HeaderKey(""), ClientIP{}.Key),
	} {
		l := httpLimiter(t, Options{Limits: []Limit{hour}, Key: func(r *http.Request) (string, error) { return first(r) }})
		assert.Contains(t, httpAnswer(l.Middleware(httpServed), httpRequest("GET", "X-Key: x")), "500\n")
	}
}
