package storekit

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/ratelimit-go/ratelimit/internal/rule"
)

// This file has the encoding of a [Record].
//
//	version    1 byte: 1
//	end        8 bytes, big-endian: when the record may be deleted, in Unix nanoseconds
//	counters   their number, and for each of them
//	             its name, with the length before it
//	             1 byte: which of the following it has (1 state, 2 log, 4 block)
//	             its end
//	             state: T, A, B
//	             log: the number of units, the instant of the oldest one, and
//	               for each other unit the time since the one before it
//	             block: its end, the rung, for how long the rung is remembered
//	holds      their number, and for each of them
//	             the process, with the length before it
//	             began, ended, the end, and how long it lasts
//
// Numbers are varints of package encoding/binary. A counter is kept for a minute after its own
// end. Instants are written as the time from them to a minute before the end of the record, as
// signed numbers, because most of them are near it. All other numbers are unsigned, and times
// are in nanoseconds.
//
// A record of another version also begins with its version and its end. So a version that
// does not know it can keep it, with its time to live. What a version means never changes.

const (
	version    = 1
	headerSize = 1 + 8

	hasState = 1
	hasLog   = 2
	hasBlock = 4
)

// errNotRecord is the error for what no version of this package has written.
var errNotRecord = errors.New("it is not a record of this package: keep what writes it off the store's prefix, and delete it with Limiter.Reset")

// errNewer is the error for a record of a later version.
type errNewer byte

func (version errNewer) Error() string {
	return fmt.Sprintf("it has version %d, and this program knows version 1: the record is kept as it is; "+
		"bring all programs that share the store to the version of this library that has written it", byte(version))
}

// DecodeRecord reads a record that [Record.Append] has written. A record without bytes is a
// key that nothing is known about. It keeps no reference to the bytes.
//
// It returns an error for other bytes, and for a record of a later version. A store must not
// overwrite them.
func DecodeRecord(record []byte) (*Record, error) {
	r := new(Record)
	if len(record) == 0 {
		return r, nil
	}
	end, ok := endOf(record)
	switch {
	case !ok:
		return nil, errNotRecord
	case record[0] > version:
		return nil, errNewer(record[0])
	}
	d := decoder{rest: record[headerSize:], end: end - kept}
	for n := d.number(uint64(len(d.rest))); n > 0 && !d.failed; n-- {
		r.Counters = append(r.Counters, d.counter())
	}
	for n := d.number(uint64(len(d.rest))); n > 0 && !d.failed; n-- {
		r.Holds = append(r.Holds, Hold{
			Process: d.text(), Began: d.int(maxBegan), Ended: d.int(maxBegan), Until: d.instant(), Lasts: time.Duration(d.int(rule.MaxSpan)),
		})
	}
	if d.failed || len(d.rest) > 0 || !r.valid() {
		return nil, errNotRecord
	}
	return r, nil
}

// endOf returns when a record of any version ends. ok is false if the bytes cannot be one.
func endOf(record []byte) (end int64, ok bool) {
	if len(record) < headerSize || record[0] == 0 {
		return 0, false
	}
	end = int64(binary.BigEndian.Uint64(record[1:]))
	return end, 0 <= end && end <= rule.MaxUntil+kept
}

// kept is how much longer a counter is kept than it counts. If the backend's clock is set back
// by less, or a process has a clock that is behind by less, nothing has been forgotten.
const kept = int64(time.Minute)

