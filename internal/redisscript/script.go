// Package redisscript has what goes to a Redis server and back: the scripts that
// count there, how a counter's key is written, and how a reply is read.
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

// A Script is text for EVAL, and its hash for EVALSHA: arguments of commands, boxed once.
type Script struct{ Text, Hash any }

func newScript(text string) Script {
	return Script{Text: text, Hash: redis.NewScript(text).Hash()}
}

// The scripts are described at the head of their files.
var (
	Take   = newScript(fixed + state + lib + take)
	Adjust = newScript(lib + adjust)
	Reset  = newScript(reset)
)

// Micro is a rule's limit with its window in microseconds, which is how Redis tells
// the time. A window that is no whole number of them is rounded up.
func Micro(l rule.Limit) rule.Limit {
	l.Window = (l.Window + 999) / 1000
	return l
}

// Args are the script arguments of a limit in microseconds, in the order of lib.lua.
func Args(l rule.Limit) []any {
	kind := map[rule.Kind]string{rule.Fixed: "f", rule.Sliding: "s", rule.Bucket: "b"}[l.Kind]
	args := []any{kind, strconv.FormatInt(l.N, 10), strconv.FormatInt(l.Window, 10)}
	if l.Kind == rule.Bucket {
		args = append(args, strconv.FormatInt(l.Burst, 10))
	}
	return args
}

// AppendTake appends the arguments of take number i, from 0: after those of the limits, and
// in the order of the takes.
func AppendTake(args []any, i int, cost, callers int64) []any {
	if cost == 1 && callers == 1 {
		return args
	}
	return append(args, i+1, cost, callers)
}

// MaxKey is the longest key that is written out. Longer ones are hashed.
const MaxKey = 128

// AppendKey appends prefix and key as they stand before a counter's shape, "rl:login:{203.0.113.7}:".
// The braces make a hash tag of the key, so that all of its counters are in one
// slot of a cluster. No two pairs of prefix and key read the same: a prefix has no
// brace, and in a key braces, %, spaces and whatever is not printable ASCII are written
// as %XX. A key longer than MaxKey is {%sha256:...}, which is no such escape.
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

// Tag is what stands for key within the braces, and so decides on its slot.
func Tag(key string) string {
	var buf [3 * MaxKey]byte
	if tag := appendTag(buf[:0], key); string(tag) != key {
		return string(tag)
	}
	return key
}

// AppendEscaped appends s with %XX for each byte that could end a hash tag or
// would not show in redis-cli as it is.
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

// ErrReply is a reply that is not what the scripts return.
var ErrReply = errors.New("the reply is not one of this library's scripts: is there a proxy that changes replies?")

// Takes is what a reply of Take says.
type Takes struct {
	Now    int64 // the server's time
	limits []rule.Limit
	states []int64 // of all takes
	width  int     // of a take, in states
	partly []int64 // pairs: the number of a take, from 1, and how many were admitted
}

// ParseTakes reads a reply of Take about so many takes under the same limits.
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
	t.Now, t.states, t.partly = reply[0], reply[1:end], reply[end:]
	for i, admitted := range t.Partly() {
		if i < 0 || i >= takes || admitted < -int64(len(limits)) {
			return Takes{}, ErrReply
		}
	}
	return t, nil
}

// States reads the states of take number i, from 0, before the first of its callers.
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

// Partly are the takes of which not all callers were admitted, by number from 0, and how many
// were; or less than 0 by the number of a counter, from 1, that is none.
func (t Takes) Partly() iter.Seq2[int, int64] {
	return func(yield func(int, int64) bool) {
		for p := t.partly; len(p) > 0; p = p[2:] {
			if !yield(int(p[0]-1), p[1]) {
				return
			}
		}
	}
}

// width is how many numbers of a state there are in a reply of Take: a fixed window has no B.
func width(l rule.Limit) int {
	if l.Kind == rule.Fixed {
		return 2
	}
	return 3
}

// ParseAdjust reads a reply of Adjust: the server's time, and the state under each
// limit before and after.
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

// Junk tells which of its keys, by number, a script has found something else in than
// a counter, if that is what err says.
func Junk(err error) (i int, ok bool) {
	if rest, found := strings.CutPrefix(err.Error(), "JUNK "); found {
		i, convErr := strconv.Atoi(rest)
		return i - 1, convErr == nil && i > 0
	}
	return 0, false
}

// Nanos is a span of microseconds in nanoseconds; a wait without end stays one.
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
