package main

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// TestPromisesNameRealTests holds docs/promises.md against the repository: every
// promise is there once, has a state, and names tests that exist.
func TestPromisesNameRealTests(t *testing.T) {
	tests := sources(t, ".", "_test.go")
	page, err := os.ReadFile("docs/promises.md")
	if err != nil {
		t.Fatal(err)
	}
	next := 1
	state := regexp.MustCompile(`^(kept|in part|planned|–)([:;] \S.*)?$`)
	for line := range strings.Lines(string(page)) {
		cells := strings.Split(line, "|")
		if len(cells) < 7 {
			continue
		}
		n, err := strconv.Atoi(strings.TrimSpace(cells[1]))
		if err != nil {
			continue
		}
		if n != next {
			t.Errorf("promise %d stands where %d belongs", n, next)
		}
		next = n + 1
		here, there, shown := strings.TrimSpace(cells[3]), strings.TrimSpace(cells[4]), strings.TrimSpace(cells[5])
		switch {
		case !state.MatchString(here) || !state.MatchString(there):
			t.Errorf("promise %d: states %q and %q", n, here, there)
		case shown == "":
			t.Errorf("promise %d is kept, but nothing shows it", n)
		}
	}
	wantTests(t, "docs/promises.md", string(page), tests)
	if next != 77 {
		t.Errorf("the last promise is %d, want 76", next-1)
	}
}

// TestConformanceNamesRealCases holds docs/conformance.md against the suite of
// providers and the other tests.
func TestConformanceNamesRealCases(t *testing.T) {
	page, err := os.ReadFile("docs/conformance.md")
	if err != nil {
		t.Fatal(err)
	}
	wantTests(t, "docs/conformance.md", string(page), sources(t, ".", "_test.go"))
	suite := sources(t, "sandbox/providertest", ".go")
	cases := regexp.MustCompile(`(?:^|[^*])\*([a-z]+)(?:/([a-z0-9_]+))?\*(?:[^*]|$)`)
	_, table, _ := strings.Cut(string(page), "|---|")
	found := cases.FindAllStringSubmatch(table, -1)
	if len(found) < 40 {
		t.Errorf("only %d cases are named", len(found))
	}
	for _, m := range found {
		group, name := m[1], m[2]
		if !strings.Contains(suite, `{"`+group+`", test`) || name != "" && !strings.Contains(suite, `t.Run("`+name+`"`) && !strings.Contains(suite, `name: "`+name+`"`) && !strings.Contains(suite, `again("`+name+`"`) {
			t.Errorf("%s/%s is no case of the suite", group, name)
		}
	}
}

// wantTests checks that all tests that a page names are there.
func wantTests(t *testing.T, name, page, tests string) {
	t.Helper()
	for _, m := range regexp.MustCompile("`(Test\\w+)`").FindAllStringSubmatch(page, -1) {
		if !strings.Contains(tests, "func "+m[1]+"(") {
			t.Errorf("%s names %s, which does not exist", name, m[1])
		}
	}
}

// sources is the text of all files below dir whose names end so.
func sources(t *testing.T, dir, end string) string {
	t.Helper()
	var all strings.Builder
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, end) {
			return err
		}
		b, err := os.ReadFile(path)
		all.Write(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all.String()
}

// TestSecurityNamesRealTests holds docs/security.md against the repository: every
// row of its tables of walls and limits names tests that exist, and probes that the
// escape suite has.
func TestSecurityNamesRealTests(t *testing.T) {
	tests, probes := sources(t, ".", "_test.go"), sources(t, "internal/escape/attacker", ".go")
	page, err := os.ReadFile("docs/security.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile("`((?:Test|Fuzz)\\w+)`").FindAllStringSubmatch(string(page), -1) {
		if !strings.Contains(tests, "func "+m[1]+"(") {
			t.Errorf("docs/security.md names %s, which does not exist", m[1])
		}
	}
	rows, shown := 0, false
	for line := range strings.Lines(string(page)) {
		cells := strings.Split(strings.TrimSpace(line), "|")
		if len(cells) < 4 || cells[0] != "" {
			shown = false
			continue
		}
		last := strings.TrimSpace(cells[len(cells)-2])
		switch {
		case last == "Shown by":
			shown = true
		case !shown || strings.Trim(last, "-: ") == "":
		default:
			rows++
			if !regexp.MustCompile("`(Test|Fuzz)|`providertest` \\w").MatchString(last) {
				t.Errorf("nothing shows the row %s", line)
			}
			for _, m := range regexp.MustCompile("`([a-z_]+)`").FindAllStringSubmatch(last, -1) {
				if m[1] != "providertest" && !strings.Contains(probes, `name: "`+m[1]+`"`) && !strings.Contains(probes, `filtered("`+m[1]+`"`) {
					t.Errorf("docs/security.md names the probe %s, which does not exist", m[1])
				}
			}
		}
	}
	if rows < 40 {
		t.Errorf("%d rows name what shows them, want 40 or more", rows)
	}
}

// TestDocsLinksLeadSomewhere checks the relative links of every page.
func TestDocsLinksLeadSomewhere(t *testing.T) {
	pages, err := filepath.Glob("docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	more, err := filepath.Glob("docs/decisions/*.md")
	if err != nil {
		t.Fatal(err)
	}
	link := regexp.MustCompile(`\]\(([^)#]+)(#[^)]*)?\)`)
	for _, page := range append(append(pages, more...), "README.md", "CONTRIBUTING.md", "CHANGELOG.md") {
		b, err := os.ReadFile(page)
		if err != nil {
			t.Error(err)
			continue
		}
		for _, m := range link.FindAllStringSubmatch(string(b), -1) {
			if strings.Contains(m[1], "://") {
				continue
			}
			if _, err := os.Stat(filepath.Join(filepath.Dir(page), m[1])); err != nil {
				t.Errorf("%s links to %s: %v", page, m[1], err)
			}
		}
	}
}

// TestArchitectureNamesEveryPackage holds the tables of docs/architecture.md
// against the repository.
func TestArchitectureNamesEveryPackage(t *testing.T) {
	page, err := os.ReadFile("docs/architecture.md")
	if err != nil {
		t.Fatal(err)
	}
	var tables strings.Builder
	for line := range strings.Lines(string(page)) {
		if strings.HasPrefix(line, "| `") {
			tables.WriteString(line)
		}
	}
	packages := map[string]bool{}
	err = filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && path != "." && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata" || d.Name() == "vendor"):
			return filepath.SkipDir
		case !d.IsDir() && strings.HasSuffix(path, ".go"):
			packages[filepath.ToSlash(filepath.Dir(path))] = true
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for p := range packages {
		if p != "." && !strings.Contains(tables.String(), "`"+p+"`") {
			t.Errorf("docs/architecture.md: no table names `%s`", p)
		}
	}
	for _, m := range regexp.MustCompile("`((?:internal|sandbox|tools)[a-z/]*)`").FindAllStringSubmatch(tables.String(), -1) {
		if !packages[m[1]] {
			t.Errorf("docs/architecture.md names `%s`, which is no package", m[1])
		}
	}
}
