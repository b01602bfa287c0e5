package main

import (
	"errors"
	"fmt"
	"regexp"
	"strings"

	"github.com/ratelimit-go/ratelimit"
)

// route is one line of the configuration.
type route struct {
	name   string
	line   int
	limits []ratelimit.Limit
}

// configError is an error with its place in the configuration.
type configError struct {
	line  int
	field string
	err   error
}

func (e *configError) Error() string { return fmt.Sprintf("line %d: %s: %v", e.line, e.field, e.err) }

func (e *configError) Unwrap() error { return e.err }

var validName = regexp.MustCompile(`^[a-z][a-z0-9-]*$`)

// parse reads a configuration. On an error it returns no routes.
func parse(text string) ([]route, error) {
	var routes []route
	lines := make(map[string]int)
	for i, line := range strings.Split(text, "\n") {
		line, _, _ = strings.Cut(line, "#")
		if line = strings.TrimSpace(line); line == "" {
			continue
		}
		wrong := func(field, format string, args ...any) error {
			return &configError{i + 1, field, fmt.Errorf(format, args...)}
		}
		name, list, ok := strings.Cut(line, ":")
		name = strings.TrimSpace(name)
		switch {
		case !ok:
			return nil, wrong("name", "%q has no colon after it: write it as \"login: 5/1h fixed\"", name)
		case !validName.MatchString(name):
			return nil, wrong("name", "%q: want small letters, digits and hyphens", name)
		case lines[name] != 0:
			return nil, wrong("name", "%q is on line %d already", name, lines[name])
		}
		lines[name] = i + 1
		limits, err := parseLimits(list)
		if err != nil {
			return nil, wrong(fmt.Sprintf("%s, limit %d", name, len(limits)+1), "%w", err)
		}
		routes = append(routes, route{name, i + 1, limits})
	}
	if len(routes) == 0 { // probably the file is being written
		return nil, &configError{1, "name", errors.New("there is no route")}
	}
	return routes, nil
}

// parseLimits reads limits that are separated by commas. On an error, it returns the limits
// before the error.
func parseLimits(text string) (limits []ratelimit.Limit, err error) {
	for field := range strings.SplitSeq(text, ",") {
		limit, err := ratelimit.ParseLimit(strings.TrimSpace(field))
		if err != nil {
			return limits, err
		}
		limits = append(limits, limit)
	}
	return limits, nil
}
