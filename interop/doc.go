// Package interop checks the middleware against foreign software: parsers of
// structured fields, HTTP clients that retry, and readers of rate-limit headers.
//
// The tests install the npm packages of testdata/npm, and are skipped where that is
// not possible. With RATELIMIT_REQUIRE_NPM=1 they fail instead.
//
// It is a module of its own, so that users of the library do not get these
// dependencies.
package interop
