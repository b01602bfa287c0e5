package e2e_test

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
	"github.com/ratelimit-go/ratelimit/admin"
)

// nginxCache runs nginx as a cache in front of a server until the test ends, and
// returns its address. It stores what the server allows it to store.
func nginxCache(t *testing.T, upstream string) string {
	program, err := exec.LookPath("nginx")
	if err != nil {
		if os.Getenv("RATELIMIT_REQUIRE_NGINX") != "" {
			t.Fatal("no nginx: install the package nginx")
		}
		t.Skip("no nginx: install the package nginx")
	}
	free, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	addr := free.Addr().String()
	require.NoError(t, free.Close())
	dir := t.TempDir()
	user := ""
	if os.Geteuid() == 0 {
		user = "user root;"
	}
	config := filepath.Join(dir, "nginx.conf")
	require.NoError(t, os.WriteFile(config, []byte(fmt.Sprintf(`
		daemon off;
		worker_processes 1;
		%s
		pid %[2]s/pid;
		error_log %[2]s/error.log;
		events { worker_connections 64; }
		http {
			access_log off;
			client_body_temp_path %[2]s/body;
			proxy_temp_path %[2]s/proxy;
			fastcgi_temp_path %[2]s/fastcgi;
			uwsgi_temp_path %[2]s/uwsgi;
			scgi_temp_path %[2]s/scgi;
			proxy_cache_path %[2]s/cache keys_zone=pages:1m;
			server {
				listen %[3]s;
				location / {
					proxy_pass http://%[4]s;
					proxy_cache pages;
					proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
					add_header X-Cache $upstream_cache_status always;
				}
			}
		}`, user, dir, addr, upstream)), 0o600))
	cmd := exec.Command(program, "-p", dir, "-c", config, "-e", filepath.Join(dir, "error.log"))
	cmd.Stderr = os.Stderr
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		cmd.Process.Signal(os.Interrupt)
		cmd.Wait()
	})
	require.Eventually(t, func() bool {
		conn, err := net.Dial("tcp", addr)
		if err == nil {
			conn.Close()
		}
		return err == nil
	}, 30*time.Second, 10*time.Millisecond)
	return addr
}

