package internal_test

import (
	"fmt"
	"io/fs"
	"os"
	"path"
	"regexp"
	"strings"
	"testing"
	"testing/fstest"
	"unicode"
)

// This file checks the links of the documentation that stay inside the repository: the
// file or folder exists, and so does the heading that an anchor names.

// TestLinksResolve reads all Markdown files of the repository.
func TestLinksResolve(t *testing.T) {
	found, broken, err := linksOf(os.DirFS(".."))
	if err != nil {
		t.Fatal(err)
	}
	if found < 300 {
		t.Errorf("found %d links: the documents have more", found)
	}
	for _, b := range broken {
		t.Error(b)
	}
}

// TestBrokenLinksAreFound checks the check.
func TestBrokenLinksAreFound(t *testing.T) {
	module := fstest.MapFS{
		"docs/b.md":   {Data: []byte("# B\n\n## Is `SetLimits` safe, or *not*?\n\n## Twice\n\n```\n## In code\n```\n\n## Twice\n")},
		"examples/x/": {Mode: fs.ModeDir},
	}
	for link, isThere := range map[string]bool{
		"[b](docs/b.md)": true,
		"[b](docs/b.md#is-setlimits-safe-or-not)":        true,
		"[b](docs/b.md#twice), and more":                 true,
		"[b](docs/b.md#twice-1)":                         true,
		"[here](#a)":                                     true,
		"[x](examples/x)":                                true,
		"![picture](docs/b.md)":                          true,
		"[two\nlines](docs/b.md)":                        true,
		"[b](docs/c.md)":                                 false,
		"[b](docs/b.md#twice-2)":                         false,
		"[b](docs/b.md#in-code)":                         false,
		"[here](#b)":                                     false,
		"[outside](../go.mod)":                           false,
		"[![picture](docs/gone.svg)](docs/b.md)":         false,
		"<picture><img src=\"docs/gone.svg\"></picture>": false,
		"<img alt=\"b\" src=\"docs/b.md\">":              true,
	} {
		module["a.md"] = &fstest.MapFile{Data: []byte("# A\n\n" + link + "\n")}
		found, broken, err := linksOf(module)
		if err != nil || found == 0 || (len(broken) == 0) != isThere {
			t.Errorf("%s: found %d, broken %v, %v", link, found, broken, err)
		}
	}
	module["a.md"] = &fstest.MapFile{Data: []byte("[web](https://go.dev), `[code](gone)`\n\n```\n[code](gone)\n```\n")}
	if found, broken, err := linksOf(module); err != nil || found != 0 {
		t.Errorf("found %d, broken %v, %v; want no link to check", found, broken, err)
	}
}

var (
	fencedCode = regexp.MustCompile("(?ms)^ *```.*?^ *```$")
	codeSpan   = regexp.MustCompile("`[^`\n]+`")
	// The target of a link or picture in Markdown, or of a picture in HTML.
	linkTarget = regexp.MustCompile(`\]\(([^)\s]+)\)|\b(?:src|srcset|href)="([^"]+)"`)
	anyHeading = regexp.MustCompile(`(?m)^#+ +(.+)$`)
)

// linksOf counts the links in the Markdown files of a repository that stay inside of
// it, and describes those whose target is missing.
func linksOf(fsys fs.FS) (found int, broken []string, err error) {
	err = fs.WalkDir(fsys, ".", func(file string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case entry.IsDir() && file != "." && strings.HasPrefix(entry.Name(), "."):
			return fs.SkipDir
		case !strings.HasSuffix(file, ".md"):
			return nil
		}
		text, err := fs.ReadFile(fsys, file)
		if err != nil {
			return err
		}
		prose := codeSpan.ReplaceAllString(fencedCode.ReplaceAllString(string(text), ""), "")
		for _, m := range linkTarget.FindAllStringSubmatch(prose, -1) {
			target := m[1] + m[2]
			if strings.Contains(target, ":") { // https:, mailto:
				continue
			}
			found++
			if err := checkLink(fsys, file, target); err != nil {
				broken = append(broken, fmt.Sprintf("%s: %s: %v", file, target, err))
			}
		}
		return nil
	})
	return found, broken, err
}

// checkLink returns an error if the target of a link in a file is missing.
func checkLink(fsys fs.FS, file, target string) error {
	name, anchor, _ := strings.Cut(target, "#")
	if name == "" {
		name = file
	} else {
		name = path.Join(path.Dir(file), name)
	}
	if _, err := fs.Stat(fsys, name); err != nil {
		return err
	}
	if anchor == "" {
		return nil
	}
	text, err := fs.ReadFile(fsys, name)
	if err != nil {
		return err
	}
	for _, a := range anchorsOf(string(text)) {
		if a == anchor {
			return nil
		}
	}
	return fmt.Errorf("no such heading")
}

// anchorsOf returns the anchors of a page's headings, as GitHub makes them: lower case,
// without punctuation, "-" in place of a space, and a number after the second one of a
// name.
func anchorsOf(text string) (anchors []string) {
	seen := map[string]int{}
	for _, m := range anyHeading.FindAllStringSubmatch(fencedCode.ReplaceAllString(text, ""), -1) {
		anchor := strings.Map(func(r rune) rune {
			switch {
			case r == ' ':
				return '-'
			case unicode.IsLetter(r), unicode.IsDigit(r), r == '-', r == '_':
				return unicode.ToLower(r)
			}
			return -1
		}, m[1])
		n := seen[anchor]
		seen[anchor]++
		if n > 0 {
			anchor = fmt.Sprintf("%s-%d", anchor, n)
		}
		anchors = append(anchors, anchor)
	}
	return anchors
}