// Append appends the record to b, without what has ended a minute ago or earlier. It appends nothing if
// nothing is left: then the backend deletes the record. ttl is for how long to keep the
// record from now on.
func (r *Record) Append(b []byte, now time.Time) (record []byte, ttl time.Duration) {
	at := now.UnixNano()
	counters := slices.DeleteFunc(slices.Clone(r.Counters), func(c Counter) bool { return c.End+kept <= at })
	holds := slices.DeleteFunc(slices.Clone(r.Holds), func(h Hold) bool { return h.Until+kept <= at })
	if len(counters)+len(holds) == 0 {
		return b, 0
	}
	end := int64(0)
	for i := range counters {
		end = max(end, counters[i].End)
	}
	for i := range holds {
		end = max(end, holds[i].Until)
	}
	b = binary.BigEndian.AppendUint64(append(b, version), uint64(end+kept))
	b = binary.AppendUvarint(b, uint64(len(counters)))
	for i := range counters {
		b = counters[i].append(b, end)
	}
	b = binary.AppendUvarint(b, uint64(len(holds)))
	for _, h := range holds {
		b = appendText(b, h.Process)
		b = binary.AppendUvarint(b, uint64(h.Began))
		b = binary.AppendUvarint(b, uint64(h.Ended))
		b = binary.AppendVarint(b, end-h.Until)
		b = binary.AppendUvarint(b, uint64(h.Lasts))
	}
	return b, time.Duration(end + kept - at)
}

func (c *Counter) append(b []byte, end int64) []byte {
	has := byte(0)
	if c.A != 0 || c.B != 0 {
		has |= hasState
	}
	if len(c.Log) > 0 {
		has |= hasLog
	}
	if c.block() != (rule.Block{}) {
		has |= hasBlock
	}
	b = append(appendText(b, c.Name), has)
	b = binary.AppendVarint(b, end-c.End)
	if has&hasState != 0 {
		b = binary.AppendVarint(b, end-c.T)
		b = binary.AppendUvarint(b, uint64(c.A))
		b = binary.AppendUvarint(b, uint64(c.B))
	}
	if has&hasLog != 0 {
		b = binary.AppendUvarint(b, uint64(len(c.Log)))
		b = binary.AppendVarint(b, end-c.Log[0])
		for i, instant := range c.Log[1:] {
			b = binary.AppendUvarint(b, uint64(instant-c.Log[i]))
		}
	}
	if has&hasBlock != 0 {
		b = binary.AppendVarint(b, end-c.Until)
		b = append(b, byte(c.Rung))
		b = binary.AppendUvarint(b, uint64(c.Forget))
	}
	return b
}

func appendText(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

// A decoder reads the numbers of a record. After a failure all of them are 0.
type decoder struct {
	rest   []byte
	end    int64 // of the counter or hold that ends last
	failed bool
}

func (d *decoder) counter() (c Counter) {
	c.Name = d.text()
	has := d.byte()
	d.failed = d.failed || has > hasState|hasLog|hasBlock
	c.End = d.instant()
	if has&hasState != 0 {
		c.T, c.A, c.B = d.instant(), d.int(rule.MaxUnits), d.int(rule.MaxSpan)
	}
	if has&hasLog != 0 {
		units := d.number(rule.MaxRolling)
		instant := d.instant()
		for i := range units {
			if i > 0 {
				instant += d.int(rule.MaxUntil - instant)
			}
			c.Log = append(c.Log, instant)
		}
	}
	if has&hasBlock != 0 {
		c.Until, c.Rung, c.Forget = d.instant(), int(d.byte()), time.Duration(d.int(rule.MaxSpan))
	}
	return c
}

// number reads a number of at most most.
func (d *decoder) number(most uint64) uint64 {
	n, size := binary.Uvarint(d.rest)
	if size <= 0 || n > most {
		d.fail()
		return 0
	}
	d.rest = d.rest[size:]
	return n
}

func (d *decoder) int(most int64) int64 { return int64(d.number(uint64(max(0, most)))) }

// instant reads an instant from 0 to rule.MaxUntil.
func (d *decoder) instant() int64 {
	before, size := binary.Varint(d.rest)
	if size <= 0 || before > d.end || before < d.end-rule.MaxUntil {
		d.fail()
		return 0
	}
	d.rest = d.rest[size:]
	return d.end - before
}

func (d *decoder) byte() byte {
	if len(d.rest) == 0 {
		d.fail()
		return 0
	}
	b := d.rest[0]
	d.rest = d.rest[1:]
	return b
}

func (d *decoder) text() string {
	n := d.number(uint64(len(d.rest)))
	if n > uint64(len(d.rest)) {
		d.fail()
		return ""
	}
	s := string(d.rest[:n])
	d.rest = d.rest[n:]
	return s
}

func (d *decoder) fail() { d.rest, d.failed = nil, true }
