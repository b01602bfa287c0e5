package snapshot

import (
	"bytes"
	"encoding/hex"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// sinceBoot returns the id of this boot of the system and how long ago it was,
// including time asleep. If the system does not report them, both are zero.
func sinceBoot() (boot [16]byte, ago int64) {
	var t unix.Timespec
	boot = bootID()
	if boot == [16]byte{} || unix.ClockGettime(unix.CLOCK_BOOTTIME, &t) != nil {
		return [16]byte{}, 0
	}
	return boot, t.Nano()
}

var bootID = sync.OnceValue(func() (id [16]byte) {
	text, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	text = bytes.ReplaceAll(bytes.TrimSpace(text), []byte("-"), nil)
	if len(text) != 32 {
		return id
	}
	if _, err := hex.Decode(id[:], text); err != nil {
		return [16]byte{}
	}
	return id
})
