package ratelimit_test

import (
	"flag"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
	"github.com/ratelimit-go/ratelimit/ratelimittest"
)

// This file draws the pictures of docs/limits.md. Each one shows what a limiter has
// decided, in the virtual time of a bubble, which begins with the year 2000 UTC.

var update = flag.Bool("update", false, "with -run TestLimitPictures: write the pictures of docs/limits.md")

// TestLimitPictures checks that each picture is what a run gives.
func TestLimitPictures(t *testing.T) {
	burst, retries := newScene(bursts()), everySecond(pictureRetries)
	for name, draw := range map[string]func(*testing.T) string{
		"fixed":    func(t *testing.T) string { return pictureOf(t, FixedWindow(10, 10*time.Second), burst) },
		"sliding":  func(t *testing.T) string { return pictureOf(t, SlidingWindow(10, 10*time.Second), burst) },
		"bucket":   func(t *testing.T) string { return pictureOf(t, TokenBucket(10, 10*time.Second, 10), burst) },
		"rolling":  func(t *testing.T) string { return pictureOf(t, Rolling(10, 10*time.Second), burst) },
		"calendar": pictureOfDays,
		"inflight": pictureOfHolds,
		"block": func(t *testing.T) string {
			ladder := []time.Duration{10 * time.Second, 20 * time.Second, 40 * time.Second}
			return pictureOfBlocks(t, retries, []Limit{
				FixedWindow(5, 10*time.Second),
				FixedWindow(5, 10*time.Second).Block(ladder...),
				SlidingWindow(5, 10*time.Second).Block(ladder...),
				TokenBucket(5, 10*time.Second, 5).Block(ladder...),
			})
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				path, picture := "docs/limits-"+name+".svg", draw(t)
				if *update {
					require.NoError(t, os.WriteFile(path, []byte(picture), 0o666))
				}
				committed, err := os.ReadFile(path)
				require.NoError(t, err)
				require.Equal(t, strings.ReplaceAll(string(committed), "\r\n", "\n"), picture,
					"draw it again: go test -run TestLimitPictures . -args -update")
			})
		})
	}
}

const (
	pictureSpan    = 48 * time.Second // of the pictures of one limit
	pictureRetries = 90 * time.Second // of the picture of blocks
	sampleEvery    = 100 * time.Millisecond
	third          = time.Second / 3 // a column of requests
)

// bursts are the requests of a client: 3 per second for 20 s, a pause, one request, two
// bursts of 12, a pause, and one request per second.
func bursts() (at []time.Duration) {
	for i := range time.Duration(60) {
		at = append(at, i*third)
	}
	at = append(at, 25*time.Second)
	for _, burst := range []time.Duration{101 * third, 106 * third} { // before and after the end of a fixed window
		for i := range time.Duration(12) {
			at = append(at, burst+i*time.Millisecond)
		}
	}
	for i := range time.Duration(6) {
		at = append(at, (42+i)*time.Second)
	}
	return at
}

// everySecond is a client that sends a request every second, whatever the answer is.
func everySecond(span time.Duration) (at []time.Duration) {
	for t := time.Duration(0); t < span; t += time.Second {
		at = append(at, t)
	}
	return at
}

// A scene is what a picture of one limit shows: the requests of a client, and the axis.
type scene struct {
	at     []time.Duration // the requests
	span   time.Duration   // of the x axis
	sample time.Duration   // the units that are counted are read so often
	column time.Duration   // requests of this much time are stacked
	ticks  []tick
}

// A tick is a label of the x axis.
type tick struct {
	at   time.Duration
	text string
	line bool // a vertical line, too
}

// newScene returns the scene of a limit that is a matter of seconds.
func newScene(at []time.Duration) *scene {
	return &scene{at: at, span: pictureSpan, sample: sampleEvery, column: third, ticks: seconds(pictureSpan)}
}

// seconds returns a tick every 10 seconds.
func seconds(span time.Duration) (ticks []tick) {
	for t := time.Duration(0); t <= span; t += 10 * time.Second {
		ticks = append(ticks, tick{at: t, text: fmt.Sprint(t.Seconds(), " s")})
	}
	return ticks
}

