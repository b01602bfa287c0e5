// Package filelock locks files that are open, so that one process uses them at a time, and
// makes new files durable.
package filelock

import "errors"

// ErrLocked is the error for a file that is locked by another process, or through another
// open file.
var ErrLocked = errors.New("locked")
