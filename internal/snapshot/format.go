// Package snapshot stores the counters of a table in a file. format.go has the
// file format, file.go reads and writes files, lock.go keeps other processes out,
// and stamp.go measures how long ago a file was written.
//
// All numbers are little-endian. A file begins with a header:
//
//	8 bytes  "RLSNAP\r\n"
//	uint32   version: 1, or 2 if there may be blocks, or 3 if there may be rolling windows or calendars
//	uint32   number of shards
//	16 bytes secret that keys are hashed under
//	uint32   checksum of all that
//
// Parts follow. Each has its own head with a checksum, so that a part that was not
// completely written can be distinguished from a damaged one:
//
//	uint32   length of the body
//	uint32   kind of the body: 1 changes, 2 commit
//	uint32   checksum of these two
//	...      body
//	uint32   checksum of the body
//
// A body of kind changes has three uint32: the shard, the number of counters removed,
// and the number of counters set. Then it has the IDs of the removed counters; ID,
// When and What of each counter set; and Rest of each counter set that is split (see
// [table.Counter]). From version 3 on, a list of logs follows: for each counter that has a
// Log, two uint32 with the index of the counter among those set, in order, and the number
// of its instants; then the instants. The Rest of such a counter is 0.
//
// A body of kind commit has the [Stamp] of the changes before it, and the limits that
// counters were used under: Kind, N, Window and Burst, of 8 bytes each. From version 2 on,
// the last of them may have the kind [rule.Blocked]: the counters with its number are
// blocks. From version 3 on, limits may have the kind [rule.Rolling], and the one before the
// last may have the kind [rule.Calendar]: the counters with its number are of calendars. A
// file has version 1 until its table holds the first of these counters, so programs that
// know none of them can read it. It has version 2 as long as only blocks are among them.
//
// Changes without a commit are ignored. A file gets its name only after its first commit;
// further changes and commits are appended. So whatever follows the last commit is what a
// process was writing when it ended. After a power failure, file systems may leave zeros
// up to the end of the file in place of data that was not written. If other bytes follow
// such a part, the file is damaged.
package snapshot

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"

	"github.com/ratelimit-go/ratelimit/internal/rule"
	"github.com/ratelimit-go/ratelimit/internal/table"
)

const (
	magic        = "RLSNAP\r\n"
	version      = 1 // without blocks
	withBlocks   = 2
	withNewKinds = 3 // rolling windows or calendars, and perhaps blocks
	headerSize   = len(magic) + 4 + 4 + 16 + 4
	partSize     = 4 + 4 + 4 + 4 // without its body

	kindChanges = 1
	kindCommit  = 2

	stampSize  = 16 + 16 + 8 + 8 + 8
	shapeSize  = 4 * 8
	commitSize = stampSize + shapeSize*len(table.Shapes{})
)

var (
	order      = binary.LittleEndian
	castagnoli = crc32.MakeTable(crc32.Castagnoli)
)

// ErrDamaged is the error for a file that a store has not completely written, or
// that has an unknown version.
var ErrDamaged = errors.New("the file cannot be used")

func damaged(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrDamaged, fmt.Sprintf(format, args...))
}

// Header has the values that apply to a whole file.
type Header struct {
	Secret table.Secret
	Shards int
}

func (h Header) append(b []byte, version uint32) []byte {
	start := len(b)
	b = append(b, magic...)
	b = order.AppendUint32(b, version)
	b = order.AppendUint32(b, uint32(h.Shards))
	b = order.AppendUint64(b, h.Secret[0])
	b = order.AppendUint64(b, h.Secret[1])
	return order.AppendUint32(b, crc32.Checksum(b[start:], castagnoli))
}

// readHeader decodes the first bytes of a file: headerSize of them, or fewer if
// the file is shorter.
func readHeader(b []byte) (h Header, v uint32, err error) {
	switch {
	case len(b) < len(magic)+4 && string(b[:min(len(b), len(magic))]) == magic[:min(len(b), len(magic))]:
		return h, v, damaged("it ends after %d bytes", len(b))
	case len(b) < len(magic)+4 || string(b[:len(magic)]) != magic:
		return h, v, damaged("it was not written by a MemoryStore")
	}
	if v = order.Uint32(b[len(magic):]); v < version || v > withNewKinds {
		return h, v, damaged("it has version %d of the format, and this program knows versions %d to %d", v, version, withNewKinds)
	}
	if len(b) < headerSize {
		return h, v, damaged("it ends after %d bytes", len(b))
	}
	sum := headerSize - 4
	if crc32.Checksum(b[:sum], castagnoli) != order.Uint32(b[sum:]) {
		return h, v, damaged("the checksum of its header does not match")
	}
	b = b[len(magic)+4:]
	h = Header{Shards: int(order.Uint32(b)), Secret: table.Secret{order.Uint64(b[4:]), order.Uint64(b[12:])}}
	if h.Shards < 1 || h.Shards > table.MaxShards || h.Shards&(h.Shards-1) != 0 {
		return h, v, damaged("it has %d shards", h.Shards)
	}
	return h, v, nil
}

