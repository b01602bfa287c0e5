// Ratelimit-sim simulates many processes that share limits on one Redis. It prints what the
// limits cost and how much they admit. See docs/scaling.md.
//
//	go run ./cmd/ratelimit-sim -processes 1,100,1000 -rate 1000000 -limit "500000/1s fixed"
//
// prints a table with a row for each mode and number of processes. With -out docs, it writes the
// charts and tables of docs/scaling.md instead.
package main

import (
	"cmp"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/ratelimit-go/ratelimit"
	"github.com/ratelimit-go/ratelimit/internal/rule"
	"github.com/ratelimit-go/ratelimit/internal/sim"
)

func main() {
	if err := run(os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "ratelimit-sim:", err)
		os.Exit(1)
	}
}

func run(args []string, w io.Writer) error {
	var c sim.Config
	flags := flag.NewFlagSet("ratelimit-sim", flag.ContinueOnError)
	out := flags.String("out", "", "write the charts and tables of scaling.md, in this `directory`, instead")
	processes := flags.String("processes", "1,10,100,1000", "how many processes, a row for each of several `numbers`")
	limit := flags.String("limit", "5000/1s fixed", "the `limit` of each key, as ParseLimit reads it")
	down := flags.String("down", "", "when Redis cannot be reached: `from-to`, 2s-5s say")
	flags.Float64Var(&c.Rate, "rate", 10_000, "requests a second, of all processes together")
	flags.Float64Var(&c.Share, "share", 0, "what part of all requests, from 0 to 1, the first process gets; 0: as many as each other")
	flags.IntVar(&c.Keys.Count, "keys", 1, "how many keys there are")
	flags.Float64Var(&c.Keys.Hot, "hot", 0, "what part of the requests, from 0 to 1, is for the first of -keys; 0: as many as for each other")
	flags.Float64Var(&c.Keys.Zipf, "zipf", 0, "the n-th of -keys is asked for as often as 1/n^`s`, s above 1; 0: all as often")
	flags.DurationVar(&c.Span, "span", 3*time.Second, "how long to simulate: some windows, and of a bucket some times what its burst takes to be used up, "+
		"or the numbers are mostly those of its beginning")
	flags.DurationVar(&c.Lease, "lease", 250*time.Millisecond, "Options.Lease of the leased mode")
	flags.DurationVar(&c.Recheck, "recheck", time.Second, "Options.DenyRecheck")
	flags.DurationVar(&c.Timeout, "timeout", 100*time.Millisecond, "Options.Timeout")
	flags.DurationVar(&c.RTT, "rtt", 200*time.Microsecond, "how long a round trip takes at least")
	flags.DurationVar(&c.Jitter, "jitter", 100*time.Microsecond, "what a round trip takes more, on average: exponentially distributed")
	flags.DurationVar(&c.Service, "service", 7*time.Microsecond, "what a command takes Redis")
	flags.Uint64Var(&c.Seed, "seed", 1, "what chance begins with")
	if err := flags.Parse(args); errors.Is(err, flag.ErrHelp) {
		return nil // Parse has printed it
	} else if err != nil {
		return err
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("want flags only, not %q", flags.Args())
	}
	if *out != "" {
		if flags.NFlag() > 1 {
			return errors.New("-out goes with no other flag")
		}
		return document(*out, scenarios)
	}
	l, err := ratelimit.ParseLimit(*limit)
	if err != nil {
		return err
	}
	if err := simulated(l); err != nil {
		return err
	}
	if err := validate(c); err != nil {
		return err
	}
	c.Limit, c.Ladder = ruleOf(l), ladderOf(l)
	if *down != "" {
		from, to, _ := strings.Cut(*down, "-")
		var o sim.Outage
		var err2 error
		o.From, err = time.ParseDuration(from)
		o.To, err2 = time.ParseDuration(to)
		if cmp.Or(err, err2) != nil || o.From < 0 || o.To <= o.From {
			return fmt.Errorf("-down is %q: want from when to when, as 2s-5s", *down)
		}
		c.Outages = []sim.Outage{o}
	}
	var configs []sim.Config
	for _, n := range strings.Split(*processes, ",") {
		if c.Processes, err = strconv.Atoi(n); err != nil || c.Processes < 1 {
			return fmt.Errorf("-processes has %q: want numbers from 1", n)
		}
		for _, c.Mode = range modes {
			configs = append(configs, c)
		}
	}
	fmt.Fprintf(w, "ratelimit-sim%s\n\n%s", settings(flags), table(simulate(configs)))
	return nil
}

// simulated returns an error for a limit that the simulation cannot count.
func simulated(l ratelimit.Limit) error {
	switch _, ok := kinds[l.Algorithm()]; {
	case ok:
		return nil
	case l.Algorithm() == "inflight":
		return fmt.Errorf("-limit is %v: requests of the simulation have no duration, so there is no number of them at the same time: use a limit of another algorithm", l)
	}
	return fmt.Errorf("-limit is %v: the simulation counts only fixed, sliding, bucket and calendar limits", l)
}

