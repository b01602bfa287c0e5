// Package e2e has the tests that need more than this process: real Redis and PostgreSQL
// servers, other processes that count together or are killed, nginx as a proxy and cache,
// Prometheus, and a browser.
//
// It is a module of its own, so that the tests of the root module run in seconds and need
// nothing but Go. Run its tests with
//
//	cd internal/e2e && go test .
//
// A test that needs redis-server, PostgreSQL, nginx, Prometheus or Chromium is skipped where
// the program is not installed. It fails instead if RATELIMIT_REQUIRE_REDIS,
// RATELIMIT_REQUIRE_POSTGRES, RATELIMIT_REQUIRE_NGINX, RATELIMIT_REQUIRE_PROMETHEUS or
// RATELIMIT_REQUIRE_CHROMIUM is 1. The pages of package admin are checked with the npm package
// axe-core, if RATELIMIT_NODE_MODULES, or NODE_PATH, names a folder that it is in.
// RATELIMIT_FAULTS=1 adds the faults that take seconds each. RATELIMIT_MODEL_SEEDS=50 records
// 50 histories of each fault for the model, in place of 1 or 2. RATELIMIT_SCREENSHOTS=1 writes
// the screenshots of docs/admin.md.
package e2e
