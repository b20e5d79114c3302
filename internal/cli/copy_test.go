//go:build unix

package cli_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// tree makes files and links below dir; names ending in / are directories, and
// "-> x" makes a link to x.
func tree(t *testing.T, dir string, entries map[string]string) {
	t.Helper()
	for name, text := range entries {
		p := filepath.Join(dir, name)
		err := os.MkdirAll(filepath.Dir(p), 0o755)
		target, link := strings.CutPrefix(text, "-> ")
		switch {
		case err != nil:
		case strings.HasSuffix(name, "/"):
			err = os.MkdirAll(p, 0o755)
		case link:
			err = os.Symlink(target, p)
		default:
			err = os.WriteFile(p, []byte(text), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// A copy starts no process inside, however many links and directories it has:
// that would push what really ran out of the list.
func TestCopyOfManyLinks(t *testing.T) {
	m := newMachine(t)
	m.keep("s")
	src := filepath.Join(m.dir, "src")
	entries := map[string]string{}
	for i := range 30 {
		for j := range 20 {
			entries[fmt.Sprintf("d%d/file%d", i, j)] = fmt.Sprint(i, j)
			entries[fmt.Sprintf("d%d/link%d", i, j)] = fmt.Sprintf("-> ../d%d/file%d", j, i)
			entries[fmt.Sprintf("d%d/empty%d/", i, j)] = ""
		}
	}
	tree(t, src, entries)
	before := m.do("", "logs", "-l", "s").stdout
	m.run(0, "", "", "cp", src, "s:")
	m.run(0, "", "", "cp", src, "s:src/..") // over itself
	if after := m.do("", "logs", "-l", "s").stdout; strings.Count(after, "\n") != strings.Count(before, "\n") {
		t.Errorf("processes before the copy:\n%safter:\n%s", before, after)
	}
	m.run(0, "600 600 631\n../d7/file3\n", "", "exec", "s", "--", "sh", "-c",
		"cd src; echo $(find . -type f | wc -l) $(find . -type l | wc -l) $(find . -type d | wc -l); readlink d3/link7")
	m.run(0, "", "", "cp", "s:src/d3/file1", filepath.Join(m.dir, "one"))
}

func TestCopyKeepsWhatAFileIs(t *testing.T) {
	m := newMachine(t)
	m.keep("s")
	tree(t, m.dir, map[string]string{"src/run": "x", "src/closed/f": "y", "src/private/f": "z", "to-src": "-> src", "bad/na\xffme": "", "bad/good": "1", "bad/link": "-> na\xffme"})
	for name, mode := range map[string]os.FileMode{"src/run": 0o751, "src/closed/f": 0o400, "src/closed": 0o500, "src/private": 0o700} {
		if err := os.Chmod(filepath.Join(m.dir, name), mode); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { _ = os.Chmod(filepath.Join(m.dir, "src/closed"), 0o700) })
	// The link that was named is what it leads to.
	m.run(0, "", "", "cp", filepath.Join(m.dir, "to-src"), "s:dst")
	m.run(0, "directory 755\nregular file 751\ndirectory 700\nregular file 400\ndirectory 700\n", "", "exec", "s", "--",
		"stat", "-c", "%F %a", "dst", "dst/run", "dst/closed", "dst/closed/f", "dst/private")
	// What cannot be named is left out, and said.
	a := m.run(1, "", "*", "cp", filepath.Join(m.dir, "bad"), "s:")
	if strings.Count(a.stderr, "UTF-8") != 2 || !strings.Contains(a.stderr, "berth: 2 left out\n") {
		t.Errorf("names that are not UTF-8: %q", a.stderr)
	}
	m.run(0, "good\n", "", "exec", "s", "--", "ls", "bad")
}

// What goes wrong is said once, with the names that the user gave.
func TestCopyErrors(t *testing.T) {
	m := newMachine(t)
	m.keep("s")
	m.run(0, "", "", "exec", "s", "--", "sh", "-c", "mkdir -p dir/sub; echo x >dir/file; mkfifo fifo; echo y >file")
	tree(t, m.dir, map[string]string{"file": "x", "tree/dir/file": "x", "clash/sub/f": "x", "clash/file/": "", "out/dir/file/": "", "full/dir": "x"})
	home := strings.TrimSpace(m.do("", "exec", "s", "--", "pwd").stdout)
	here := func(name string) string { return filepath.Join(m.dir, name) }
	for _, c := range []struct {
		name     string
		src, dst string
		want     string
	}{
		{"absent_here", here("absent"), "s:", "copy " + here("absent") + ": there is no such file or directory"},
		{"absent_inside", "s:absent", here("new"), "copy s:" + home + "/absent: there is no such file or directory"},
		{"fifo", "s:fifo", here("new"), "copy s:" + home + "/fifo: it is a device, FIFO or socket"},
		{"file_over_directory", here("full") + "/.", "s:", "copy " + here("full/dir") + " to s:" + home + "/dir: it is a directory"},
		{"directory_over_file", here("clash") + "/.", "s:", "copy to s:" + home + "/file: a part of the path is no directory"},
		{"beneath_a_file", here("file"), "s:file/x", "copy to s:" + home + "/file/x: a part of the path is no directory"},
		{"out_to_nowhere", "s:file", here("no/such"), "copy to " + here("no") + ": there is no such file or directory"},
		{"out_over_directory", "s:dir/.", here("out/dir"), "copy s:" + home + "/dir/file to " + here("out/dir/file") + ": there is something of that name already"},
		{"out_beneath_a_file", "s:dir", here("file/x"), "copy to " + here("file/x") + ": a part of the path is no directory"},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := *m
			m.t = t
			m.run(1, "", "berth: "+c.want+"\n", "cp", c.src, c.dst)
		})
	}
	if out := m.do("", "exec", "s", "--", "find", ".", "-name", ".berth*").stdout; out != "" {
		t.Errorf("left behind inside: %q", out)
	}
	if list, _ := filepath.Glob(here("out/dir/.berth*")); len(list) != 0 {
		t.Errorf("left behind here: %v", list)
	}
}

func TestCopyToStdout(t *testing.T) {
	m := newMachine(t)
	m.keep("s")
	m.run(0, "", "", "exec", "s", "--", "sh", "-c", `mkdir -p d; printf 'a\0b' >f`)
	m.run(0, "a\x00b", "", "cp", "s:f", "-")
	m.run(1, "", "berth: copy s:"+m.home("s")+"/d to stdout: it is a directory; berth exec s -- tar c DIRECTORY packs one\n", "cp", "s:d", "-")
	a := m.run(1, "", "*", "cp", "s:*", m.dir)
	b := m.run(1, "", "*", "cp", "s:*", "-")
	for _, got := range []string{a.stderr, b.stderr} {
		if !strings.Contains(got, "patterns are not expanded inside") {
			t.Errorf("a pattern: %q", got)
		}
	}
	m.run(2, "", "berth: cp: - is no file to copy in; berth exec s -- sh -c 'cat >FILE' writes stdin there\n", "cp", "-", "s:f")
}

// home is where commands of a sandbox start.
func (m *machine) home(id string) string {
	m.t.Helper()
	return strings.TrimSpace(m.run(0, "*", "", "exec", id, "--", "pwd").stdout)
}

func TestWrongWords(t *testing.T) {
	m := newMachine(t)
	m.run(2, "", "berth: there is no command status\nTry: berth help\n", "status")
	m.run(2, "", "berth snapshot export: expected \"<file>\"\nTry: berth snapshot export --help\n", "snapshot", "export", "base")
	m.run(2, "", "berth serve: --http needs a value\nTry: berth serve --help\n", "serve", "--http")
	m.run(2, "", "berth: 1 problem in the settings:\n  --http: \"foo\" is no address; allowed: host:port, such as 127.0.0.1:8080\n", "serve", "--http", "foo")
	if a := m.run(2, "", "*", "run", "--dir", "foo", "--", "true"); strings.Contains(a.stderr, "limits.host_dirs") {
		t.Errorf("run --dir foo: %q", a.stderr)
	}
}
