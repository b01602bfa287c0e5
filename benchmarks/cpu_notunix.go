//go:build !unix

package benchmarks

import "time"

// ownCPU returns false: how much processor time this process has used is not known.
func ownCPU() (time.Duration, bool) { return 0, false }
