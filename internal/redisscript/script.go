// Package redisscript has the scripts that count on a Redis server. It writes
// their keys and arguments and reads their replies. It does not send anything.
//
// # Scripts
//
// A script is one or more .lua files, joined in this order. Each file begins
// with what it expects from the files before it, what it leaves to those after
// it, and which tests check it against package rule.
//
//	Take    take_begin.lua fixed.lua state.lua lib.lua take.lua
//	Adjust  lib.lua adjust.lua
//	Reset   reset.lua
//
// # Counters
//
// A counter is the [rule.State] of one key under one limit, with microseconds
// for all instants and windows: see [Micro]. Its fields are
//
//	fixed window    T: when the window opened     A: units in it
//	sliding window  T: when this window opened    A: units in it         B: units in the one before
//	bucket          T: when A and B were true     A: whole units in it   B: and this many window-ths of one
//
// A counter is a string at Redis, under a key that [AppendKey] begins. It
// expires as soon as its state counts as a fresh one, so that a missing key is a
// fresh state.
//
//	fixed window    "A"; T follows from the time to live: the window ends when the key expires
//	sliding window  "T A B"
//	bucket          "T A B"
//
// # Take
//
// A take asks for cost units of one key, under some limits, for each of some
// callers: the callers in this process that share the take. It admits them one
// after another, as long as their units fit under all limits. A cost of 0, a
// look, always fits. One command is
// for one take or for several, of different keys under the same limits. Takes
// are numbered from 1 in arguments and reply, and from 0 in Go.
//
//	KEYS   for each take: the key of its counter under each limit
//	ARGV   for each limit: kind, N, window, and the burst of a bucket: see [Args]
//	       for each special take: number, cost, number of callers: see [AppendTake]
//	reply  the server's time
//	       for each take and limit: T, A, B of the state before the first caller;
//	         only T, A if it is a fixed window
//	       for each take that has not admitted all its callers: number of the take,
//	         and how many it has admitted, or -i if key i of the take does
//	         not hold a counter, and nothing was changed for this take
//
// A special take is one that is not one unit for one caller. All of the reply is
// integers. [ParseTakes] reads it.
//
// The reply has no answers. Each caller derives its own, from the number m of
// admitted callers and the state under each limit, with its place p among the
// callers, from 0:
//
//	p < m   admitted: after it, each state has A + cost*(p+1) units
//	p >= m  denied: before and after it, each state has A + cost*m units
//
// [rule.Limit.Take] on this state, at the time of the reply, returns what
// remains and when more fits: an admitted caller asks it for 0 units, and a denied
// one for cost units, which at least one of the limits denies. So all callers
// get the same answers as if each had sent a command of its own, in this order
// and at this time.
//
// # Adjust
//
// Adjust moves the counters of one key by some units that were taken at some
// instant, as far as they still count: see [rule.Limit.Adjust].
//
//	KEYS   the key of the counter under each limit
//	ARGV   for each limit: as for Take
//	       units: less than 0 gives them back, more than 0 charges them
//	       the instant by the server's time, or "now"
//	reply  the server's time
//	       for each limit: T, A, B before, and T, A, B after; of a fixed window B is 0
//	error  JUNK i, if key i does not hold a counter, and nothing was changed: see [Junk]
//
// [ParseAdjust] reads the reply.
//
// # Reset
//
//	KEYS   the keys to delete
//	reply  how many of them there were
package redisscript

import (
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"errors"
	"iter"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/ratelimit-go/ratelimit/internal/rule"
)

var (
	//go:embed lib.lua
	lib string
	//go:embed take_begin.lua
	takeBegin string
	//go:embed fixed.lua
	fixed string
	//go:embed state.lua
	state string
	//go:embed take.lua
	take string
	//go:embed adjust.lua
	adjust string
	//go:embed reset.lua
	reset string
)

// A Script is its text, for EVAL, and the hash of the text, for EVALSHA. Both are
// strings that are already arguments of a command, so that no call allocates
// an interface for them.
type Script struct{ Text, Hash any }

func newScript(text string) Script {
	return Script{Text: text, Hash: redis.NewScript(text).Hash()}
}

// The scripts of the package comment.
var (
	Take   = newScript(takeBegin + fixed + state + lib + take)
	Adjust = newScript(lib + adjust)
	Reset  = newScript(reset)
)

// Micro returns a limit with its window in microseconds instead of nanoseconds,
// rounded up: microseconds are what Redis returns for the time. The scripts and
// the states in their replies are for such limits.
func Micro(l rule.Limit) rule.Limit {
	l.Window = (l.Window + 999) / 1000
	return l
}

// Args returns the script arguments of a limit from [Micro]: its kind, which is
// f (fixed), s (sliding) or b (bucket), N, the window, and the burst of a bucket.
func Args(l rule.Limit) []any {
	kind := map[rule.Kind]string{rule.Fixed: "f", rule.Sliding: "s", rule.Bucket: "b"}[l.Kind]
	args := []any{kind, strconv.FormatInt(l.N, 10), strconv.FormatInt(l.Window, 10)}
	if l.Kind == rule.Bucket {
		args = append(args, strconv.FormatInt(l.Burst, 10))
	}
	return args
}

// AppendTake appends the arguments of take number i, from 0, of cost units for
// each of the callers. It appends none for one unit for one caller, as most takes
// are. Takes must be appended in ascending order, after the arguments of the limits.
func AppendTake(args []any, i int, cost, callers int64) []any {
	if cost == 1 && callers == 1 {
		return args
	}
	return append(args, i+1, cost, callers)
}

// MaxKey is the length in bytes of the longest key that is written unchanged
// into a counter's key. Longer keys are hashed.
const MaxKey = 128

