package providertest

import (
	"slices"
	"strings"
	"testing"
)

// testPlainCommands holds that a command is what bash makes of it, whether or not
// the provider takes a shell for it: each is run as it is, and in a way that needs
// one.
func testPlainCommands(t *testing.T, s *suite) {
	b := s.make(t)
	b.must(`mkdir -p first/folder second place && ln -s place link &&
		printf 'echo script "$0" "$1" "$PWD"; exit 5' >first/script && printf '#!/no/such/interpreter\n' >first/orphan &&
		printf '#!/bin/sh\necho first' >first/locked && printf '#!/bin/sh\necho "second $0"' >second/locked &&
		cp second/locked second/folder && cp second/locked second/orphan && cp second/locked second/later &&
		cp second/locked second/true && cp second/locked second/false && mkdir -p bin far/bin far/near && ln -s far/near short &&
		printf '#!/bin/sh\necho "behind $0"' >far/bin/picked && cp second/locked bin/picked && chmod 755 bin/picked far/bin/picked &&
		chmod 755 first/script first/orphan second/* && chmod 644 first/locked &&
		printf 'echo begun\n' >begin`)
	home := b.info.Home
	path := map[string]string{"PATH": home + "/first:" + home + "/none::" + home + "/second:/usr/bin:/bin"}
	run := func(t *testing.T, shell, cwd string, env map[string]string) (exit int, out, errs string) {
		b := b.in(t)
		c := b.command(shell)
		c.Env = env
		if cwd != "" {
			c.Cwd = cwd
		}
		info, out, errs := b.ended(b.spawn(c))
		return code(info), strings.ReplaceAll(out, string(c.ID), "ID"), errs // some providers tell their commands
	}
	for _, text := range []string{
		"true", "false", "script one", "first/script 'o n e'", "orphan", "locked", "later", "folder", "./first", "first/locked", "no-such-program-at-all a", "./missing", "picked", "--version",
		`sh -c 'echo "$0" $#; exit 3' "a b" c=d ''`, `cat /proc/self/comm`, "uname -s", " uname\t-s\n", "cat nothing.txt",
	} {
		t.Run(strings.ReplaceAll(text, "/", "_"), func(t *testing.T) {
			exit, out, errs := run(t, text, "", path)
			wantExit, wantOut, wantErrs := run(t, "{ "+strings.TrimSpace(text)+"; }", "", path)
			if exit != wantExit || out != wantOut || errs != wantErrs {
				t.Errorf("got exit %d, %q, %q; a shell makes it %d, %q, %q", exit, out, errs, wantExit, wantOut, wantErrs)
			}
		})
	}
	for _, cwd := range []string{"", home + "/link"} {
		t.Run("environment"+strings.TrimPrefix(cwd, home), func(t *testing.T) {
			lines := func(shell string) []string {
				_, out, _ := run(t, shell, cwd, map[string]string{"FOO": "b a r"})
				list := strings.Split(out, "\n")
				slices.Sort(list)
				return slices.DeleteFunc(list, func(line string) bool { return strings.HasPrefix(line, "_=") }) // exec sets none
			}
			got, want := lines("env"), lines("exec env")
			if len(got) < 5 || !slices.Equal(got, want) {
				t.Errorf("got %q; from a shell it is %q", got, want)
			}
		})
	}
	for _, c := range []struct{ name, text, value, out string }{
		{"BASH_ENV", "uname -s", home + "/begin", "begun\nLinux\n"},
		{"BASH_FUNC_uname%%", "uname -s", "() { echo function; }", "function\n"},
		{"SHELLOPTS", "uname -s", "noexec", ""},
		{"PATH", "later", "~/second:/usr/bin:/bin", "second " + home + "/second/later\n"},
		{"IFS", "printenv IFS", ":", " \t\n\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if _, out, _ := run(t, c.text, "", map[string]string{c.name: c.value}); out != c.out && strings.HasPrefix(b.must("echo $BASH_VERSION"), "5") {
				t.Errorf("got %q, want %q", out, c.out)
			}
		})
	}
}
