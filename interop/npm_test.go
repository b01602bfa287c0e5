package interop_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	. "github.com/ratelimit-go/ratelimit"
)

// npmPackages is a process of Node.js with the packages of testdata/npm, for all tests of
// this package. It does jobs: see testdata/npm/judge.mjs.
type npmPackages struct {
	folder string // where the packages are installed
	cmd    *exec.Cmd
	stdin  io.WriteCloser

	mu      sync.Mutex
	last    int                  // the number of the latest job
	waiting map[int]chan npmDone // for the results of jobs, by number
	ended   error                // why there are no more results, or nil
}

// npmDone is the end of a job.
type npmDone struct {
	ID     int
	Result json.RawMessage
	Error  string
}

// startNpm installs the packages and starts the process when the first test needs them.
func startNpm() (*npmPackages, error) {
	for _, program := range []string{"node", "npm"} {
		if _, err := exec.LookPath(program); err != nil {
			return nil, fmt.Errorf("%s is not installed", program)
		}
	}
	folder, err := os.MkdirTemp("", "ratelimit-npm-*")
	if err != nil {
		return nil, err
	}
	p := &npmPackages{folder: folder, waiting: make(map[int]chan npmDone)}
	if err := p.start(); err != nil {
		return nil, errors.Join(err, os.RemoveAll(folder))
	}
	return p, nil
}

func (p *npmPackages) start() error {
	if err := os.CopyFS(p.folder, os.DirFS("testdata/npm")); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	install := exec.CommandContext(ctx, "npm", "ci", "--prefer-offline", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error")
	install.Dir = p.folder
	if out, err := install.CombinedOutput(); err != nil {
		return fmt.Errorf("npm ci: %w\n%s", err, out)
	}
	p.cmd = exec.Command("node", filepath.Join(p.folder, "judge.mjs"))
	p.cmd.Stderr = os.Stderr
	var err error
	if p.stdin, err = p.cmd.StdinPipe(); err != nil {
		return err
	}
	stdout, err := p.cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := p.cmd.Start(); err != nil {
		return err
	}
	go p.receive(stdout)
	return nil
}

// receive passes the results of jobs on until the process ends.
func (p *npmPackages) receive(stdout io.Reader) {
	for results := json.NewDecoder(stdout); ; {
		var done npmDone
		err := results.Decode(&done)
		p.mu.Lock()
		if err == nil {
			p.waiting[done.ID] <- done
			delete(p.waiting, done.ID)
		} else {
			p.ended = fmt.Errorf("the process of Node.js has ended: %w", err)
			for _, c := range p.waiting {
				c <- npmDone{Error: p.ended.Error()}
			}
		}
		p.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// do does a job and stores its result in result. Goroutines may call it at the same time.
func (p *npmPackages) do(what string, with, result any) error {
	done := make(chan npmDone, 1)
	err := func() error {
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.ended != nil {
			return p.ended
		}
		p.last++
		line, err := json.Marshal(map[string]any{"id": p.last, "what": what, "with": with})
		if err != nil {
			return err
		}
		p.waiting[p.last] = done
		_, err = p.stdin.Write(append(line, '\n'))
		return err
	}()
	if err != nil {
		return err
	}
	end := <-done
	if end.Error != "" {
		return fmt.Errorf("%s: %s", what, end.Error)
	}
	return json.Unmarshal(end.Result, result)
}

// theNpm is the process, or why there is none.
var theNpm struct {
	once     sync.Once
	packages *npmPackages
	err      error
}

// npm returns the process. It skips the test if the packages cannot be installed here.
func npm(t testing.TB) *npmPackages {
	t.Helper()
	theNpm.once.Do(func() { theNpm.packages, theNpm.err = startNpm() })
	switch err := theNpm.err; {
	case err != nil && os.Getenv("RATELIMIT_REQUIRE_NPM") != "":
		t.Fatalf("npm packages: %v, and RATELIMIT_REQUIRE_NPM is set", err)
	case err != nil:
		t.Skipf("npm packages: %v", err)
	}
	return theNpm.packages
}

// TestMain ends the process, if a test has started it.
func TestMain(m *testing.M) {
	code := m.Run()
	if p := theNpm.packages; p != nil {
		p.stdin.Close()
		if err := p.cmd.Wait(); err != nil {
			fmt.Fprintln(os.Stderr, "node:", err)
			code = 1
		}
		os.RemoveAll(p.folder)
	}
	os.Exit(code)
}

// TestNpmParserReadsEachStyle reads the fields of each style with the npm package
// ratelimit-header-parser.
func TestNpmParserReadsEachStyle(t *testing.T) {
	packages := npm(t)
	type info struct {
		Limit, Used, Remaining *int64
		InSeconds              *float64 // until the reset
	}
	var names []string
	var sets []map[string]string // header fields
	add := func(name string, limit Limit, style Headers) {
		fields := make(map[string]string)
		for field, values := range fieldsOf(newLimiter(t, name, Options{Limits: []Limit{limit}, Headers: style})) {
			fields[field] = values[0]
		}
		names, sets = append(names, name), append(sets, fields)
	}
	for name, style := range map[string]Headers{
		"7": HeadersDraft7, "6": HeadersDraft6, "legacy": HeadersLegacy,
		"7, 6 and legacy": HeadersDraft7 | HeadersDraft6 | HeadersLegacy, "6 and legacy": HeadersDraft6 | HeadersLegacy,
		"none": HeadersNone, "10": HeadersDraft10,
	} {
		add(name, FixedWindow(5, time.Hour), style)
	}
	for name, style := range map[string]Headers{"in flight, 7": HeadersDraft7, "in flight, 6": HeadersDraft6, "in flight, legacy": HeadersLegacy} {
		add(name, InFlight(5, time.Hour), style)
	}
	var got []*info
	require.NoError(t, packages.do("styles", sets, &got))
	require.Len(t, got, len(names))
	for i, read := range got {
		switch name := names[i]; name {
		case "none":
			assert.Nil(t, read)
		case "10":
			// Version 0.1.0 of the package does not know draft 10. It must not read a wrong
			// number from its fields.
			require.NotNil(t, read)
			assert.Nil(t, read.Limit)
			assert.Nil(t, read.Remaining)
		default:
			require.NotNil(t, read, name)
			assert.EqualValues(t, 5, *read.Limit, name)
			assert.EqualValues(t, 1, *read.Used, name)
			assert.EqualValues(t, 4, *read.Remaining, name)
			assert.InDelta(t, 3600, *read.InSeconds, 60, name)
		}
	}
}
