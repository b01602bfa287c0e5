// Package redisscript has the scripts that count on a Redis server. It writes
// their keys and arguments and reads their replies. It does not send anything.
//
// # Scripts
//
// A script is one or more .lua files, joined in this order. Each file begins
// with what it expects from the files before it, what it leaves to those after
// it, and which tests check it against package rule.
//
//	Take    take_begin.lua fixed.lua state.lua lib.lua rolling.lua move.lua ladder.lua take.lua
//	TakeAcross  across.lua, and the files of Take
//	Adjust  lib.lua rolling.lua move.lua adjust.lua
//	Block   lib.lua rolling.lua block.lua
//	Reset   reset.lua
//	TakeHold  take_begin.lua hold.lua lib.lua rolling.lua move.lua ladder.lua take.lua
//	Hold      hold.lua hold_alone.lua
//
// # Counters
//
// A counter is the [rule.State] of one key under one limit, with microseconds
// for all instants and windows: see [Micro]. Its fields are
//
//	fixed window    T: when the window opened     A: units in it
//	sliding window  T: when this window opened    A: units in it         B: units in the one before
//	bucket          T: when A and B were true     A: whole units in it   B: and this many window-ths of one
//	period          T: when it ends               A: units in it
//
// Under a rolling window a counter is a [rule.Log]. A counter is a string at Redis, under
// a key that [AppendKey] begins. It expires as soon as its state counts as a fresh one, so
// that a missing key is a fresh state.
//
//	fixed window    "A"; T follows from the time to live: the window ends when the key expires
//	sliding window  "T A B"
//	bucket          "T A B"
//	period          "A"; T follows from the time to live, as for a fixed window
//	rolling window  7 bytes for each unit: its instant, big-endian, in order
//
// A counter with a [rule.Block] is longer, also if it is a fixed window or a period. It expires when
// its state is a fresh one and the block is forgotten. Then the first form is used again.
//
//	rolling window  "!ends lasts rung forget ", and the log
//	any other       "T A B !ends lasts rung forget"
//
// ends is Until of the block, rung and forget are its other fields, and lasts is its whole
// duration. If the clock is set back, a block has no more than that left. A version of this library that knows no blocks takes such a value for a
// foreign one: it decides about the key in its own process.
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
//	ARGV   for each limit: see [Args]
//	       for each special take: number, cost, number of callers: see [AppendTake]
//	       more about the only take, if it needs that: see [AppendOptions]
//	reply  the server's time
//	       for each take and limit: T, A, B of the state before the first caller;
//	         only T, A if it is a fixed window or a period;
//	         its log, a string, if it is a rolling window, or 0 if it has no units
//	       for each take that has not admitted all its callers: number of the take,
//	         and how many it has admitted, or -i if key i of the take does
//	         not hold a counter, and nothing was changed for this take
//	       for each block that is not forgotten: -number of the take; i for its key i,
//	         or -i if this take has started the block; ends, rung, forget
//
// A special take is one that is not one unit for one caller. All of the reply but
// logs is integers. [ParseTakes] reads it.
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
// and at this time. Blocks are as after the last caller. If the take has started them,
// caller m has, and the callers after it are denied by them.
//
// A log has the instants of all units, which can be 7,000 bytes. In return a caller derives
// from it what it derives from a state. It is also what this process needs to go on
// counting while the server is away.
//
// # TakeAcross
//
// TakeAcross is Take for keys of several slots that one master of a Cluster has. It gets the
// keys among its arguments, because a server refuses a command that declares such keys.
//
//	KEYS   none
//	ARGV   the number of keys, and the keys: then as for Take
//	reply  as of Take
//	error  ELSEWHERE, if the server does not serve all of the keys, and nothing was changed: see
//	       [Elsewhere]; CLOCK, as of Take
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
//	       for each limit: T, A, B before, and T, A, B after; of a fixed window and a period B is 0;
//	         of a rolling window T is the instant of the youngest unit, A the number of units, and B is 0
//	error  JUNK i, if key i does not hold a counter, and nothing was changed: see [Junk]
//
// [ParseAdjust] reads the reply.
//
// # Block
//
// Block joins a block with the block of each counter of a key: see [rule.Block.Join].
//
//	KEYS   the key of the counter under each limit
//	ARGV   for each limit: as for Take, without ladders
//	       how long the block lasts from now on, or less than 0: it is over
//	       rung, forget
//	reply  the server's time
//	error  JUNK i, as for Adjust
//
// # TakeHold and Hold
//
// Holds are the units of an in-flight limit: see [rule.Holds]. They are in a hash at Redis,
// under a key that AppendKey begins and that ends with "inflight". It has a field for each process
// with the four numbers of its record. It expires with the last record. TakeHold is one take
// of one caller, with holds beside its units. Hold is for a key without other limits, and for
// reports of holds that go on or have ended.
//
//	KEYS   of TakeHold, as for Take; and the hash
//	ARGV   of TakeHold, as for Take; and what [HoldArgs] appends
//	reply  of TakeHold, as for Take; of Hold, the server's time
//	       six numbers about holds: see [ParseHold]
//	error  JUNK 0, if the hash's key holds anything else, and nothing was changed
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
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/ratelimit-go/ratelimit/internal/rule"
)