// appendPart appends a part. fill appends its body.
func appendPart(b []byte, kind uint32, fill func([]byte) []byte) []byte {
	start := len(b)
	b = fill(append(b, make([]byte, 12)...))
	body := b[start+12:]
	order.PutUint32(b[start:], uint32(len(body)))
	order.PutUint32(b[start+4:], kind)
	order.PutUint32(b[start+8:], crc32.Checksum(b[start:start+8], castagnoli))
	return order.AppendUint32(b, crc32.Checksum(body, castagnoli))
}

// AppendChanges appends a part of kind changes to b.
func AppendChanges(b []byte, changes table.Changes) []byte {
	return appendPart(b, kindChanges, func(b []byte) []byte {
		b = order.AppendUint32(b, uint32(changes.Shard))
		b = order.AppendUint32(b, uint32(len(changes.Removed)))
		b = order.AppendUint32(b, uint32(len(changes.Set)))
		for _, id := range changes.Removed {
			b = order.AppendUint64(b, id)
		}
		for i := range changes.Set {
			c := &changes.Set[i]
			b = order.AppendUint64(b, c.ID)
			b = order.AppendUint64(b, c.When)
			b = order.AppendUint64(b, c.What)
		}
		for i := range changes.Set {
			if c := &changes.Set[i]; c.Split() {
				b = order.AppendUint64(b, uint64(c.Rest))
			}
		}
		for i := range changes.Set {
			if log := changes.Set[i].Log; log != nil { // then the file has version 3
				b = order.AppendUint32(b, uint32(i))
				b = order.AppendUint32(b, uint32(len(log)))
				for _, instant := range log {
					b = order.AppendUint64(b, uint64(instant))
				}
			}
		}
		return b
	})
}

func readChanges(b []byte, v uint32, shards int, changes *table.Changes) error {
	wrong := damaged("a list of counters does not add up")
	if len(b) < 12 {
		return wrong
	}
	shard, removed, set := order.Uint32(b), uint64(order.Uint32(b[4:])), uint64(order.Uint32(b[8:]))
	b = b[12:]
	if uint64(shard) >= uint64(shards) || 8*removed+24*set > uint64(len(b)) {
		return wrong
	}
	*changes = table.Changes{Shard: int(shard), Removed: changes.Removed[:0], Set: changes.Set[:0]}
	for range removed {
		changes.Removed = append(changes.Removed, order.Uint64(b))
		b = b[8:]
	}
	for range set {
		changes.Set = append(changes.Set, table.Counter{ID: order.Uint64(b), When: order.Uint64(b[8:]), What: order.Uint64(b[16:])})
		b = b[24:]
	}
	for i := range changes.Set {
		if c := &changes.Set[i]; c.Split() {
			if len(b) < 8 {
				return wrong
			}
			c.Rest = int64(order.Uint64(b))
			b = b[8:]
		}
	}
	if v >= withNewKinds {
		return readLogs(b, changes)
	}
	if len(b) > 0 {
		return wrong
	}
	return nil
}

// readLogs decodes the list of logs of a body of kind changes.
func readLogs(b []byte, changes *table.Changes) error {
	next := uint64(0) // the least index that the next log may have
	for len(b) > 0 {
		if len(b) < 8 {
			return damaged("a list of instants does not add up")
		}
		i, n := uint64(order.Uint32(b)), uint64(order.Uint32(b[4:]))
		b = b[8:]
		if i < next || i >= uint64(len(changes.Set)) || n == 0 || 8*n > uint64(len(b)) {
			return damaged("a list of instants does not add up")
		}
		log := make([]int64, n)
		for k := range log {
			log[k] = int64(order.Uint64(b[8*k:]))
		}
		changes.Set[i].Log, next, b = log, i+1, b[8*n:]
	}
	return nil
}

// Commit completes the changes before it.
type Commit struct {
	Stamp  Stamp
	Shapes table.Shapes
}

// AppendCommit appends a part of kind commit to b.
func AppendCommit(b []byte, c Commit) []byte {
	return appendPart(b, kindCommit, func(b []byte) []byte {
		b = append(b, c.Stamp.Process[:]...)
		b = append(b, c.Stamp.Boot[:]...)
		b = order.AppendUint64(b, uint64(c.Stamp.Booted))
		b = order.AppendUint64(b, uint64(c.Stamp.Wall))
		b = order.AppendUint64(b, uint64(c.Stamp.Store))
		for _, l := range c.Shapes {
			b = order.AppendUint64(b, uint64(l.Kind))
			b = order.AppendUint64(b, uint64(l.N))
			b = order.AppendUint64(b, uint64(l.Window))
			b = order.AppendUint64(b, uint64(l.Burst))
		}
		return b
	})
}