// pictureOfDays draws a limit per day around the day on which the clocks are put forward in
// Berlin. The client sends a request every hour from Friday, 15:00, to Saturday, 23:00; 12
// requests on Sunday, 23:00, and 12 on Monday, 01:00; then one every hour again.
func pictureOfDays(t *testing.T) string {
	zone, err := time.LoadLocation("Europe/Berlin")
	require.NoError(t, err)
	begin := time.Date(2000, 3, 24, 12, 0, 0, 0, zone)
	after := func(day, hour int) time.Duration { return time.Date(2000, 3, day, hour, 0, 0, 0, zone).Sub(begin) }
	s := &scene{span: after(28, 0), sample: 10 * time.Minute, column: time.Hour}
	for at := after(24, 15); at < after(28, 0); at += time.Hour {
		switch {
		case at == after(26, 23), at == after(27, 1):
			for i := range time.Duration(12) {
				s.at = append(s.at, at+i*time.Second)
			}
		case at < after(26, 0), at > after(27, 1):
			s.at = append(s.at, at)
		}
	}
	for day := 25; day <= 28; day++ {
		s.ticks = append(s.ticks, tick{at: after(day, 0), line: true})
	}
	for day := 24; day <= 27; day++ {
		noon, text := after(day, 12), time.Date(2000, 3, day, 12, 0, 0, 0, zone).Format("Monday")
		if day == 24 {
			noon = after(day, 18)
		} else {
			text += fmt.Sprintf(", %v hours", (after(day+1, 0) - after(day, 0)).Hours())
		}
		s.ticks = append(s.ticks, tick{at: noon, text: text})
	}
	time.Sleep(time.Until(begin))
	return pictureOf(t, Daily(10, zone), s)
}

// A limitRun is what a limiter has decided about requests.
type limitRun struct {
	at        []time.Duration
	decisions []Decision
	counted   []int64 // the units counted, after each sample of the time
}

// runLimit sends requests to a limiter. It must be called in a bubble.
func runLimit(t *testing.T, limit Limit, at []time.Duration, span, sample time.Duration) *limitRun {
	l := ratelimittest.New(t, quiet(limit))
	start, run := time.Now(), &limitRun{at: at}
	for now := time.Duration(0); now <= span; now += sample {
		for len(run.decisions) < len(at) && at[len(run.decisions)] <= now {
			time.Sleep(at[len(run.decisions)] - time.Since(start))
			d, err := l.Take(ctx, "client")
			require.NoError(t, err)
			run.decisions = append(run.decisions, d)
		}
		time.Sleep(now - time.Since(start))
		left, err := l.LookKey(ctx, "client")
		require.NoError(t, err)
		run.counted = append(run.counted, limit.Burst()-left[0].Remaining)
	}
	require.Len(t, run.decisions, len(at))
	return run
}

// admitted returns how many requests were admitted after one time, up to another one.
func (r *limitRun) admitted(after, until time.Duration) (n int64) {
	for i, d := range r.decisions {
		if d.Allowed && r.at[i] > after && r.at[i] <= until {
			n++
		}
	}
	return n
}

// A picture is an SVG that is being written. Its coordinates are in tenths of a pixel, so
// that they are integers, the same on every machine.
type picture struct {
	strings.Builder
	span time.Duration // of the x axis
}

const (
	pictureWidth = 9200
	pictureLeft  = 340 // of the x axis
	pictureRight = 9000
	square       = 50 // the side of a request
	squareStep   = 60
)

// x returns the place of a time.
func (p *picture) x(t time.Duration) int64 {
	return pictureLeft + (pictureRight-pictureLeft)*int64(t/time.Millisecond)/int64(p.span/time.Millisecond)
}

// px is a coordinate in pixels.
func px(tenths int64) string { return fmt.Sprintf("%d.%d", tenths/10, tenths%10) }

