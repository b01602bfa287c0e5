package admin_test

import (
	"crypto/subtle"
	"fmt"
	"net/http"
	"net/http/httptest"
	"time"

	"github.com/ratelimit-go/ratelimit"
	"github.com/ratelimit-go/ratelimit/admin"
)

// Operators sign in with a password. Without one, the browser asks for it.
func ExampleHandler() {
	registry := new(ratelimit.Registry) // usually the default one: leave Options.Registry out
	login := ratelimit.Must(registry.New("login", ratelimit.Options{
		Limits: []ratelimit.Limit{ratelimit.FixedWindow(5, 15*time.Minute)},
	}))
	defer login.Close()

	operator := func(r *http.Request) (who string, ok bool) {
		user, password, ok := r.BasicAuth()
		return user, ok && user == "anna" && subtle.ConstantTimeCompare([]byte(password), []byte("correct horse")) == 1
	}
	page := admin.Handler(admin.Options{Registry: registry, Actor: operator})
	mux := http.NewServeMux()
	mux.HandleFunc("/admin/", func(w http.ResponseWriter, r *http.Request) {
		if _, ok := operator(r); !ok {
			w.Header().Set("WWW-Authenticate", `Basic realm="admin"`)
			http.Error(w, "Sign in first.", http.StatusUnauthorized)
			return
		}
		page.ServeHTTP(w, r)
	})

	for _, password := range []string{"guess", "correct horse"} {
		r := httptest.NewRequest("GET", "https://shop.example/admin/", nil)
		r.SetBasicAuth("anna", password)
		w := httptest.NewRecorder()
		mux.ServeHTTP(w, r)
		fmt.Println(w.Code)
	}
	// Output:
	// 401
	// 200
}