var (
	//go:embed lib.lua
	lib string
	//go:embed across.lua
	across string
	//go:embed take_begin.lua
	takeBegin string
	//go:embed fixed.lua
	fixed string
	//go:embed state.lua
	state string
	//go:embed rolling.lua
	rolling string
	//go:embed move.lua
	move string
	//go:embed ladder.lua
	ladder string
	//go:embed take.lua
	take string
	//go:embed adjust.lua
	adjust string
	//go:embed block.lua
	block string
	//go:embed hold.lua
	hold string
	//go:embed hold_alone.lua
	holdAlone string
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

// all is what the general paths share.
var all = lib + "if rolling then\n" + rolling + "end\n"

// takeAll is Take without the declaration of fetched, the values of the keys if they have
// been read already.
var takeAll = takeBegin + fixed + state + all + "local deniesWithout, start\nif ladders then\n" + move + ladder + "end\n" + take

// The scripts of the package comment.
var (
	Take       = newScript("local fetched\n" + takeAll)
	TakeAcross = newScript("local fetched\n" + across + takeAll)
	TakeHold   = newScript(takeBegin + hold + all +
		"local deniesWithout, start\nif ladders then\n" + move + ladder + "end\n" + take)
	Hold   = newScript("local readHolds, applyHolds, holdRoom, holdAction\n" + hold + holdAlone)
	Adjust = newScript(all + move + adjust)
	Block  = newScript(all + block)
	Reset  = newScript(reset)
)

// Micro returns a limit with its window in microseconds instead of nanoseconds,
// rounded up: microseconds are what Redis returns for the time. The scripts and
// the states in their replies are for such limits.
func Micro(l rule.Limit) rule.Limit {
	l.Window = micros(l.Window)
	return l
}

// micros rounds a span up to microseconds.
func micros(nanos int64) int64 {
	if nanos < 0 {
		return nanos / 1000
	}
	return nanos/1000 + min(1, nanos%1000)
}

// Args returns the script arguments of a limit from [Micro]: its kind, which is f
// (fixed), s (sliding), b (bucket), r (rolling) or p (a period of a calendar), N, the window, and the
// burst of a bucket. Instead of a window, a p has the instants of periods. With a ladder,
// the kind is a capital letter, and the durations of the ladder are the last argument.
func Args(l rule.Limit, periods Periods, ladder *rule.Ladder) []any {
	kind := map[rule.Kind]string{rule.Fixed: "f", rule.Sliding: "s", rule.Bucket: "b", rule.Rolling: "r", rule.Calendar: "p"}[l.Kind]
	args := []any{kind, strconv.FormatInt(l.N, 10)}
	if l.Kind == rule.Calendar {
		for _, at := range periods {
			args = append(args, strconv.FormatInt(at, 10))
		}
	} else {
		args = append(args, strconv.FormatInt(l.Window, 10))
	}
	if l.Kind == rule.Bucket {
		args = append(args, strconv.FormatInt(l.Burst, 10))
	}
	if ladder != nil {
		var durations []byte
		for _, d := range ladder.Rungs[:ladder.N] {
			durations = append(strconv.AppendInt(durations, micros(d), 10), ' ')
		}
		args[0] = strings.ToUpper(kind)
		args = append(args, string(durations[:len(durations)-1]))
	}
	return args
}

// Elsewhere reports whether err is the reply of TakeAcross that the server does not serve some of
// its keys, and returns their numbers, from 0, and why it has refused the first one. Nothing was
// changed.
func Elsewhere(err error) (keys []int, why string, ok bool) {
	text, found := strings.CutPrefix(err.Error(), "ELSEWHERE ")
	numbers, why, separated := strings.Cut(text, ": ")
	if !found || !separated {
		return nil, "", false
	}
	for number := range strings.FieldsSeq(numbers) {
		i, err := strconv.Atoi(number)
		if err != nil || i < 1 {
			return nil, "", false
		}
		keys = append(keys, i-1)
	}
	return keys, why, true
}

// Periods has where three periods of a calendar, one after the other, begin and end, in
// microseconds since 1970 UTC. The second one is in force by the client's clock. The server
// counts in the one of them that is in force by its own clock. It returns an error if none
// is: see [Clock].
type Periods [4]int64

// Clock reports whether err is the reply to a command of which the [Periods] are too far
// from the server's clock, and returns what that clock shows, in microseconds since 1970
// UTC. Nothing was changed.
func Clock(err error) (now int64, ok bool) {
	if text, found := strings.CutPrefix(err.Error(), "CLOCK "); found {
		now, convErr := strconv.ParseInt(text, 10, 64)
		return now, convErr == nil
	}
	return 0, false
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

// AppendOptions appends what a command of one take needs to start blocks. It must be
// called after AppendTake. upTo means that the take's callers are the units of one caller,
// for as many as fit: a block starts only if none fits. The pending units may yet
// be given back: a denial that there would not be without them starts no block. They were
// taken at instants of the server's clock in nanoseconds.
func AppendOptions(args []any, upTo bool, pending []rule.Pending) []any {
	flag := "0"
	if upTo {
		flag = "1"
	}
	args = append(args, "0", flag)
	for _, p := range pending {
		args = append(args, p.Units, instant(p.At))
	}
	return args
}

// AdjustArgs appends the arguments of an Adjust of units that were taken at an instant of
// the server's clock in nanoseconds.
func AdjustArgs(args []any, units, at int64) []any { return append(args, units, instant(at)) }

func instant(at int64) any {
	if at == math.MaxInt64 {
		return "now"
	}
	return at / 1000
}

// BlockArgs appends the arguments of a Block. b.Until is how long it lasts from now on.
func BlockArgs(args []any, b rule.Block) []any {
	return append(args, micros(b.Until), int64(b.Rung), micros(b.Forget))
}

// HoldArgs appends the arguments about holds, which must be the last ones.
func HoldArgs(args []any, h *rule.Holding) []any {
	action := [...]string{rule.LookHolds: "look", rule.AddHold: "add", rule.RenewHolds: "renew"}[h.Action]
	alone := "0"
	if h.Alone {
		alone = "1"
	}
	return append(args, action, h.Most, micros(h.Lasts), h.Process, h.Began, h.Ended, alone)
}

// holdNumbers is how many numbers of a reply are about holds.
const holdNumbers = 6

// ParseHold reads the numbers about holds at the end of a reply, and returns the rest of it.
func ParseHold(reply []int64) (held rule.Held, rest []int64, err error) {
	n := len(reply) - holdNumbers
	if n < 1 {
		return held, nil, ErrReply
	}
	numbers := reply[n:]
	for _, number := range numbers {
		if number < 0 || number > most {
			return held, nil, ErrReply
		}
	}
	if numbers[1] > numbers[0] || numbers[5] > 1 {
		return held, nil, ErrReply
	}
	return rule.Held{
		Began: numbers[0], Ended: numbers[1], Others: numbers[2], OthersLeft: numbers[3] * 1000, Soonest: numbers[4] * 1000, Denied: numbers[5] == 1,
	}, reply[:n], nil
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
	Now    int64 // the server's time, in microseconds
	limits []rule.Limit
	states []int64 // the numbers of the states, for each take and limit; for a rolling window, which of logs is its log, from 1
	width  int     // how many of them belong to one take
	rest   []int64 // what the reply has after the states
	logs   []string
}

// Numbers replaces each string of a reply, which is a log, by its number in logs, from 1. A
// client reads a reply with strings as a slice of any type.
func Numbers(reply []any) (numbers []int64, logs []string, err error) {
	numbers = make([]int64, len(reply))
	for i, element := range reply {
		switch e := element.(type) {
		case int64:
			numbers[i] = e
		case string:
			logs = append(logs, e)
			numbers[i] = int64(len(logs))
		default:
			return nil, nil, ErrReply
		}
	}
	return numbers, logs, nil
}

// ParseTakes reads a reply of Take to a command of this number of takes. logs are the
// strings of the reply; see [Numbers]. The result refers to reply, logs and limits.
func ParseTakes(reply []int64, logs []string, takes int, limits []rule.Limit) (Takes, error) {
	t := Takes{limits: limits, logs: logs}
	rolling := false
	for i := range limits {
		t.width += width(&limits[i])
		rolling = rolling || limits[i].Kind == rule.Rolling
	}
	end := 1 + takes*t.width
	if len(reply) < end {
		return Takes{}, ErrReply
	}
	for _, number := range reply[:end] {
		if number < 0 || number > most {
			return Takes{}, ErrReply
		}
	}
	for i := 0; rolling && i < takes; i++ {
		for j := range limits {
			if limits[j].Kind == rule.Rolling && t.at(reply[1:], i, j) > int64(len(logs)) {
				return Takes{}, ErrReply
			}
		}
	}
	t.Now, t.states, t.rest = reply[0], reply[1:end], reply[end:]
	for rest := t.rest; len(rest) > 0; {
		n := entry(rest)
		if n > len(rest) || rest[0] == 0 || max(rest[0], -rest[0]) > int64(takes) {
			return Takes{}, ErrReply
		}
		if n == pair && rest[1] < -int64(len(limits)) || n == blockEntry && !validBlock(rest, len(limits)) {
			return Takes{}, ErrReply
		}
		rest = rest[n:]
	}
	return t, nil
}

// most is the largest number of a state or block.
const most = 1 << 53

// The rest of a reply has entries of two lengths. An entry for a block begins with a
// negative number.
const (
	pair       = 2
	blockEntry = 5
)

func entry(rest []int64) (length int) {
	if rest[0] < 0 {
		return blockEntry
	}
	return pair
}

func validBlock(e []int64, limits int) bool {
	number := max(e[1], -e[1])
	return number >= 1 && number <= int64(limits) && e[2] >= 0 && e[2] <= most &&
		e[3] >= 0 && e[3] <= rule.MaxRungs && e[4] >= 0 && e[4] <= most
}

// States sets states to the states of take number i, from 0, before its first
// caller: one for each limit. They are zero if a key of the take does not hold a
// counter, and for a rolling window: see [Takes.Log].
func (t Takes) States(i int, states []rule.State) {
	numbers := t.states[i*t.width:]
	for j := range t.limits {
		var s rule.State
		switch w := width(&t.limits[j]); w {
		case 3:
			s.B = numbers[2]
			fallthrough
		case 2:
			s.T, s.A = numbers[0], numbers[1]
		}
		states[j], numbers = s, numbers[width(&t.limits[j]):]
	}
}

// instantBytes is how many bytes of a log an instant has.
const instantBytes = 7

// Log returns the log of take number i under limit number j, which is a rolling window,
// both from 0, before the first caller. It has no units if a key of the take does not hold
// a counter. ok is false if the instants are not in order, so that the value is no log.
func (t Takes) Log(i, j int) (g rule.Log, ok bool) {
	number := t.at(t.states, i, j)
	if number == 0 {
		return rule.Log{}, true
	}
	log := t.logs[number-1]
	var room [rule.MaxRolling]int64
	instants := room[:0]
	for ; len(log) >= instantBytes && len(instants) < len(room); log = log[instantBytes:] {
		var instant int64
		for k := range instantBytes {
			instant = instant<<8 | int64(log[k])
		}
		instants = append(instants, instant)
	}
	if len(log) > 0 || !slices.IsSorted(instants) || len(instants) > 0 && instants[len(instants)-1] > most {
		return rule.Log{}, false
	}
	return rule.LogOf(instants), true
}

// at returns the first number of one state, given the numbers of all states.
func (t *Takes) at(states []int64, take, limit int) int64 {
	at := take * t.width
	for i := range limit {
		at += width(&t.limits[i])
	}
	return states[at]
}

// Incomplete returns the takes that have not admitted all of their callers, by number
// from 0, and how many they have admitted: 0 or more, or -i if key i of the
// take, from 1, does not hold a counter.
func (t Takes) Incomplete() iter.Seq2[int, int64] {
	return func(yield func(int, int64) bool) {
		for rest := t.rest; len(rest) > 0; rest = rest[entry(rest):] {
			if entry(rest) == pair && !yield(int(rest[0]-1), rest[1]) {
				return
			}
		}
	}
}

// A Blocked is a block of one counter after a take.
type Blocked struct {
	Limit int        // from 0
	Block rule.Block // in microseconds, by the server's clock
	Began bool       // the take has started it
}

// Blocks returns the blocks of the counters, by number of the take, from 0.
func (t Takes) Blocks() iter.Seq2[int, Blocked] {
	return func(yield func(int, Blocked) bool) {
		for rest := t.rest; len(rest) > 0; rest = rest[entry(rest):] {
			if entry(rest) == pair {
				continue
			}
			b := Blocked{Limit: int(max(rest[1], -rest[1]) - 1), Began: rest[1] < 0}
			b.Block = rule.Block{Until: rest[2], Rung: uint8(rest[3]), Forget: rest[4]}
			if !yield(int(-rest[0]-1), b) {
				return
			}
		}
	}
}

// width returns how many elements a state has in a reply of Take: a fixed window and a
// period have no B, and the log of a rolling window is one.
func width(l *rule.Limit) int {
	switch l.Kind {
	case rule.Rolling:
		return 1
	case rule.Fixed, rule.Calendar:
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

// Junk reports whether err is the reply to a key that does not hold a counter, and returns the
// number of the key, from 0; -1 is the hash with holds.
func Junk(err error) (i int, ok bool) {
	if number, found := strings.CutPrefix(err.Error(), "JUNK "); found {
		i, convErr := strconv.Atoi(number)
		return i - 1, convErr == nil && i >= 0
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
