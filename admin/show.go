package admin

import (
	"fmt"
	"html/template"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// This file has the forms in which keys, times and numbers are shown.

const (
	// maxShown is the longest key, in bytes, that is shown as a whole.
	maxShown = 160

	// cutShown is how much is shown of a longer key.
	cutShown = 96

	// maxMarks is how many combining marks may follow each other. More would be drawn over
	// the lines above and below.
	maxMarks = 2
)

// A shownKey is a key as the page shows it: inert, whatever bytes it holds.
type shownKey struct {
	Text   string `json:"text"`             // quoted as in Go, if it has something that cannot be seen
	Length int    `json:"length"`           // of the key in bytes
	Cut    bool   `json:"cut,omitempty"`    // Text is only its beginning
	Link   string `json:"link,omitempty"`   // for the parameter k of the page "key"; "" if the key is not known as a whole
	Masked bool   `json:"masked,omitempty"` // Text is what Options.KeyView has made of it
}

// showKey returns how a key is shown. kept may be its beginning only.
func showKey(kept string, length int) shownKey {
	k := shownKey{Text: kept, Length: length, Cut: len(kept) < length || length > maxShown}
	if k.Cut {
		k.Text = cut(kept, cutShown)
	}
	if !isPlain(k.Text) {
		k.Text = quote(k.Text)
	}
	return k
}

// isPlain reports whether a text looks like what it is.
func isPlain(s string) bool {
	if s == "" || s != strings.TrimSpace(s) || !utf8.ValidString(s) {
		return false
	}
	marks := 0
	for _, c := range s {
		switch {
		case !strconv.IsPrint(c), c == '"', c == '\\', unicode.Is(unicode.Other_Default_Ignorable_Code_Point, c):
			return false
		case unicode.Is(unicode.M, c):
			marks++
		default:
			marks = 0
		}
		if marks > maxMarks {
			return false
		}
	}
	return true
}

// quote returns a text in quotes, with escapes for everything that is not plain. unquote reads
// it.
func quote(s string) string {
	if q := strconv.Quote(s); isPlain(strings.NewReplacer(`"`, "", `\`, "").Replace(q)) {
		return q
	}
	return strconv.QuoteToASCII(s)
}

// inert returns a text with escapes for everything that cannot be seen.
func inert(s string) string {
	var b strings.Builder
	for _, c := range s {
		if !strconv.IsPrint(c) || unicode.Is(unicode.Other_Default_Ignorable_Code_Point, c) {
			b.WriteString(strings.Trim(strconv.QuoteRuneToASCII(c), "'"))
		} else {
			b.WriteRune(c)
		}
	}
	return b.String()
}

// cut returns the beginning of a text, of at most n bytes, that does not end within a
// character.
func cut(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for at := n - 1; at >= max(0, n-utf8.UTFMax); at-- {
		if utf8.RuneStart(s[at]) {
			if _, size := utf8.DecodeRuneInString(s[at:]); at+size > n {
				return s[:at]
			}
			break
		}
	}
	return s[:n]
}

// ago returns a time span with two units at most: "45 s", "41 m", "3 h 12 m", "2 d 4 h".
func ago(d time.Duration) string {
	two := func(big time.Duration, bigName string, small time.Duration, smallName string) string {
		if rest := d % big / small; rest > 0 {
			return fmt.Sprintf("%d %s %d %s", d/big, bigName, rest, smallName)
		}
		return fmt.Sprintf("%d %s", d/big, bigName)
	}
	const day = 24 * time.Hour
	switch {
	case d < time.Millisecond:
		return "0 s"
	case d < time.Second:
		return fmt.Sprintf("%d ms", d.Milliseconds())
	case d < 2*time.Minute:
		return fmt.Sprintf("%d s", d/time.Second)
	case d < time.Hour:
		return fmt.Sprintf("%d m", d/time.Minute)
	case d < day:
		return two(time.Hour, "h", time.Minute, "m")
	}
	return two(day, "d", time.Hour, "h")
}

// until is ago for a time to wait: it is rounded up, so that it is never too short.
func until(d time.Duration) string {
	up := func(unit time.Duration) time.Duration { return (d + unit - 1) / unit * unit }
	switch s := up(time.Second); {
	case d < time.Second:
		return ago(up(time.Millisecond))
	case s < 2*time.Minute:
		return ago(s)
	case s < time.Hour:
		return fmt.Sprintf("%d m %02d s", s/time.Minute, s%time.Minute/time.Second)
	}
	return ago(up(time.Minute))
}

// count returns a number with thin spaces between groups of three digits.
func count(n uint64) string {
	s := strconv.FormatUint(n, 10)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "\u202f" + s[i:]
	}
	return s
}

// rate returns a number per second with three digits at most, or a whole number.
func rate(f float64) string {
	switch {
	case f == 0:
		return "0"
	case f < 0.1:
		return strconv.FormatFloat(f, 'f', 2, 64)
	case f < 100:
		return strconv.FormatFloat(f, 'f', 1, 64)
	}
	return count(uint64(f + 0.5))
}

// percent returns a share in whole percent, where only nothing is 0 and only all is 100.
func percent(f float64) int {
	switch {
	case f <= 0:
		return 0
	case f >= 1:
		return 100
	}
	return min(99, max(1, int(f*100+0.5)))
}

// clock returns a time of day, with the date if it is not of today.
func clock(t, now time.Time) string {
	t, now = t.UTC(), now.UTC()
	if t.Format(time.DateOnly) == now.Format(time.DateOnly) {
		return t.Format("15:04:05")
	}
	return t.Format("2006-01-02 15:04")
}

// The size of a sparkline. It is drawn in these units.
const (
	sparkWidth  = 96
	sparkHeight = 22
)

// spark draws what a minute had: an area for requests, and over it one for denials, on the same
// scale. It is decoration: the numbers are beside it.
func spark(points []point) template.HTML {
	most := 0.0
	for _, p := range points {
		most = max(most, p.Requests)
	}
	var b strings.Builder
	fmt.Fprintf(&b, `<svg class="spark" viewBox="0 0 %d %d" width="%[1]d" height="%[2]d" aria-hidden="true" focusable="false">`, sparkWidth, sparkHeight)
	fmt.Fprintf(&b, `<path class="base" d="M0 %[2]d.5H%[1]d"/>`, sparkWidth, sparkHeight-1)
	if most > 0 {
		area := func(class string, value func(point) float64) {
			step := float64(sparkWidth) / float64(maxSamples-1)
			x := float64(sparkWidth) - step*float64(len(points)) // the newest is at the right
			fmt.Fprintf(&b, `<path class="%s" d="M%.1f %d`, class, x, sparkHeight-1)
			for _, p := range points {
				fmt.Fprintf(&b, "V%.1fh%.1f", float64(sparkHeight-1)-value(p)/most*(sparkHeight-3), step)
			}
			fmt.Fprintf(&b, `V%dZ"/>`, sparkHeight-1)
		}
		area("all", func(p point) float64 { return p.Requests })
		area("denied", func(p point) float64 { return p.Denials })
	}
	b.WriteString("</svg>")
	return template.HTML(b.String()) // numbers only
}

// A point is what one interval between two samples had, per second.
type point struct {
	Requests float64 `json:"requests"`
	Denials  float64 `json:"denials"`
}

// A shareOf is a source and its share of the decisions.
type shareOf struct {
	Source  string `json:"source"`
	Percent int    `json:"percent"`
}

// An alert is something that an operator should know first.
type alert struct {
	Code string `json:"code"`
	Text string `json:"text"`
}

// traffic is what the samples of a minute say.
type traffic struct {
	Requests float64   `json:"requests_per_second"`
	Denials  float64   `json:"denials_per_second"`
	Seconds  int       `json:"measured_seconds"` // 0: nothing has been measured yet
	History  []point   `json:"history"`
	Sources  []shareOf `json:"sources"`
	Alerts   []alert   `json:"alerts"`
}

// trafficOf evaluates samples, the oldest first.
func trafficOf(samples []sample, onFailure string) (t traffic) {
	t.History, t.Sources, t.Alerts = []point{}, []shareOf{}, []alert{}
	if len(samples) == 0 {
		return t
	}
	first, last := &samples[0], &samples[len(samples)-1]
	for i := 1; i < len(samples); i++ {
		t.History = append(t.History, between(&samples[i-1], &samples[i]))
	}
	var by [sourceCount]uint64
	if len(samples) > 1 {
		p := between(first, last)
		t.Requests, t.Denials, t.Seconds = p.Requests, p.Denials, int(last.at.Sub(first.at)/time.Second)
		all := uint64(0)
		for i := range by {
			by[i] = grown(first.by[i], last.by[i])
			all += by[i]
		}
		for i, n := range by {
			if n > 0 {
				t.Sources = append(t.Sources, shareOf{sources[i].String(), percent(float64(n) / float64(all))})
			}
		}
	}
	t.warn(first, last, by[3], by[4], onFailure)
	return t
}

// warn adds the alerts.
func (t *traffic) warn(first, last *sample, fallback, failedOpen uint64, onFailure string) {
	add := func(code, format string, args ...any) {
		t.Alerts = append(t.Alerts, alert{code, fmt.Sprintf(format, args...)})
	}
	if last.breakerOpen {
		add("breaker-open", "The store does not answer: one request at a time asks it. %s decides the others.", onFailure)
	}
	if fallback > 0 {
		add("fallback", "In the last minute, %s decisions were made in this process because the store failed.", count(fallback))
	}
	if failedOpen > 0 {
		add("fail-open", "In the last minute, %s requests were let through because the store failed.", count(failedOpen))
	}
	if last.prefixClaimed {
		add("prefix-claimed", "A limiter of another name counts under this prefix in another process. They count into each other.")
	}
	if n := grown(first.evicted, last.evicted); n > 0 {
		add("evicted", "In the last minute, %s counters of denied keys had to go: MemoryOptions.MaxKeys is too small.", count(n))
	}
	if n := grown(first.snapshotsFailed, last.snapshotsFailed); n > 0 {
		add("snapshot-failed", "In the last minute, the snapshot file could not be written %s times.", count(n))
	}
}

func between(a, b *sample) point {
	seconds := b.at.Sub(a.at).Seconds()
	if seconds <= 0 {
		return point{}
	}
	return point{float64(grown(a.requests, b.requests)) / seconds, float64(grown(a.denied, b.denied)) / seconds}
}

// grown is b-a, or 0 if a count began again: a limiter was closed, and one of the same name made.
func grown(a, b uint64) uint64 { return b - min(a, b) }
