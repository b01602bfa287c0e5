//go:build unix

package filelock

import (
	"errors"
	"os"
	"syscall"
)

// SyncDir makes durable that files of a directory were made and renamed. It waits for the
// disk. It does nothing on file systems that cannot do this.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := d.Sync(); err != nil && !errors.Is(err, syscall.EINVAL) && !errors.Is(err, syscall.ENOTSUP) {
		return err
	}
	return nil
}
