//go:build unix

package snapshot

import (
	"fmt"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/ratelimit-go/ratelimit/internal/rule"
	"github.com/ratelimit-go/ratelimit/internal/table"
)

// BenchmarkSave saves a table of a million counters, of which some have changed since
// the last time. cpu-ms/op divided by SnapshotEvery is its share of one core. bytes/op
// is what is written. It includes the files that are sometimes written completely.
func BenchmarkSave(b *testing.B) {
	const keys = 1_000_000
	for _, changed := range []int{0, 1000, 10_000, 100_000, keys} {
		b.Run(fmt.Sprint(changed, " of ", keys), func(b *testing.B) {
			now := 100 * hour
			secret := table.Secret{1, 2}
			tab := table.NewKept(1<<20, func() int64 { return now }, secret, table.MaxShards)
			f, err := Open(filepath.Join(b.TempDir(), "file"), 0)
			if err != nil {
				b.Fatal(err)
			}
			defer f.Close()
			mirror, written := tab.Mirror(), int64(0)
			save := func() {
				was := f.size
				err := f.Save(Header{secret, tab.Shards()}, tab, mirror, false, func() Stamp { return Stamp{} })
				if err != nil {
					b.Fatal(err)
				}
				if changed > 0 && f.size == f.whole { // the whole file was written
					was = 0
				}
				written += f.size - was
			}
			limit := hourly
			limit.N = 1 << 40
			limits, answers := []rule.Limit{limit}, make([]rule.Answer, 1)
			take := func(i int) { tab.Take(fmt.Sprint(i%keys), 1, limits, answers, nil) }
			for i := range keys {
				take(i)
			}
			save()
			var cpu time.Duration
			next := 0
			written = 0
			for b.Loop() {
				b.StopTimer()
				now++
				for range changed {
					next += 7919
					take(next)
				}
				before := cpuTime()
				b.StartTimer()
				save()
				cpu += cpuTime() - before
			}
			b.ReportMetric(float64(cpu.Microseconds())/1000/float64(b.N), "cpu-ms/op")
			b.ReportMetric(float64(written)/float64(b.N), "bytes/op")
		})
	}
}

// BenchmarkRestore reads a file of a million counters, as a process does when it
// starts.
func BenchmarkRestore(b *testing.B) {
	k := open(b, filepath.Join(b.TempDir(), "file"))
	k.take(0, 1_000_000)
	saved(b, k)
	for b.Loop() {
		c, err := k.file.Read()
		if err != nil {
			b.Fatal(err)
		}
		tab := table.NewKept(1<<20, func() int64 { return k.now }, c.Secret, c.Shards)
		if err := c.Restore(tab, k.stamp()); err != nil {
			b.Fatal(err)
		}
	}
}

func cpuTime() time.Duration {
	var u syscall.Rusage
	syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
