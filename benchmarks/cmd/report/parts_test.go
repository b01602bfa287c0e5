package main

import (
	"os"
	"path/filepath"
	"testing"
)

func TestPostgresReport(t *testing.T) {
	r := &results{machine: "8 cores", versions: map[string]string{"github.com/jackc/pgx/v5": "v5.9.9"}}
	got := reportOf(r, postgresPart, `
    postgres_test.go:45: exact: fixed
    postgres_test.go:45: exact: bucket
    postgres_test.go:45: exact: upsert-async
    postgres_test.go:45: not exact: upsert admitted 1003 of 1000 (goroutines: 64)
BenchmarkPostgres/postgres-serial/fixed-8         	 2	 200.0 us/op	 1.40 x/upsert
BenchmarkPostgres/postgres-serial/bucket-8        	 2	 300.0 us/op	 2.10 x/upsert
BenchmarkPostgres/postgres-serial/upsert-async-8  	 2	 140.0 us/op	 1.00 x/upsert
BenchmarkPostgres/postgres-spread/fixed-8         	 2	 60000 op/s	 120.0 WAL-B/op
BenchmarkPostgres/postgres-spread/upsert-async-8        	 2	 10000 op/s	 200.0 WAL-B/op
`)
	wantAll(t, got,
		"\n### On one server\n",
		"| one caller, µs | 200 / 300 | upsert-async 140 | 1.43 / 2.14 | — |  | — | — |\n",
		"| — by an UPSERT, in turn with it | 1.40 / 2.10 | upsert-async 1.00 | 1.40 / 2.10 | ≤ 1.5 | met / **missed** | — | — |\n",
		"| 64 callers, 10,000 keys, decisions/s | 60000 | upsert-async 10000 | 6.00 | ≥ 2.5 × | met | — | — |\n",
		"| — bytes of WAL | 120 | upsert-async 200 |",
		"| upsert | github.com/jackc/pgx/v5 v5.9.9 |",
		"except:\n\n- upsert admitted 1003 of 1000 (goroutines: 64)\n",
	)
}

// A part that is measured by itself leaves the others as they are.
func TestPartsOfAReport(t *testing.T) {
	file := filepath.Join(t.TempDir(), "report.md")
	if got := textFrom(file, parts[1:]); got != "" {
		t.Errorf("no file has %q", got)
	}
	redis, postgres := redisPart.head+"R\n", postgresPart.head+"P\n"
	if err := os.WriteFile(file, []byte("# Memory\n"+redis+postgres), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := textFrom(file, parts[1:]); got != redis+postgres {
		t.Errorf("all parts are %q", got)
	}
	if got := textFrom(file, parts[2:]); got != postgres {
		t.Errorf("the second part is %q", got)
	}
	if got := textFrom(file, parts[3:]); got != "" {
		t.Errorf("what follows the last part is %q", got)
	}
}

func TestPostgresVersion(t *testing.T) {
	if got := postgresVersion("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)"); got != "PostgreSQL 15.18" {
		t.Error(got)
	}
}
