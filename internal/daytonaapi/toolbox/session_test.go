//go:build linux

package toolbox_test

import (
	"testing"
)

func TestSessionIsOneShell(t *testing.T) {
	w := newWorld(t)
	w.session("one")
	for _, c := range []struct {
		name, command string
		code          int
		out, err      string
	}{
		{"state", "cd /usr; export X=1 Y='a b'; Z=3; f() { echo \"f $1\"; }", 0, "", ""},
		{"carried", "pwd; echo $X \"$Y\" $Z; f 4; echo e >&2; (exit 7)", 7, "/usr\n1 a b 3\nf 4\n", "e\n"},
		{"exact", "printf 'no newline'; printf '\\0x\\377' >&2", 0, "no newline", "\x00x\ufffd"},
		{"job", "sleep 1000 & echo bg", 0, "bg\n", ""},
		{"job carried", "kill %1; wait; echo ended", 0, "ended\n", ""},
		{"here-document", "cat <<E\nhello $X\nE\nfalse", 1, "hello 1\n", ""},
		{"stdin at its end", "cat; read x; echo \"$?\"", 0, "1\n", ""},
		{"loop control", "for i in 1 2; do echo $i; break 9; done", 0, "1\n", ""},
		{"return", "return 4", 4, "", ""},
		{"comment", "# nothing", 0, "", ""},
		{"quotes", "echo \"it's \\$5 `echo x`\" '\"'", 0, "it's $5 x \"\n", ""},
		{"after", "echo $X", 0, "1\n", ""},
	} {
		code, out, errs := w.in("one", c.command)
		if code != c.code || out != c.out || errs != c.err {
			t.Errorf("%s: %q = %d %q %q, want %d %q %q", c.name, c.command, code, out, errs, c.code, c.out, c.err)
		}
	}
	if code, _, errs := w.in("one", "if"); code == 0 || errs == "" {
		t.Errorf("a syntax error: %d %q", code, errs)
	}
	if code, out, _ := w.in("one", "echo still $X"); code != 0 || out != "still 1\n" {
		t.Errorf("after a syntax error: %d %q", code, out)
	}
}
