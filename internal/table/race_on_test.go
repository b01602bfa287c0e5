//go:build race

package table

// raceDetector reports whether the race detector is on. Calls take some ten times longer then.
const raceDetector = true
