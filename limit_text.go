package ratelimit

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/ratelimit-go/ratelimit/internal/calendar"
	"github.com/ratelimit-go/ratelimit/internal/rule"
)

// ParseLimit reads a limit as [Limit.String] writes it, for configuration files
// and flags:
//
//	5/1h fixed
//	5/1h fixed block=1m,1h,24h
//	100/1m sliding name=search
//	10/1s bucket burst=20 name="my policy"
//	5/1h rolling
//	1000/day calendar tz=Europe/Berlin
//	5000/week calendar first=monday
//	50000/month calendar day=15 tz=America/New_York
//	20/30s inflight
//	unlimited
//	deny name=suspended
//
// The window is in the form of [time.ParseDuration]. No part but the name may be
// left out: there is no default algorithm and no default burst. In a calendar, tz may be
// left out for UTC, first for monday (ISO 8601), and day for 1.
func ParseLimit(s string) (Limit, error) {
	l, err := parseLimit(s)
	if err == nil {
		err = l.validate()
	}
	if err != nil {
		return Limit{}, fmt.Errorf("ratelimit: limit %q: %w", s, err)
	}
	return l, nil
}

var errLimitForm = errors.New(`want a form such as "5/1h fixed", "100/1m sliding", "10/1s bucket burst=20" or "1000/day calendar tz=Europe/Berlin", or "unlimited" or "deny"`)

func parseLimit(s string) (l Limit, err error) {
	rate, rest := cutSpace(s)
	switch rate {
	case "unlimited":
		return parseOptions(Unlimited, rest, nil)
	case "deny":
		return parseOptions(Deny, rest, nil)
	}
	units, window, ok := strings.Cut(rate, "/")
	if !ok {
		return l, errLimitForm
	}
	if l.rule.N, err = parseUnits(units); err != nil {
		return l, err
	}
	algorithm, rest := cutSpace(rest)
	if algorithm == "calendar" {
		return parseCalendar(l.rule.N, window, rest)
	}
	w, err := time.ParseDuration(window)
	switch {
	case err != nil && (window == "day" || window == "week" || window == "month"):
		return l, fmt.Errorf("window %q: want a duration such as 1s, 15m or 24h, or for a period of the calendar %q", window, rate+" calendar")
	case err != nil:
		return l, fmt.Errorf("window %q: want a duration such as 1s, 15m or 24h", window)
	}
	l.rule.Window = int64(w)

	switch algorithm {
	case "fixed":
		l.rule.Kind = rule.Fixed
	case "sliding":
		l.rule.Kind = rule.Sliding
	case "bucket":
		l.rule.Kind = rule.Bucket
	case "rolling":
		l.rule.Kind = rule.Rolling
	case "inflight":
		l.rule.Kind = rule.InFlight
	case "":
		return l, errLimitForm
	default:
		return l, fmt.Errorf("algorithm %q: want fixed, sliding, bucket, rolling, calendar or inflight", algorithm)
	}
	return parseOptions(l, rest, nil)
}

// parseCalendar reads a limit such as "1000/week calendar first=monday tz=Europe/Berlin".
// rest is what follows "calendar".
func parseCalendar(units int64, period, rest string) (l Limit, err error) {
	var unit calendar.Unit
	first := 0
	switch period {
	case "day":
		unit = calendar.Day
	case "week":
		unit, first = calendar.Week, int(time.Monday) // ISO 8601
	case "month":
		unit, first = calendar.Month, 1
	default:
		return l, fmt.Errorf("period %q: want day, week or month", period)
	}
	var zone *time.Location
	l.rule.Kind = rule.Calendar
	l, err = parseOptions(l, rest, func(option, value string) (known bool, err error) {
		switch {
		case option == "tz":
			zone, err = calendar.Load(value)
			return true, err
		case option == "first" && unit == calendar.Week:
			for first = 0; first < 7 && !strings.EqualFold(value, time.Weekday(first).String()); first++ {
			}
			if first == 7 {
				return true, fmt.Errorf("option first: %q: want a day of the week, such as monday", value)
			}
			return true, nil
		case option == "first":
			return true, fmt.Errorf("option first: only a week has one, not a %v", unit)
		case option == "day" && unit == calendar.Month:
			if first, err = strconv.Atoi(value); err != nil {
				return true, fmt.Errorf("option day: %q: want 1 to 31", value)
			}
			return true, nil
		case option == "day":
			return true, fmt.Errorf("option day: only a month has one, not a %v", unit)
		}
		return false, nil
	})
	if err != nil {
		return l, err
	}
	of := newCalendarLimit(units, unit, first, zone)
	of.name, of.block = l.name, l.block
	return of, nil
}

