//go:build unix && !solaris && !aix

package snapshot

import (
	"os"
	"syscall"
)

// locksData means that the snapshot itself is locked, too: on this system a
// locked file can be removed and renamed.
const locksData = true

// openLock opens a lock, or creates it. It fails if path is a symbolic link.
func openLock(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW, 0o600)
}