// TestSharedCacheStoresNoRefusal has nginx as a cache in front of a limiter, inside
// middleware that lets caches store the pages of the site. A client that is refused
// gets its answer from the limiter, and the next client is served.
func TestSharedCacheStoresNoRefusal(t *testing.T) {
	page := func(w http.ResponseWriter) {
		w.Header().Set("Cache-Control", "public, max-age=300") // set for all pages, like by a template
		w.Header().Set("X-Accel-Expires", "300")
		io.WriteString(w, "wait")
	}
	down := errors.New("down")
	// bad is the client that is refused.
	bad := func(r *http.Request) bool { return r.Header.Get("X-Client") == "bad" }
	keys := func(err error) KeyFunc {
		return func(r *http.Request) (string, error) {
			if bad(r) {
				return "", err
			}
			return "good", nil
		}
	}
	tooDear := func(r *http.Request) int64 {
		if bad(r) {
			return 1000
		}
		return 1
	}
	for name, test := range map[string]struct {
		opts   Options
		status int
	}{
		"denied":                {Options{Cost: tooDear}, 429},
		"denied, no fields":     {Options{Cost: tooDear, Headers: HeadersNone}, 429},
		"denied, with a page":   {Options{Cost: tooDear, Denied: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { page(w) })}, 429},
		"no key":                {Options{Key: keys(ErrNoKey)}, 400},
		"no key, with a page":   {Options{Key: keys(ErrNoKey), Failed: func(w http.ResponseWriter, _ *http.Request, _ int, _ error) { page(w) }}, 400},
		"an option that failed": {Options{Key: keys(down)}, 500},
		"a refusal that is 200": {Options{Key: keys(down), Failed: func(w http.ResponseWriter, _ *http.Request, _ int, _ error) { w.WriteHeader(200); page(w) }}, 200},
	} {
		for _, between := range []func(http.Handler) http.Handler{
			func(next http.Handler) http.Handler { return next },
			func(next http.Handler) http.Handler { return http.TimeoutHandler(next, time.Minute, "") },
		} {
			t.Run(name, func(t *testing.T) {
				test.opts.Limits, test.opts.Logger = []Limit{FixedWindow(100, time.Hour)}, slog.New(slog.DiscardHandler)
				if test.opts.Key == nil {
					test.opts.Key = StaticKey("everybody")
				}
				l, err := new(Registry).New("cached", test.opts)
				require.NoError(t, err)
				defer func() { l.Close(); Memory("cached").Close() }()
				limited := between(l.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "the page") })))
				server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					w.Header().Set("Cache-Control", "public, max-age=300")
					w.Header().Set("Expires", time.Now().Add(time.Hour).UTC().Format(http.TimeFormat))
					w.Header().Set("X-Accel-Expires", "300")
					limited.ServeHTTP(w, r)
				}))
				defer server.Close()
				cache := nginxCache(t, server.Listener.Addr().String())
				get := func(client string) (status int, body, from string) {
					r, err := http.NewRequest("GET", "http://"+cache+"/", nil)
					require.NoError(t, err)
					r.Header.Set("X-Client", client)
					answer, err := http.DefaultClient.Do(r)
					require.NoError(t, err)
					defer answer.Body.Close()
					text, err := io.ReadAll(answer.Body)
					require.NoError(t, err)
					return answer.StatusCode, string(text), answer.Header.Get("X-Cache")
				}
				for range 2 {
					status, _, from := get("bad")
					assert.Equal(t, test.status, status)
					assert.Equal(t, "MISS", from, "a refusal must not come from the cache")
				}
				for _, want := range []string{"MISS", "HIT"} { // the cache stores what it may store
					status, body, from := get("good")
					assert.Equal(t, 200, status)
					assert.Equal(t, "the page", body)
					assert.Equal(t, want, from)
				}
			})
		}
	}
}

// TestAdminIsClosedBehindNginx asks for the admin page through nginx on the same machine.
func TestAdminIsClosedBehindNginx(t *testing.T) {
	server := httptest.NewServer(admin.Handler(admin.Options{Registry: new(Registry)}))
	defer server.Close()
	for addr, want := range map[string]int{server.Listener.Addr().String(): http.StatusOK, nginxCache(t, server.Listener.Addr().String()): http.StatusForbidden} {
		answer, err := http.Get("http://" + addr + "/")
		require.NoError(t, err)
		answer.Body.Close()
		require.Equal(t, want, answer.StatusCode)
	}
}

// TestClientsBehindNginxHaveKeysOfTheirOwn reads what nginx writes into
// X-Forwarded-For, whatever the client has written there before.
func TestClientsBehindNginxHaveKeysOfTheirOwn(t *testing.T) {
	for name, key := range map[string]ClientIP{
		"a trusted network": {TrustedProxies: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}},
		"a trusted hop":     {TrustedHops: 1},
	} {
		var got string
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			got, _ = key.Key(r)
			w.Header().Set("Cache-Control", "no-store")
		}))
		proxy := nginxCache(t, server.Listener.Addr().String())
		for _, client := range []string{"127.0.0.1", "127.0.0.2"} {
			dialer := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(client)}}
			browser := &http.Client{Transport: &http.Transport{DialContext: dialer.DialContext, DisableKeepAlives: true}}
			r, err := http.NewRequest("GET", "http://"+proxy+"/", nil)
			require.NoError(t, err)
			r.Header.Set("X-Forwarded-For", "203.0.113.66")
			answer, err := browser.Do(r)
			require.NoError(t, err)
			answer.Body.Close()
			if name == "a trusted hop" {
				assert.Equal(t, client, got, name)
			} else { // the client itself is in a trusted network here, so the search goes on
				assert.Equal(t, "203.0.113.66", got, name)
			}
		}
		server.Close()
	}
}