// versionOf returns the version of a file of a mirrored table with the given limits. A
// rolling window whose limit has no number of its own shows only by its log. Without a log
// it is like any counter of that number.
func versionOf(shapes *table.Shapes, m *table.Mirror) uint32 {
	switch {
	case shapes.HasRolling() || m.HasLogs() || shapes.HasCalendars():
		return withNewKinds
	case shapes.HasBlocks():
		return withBlocks
	}
	return version
}

func readCommit(b []byte, v uint32, c *Commit) error {
	if len(b) != commitSize {
		return damaged("a commit does not add up")
	}
	c.Stamp.Process, c.Stamp.Boot = [16]byte(b), [16]byte(b[16:])
	c.Stamp.Booted, c.Stamp.Wall, c.Stamp.Store = int64(order.Uint64(b[32:])), int64(order.Uint64(b[40:])), int64(order.Uint64(b[48:]))
	b = b[stampSize:]
	for i := range c.Shapes {
		kind := order.Uint64(b)
		l := rule.Limit{Kind: rule.Kind(kind), N: int64(order.Uint64(b[8:])), Window: int64(order.Uint64(b[16:])), Burst: int64(order.Uint64(b[24:]))}
		known := kind <= uint64(rule.Bucket)
		switch rule.Kind(kind) {
		case rule.Blocked:
			known = v >= withBlocks && i == len(c.Shapes)-1
		case rule.Rolling:
			known = v >= withNewKinds
		case rule.Calendar:
			known = v >= withNewKinds && table.IsCalendars(i)
		}
		if !known || kind > 255 || kind != 0 && i == 0 ||
			min(l.N, l.Window, l.Burst) < 0 || max(l.N, l.Burst) > rule.MaxUnits || l.Window > 2*rule.MaxSpan ||
			kind != 0 && (l.N < 1 || l.Window < rule.MinSpan || l.Window > rule.MaxSpan) {
			return damaged("limit %d of a commit is not one", i)
		}
		c.Shapes[i] = l
		b = b[shapeSize:]
	}
	return nil
}

// Contents are the contents of a file. All of them have been checked.
type Contents struct {
	Header
	Commit // the last one

	version uint32 // of the format
	parts   []byte // all parts up to the last commit
	size    int    // the offset at which the last commit ends
}

// Decode checks a whole file. All errors are ErrDamaged. Contents refers to b.
func Decode(b []byte) (*Contents, error) {
	header, v, err := readHeader(b[:min(len(b), headerSize)])
	if err != nil {
		return nil, err
	}
	c := &Contents{Header: header, version: v}
	var changes table.Changes
	rest := b[headerSize:]
	for {
		kind, body, after, err := nextPart(rest)
		if err != nil {
			return nil, err
		}
		switch {
		case body == nil && c.size == 0:
			return nil, damaged("it ends after %d bytes", len(b))
		case body == nil:
			c.parts = b[headerSize:c.size]
			return c, nil
		case kind == kindChanges:
			err = readChanges(body, v, header.Shards, &changes)
		case kind == kindCommit:
			err = readCommit(body, v, &c.Commit)
			c.size = len(b) - len(after)
		}
		if err != nil {
			return nil, err
		}
		rest = after
	}
}

// nextPart returns the body of the next part and what is after it. The body is nil
// if the part was not completely written: the file ends in it, or has only zeros
// from one of its checksums on.
func nextPart(b []byte) (kind uint32, body, after []byte, err error) {
	if len(b) < 12 || zeros(b[8:]) {
		return 0, nil, nil, nil
	}
	size := uint64(order.Uint32(b))
	kind = order.Uint32(b[4:])
	if crc32.Checksum(b[:8], castagnoli) != order.Uint32(b[8:]) || kind != kindChanges && kind != kindCommit {
		return 0, nil, nil, damaged("a checksum does not match")
	}
	if size+4 > uint64(len(b)-12) {
		return 0, nil, nil, nil
	}
	body, after = b[12:12+size], b[12+size:]
	if crc32.Checksum(body, castagnoli) != order.Uint32(after) {
		if zeros(after) {
			return 0, nil, nil, nil
		}
		return 0, nil, nil, damaged("a checksum does not match")
	}
	return kind, body, after[4:], nil
}

func zeros(b []byte) bool { return len(bytes.TrimLeft(b, "\x00")) == 0 }

// Restore loads the counters into a new table. now is the present instant, and
// Store in it must be on the clock of the table.
func (c *Contents) Restore(t *table.Table, now Stamp) error {
	shift := now.Store - c.Stamp.Store - now.Since(c.Stamp)
	var changes table.Changes
	for rest := c.parts; len(rest) > 0; {
		kind, body, after, err := nextPart(rest)
		if err == nil && kind == kindChanges {
			if err = readChanges(body, c.version, c.Shards, &changes); err == nil {
				err = t.Apply(changes, &c.Shapes, shift)
			}
		}
		if err != nil {
			return damaged("%v", err)
		}
		rest = after
	}
	return nil
}
