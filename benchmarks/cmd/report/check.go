package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/ratelimit-go/ratelimit/benchmarks"
)

// This file compares two versions of this library. Both run in each round, one right after the
// other, and the one that was first is second in the next round. So a slow moment of the
// machine affects both. What counts is the ratio within a round.

const (
	// leastChange is the change below which a row is called unchanged, however sure it is.
	leastChange = 0.03
	// leastRounds is how many rounds an interval needs.
	leastRounds = 8
)

// errSlower means that a row became slower.
var errSlower = errors.New("at least one row became slower")

// compare runs the rows of a part from two versions, and writes which of them changed.
func compare(older, newer string, p *part, o settings, out io.Writer) error {
	if o.rounds < leastRounds {
		return fmt.Errorf("-rounds is %d: -check needs at least %d for its intervals", o.rounds, leastRounds)
	}
	if program := p.missing(); program != "" {
		return fmt.Errorf("%s is not there, and the rows on %s need it", program, p.name)
	}
	dir, err := os.MkdirTemp("", "report-check-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	var programs [2]string
	for i, version := range []string{older, newer} {
		if programs[i], err = testBinary(version, filepath.Join(dir, fmt.Sprint(i))); err != nil {
			return err
		}
	}
	var own []string
	for _, l := range p.libraries {
		if l.Kind == benchmarks.Ours {
			own = append(own, l.Name)
		}
	}
	// Only the first and the last part of the pattern are this command's.
	pattern := "^" + p.bench + "$/" + o.bench + "/^(" + strings.Join(own, "|") + ")$"
	var both [2]results
	for round := range o.rounds {
		for i := range programs {
			which := (round + i) % 2
			r := &both[which]
			o.log("round %d of %d, %s", round+1, o.rounds, []string{older, newer}[which])
			cmd := exec.Command(programs[which], "-test.run", "^$", "-test.timeout", "0", "-test.bench", pattern, "-test.benchtime", o.benchtime)
			if err := lines(cmd, r.read); err != nil && (len(r.failed) == 0 || crashed(err)) {
				return err
			}
		}
	}
	return writeChanges(&both[0], &both[1], p, o.rounds, out)
}

// testBinary returns the path of a version's tests: a file that exists, or what it builds from a
// git revision.
func testBinary(version, path string) (string, error) {
	if info, err := os.Stat(version); err == nil && info.Mode().IsRegular() {
		return filepath.Abs(version)
	}
	tree := path + "-tree"
	git := func(args ...string) error {
		if text, err := exec.Command("git", args...).CombinedOutput(); err != nil {
			return fmt.Errorf("%q is neither a file nor a git revision that can be checked out: %w: %s", version, err, text)
		}
		return nil
	}
	if err := git("worktree", "add", "--detach", tree, version); err != nil {
		return "", err
	}
	defer git("worktree", "remove", "--force", tree)
	return path, build(filepath.Join(tree, "benchmarks"), path)
}

// change is how a value changed between the versions.
type change struct {
	sample
	old, new     float64
	ratio        float64 // the median of the ratios new by old
	least, most  float64 // what contains the true median with 99 %
	higherBetter bool
	void         string
	alone        bool // only one version has it
}

// verdict returns whether a row became slower, or more expensive.
func (c change) verdict() string {
	ratio, least, most := c.ratio, c.least, c.most
	if c.higherBetter {
		ratio, least, most = 1/ratio, 1/most, 1/least
	}
	switch {
	case c.void != "":
		return "void"
	case c.alone:
		return "not in both"
	case least > 1 && ratio > 1+leastChange:
		return "slower"
	case most < 1 && ratio < 1-leastChange:
		return "faster"
	}
	return "unchanged"
}

// writeChanges writes how each row changed, the slower ones first. It returns errSlower if there
// are any, and an error if nothing could be compared.
func writeChanges(older, newer *results, p *part, rounds int, out io.Writer) error {
	changes := changesOf(older, newer, p, rounds)
	if len(changes) == 0 {
		return errors.New("no row was measured: see -bench and -only")
	}
	order := []string{"slower", "void", "not in both", "faster", "unchanged"}
	slices.SortStableFunc(changes, func(a, b change) int {
		return cmp.Compare(slices.Index(order, a.verdict()), slices.Index(order, b.verdict()))
	})
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintf(table, "row\tunit\told\tnew\tnew by old\t99 %% interval\t\n")
	count := make(map[string]int)
	for _, c := range changes {
		verdict := c.verdict()
		count[verdict]++
		if c.void != "" || c.alone {
			fmt.Fprintf(table, "%s/%s\t%s\t\t\t\t\t%s\n", c.bench, c.library, c.unit, strings.TrimSuffix(verdict+": "+c.void, ": "))
			continue
		}
		fmt.Fprintf(table, "%s/%s\t%s\t%.4g\t%.4g\t%.3f\t%.3f to %.3f\t%s\n", c.bench, c.library, c.unit, c.old, c.new, c.ratio, c.least, c.most, verdict)
	}
	table.Flush()
	fmt.Fprintf(out, "%d slower, %d faster, %d unchanged, %d void, %d not in both\n",
		count["slower"], count["faster"], count["unchanged"], count["void"], count["not in both"])
	if count["slower"] > 0 {
		return errSlower
	}
	if count["void"] > 0 {
		return errors.New("at least one row is void, so it is not known whether it became slower")
	}
	return nil
}

// changesOf returns the changes of all values in the part's tables, and of allocations, in the
// order of the cases.
func changesOf(older, newer *results, p *part, rounds int) (all []change) {
	for _, c := range p.cases {
		measures := append(slices.Clone(c.Measures), benchmarks.Measure{Unit: "allocs/op"})
		for _, l := range p.libraries {
			f := failure{c.Name, l.Name}
			if why := cmp.Or(newer.failed[f], older.failed[f]); why != "" {
				all = append(all, change{sample: sample{c.Name, l.Name, measures[0].Unit}, void: why})
				continue
			}
			for _, m := range measures {
				s := sample{c.Name, l.Name, m.Unit}
				x, y := older.samples[s], newer.samples[s]
				if len(x) == 0 && len(y) == 0 {
					continue
				}
				if len(x) == 0 || len(y) == 0 { // one version does not have the row
					all = append(all, change{sample: s, alone: true})
					continue
				}
				ch := change{sample: s, old: benchmarks.Median(x), new: benchmarks.Median(y), higherBetter: m.Higher}
				if len(x) != rounds || len(y) != rounds {
					ch.void = fmt.Sprintf("%d rounds of the old version and %d of the new one were measured", len(x), len(y))
				} else {
					ch.ratio, ch.least, ch.most = interval(quotients(y, x))
				}
				all = append(all, ch)
			}
		}
	}
	return all
}

// quotients divides the values of rounds. A value that stays 0 has not changed.
func quotients(x, y []float64) []float64 {
	all := make([]float64, len(x))
	for i := range x {
		if all[i] = x[i] / y[i]; x[i] == y[i] {
			all[i] = 1
		}
	}
	return all
}

// interval returns the median, and an interval that contains the true median with a
// probability of 99 %, whatever the distribution: each value is above the true median with a
// probability of one half, so the number of values above it has a binomial distribution.
func interval(all []float64) (median, least, most float64) {
	sorted := slices.Sorted(slices.Values(all))
	n := len(sorted)
	outside, term := 0.0, math.Pow(0.5, float64(n)) // term is the probability that i values are above
	i := 0
	for ; 2*(outside+term) <= 0.01; i++ {
		outside += term
		term *= float64(n-i) / float64(i+1)
	}
	i = max(0, i-1)
	return benchmarks.Median(all), sorted[i], sorted[n-1-i]
}