// text writes a text of some classes.
func (p *picture) text(class string, x, y int64, text string) {
	fmt.Fprintf(p, "  <text class=\"%s\" x=\"%s\" y=\"%s\">%s</text>\n", class, px(x), px(y), text)
}

// path writes a path of a class.
func (p *picture) path(class, d string) {
	if d != "" {
		fmt.Fprintf(p, "  <path class=\"%s\" d=\"%s\"/>\n", class, d)
	}
}

// boxOf is the path of a square. A denied request's has an outline only.
func boxOf(x, y int64, allowed bool) string {
	if allowed {
		return fmt.Sprintf("M%s %sh5v5h-5z", px(x), px(y))
	}
	return fmt.Sprintf("M%s %sh4v4h-4z", px(x+5), px(y+5))
}

// requests draws squares: admitted requests upwards from the base line, denied ones
// downwards. Requests of one column of time are stacked. It returns the height of the
// highest stack of denied requests.
func (p *picture) requests(run *limitRun, column time.Duration, base int64) (depth int64) {
	var yes, no strings.Builder
	stacks := make(map[time.Duration][2]int64)
	for i, d := range run.decisions {
		place := (run.at[i] + column/2) / column
		stack := stacks[place]
		if d.Allowed {
			yes.WriteString(boxOf(p.x(place*column), base-squareStep*(1+stack[0]), true))
			stack[0]++
		} else {
			no.WriteString(boxOf(p.x(place*column), base+20+squareStep*stack[1], false))
			stack[1]++
			depth = max(depth, squareStep*stack[1])
		}
		stacks[place] = stack
	}
	p.path("yes", yes.String())
	p.path("no", no.String())
	p.path("row", fmt.Sprintf("M%s %sH%s", px(pictureLeft), px(base+5), px(pictureRight)))
	return depth
}

// ticks labels the x axis.
func (p *picture) ticks(ticks []tick, y int64) {
	for _, t := range ticks {
		if t.text != "" {
			p.text("dim mid", p.x(t.at), y, t.text)
		}
	}
}

// steps is the path of values, one for each sample of the time.
func (p *picture) steps(values []int64, sample time.Duration, y func(int64) int64) string {
	var b strings.Builder
	for i, v := range values {
		if i == 0 {
			fmt.Fprintf(&b, "M%s %s", px(p.x(0)), px(y(v)))
		} else if v != values[i-1] {
			fmt.Fprintf(&b, "H%sV%s", px(p.x(time.Duration(i)*sample)), px(y(v)))
		}
	}
	fmt.Fprintf(&b, "H%s", px(p.x(p.span)))
	return b.String()
}

// end returns the picture of a height.
func (p *picture) end(title string, height int64) string {
	return fmt.Sprintf(`<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="system-ui, sans-serif" font-size="12.5" role="img" aria-label="%s">
  <style>
    text { fill: #24292f } .dim { fill: #57606a } .end { text-anchor: end } .mid { text-anchor: middle } .head { font-size: 14px; font-weight: 600 }
    path { fill: none; stroke-width: 1 } .row { stroke: #d0d7de } .back { fill: #fff } .band { fill: #ffebc2 }
    .yes { fill: #0969da } .no { stroke: #bc4c00 } .count { stroke: #0969da; stroke-width: 2 } .recent { stroke: #57606a; stroke-width: 1.5; stroke-dasharray: 4 3 } .limit { stroke: #bc4c00 }
    @media (prefers-color-scheme: dark) {
      text { fill: #e6edf3 } .dim { fill: #9198a1 } .row { stroke: #3d444d } .back { fill: #0d1117 } .band { fill: #6b4d0f }
      .yes { fill: #4493f8 } .no { stroke: #f0883e } .count { stroke: #4493f8 } .recent { stroke: #9198a1 } .limit { stroke: #f0883e }
    }
  </style>
  <rect class="back" width="100%%" height="100%%"/>
%s</svg>
`, pictureWidth/10, height/10, title, p.String())
}

