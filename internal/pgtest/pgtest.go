// Package pgtest starts real PostgreSQL servers for tests. It uses the standard library
// alone, so that it does not bring a driver into the module.
//
// A test that needs a server calls [Start]. It is skipped if there is no PostgreSQL on
// the machine. If RATELIMIT_REQUIRE_POSTGRES is 1, it fails instead. RATELIMIT_POSTGRES_BIN
// is the folder with the programs initdb and postgres, for tests with another version.
package pgtest

import (
	"os"
	"testing"
)

// Superuser is the name of the role that may do everything, without a password.
const Superuser = "postgres"

// WithPassword is the name of a role that the server only lets in with its password. A
// test that needs it creates it.
const WithPassword = "with_password"

// missing skips or fails a test that cannot have a server.
func missing(t testing.TB, reason string) {
	t.Helper()
	if os.Getenv("RATELIMIT_REQUIRE_POSTGRES") == "1" {
		t.Fatalf("pgtest: %s, and RATELIMIT_REQUIRE_POSTGRES is 1", reason)
	}
	t.Skipf("pgtest: %s", reason)
}
