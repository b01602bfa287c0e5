//go:build !unix

package filelock

// SyncDir does nothing: on Windows a rename is durable when it returns.
func SyncDir(string) error { return nil }