// pictureOf draws the decisions of one limit, and below them the units that it has counted
// beside the units that it has admitted within one window.
func pictureOf(t *testing.T, limit Limit, s *scene) string {
	p, run := &picture{span: s.span}, runLimit(t, limit, s.at, s.span, s.sample)
	window := strings.TrimSuffix(limit.Window().String(), "0m0s")
	recent, most := make([]int64, len(run.counted)), int64(0)
	for i := range recent {
		now := time.Duration(i) * s.sample
		recent[i] = run.admitted(now-limit.Window(), now)
		most = max(most, recent[i])
	}
	title := fmt.Sprintf("%v: %d of %d requests admitted, at most %d of them within %v", limit, run.admitted(-1, s.span), len(s.at), most, window)
	p.text("head", 140, 220, title)

	p.path("yes", boxOf(140, 355, true))
	p.text("", 240, 420, "admitted")
	p.path("no", boxOf(980, 355, false))
	p.text("", 1080, 420, "denied")
	p.path("count", "M174 38h18")
	p.text("", 1970, 420, "units counted")
	p.path("recent", "M300 38h22")
	p.text("", 3270, 420, "admitted within the last "+window)
	p.path("limit", "M510 38h18")
	p.text("", 5330, 420, "limit")

	const base, high = 1230, 20 // high is the largest value of the y axis
	top := base + p.requests(run, s.column, base) + 300
	bottom := top + 960
	y := func(v int64) int64 { return bottom - (bottom-top)*v/high }
	for _, v := range []int64{0, 5, 10, 15, 20} {
		class := "row"
		if v == limit.N() {
			class = "limit"
		}
		p.path(class, fmt.Sprintf("M%s %sH%s", px(pictureLeft), px(y(v)), px(pictureRight)))
		if v%10 == 0 {
			p.text("dim end", pictureLeft-60, y(v)+45, fmt.Sprint(v))
		}
	}
	for _, tick := range s.ticks {
		if tick.line {
			p.path("row", fmt.Sprintf("M%s %sV%s", px(p.x(tick.at)), px(base-700), px(bottom)))
		}
	}
	p.path("recent", p.steps(recent, s.sample, y))
	p.path("count", p.steps(run.counted, s.sample, y))
	p.ticks(s.ticks, bottom+190)
	return p.end(title, bottom+300)
}

// pictureOfBlocks draws the decisions of several limits about the same requests, and the
// blocks that they have started.
func pictureOfBlocks(t *testing.T, at []time.Duration, limits []Limit) string {
	p := &picture{span: pictureRetries}
	const title = "A client that sends a request every second, whatever the answer is"
	p.text("head", 140, 220, title)
	p.path("yes", boxOf(140, 355, true))
	p.text("", 240, 420, "admitted")
	p.path("no", boxOf(980, 355, false))
	p.text("", 1080, 420, "denied")
	fmt.Fprintf(p, "  <rect class=\"band\" x=\"174\" y=\"32\" width=\"18\" height=\"12\"/>\n")
	p.text("", 1970, 420, "blocked")

	const lane = 620
	y := int64(740)
	for _, limit := range limits {
		run := runLimit(t, limit, at, pictureRetries, sampleEvery)
		p.text("", pictureLeft, y, fmt.Sprintf("%v: %d of %d admitted", limit, run.admitted(-1, pictureRetries), len(at)))
		for i, d := range run.decisions {
			if d.Blocked && !run.decisions[i-1].Blocked { // a block has begun
				from, until := p.x(at[i]), p.x(min(at[i]+d.RetryAfter, p.span))
				fmt.Fprintf(p, "  <rect class=\"band\" x=\"%s\" y=\"%s\" width=\"%s\" height=\"22\"/>\n", px(from), px(y+95), px(until-from))
			}
		}
		p.requests(run, time.Second, y+200)
		y += lane
	}
	p.ticks(seconds(p.span), y-170)
	return p.end(title, y-60)
}

// A visit is a request of the picture of an in-flight limit.
type visit struct {
	at, lasts time.Duration
	killed    bool // its process is killed at once, and does not give the hold back
}

