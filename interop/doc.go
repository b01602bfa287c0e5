// Package interop checks the middleware against foreign software: a parser of
// structured fields, an HTTP client that retries, and an npm package that reads
// rate-limit headers.
//
// It is a module of its own, so that users of the library do not get these
// dependencies.
package interop
