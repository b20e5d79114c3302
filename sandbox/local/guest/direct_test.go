//go:build linux

package guest

import (
	"bufio"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
)

func TestSimple(t *testing.T) {
	for _, c := range []struct {
		text string
		want []string
	}{
		{"true", []string{"true"}},
		{" git  status\t-s\n", []string{"git", "status", "-s"}},
		{"./run.sh --name=a,b x=1 50% user@host:/p", []string{"./run.sh", "--name=a,b", "x=1", "50%", "user@host:/p"}},
		{`grep -rn 'a $b "c" \' "x 'y' *" ""`, []string{"grep", "-rn", `a $b "c" \`, "x 'y' *", ""}},
		{`python3 -c 'import os` + "\n" + `print(1)'`, []string{"python3", "-c", "import os\nprint(1)"}},
		{`a'b'"c"d é`, nil},
		{`a'b'"c"d 'é'`, []string{"abcd", "é"}},
	} {
		if got := simple(c.text); !slices.Equal(got, c.want) {
			t.Errorf("simple(%q) = %q, want %q", c.text, got, c.want)
		}
	}
	for _, text := range []string{
		"", " ", "\n", "''", `"" a`, "a\nb", "a\rb", "a;b", "a;", "a&", "a|b", "a>b", "a <b", "2>x", "a (b)", "a{b,c}", "a *", "a ?", "a [b]", "a ~", "~/a",
		"a $b", "a `b`", `a \b`, `a "\b"`, `a "$b"`, "a \"`b`\"", "a #b", "!a", "! a", "a !", "a 'b", `a "b`, "A=b", "A=b c", "'A'=b c", "%1", "a\x00b", "a 'b\x01'", "a 'b\x7f'", "a \xc2\xa0b",
		"cd /", ". a", "echo a", "if", "time ls", "'cd' /", "c''d /", "[ a ]", "printf a", "exec a", "kill 1", "true --help", "false a", "pwd",
		"a " + strings.Repeat("b", longText),
	} {
		if got := simple(text); got != nil {
			t.Errorf("simple(%.50q) = %q, want it left to the shell", text, got)
		}
	}
}

// TestShellWords asks bash which names it does not look for in PATH.
func TestShellWords(t *testing.T) {
	out, err := exec.Command("bash", "-c", "compgen -kb").Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range strings.Fields(string(out)) {
		if simple(w) != nil && w != "true" && w != "false" {
			t.Errorf("simple(%q) is no shell's", w)
		}
	}
}

func TestUnshelled(t *testing.T) {
	for name, want := range map[string]bool{"HOME": true, "BASH_ENV": false, "BASH_FUNC_ls%%": false, "SHELLOPTS": false, "PWD": false, "SHLVL": false, "_": false, "IFS": false, "PS1": false, "SSH_CLIENT": false} {
		if got := unshelled(map[string]string{"PATH": "/bin", name: "x"}); got != want {
			t.Errorf("with %s: %t, want %t", name, got, want)
		}
	}
	for _, list := range []string{"~/bin:/bin", "/bin:~", "/bin:~agent/bin"} {
		if unshelled(map[string]string{"PATH": list}) {
			t.Errorf("bash expands the tilde in %s", list)
		}
	}
	if unshelled(map[string]string{"HOME": "/"}) {
		t.Error("without PATH bash has one of its own")
	}
}

func TestServed(t *testing.T) {
	g := &guest{}
	files := candidates("git", "/home/agent/bin:/usr/bin/::bin")
	if want := []string{"/home/agent/bin/git", "/usr/bin/git", "./git", "bin/git"}; !slices.Equal(files, want) {
		t.Fatalf("candidates are %q, want %q", files, want)
	}
	if g.served("/work", files) {
		t.Error("without a file system of FUSE none is asked")
	}
	g.fuse.others = map[string]*fuseMount{"/home/agent/bin": {}}
	if !g.served("/work", files) || g.served("/work", files[1:]) || g.served("/home/agent", files[1:3]) || !g.served("/home/agent", files[3:]) {
		t.Error("what is below a file system's place is asked of it, and nothing else")
	}
	g.fuse.others, g.fuse.buckets = nil, map[string]*bucket{"/work": {}}
	if !g.served("/work", files) || g.served("/", files) {
		t.Error("what is below a bucket's place is asked of its service, and nothing else")
	}
}

// FuzzSimple has bash split what simple splits.
func FuzzSimple(f *testing.F) {
	cmd := exec.Command("bash", "-c", `while IFS= read -r -d '' text; do eval "set -- $text"; printf '%s\0' "$#" "$@"; done`)
	in, err := cmd.StdinPipe()
	if err != nil {
		f.Fatal(err)
	}
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		f.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() {
		in.Close()
		_ = cmd.Wait()
	})
	out := bufio.NewReader(pipe)
	next := func(t *testing.T) string {
		s, err := out.ReadString(0)
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSuffix(s, "\x00")
	}
	for _, s := range []string{"a b", `a 'b "c' "d 'e" f=g`, "a''b \"\" ''", "\ta\n", "a 'b\nc'", "a '\xff\u00e9'", "a:b,c+d@e%f -- -g ./h", `'a'"b"c`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		words := simple(text)
		if words == nil {
			return
		}
		if _, err := in.Write([]byte(strings.Trim(text, " \t\n") + "\x00")); err != nil {
			t.Fatal(err)
		}
		n, err := strconv.Atoi(next(t))
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for range n {
			got = append(got, next(t))
		}
		if !slices.Equal(got, words) {
			t.Errorf("bash makes %q of %q, and we %q", got, text, words)
		}
	})
}
