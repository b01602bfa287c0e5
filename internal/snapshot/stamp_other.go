//go:build !linux

package snapshot

// sinceBoot returns zeros: on this system a Stamp has only the wall clock.
func sinceBoot() (boot [16]byte, ago int64) { return boot, 0 }
