package main

import (
	"fmt"
	"math/bits"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/ratelimit-go/ratelimit"
)

// start makes a login of its own for a test.
func start(t *testing.T, failures ratelimit.Limit) *login {
	s, err := newLogin(failures, nil, map[string]string{"ada": "right", "grace": "right"})
	require.NoError(t, err)
	t.Cleanup(func() {
		require.NoError(t, s.close())
		ratelimit.Memory("login-address").Close()
		ratelimit.Memory("login-account").Close()
	})
	return s
}

// try logs in, and returns the status and Retry-After.
func try(s *login, address, account, password string) (status int, retry string) {
	form := url.Values{"account": {account}, "password": {password}}
	r := httptest.NewRequest("POST", "/login", strings.NewReader(form.Encode()))
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	r.RemoteAddr = address + ":1234"
	w := httptest.NewRecorder()
	s.handler().ServeHTTP(w, r)
	return w.Code, w.Header().Get("Retry-After")
}

// operate makes an operator's request, and returns the body.
func operate(t *testing.T, s *login, method, path string) string {
	t.Helper()
	w := httptest.NewRecorder()
	s.operator().ServeHTTP(w, httptest.NewRequest(method, path, nil))
	require.Equal(t, http.StatusOK, w.Code, w.Body.String())
	return w.Body.String()
}

// TestLadder checks that wrong passwords block for a minute, an hour and a day, per
// address and per account, and that right ones count nowhere.
func TestLadder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := start(t, ratelimit.FixedWindow(3, 30*time.Second).Block(time.Minute, time.Hour, 24*time.Hour))
		for range 20 {
			status, _ := try(s, "192.0.2.1", "ada", "right")
			require.Equal(t, 200, status)
		}
		for i, block := range []time.Duration{time.Minute, time.Hour, 24 * time.Hour, 24 * time.Hour} {
			for range 3 {
				status, _ := try(s, "192.0.2.1", "ada", "wrong")
				require.Equal(t, 401, status)
			}
			status, retry := try(s, "192.0.2.1", "grace", "right")
			require.Equal(t, 429, status, "block %d, by the address", i)
			require.Equal(t, block.Seconds(), seconds(t, retry))
			status, retry = try(s, "192.0.2.2", "ADA", "right")
			require.Equal(t, 429, status, "block %d, by the account", i)
			require.Equal(t, block.Seconds(), seconds(t, retry))
			status, _ = try(s, "192.0.2.2", "grace", "right")
			require.Equal(t, 200, status)
			time.Sleep(block)
			status, _ = try(s, "192.0.2.1", "ada", "right")
			require.Equal(t, 200, status)
		}
	})
}

func seconds(t *testing.T, retry string) float64 {
	t.Helper()
	d, err := time.ParseDuration(retry + "s")
	require.NoError(t, err)
	return d.Seconds()
}

// TestPatientGuesser checks that a client that always stops before a block has 20 guesses
// at an account per day, also from many addresses.
func TestPatientGuesser(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := start(t, ratelimit.FixedWindow(5, 15*time.Minute).Block(15*time.Minute))
		begin, guesses := time.Now(), 0
		for window := range 20 {
			for range 4 {
				if status, _ := try(s, fmt.Sprint("192.0.2.", window), "ada", "wrong"); status == 401 {
					guesses++
				}
			}
			time.Sleep(16 * time.Minute)
		}
		require.Equal(t, 20, guesses)
		status, _ := try(s, "192.0.2.99", "ada", "right")
		require.Equal(t, 429, status)
		status, _ = try(s, "192.0.2.99", "grace", "right")
		require.Equal(t, 200, status)
		time.Sleep(time.Until(begin.Add(24 * time.Hour)))
		status, _ = try(s, "192.0.2.99", "ada", "right")
		require.Equal(t, 200, status)
	})
}

