package pgtest

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
)

// A Disk is a small file system in memory.
type Disk struct {
	Path string
	s    *Server
}

// Disk makes a disk with a size in bytes for a part of the server's files. It ends with the
// test. To mount it takes root: other tests are skipped.
func (s *Server) Disk(name string, size int) *Disk {
	s.t.Helper()
	d := &Disk{Path: filepath.Join(s.dir, name), s: s}
	err := os.Mkdir(d.Path, 0o700)
	if err == nil {
		err = syscall.Mount("tmpfs", d.Path, "tmpfs", 0, "mode=0700,size="+strconv.Itoa(size))
	}
	if err != nil {
		s.t.Skipf("pgtest: no disk of its own for a server: run the tests as root: %v", err)
	}
	s.t.Cleanup(func() {
		s.Kill()
		syscall.Unmount(d.Path, syscall.MNT_DETACH)
	})
	s.own(d.Path)
	if err := os.Chmod(d.Path, 0o700); err != nil {
		s.t.Fatalf("pgtest: %v", err)
	}
	return d
}

// WALDisk moves the WAL of a server that was stopped to a disk of its own.
func (s *Server) WALDisk(size int) *Disk {
	s.t.Helper()
	d, wal := s.Disk("wal", size), filepath.Join(s.data(), "pg_wal")
	move := fmt.Sprintf("cp -R -p %[1]s/. %[2]s && rm -r %[1]s && ln -s %[2]s %[1]s", wal, d.Path)
	if out, err := s.command("sh", "-c", move).CombinedOutput(); err != nil {
		s.t.Fatalf("pgtest: %v\n%s", err, out)
	}
	return d
}

func (d *Disk) filler() string { return filepath.Join(d.Path, "filler") }

// Fill leaves no room on the disk.
func (d *Disk) Fill() {
	d.s.t.Helper()
	f, err := os.Create(d.filler())
	if err != nil {
		d.s.t.Fatalf("pgtest: %v", err)
	}
	defer f.Close()
	for err == nil {
		_, err = f.Write(make([]byte, 4096))
	}
}

// Free ends a Fill.
func (d *Disk) Free() {
	d.s.t.Helper()
	if err := os.Remove(d.filler()); err != nil {
		d.s.t.Fatalf("pgtest: %v", err)
	}
}
