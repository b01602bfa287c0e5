//go:build !linux

package snapshot

// sinceBoot knows nothing here: there is the wall clock.
func sinceBoot() (boot [16]byte, ago int64) { return boot, 0 }