// AppendKey appends the beginning of a counter's key, such as
// "rl:login:{203.0.113.7}:". The caller appends the limit.
//
// The braces make a hash tag of the key, so that all of its counters are in one
// slot of a cluster. No two pairs of prefix and key have the same text: a prefix
// has no brace, and [AppendEscaped] leaves none in a key. A key longer than
// [MaxKey] is written as {%sha256:...}, which is not an escape.
func AppendKey(b []byte, prefix, key string) []byte {
	b = append(append(b, prefix...), '{')
	return append(appendTag(b, key), "}:"...)
}

func appendTag(b []byte, key string) []byte {
	if len(key) <= MaxKey {
		return AppendEscaped(b, key)
	}
	sum := sha256.Sum256([]byte(key))
	return hex.AppendEncode(append(b, "%sha256:"...), sum[:])
}

// Tag returns the hash tag of a key, the text that [AppendKey] writes between
// the braces. It determines the key's slot in a cluster.
func Tag(key string) string {
	var buf [3 * MaxKey]byte
	if tag := appendTag(buf[:0], key); string(tag) != key {
		return string(tag)
	}
	return key
}

// AppendEscaped appends s and writes some bytes as %XX: braces, which could end
// a hash tag, percent signs, and each byte that redis-cli would not print as it
// is. redis-cli escapes quotes, backslashes, spaces and all that is not
// printable ASCII.
func AppendEscaped(b []byte, s string) []byte {
	const digits = "0123456789ABCDEF"
	for i := range len(s) {
		switch c := s[i]; {
		case c <= ' ', c >= 0x7f, c == '{', c == '}', c == '%', c == '"', c == '\\':
			b = append(b, '%', digits[c>>4], digits[c&15])
		default:
			b = append(b, c)
		}
	}
	return b
}

// ErrReply is the error for a reply that the scripts cannot have returned.
var ErrReply = errors.New("the reply is not one of this library's scripts: is there a proxy that changes replies?")

// Takes is a reply of Take. The package comment says what a caller derives
// from it.
type Takes struct {
	Now        int64 // the server's time, in microseconds
	limits     []rule.Limit
	states     []int64 // the numbers of the states, for each take and limit
	width      int     // how many of them belong to one take
	incomplete []int64 // pairs: number of a take, from 1, and callers admitted, or -i
}

// ParseTakes reads a reply of Take to a command of this number of takes. The
// result refers to reply and limits.
func ParseTakes(reply []int64, takes int, limits []rule.Limit) (Takes, error) {
	t := Takes{limits: limits}
	for _, l := range limits {
		t.width += width(l)
	}
	end := 1 + takes*t.width
	if len(reply) < end || (len(reply)-end)%2 != 0 {
		return Takes{}, ErrReply
	}
	for _, number := range reply[:end] {
		if number < 0 || number > 1<<53 {
			return Takes{}, ErrReply
		}
	}
	t.Now, t.states, t.incomplete = reply[0], reply[1:end], reply[end:]
	for i, admitted := range t.Incomplete() {
		if i < 0 || i >= takes || admitted < -int64(len(limits)) {
			return Takes{}, ErrReply
		}
	}
	return t, nil
}

// States sets states to the states of take number i, from 0, before its first
// caller: one for each limit. They are zero if a key of the take does not hold a
// counter.
func (t Takes) States(i int, states []rule.State) {
	numbers := t.states[i*t.width:]
	for j, l := range t.limits {
		s := rule.State{T: numbers[0], A: numbers[1]}
		if l.Kind != rule.Fixed {
			s.B = numbers[2]
		}
		states[j], numbers = s, numbers[width(l):]
	}
}

// Incomplete returns the takes that have not admitted all of their callers, by number
// from 0, and how many they have admitted: 0 or more, or -i if key i of the
// take, from 1, does not hold a counter.
func (t Takes) Incomplete() iter.Seq2[int, int64] {
	return func(yield func(int, int64) bool) {
		for p := t.incomplete; len(p) > 0; p = p[2:] {
			if !yield(int(p[0]-1), p[1]) {
				return
			}
		}
	}
}

// width returns how many numbers a state has in a reply of Take: a fixed window
// has no B.
func width(l rule.Limit) int {
	if l.Kind == rule.Fixed {
		return 2
	}
	return 3
}

// ParseAdjust reads a reply of Adjust: it sets the states under each limit before
// and after, and returns the server's time in microseconds.
func ParseAdjust(reply []int64, before, after []rule.State) (now int64, err error) {
	if len(reply) != 1+6*len(before) {
		return 0, ErrReply
	}
	for i := range before {
		before[i], after[i] = stateOf(reply[1+6*i:]), stateOf(reply[4+6*i:])
	}
	return reply[0], nil
}

func stateOf(numbers []int64) rule.State {
	return rule.State{T: numbers[0], A: numbers[1], B: numbers[2]}
}

// Junk reports whether err is the reply of Adjust to a key that does not hold a
// counter, and returns the number of the key, from 0.
func Junk(err error) (i int, ok bool) {
	if number, found := strings.CutPrefix(err.Error(), "JUNK "); found {
		i, convErr := strconv.Atoi(number)
		return i - 1, convErr == nil && i > 0
	}
	return 0, false
}

// Nanos converts a wait in a [rule.Answer] from microseconds. [rule.Never] stays
// rule.Never. A wait that is too long for a [time.Duration] becomes 146 years,
// half of rule.Never: it is not Never, because the wait ends.
func Nanos(micros int64) time.Duration {
	const most = rule.Never / 1000
	if micros > most {
		if micros == rule.Never {
			return rule.Never
		}
		return rule.Never / 2
	}
	return time.Duration(micros) * time.Microsecond
}