func validate(c sim.Config) error {
	switch {
	case !(c.Rate > 0) || c.Keys.Count < 1:
		return errors.New("-rate and -keys have to be above 0")
	case min(c.Span, c.Lease, c.Recheck, c.Timeout, c.RTT, c.Service) <= 0 || c.Jitter < 0:
		return errors.New("-span, -lease, -recheck, -timeout, -rtt and -service have to be above 0, and -jitter not below")
	case !(c.Share >= 0 && c.Share <= 1 && c.Keys.Hot >= 0 && c.Keys.Hot <= 1):
		return errors.New("-share and -hot have to be from 0 to 1")
	case c.Keys.Zipf != 0 && !(c.Keys.Zipf > 1):
		return errors.New("-zipf has to be above 1, or 0 for none")
	case c.Keys.Zipf > 0 && c.Keys.Hot > 0:
		return errors.New("-zipf and -hot are two ways to spread requests over keys: choose one")
	case c.Keys.Zipf+c.Keys.Hot > 0 && c.Keys.Count == 1:
		return errors.New("-zipf and -hot spread requests over -keys, and there is one key")
	}
	return nil
}

// settings returns all flags that are not empty, in the form of a command line.
func settings(flags *flag.FlagSet) string {
	var b strings.Builder
	flags.VisitAll(func(f *flag.Flag) {
		if v := f.Value.String(); strings.Contains(v, " ") {
			fmt.Fprintf(&b, " -%s %q", f.Name, v)
		} else if v != "" {
			fmt.Fprintf(&b, " -%s %s", f.Name, v)
		}
	})
	return b.String()
}

var modes = []sim.Mode{sim.Exact, sim.Cached, sim.Leased}

// kinds are the algorithms by their names.
var kinds = map[string]rule.Kind{"fixed": rule.Fixed, "sliding": rule.Sliding, "bucket": rule.Bucket, "calendar": rule.Calendar}

// ruleOf returns the counting rule of a limit. A simulation has no date: the period of a
// calendar is one of the usual length.
func ruleOf(l ratelimit.Limit) rule.Limit {
	r := rule.Limit{Kind: kinds[l.Algorithm()], N: l.N(), Window: int64(l.Window())}
	switch r.Kind {
	case rule.Bucket:
		r.Burst = l.Burst()
	case rule.Calendar:
		r.Number = 1
	}
	return r
}

// ladderOf returns the ladder of a limit's blocks, or nil if it has none.
func ladderOf(l ratelimit.Limit) *rule.Ladder {
	durations := l.Ladder()
	if durations == nil {
		return nil
	}
	ladder := rule.Ladder{N: len(durations)}
	for i, d := range durations {
		ladder.Rungs[i] = int64(d)
	}
	return &ladder
}

// result is the result of a simulation.
type result struct {
	sim.Config
	*sim.Report
}

// simulate runs simulations, two at a time.
func simulate(configs []sim.Config) []result {
	results := make([]result, len(configs))
	turn := make(chan struct{}, 2)
	var running sync.WaitGroup
	for i, c := range configs {
		running.Go(func() {
			turn <- struct{}{}
			results[i] = result{c, sim.Run(c)}
			<-turn
		})
	}
	running.Wait()
	return results
}

func table(results []result) string {
	var b strings.Builder
	blocks := results[0].Ladder != nil
	head, line := "| processes | mode | commands a second | a decision | Redis busy | admitted of the limit | fairness | wait, 50 % | 99 % |", "|---|---|---|---|---|---|---|---|---|"
	if blocks {
		head, line = head+" denied by a block, without a command | admitted per key and day |", line+"---|---|"
	}
	b.WriteString(head + "\n" + line + "\n")
	for _, r := range results {
		fmt.Fprintf(&b, "| %s | %v | %s | %s | %s | %s | %.3f | %s | %s |", number(float64(r.Config.Processes)), r.Mode,
			number(r.perSecond()), small(r.PerDecision()), percent(r.Busy), percent(r.OfIdeal()), r.Jain(), span(r.Wait(0.5)), span(r.Wait(0.99)))
		if blocks {
			fmt.Fprintf(&b, " %s | %s |", percent(float64(r.Blocked)/float64(max(1, r.Requests))), number(r.perDay()))
		}
		b.WriteByte('\n')
	}
	return b.String()
}

func (r result) perSecond() float64 { return float64(r.Commands) / r.Span.Seconds() }

// perDay returns how many requests of a key were admitted, on average and in a day.
func (r result) perDay() float64 {
	return float64(r.Admitted) / float64(r.Keys.Count) * (24 * time.Hour).Seconds() / r.Span.Seconds()
}

// number formats a number for readers, such as 12,300.
func number(f float64) string {
	s := strconv.FormatFloat(f, 'f', 0, 64)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

func small(f float64) string { return strconv.FormatFloat(f, 'g', 2, 64) }

func percent(f float64) string { return strconv.FormatFloat(100*f, 'f', 1, 64) + " %" }

func span(d time.Duration) string {
	if d == 0 {
		return "none"
	}
	return fmt.Sprintf("%.2g ms", d.Seconds()*1000)
}
