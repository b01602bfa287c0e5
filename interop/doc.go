// Package interop checks this library against foreign software: the tests of other
// libraries run on it, which docs/judges.md is about, its token bucket is compared with
// those of others, and a parser of structured fields, an HTTP client that retries and an
// npm package read what it sends.
//
// It is a module of its own, so that users of the library do not get these
// dependencies.
package interop
