package snapshot

import (
	"crypto/rand"
	"time"

	"github.com/ratelimit-go/ratelimit/internal/rule"
)

// Stamp is one instant by several clocks, so that another process can tell how long
// ago it was.
type Stamp struct {
	Process [16]byte // a random name of the process
	Boot    [16]byte // a name of the time since the system was started, or zero
	Booted  int64    // how long ago that was
	Wall    int64    // since 1970
	Store   int64    // by the clock of the store, which is the process's own
}

var process = func() (id [16]byte) {
	rand.Read(id[:])
	return id
}()

// StampOf returns the stamp of now, which is store on the store's clock.
func StampOf(store int64) Stamp {
	s := Stamp{Process: process, Wall: time.Now().UnixNano(), Store: store}
	s.Boot, s.Booted = sinceBoot()
	return s
}

// Since returns how long before s another stamp was, by the best clock that both have:
// the store's own within a process, and else the system's, since it was started. Both
// know nothing of the date. Only where there is neither, the difference of the wall
// clocks is believed, and it is not less than 0.
func (s Stamp) Since(was Stamp) int64 {
	later, earlier := s.Wall, was.Wall
	if s.Process == was.Process {
		later, earlier = s.Store, was.Store
	} else if s.Boot == was.Boot && s.Boot != [16]byte{} {
		later, earlier = s.Booted, was.Booted
	}
	if later <= earlier {
		return 0
	}
	if gone := later - earlier; gone > 0 && gone < rule.MaxSpan {
		return gone
	}
	return rule.MaxSpan
}
