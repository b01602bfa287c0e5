package internal_test

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/fstest"
)

// This file checks docs/rules.md: its rules are numbered from 1, each one has a command
// that names tests, and the numbers in storetest are rules of the page. A gap in the
// numbers must be stated on the page, in the words of the variable notBuilt.
// commands_test.go checks that the named tests exist.

func TestRulesAreNumberedAndShown(t *testing.T) {
	if err := checkRules(os.DirFS("..")); err != nil {
		t.Error(err)
	}
}

// TestWrongRulesAreFound checks the check.
func TestWrongRulesAreFound(t *testing.T) {
	const (
		one = "### 1. First\n\nText.\n\n- `go test -run TestX .`: this.\n- `go test ./internal/x`: that.\n\n"
		gap = "## Later\n\nRules 2 to 4 are not built yet.\n\n"
		two = "## Other\n\n### 2. Second\n\n- `cd internal/e2e && RATELIMIT_FAULTS=1 go test -run 'TestX|TestY' .`\n"
	)
	cases := func(text string) map[string]string { return map[string]string{"storetest/cases_x.go": text} }
	for _, test := range []struct {
		name, page string
		storetest  map[string]string
		want       string // part of the error; empty for none
	}{
		{"all right", one + two, nil, ""},
		{"no rules", "# Rules\n", nil, "no rules"},
		{"a gap", one + strings.Replace(two, "### 2.", "### 3.", 1), nil, "rule 3 follows rule 1"},
		{"a stated gap", one + gap + strings.Replace(two, "### 2.", "### 5.", 1), cases("\t\trules: []int{1, 5},\n"), ""},
		{"a stated gap of one", one + strings.Replace(gap, "Rules 2 to 4 are", "Rule 2 is", 1) + strings.Replace(two, "### 2.", "### 3.", 1), nil, ""},
		{"a larger gap than stated", one + gap + strings.Replace(two, "### 2.", "### 6.", 1), nil, "rule 6 follows rule 4"},
		{"a smaller gap than stated", one + gap + strings.Replace(two, "### 2.", "### 4.", 1), nil, "rule 4 follows rule 4"},
		{"a gap that begins elsewhere", one + strings.Replace(gap, "2 to 4", "3 to 4", 1) + two, nil, "rules 3 to 4 follow rule 1"},
		{"a gap that ends before it begins", one + strings.Replace(gap, "2 to 4", "2 to 1", 1) + two, nil, "rules 2 to 1 follow rule 1"},
		{"a number in a stated gap", one + gap + strings.Replace(two, "### 2.", "### 5.", 1), cases("\t\trules: []int{1, 3},\n"), "cases_x.go: rule 3"},
		{"a number twice", one + one, nil, "rule 1 follows rule 1"},
		{"not from 1", two, nil, "rule 2 follows rule 0"},
		{"no command", one + "### 2. Second\n\nText.\n", nil, "rule 2 has no command"},
		{"no command in the first", "### 1. First\n\n" + two, nil, "rule 1 has no command"},
		{"a command without a name", one + "### 2. Second\n\n- `go test ./internal/x`\n", nil, "rule 2 has no command"},
		{"a command for a benchmark", one + "### 2. Second\n\n- `go test -run xxx -bench X .`\n", nil, "rule 2 has no command"},
		{"a command after the next heading", one + "### 2. Second\n\n## Other\n\n- `go test -run TestX .`\n", nil, "rule 2 has no command"},
		{"storetest without numbers", one + two, cases("\t\tname: \"a\",\n\t\trule: \"it holds\",\n"), ""},
		{"known numbers", one + two, cases("\t\trules: []int{1, 2},\n"), ""},
		{"a number that is no rule", one + two, cases("\t\trules: []int{1},\n\t\trules: []int{2, 13},\n"), "cases_x.go: rule 13"},
	} {
		fsys := fstest.MapFS{rulesPage: {Data: []byte(test.page)}}
		for name, text := range test.storetest {
			fsys[name] = &fstest.MapFile{Data: []byte(text)}
		}
		err := checkRules(fsys)
		if got := fmt.Sprint(err); (err == nil) != (test.want == "") || !strings.Contains(got, test.want) {
			t.Errorf("%s: %v, want %q", test.name, err, test.want)
		}
	}
}

const rulesPage = "docs/rules.md"

var (
	// heading matches a heading of the page, with the number if it is a rule's.
	heading = regexp.MustCompile(`^##+ (?:(\d+)\.)?`)

	// notBuilt matches the statement that some numbers have no rule on the page.
	notBuilt = regexp.MustCompile(`^Rules? (\d+)(?: to (\d+) are| is) not built yet\b`)

	// ruleNumbers matches the list of rules of a case in storetest.
	ruleNumbers = regexp.MustCompile(`\brules:\s*\[\]int\{([^}]*)\}`)
)

// checkRules returns an error for each fault of the page and of the numbers in
// storetest.
func checkRules(fsys fs.FS) error {
	text, err := fs.ReadFile(fsys, rulesPage)
	if err != nil {
		return err
	}
	commands, err := commandsOf(fsys, rulesPage)
	if err != nil {
		return err
	}
	var errs []error
	last, current := 0, 0 // the last rule, and the one of the present section; 0 for none
	shown, missing := make(map[int]bool), make(map[int]bool)
	for i, line := range strings.Split(string(text), "\n") {
		if m := heading.FindStringSubmatch(line); m != nil {
			current, _ = strconv.Atoi(m[1])
			if current != 0 {
				if current != last+1 {
					errs = append(errs, fmt.Errorf("%s: rule %d follows rule %d", rulesPage, current, last))
				}
				last = current
			}
		}
		if m := notBuilt.FindStringSubmatch(line); m != nil {
			first, _ := strconv.Atoi(m[1])
			until, _ := strconv.Atoi(cmp.Or(m[2], m[1]))
			if first != last+1 || until < first {
				errs = append(errs, fmt.Errorf("%s: rules %d to %d follow rule %d", rulesPage, first, until, last))
			}
			for last < until {
				last++
				missing[last] = true
			}
		}
		position := fmt.Sprintf("%s:%d", rulesPage, i+1)
		if slices.ContainsFunc(commands, func(c testCommand) bool { return c.position == position && c.run != "" && c.bench == "" }) {
			shown[current] = true
		}
	}
	if last == 0 {
		errs = append(errs, fmt.Errorf("%s has no rules", rulesPage))
	}
	for number := 1; number <= last; number++ {
		if !shown[number] && !missing[number] {
			errs = append(errs, fmt.Errorf("%s: rule %d has no command that names a test", rulesPage, number))
		}
	}
	return errors.Join(append(errs, checkCaseRules(fsys, func(number int) bool { return number >= 1 && number <= last && !missing[number] }))...)
}

// checkCaseRules returns an error for each number in the sources of storetest that is
// no rule.
func checkCaseRules(fsys fs.FS, isRule func(number int) bool) error {
	files, err := fs.Glob(fsys, "storetest/*.go")
	if err != nil {
		return err
	}
	var errs []error
	for _, file := range files {
		text, err := fs.ReadFile(fsys, file)
		if err != nil {
			return err
		}
		for _, m := range ruleNumbers.FindAllStringSubmatch(string(text), -1) {
			for field := range strings.SplitSeq(m[1], ",") {
				number, err := strconv.Atoi(strings.TrimSpace(field))
				if err != nil || !isRule(number) {
					errs = append(errs, fmt.Errorf("%s: rule %s is not in %s", path.Base(file), strings.TrimSpace(field), rulesPage))
				}
			}
		}
	}
	return errors.Join(errs...)
}
