//go:build race

package interop_test

const raceDetector = true // this test binary is built with it