// parseOptions reads what follows the algorithm. more reads the options that only the
// limit's own kind has; it may be nil.
func parseOptions(l Limit, rest string, more func(option, value string) (known bool, err error)) (Limit, error) {
	seen := make(map[string]bool)
	for rest != "" {
		option, value, err := "", "", error(nil)
		if option, value, rest, err = l.cutOption(rest); err != nil {
			return l, err
		}
		if seen[option] {
			return l, fmt.Errorf("option %s is there twice", option)
		}
		seen[option] = true
		known := false
		if more != nil {
			known, err = more(option, value)
		}
		switch {
		case known || err != nil:
		case option == "burst" && l.rule.Kind == rule.Bucket:
			if l.rule.Burst, err = parseUnits(value); err != nil {
				err = fmt.Errorf("burst: %w", err)
			}
		case option == "burst":
			err = fmt.Errorf("option burst: only a bucket has one, not %s", l.Algorithm())
		case option == "block" && l.counts():
			l.block, err = parseLadder(value)
		case option == "block":
			err = fmt.Errorf("option block: %s counts nothing, so it cannot block: remove it", l.Algorithm())
		case option == "name":
			l.name = value
		default:
			err = fmt.Errorf("option %q: want %s", option, l.options())
		}
		if err != nil {
			return l, err
		}
	}
	if l.rule.Kind == rule.Bucket && !seen["burst"] {
		return l, errors.New("a bucket needs burst=…, the most units at once")
	}
	return l, nil
}

// cutOption returns the first option of s, and the text after it.
func (l Limit) cutOption(s string) (option, value, rest string, err error) {
	option, value, ok := strings.Cut(s, "=")
	if !ok || strings.ContainsFunc(option, unicode.IsSpace) {
		return "", "", "", fmt.Errorf("option %q: want %s, without spaces around the =", s, l.options())
	}
	if option == "name" {
		value, rest, err = cutName(value)
	} else {
		value, rest = cutSpace(value)
	}
	return option, value, rest, err
}

// options returns what may follow the algorithm of the limit, for errors.
func (l Limit) options() string {
	switch l.rule.Kind {
	case rule.InFlight, kindUnlimited, kindDeny:
		return "name=…"
	case rule.Calendar:
		return "tz=…, first=… of a week, day=… of a month, block=… or name=…"
	case rule.Bucket:
		return "burst=…, block=… or name=…"
	}
	return "block=… or name=…"
}

func parseUnits(s string) (int64, error) {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%q is not a whole number of units", s)
	}
	return n, nil
}

// cutSpace returns the text before the first run of white space, and the text after it.
func cutSpace(s string) (word, rest string) {
	s = strings.TrimSpace(s)
	i := strings.IndexFunc(s, unicode.IsSpace)
	if i < 0 {
		return s, ""
	}
	return s[:i], strings.TrimSpace(s[i:])
}

// cutName returns the name, plain or in double quotes, at the start of s.
func cutName(s string) (name, rest string, err error) {
	if !strings.HasPrefix(s, `"`) {
		name, rest = cutSpace(s)
	} else {
		quoted, err := strconv.QuotedPrefix(s)
		if err != nil {
			return "", "", fmt.Errorf("name %s: the closing quote is missing", s)
		}
		name, _ = strconv.Unquote(quoted)
		rest = strings.TrimSpace(s[len(quoted):])
	}
	if name == "" {
		return "", "", errors.New("option name: it is empty; leave it out for the default name")
	}
	return name, rest, nil
}

// String returns the limit in the form that [ParseLimit] reads.
func (l Limit) String() string {
	s := l.Algorithm()
	switch {
	case l.calendar != nil:
		s = l.calendarString()
	case l.counts():
		s = l.rule.String()
	}
	if l.blocks() {
		s += " block=" + l.block.Value().String()
	}
	switch {
	case l.name == "" || l.rule.Kind == 0:
		return s
	case strings.ContainsFunc(l.name, unicode.IsSpace) || strconv.Quote(l.name) != `"`+l.name+`"`:
		return s + " name=" + strconv.Quote(l.name)
	}
	return s + " name=" + l.name
}

// MarshalText implements [encoding.TextMarshaler] with [Limit.String]. A limit
// that is not valid is an error.
func (l Limit) MarshalText() ([]byte, error) {
	if err := l.validate(); err != nil {
		return nil, fmt.Errorf("ratelimit: limit %q: %w", l, err)
	}
	return []byte(l.String()), nil
}

// UnmarshalText implements [encoding.TextUnmarshaler] with [ParseLimit].
func (l *Limit) UnmarshalText(text []byte) error {
	parsed, err := ParseLimit(string(text))
	if err != nil {
		return err
	}
	*l = parsed
	return nil
}

// calendarString returns a limit of a calendar, without its name and its blocks, as
// parseCalendar reads it.
func (l Limit) calendarString() string {
	c := l.calendar
	s := strconv.FormatInt(l.rule.N, 10) + "/" + c.Unit.String() + " calendar"
	switch c.Unit {
	case calendar.Week:
		s += " first=" + c.FirstText()
	case calendar.Month:
		s += " day=" + c.FirstText()
	}
	if c.Zone != "UTC" {
		s += " tz=" + c.Zone
	}
	return s
}