// TestOperator checks that an operator sees who is blocked, unblocks them, and blocks an
// account by hand.
func TestOperator(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := start(t, ratelimit.FixedWindow(1, time.Minute).Block(time.Hour))
		try(s, "192.0.2.1", "ada", "wrong")
		status, _ := try(s, "192.0.2.2", "ada", "wrong")
		require.Equal(t, 429, status)
		require.Contains(t, operate(t, s, "GET", "/blocks/account?key=Ada"), `"blocked":true`)
		require.NotContains(t, operate(t, s, "GET", "/blocks/account?key=grace"), "blocked")
		operate(t, s, "DELETE", "/blocks/account?key=ada&who=olga")
		status, _ = try(s, "192.0.2.3", "ada", "right")
		require.Equal(t, 200, status)

		operate(t, s, "POST", "/blocks/account?key=grace&for=24h&who=olga")
		status, retry := try(s, "192.0.2.3", "grace", "right")
		require.Equal(t, 429, status)
		require.Equal(t, "86400", retry)
		status, _ = try(s, "192.0.2.3", "ada", "right")
		require.Equal(t, 200, status, "the address has its unit back")

		for _, wrong := range []struct {
			path string
			want int
		}{
			{"/blocks/account?key=grace&for=soon", 400}, {"/blocks/account?key=grace&for=1ns", 400}, {"/blocks/account?key=grace&for=9000h", 400},
			{"/blocks/account?for=1h", 400}, {"/blocks/address?for=1h", 400},
			{"/blocks/mailbox?key=grace&for=1h", 404}, {"/blocks/account?key=nobody&for=1h", 404},
		} {
			w := httptest.NewRecorder()
			s.operator().ServeHTTP(w, httptest.NewRequest("POST", wrong.path, nil))
			require.Equal(t, wrong.want, w.Code, wrong.path)
		}
	})
}

// TestOperatorWithoutAStore checks that an operator learns that the store has failed.
func TestOperatorWithoutAStore(t *testing.T) {
	s := start(t, ratelimit.FixedWindow(1, time.Minute).Block(time.Hour))
	require.NoError(t, s.close())
	for _, method := range []string{"GET", "POST", "DELETE"} {
		w := httptest.NewRecorder()
		s.operator().ServeHTTP(w, httptest.NewRequest(method, "/blocks/account?key=ada&for=1h", nil))
		require.Equal(t, 503, w.Code, method)
	}
}

// TestWithoutAnAccount checks that such requests are refused before they are counted.
func TestWithoutAnAccount(t *testing.T) {
	s := start(t, ratelimit.FixedWindow(1, time.Minute).Block(time.Hour))
	for range 5 {
		status, _ := try(s, "192.0.2.1", " ", "right")
		require.Equal(t, 400, status)
	}
	status, _ := try(s, "192.0.2.1", "ada", "right")
	require.Equal(t, 200, status)
}

// TestProcessesShareBlocks: with Redis, a block that one process starts holds in another,
// and an operator lifts it in both.
func TestProcessesShareBlocks(t *testing.T) {
	if bits.UintSize < 64 {
		t.Skip("miniredis keeps integers in an int, and the scripts have larger ones")
	}
	timeout = time.Minute // a busy machine may be slow
	defer func() { timeout = ratelimit.DefaultTimeout }()
	client := redis.NewClient(&redis.Options{Addr: miniredis.RunT(t).Addr()})
	defer client.Close()
	var processes []*login
	for range 2 {
		s, err := newLogin(ratelimit.FixedWindow(2, time.Minute).Block(time.Hour), client, map[string]string{"ada": "right"})
		require.NoError(t, err)
		defer s.close()
		processes = append(processes, s)
	}
	for _, s := range processes {
		status, _ := try(s, "192.0.2.1", "ada", "wrong")
		require.Equal(t, 401, status)
	}
	status, _ := try(processes[0], "192.0.2.1", "ada", "wrong")
	require.Equal(t, 429, status)
	status, retry := try(processes[1], "192.0.2.2", "ada", "right")
	require.Equal(t, 429, status)
	require.Greater(t, seconds(t, retry), 3500.0)
	operate(t, processes[1], "DELETE", "/blocks/account?key=ada&who=olga")
	status, _ = try(processes[1], "192.0.2.2", "ada", "right")
	require.Equal(t, 200, status)
}