// visits are the requests of a client: more and more of them that take long, one of them
// longer than the hold; two bursts; the one whose process is killed; and one per second.
func visits() (all []visit) {
	for _, v := range [][2]time.Duration{{0, 6}, {1, 14}, {2, 5}, {3, 2}, {4, 2}, {6, 3}, {7, 3}, {8, 2}, {9, 4}, {11, 2}, {12, 3}} {
		all = append(all, visit{at: v[0] * time.Second, lasts: v[1] * time.Second})
	}
	for _, burst := range []time.Duration{18, 21} {
		for range 6 {
			all = append(all, visit{at: burst * time.Second, lasts: 2 * time.Second})
		}
	}
	all = append(all, visit{at: 26 * time.Second, killed: true})
	for at := time.Duration(27); at < 46; at++ {
		all = append(all, visit{at: at * time.Second, lasts: 2900 * time.Millisecond})
	}
	return all
}

// pictureOfHolds draws the requests that an in-flight limit has admitted, for as long as their
// holds last, and the requests that it has denied. Each hold has one of the limit's places.
func pictureOfHolds(t *testing.T) string {
	const key, lane, top = "192.0.2.1", 220, 700
	limit, all := InFlight(3, 10*time.Second), visits()
	l, start := ratelimittest.New(t, quiet(limit)), time.Now()
	p, until := &picture{span: pictureSpan}, make([]time.Duration, limit.N()) // the ends of the holds, by place
	base := top + lane*limit.N()
	var denied strings.Builder
	var admitted, most, next int
	for now := time.Duration(0); now <= p.span; now += sampleEvery {
		time.Sleep(now - time.Since(start))
		synctest.Wait() // for the requests that end now
		for stack := int64(0); next < len(all) && all[next].at == now; next++ {
			v, runs := all[next], false
			class, ends := "yes", now+v.lasts
			if v.killed {
				_, d, err := l.Acquire(ctx, key)
				require.NoError(t, err)
				runs, class, ends = d.Allowed, "band", now+limit.Window()
			} else {
				h := l.Middleware(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
					runs = true
					time.Sleep(v.lasts)
				}))
				go h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/", nil))
				synctest.Wait() // until it runs or is denied
			}
			if !runs {
				denied.WriteString(boxOf(p.x(now), base+20+squareStep*stack, false))
				stack++
				continue
			}
			admitted++
			place := slices.IndexFunc(until, func(end time.Duration) bool { return end <= now })
			require.GreaterOrEqual(t, place, 0, "more holds than places, at %v", now)
			until[place] = ends
			fmt.Fprintf(p, "  <rect class=\"%s\" x=\"%s\" y=\"%s\" width=\"%s\" height=\"18\"/>\n",
				class, px(p.x(now)), px(top+lane*int64(place)), px(p.x(min(ends, p.span))-p.x(now)-10))
		}
		held := 0
		for _, end := range until {
			if end > now {
				held++
			}
		}
		left, err := l.LookKey(ctx, key)
		require.NoError(t, err)
		require.EqualValues(t, held, limit.N()-left[0].Remaining, "the picture shows what is counted, at %v", now)
		most = max(most, held)
	}
	p.path("no", denied.String())
	p.path("row", fmt.Sprintf("M%s %sH%s", px(pictureLeft), px(base+5), px(pictureRight)))
	for place := range limit.N() {
		p.text("dim end", pictureLeft-60, top+lane*place+135, fmt.Sprint(place+1))
	}
	title := fmt.Sprintf("%v: %d of %d requests admitted, at most %d of them at the same time", limit, admitted, len(all), most)
	p.text("head", 140, 220, title)
	fmt.Fprint(p, "  <rect class=\"yes\" x=\"14\" y=\"32\" width=\"18\" height=\"12\"/>\n  <rect class=\"band\" x=\"174\" y=\"32\" width=\"18\" height=\"12\"/>\n")
	p.text("", 370, 420, "admitted, runs")
	p.text("", 1970, 420, "hold of a killed process")
	p.path("no", boxOf(3670, 355, false))
	p.text("", 3770, 420, "denied")
	p.ticks(seconds(p.span), base+430)
	return p.end(title, base+540)
}
