package snapshot

import (
	"crypto/rand"
	"time"

	"github.com/ratelimit-go/ratelimit/internal/rule"
)

// Stamp is one instant as read from several clocks, so that another process can
// find out how long ago it was. All spans are nanoseconds.
type Stamp struct {
	Process [16]byte // a random name of the process
	Boot    [16]byte // names this boot of the system; zero if unknown
	Booted  int64    // how long ago the system was started
	Wall    int64    // since 1970
	Store   int64    // by the clock of the store, which is the process's own
}

var process = func() (id [16]byte) {
	rand.Read(id[:])
	return id
}()

// StampOf returns a stamp of the present instant. store is this instant on the
// store's clock.
func StampOf(store int64) Stamp {
	s := Stamp{Process: process, Wall: time.Now().UnixNano(), Store: store}
	s.Boot, s.Booted = sinceBoot()
	return s
}

// Since returns how much earlier than s another stamp was taken. It uses the best
// clock that both have: the store's clock within one process, or the system's time
// since boot within one boot. Setting the date does not change these clocks. If both
// are missing, it uses the difference of the wall clocks. The result is never
// negative, and at most rule.MaxSpan.
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
