// Package interop checks this library against foreign software. The tests of other
// libraries run on it: see docs/judges.md. Its token bucket is compared with two
// others. Parsers of structured fields and an npm package read what it sends, and HTTP
// clients that retry meet its 429.
//
// The tests install the npm packages of testdata/npm, and are skipped where that is
// not possible. With RATELIMIT_REQUIRE_NPM=1 they fail instead.
//
// It is a module of its own, so that users of the library do not get these
// dependencies.
package interop
