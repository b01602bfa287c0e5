// Package redisscript has what goes to a Redis server and back: the scripts that
// count there, how a counter's key is written, and how a reply is read.
package redisscript

import (
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"errors"
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
	//go:embed taking.lua
	taking string
	//go:embed take.lua
	take string
	//go:embed many.lua
	many string
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
	Take   = newScript(fixed + lib + taking + take)
	Many   = newScript(lib + taking + many)
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
	args := []any{kind}
	for _, n := range []int64{l.N, l.Window, l.Burst} {
		args = append(args, strconv.FormatInt(n, 10))
	}
	return args
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
	if len(key) > MaxKey {
		sum := sha256.Sum256([]byte(key))
		b = append(b, "%sha256:"...)
		b = hex.AppendEncode(b, sum[:])
	} else {
		b = AppendEscaped(b, key)
	}
	return append(b, "}:"...)
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

// ParseTake reads a reply of Take: the server's time, how many callers were admitted,
// and the state before the first of them under each limit.
func ParseTake(reply []int64, states []rule.State) (now, admitted int64, err error) {
	if len(reply) != 2+3*len(states) {
		return 0, 0, ErrReply
	}
	for i := range states {
		states[i] = state(reply[2+3*i:])
	}
	return reply[0], reply[1], nil
}

// ParseMany reads what a reply of Many says of take number i: the server's time, how
// many of its callers were admitted, or less than 0 by the number of a counter that is
// none, and the state before the first of them under each limit.
func ParseMany(reply []int64, i int, states []rule.State) (now, admitted int64) {
	part := reply[1+i*(1+3*len(states)):]
	for j := range states {
		states[j] = state(part[1+3*j:])
	}
	return reply[0], part[0]
}

// ParseAdjust reads a reply of Adjust: the server's time, and the state under each
// limit before and after.
func ParseAdjust(reply []int64, before, after []rule.State) (now int64, err error) {
	if len(reply) != 1+6*len(before) {
		return 0, ErrReply
	}
	for i := range before {
		before[i], after[i] = state(reply[1+6*i:]), state(reply[4+6*i:])
	}
	return reply[0], nil
}

func state(numbers []int64) rule.State {
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
