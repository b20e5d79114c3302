package providertest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"testing"
	"time"

	"berth/sandbox"
)

func testCommands(t *testing.T, s *suite) {
	b := s.make(t)
	for _, c := range []struct {
		name, shell, stdin string
		argv               []string
		env                map[string]string
		unset              []string
		cwd                string
		code               int
		signal             string
		out, errs          string
	}{
		{name: "success", shell: "true"},
		{name: "exit_1", shell: "false", code: 1},
		{name: "exit_42", shell: "exit 42", code: 42},
		{name: "exit_255", shell: "exit 255", code: 255},
		{name: "split_streams", shell: "echo out; echo err >&2", out: "out\n", errs: "err\n"},
		{name: "not_found", shell: "no-such-program-at-all 2>/dev/null", code: 127},
		{name: "not_executable", shell: "./afile 2>/dev/null", code: 126},
		{name: "own_signal", shell: "kill -9 $$", code: 137, signal: "SIGKILL"},
		{name: "own_segv", shell: "kill -SEGV $$", code: 139, signal: "SIGSEGV"},
		{name: "comment_at_end", shell: "echo a # comment", out: "a\n"},
		{name: "heredoc", shell: "cat <<X\ntext $((1+1))\nX", out: "text 2\n"},
		{name: "pipes", shell: "printf 'b\\na\\n' | sort | head -1", out: "a\n"},
		{name: "argv", argv: []string{"printf", "%s|", "a b", "", "$HOME", "'\"", "*", "é"}, out: "a b||$HOME|'\"|*|é|"},
		{name: "env", shell: `printf %s "$FOO"`, env: map[string]string{"FOO": "a b\n'\"$X é"}, out: "a b\n'\"$X é"},
		{name: "env_unset", shell: `echo "${HOME-none}"`, unset: []string{"HOME"}, out: "none\n"},
		{name: "env_base", shell: `test -n "$PATH" -a -n "$HOME" -a "$HOME" = ~ && echo ok`, out: "ok\n"},
		{name: "env_own_path", shell: `echo $PATH`, env: map[string]string{"PATH": "/usr/bin:/bin:/mine"}, out: "/usr/bin:/bin:/mine\n"},
		{name: "no_stdin", shell: "cat; echo end", out: "end\n"},
		{name: "stdin", shell: "cat", stdin: "a\nb", out: "a\nb"},
		{name: "stdin_unread", shell: "true", stdin: strings.Repeat("x", 1<<20)},
		{name: "long_command", shell: "echo begin; true " + strings.Repeat("x", 300<<10) + "; echo $0 | wc -l", out: "begin\n1\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := b.in(t)
			if c.name == "not_executable" {
				b.must("echo x >afile; chmod 644 afile")
			}
			cmd := b.command(c.shell)
			cmd.Argv, cmd.Env, cmd.Unset = c.argv, c.env, c.unset
			if c.stdin != "" {
				cmd.Stdin = []byte(c.stdin)
			}
			info, out, errs := b.ended(b.spawn(cmd))
			if code(info) != c.code || out != c.out || errs != c.errs || info.Signal != c.signal {
				t.Errorf("got exit %d, signal %q, stdout %.200q, stderr %.200q; want %d, %q, %q, %q", code(info), info.Signal, out, errs, c.code, c.signal, c.out, c.errs)
			}
			if info.State != sandbox.ProcessExited || info.Killed || info.TimedOut || info.Ended.Before(info.Started) || info.Started.IsZero() {
				t.Errorf("got %+v", info)
			}
		})
	}
	t.Run("no_program", func(t *testing.T) {
		cmd := b.command("")
		cmd.Argv = []string{"no-such-program-at-all"}
		p, err := b.inst.Spawn(s.ctx(t), cmd)
		if errors.Is(err, sandbox.ErrNotRunning) || errors.Is(err, sandbox.ErrMaybeStarted) || errors.Is(err, fs.ErrNotExist) {
			t.Errorf("Spawn of a program that is not there: %v; that means something else", err)
		}
		if err == nil {
			b := b.in(t)
			if info, _, _ := b.ended(p); code(info) != 127 {
				t.Errorf("got exit %d, want 127 or an error", code(info))
			}
		}
	})
	t.Run("cwd", func(t *testing.T) {
		b := b.in(t)
		b.must("mkdir -p 'a dir/x' && ln -s 'a dir' link && echo f >file")
		cmd := b.command("pwd -P; echo $PWD >/dev/null")
		cmd.Cwd = b.info.Home + "/a dir/x"
		if _, out, _ := b.ended(b.spawn(cmd)); !strings.HasSuffix(out, "/a dir/x\n") {
			t.Errorf("pwd: got %q", out)
		}
		for _, cwd := range []string{b.info.Home + "/missing", b.info.Home + "/file"} {
			cmd := b.command("echo ran >ran")
			cmd.Cwd = cwd
			_, err := b.inst.Spawn(s.ctx(t), cmd)
			wantErr(t, "Spawn with cwd "+cwd, err, fs.ErrNotExist)
			if _, err := b.inst.Process(s.ctx(t), cmd.ID); err == nil {
				t.Error("a command that was not started is kept")
			}
		}
		b.must("test ! -e ran")
	})
	t.Run("calls_are_apart", func(t *testing.T) {
		b := b.in(t)
		b.must("export X=1; cd /tmp")
		if out := b.must("echo ${X-unset}; pwd"); !strings.HasPrefix(out, "unset\n") || strings.Contains(out, "/tmp\n") && !strings.Contains(b.info.Home, "/tmp") {
			t.Errorf("got %q", out)
		}
	})
	t.Run("twice", func(t *testing.T) {
		b := b.in(t)
		cmd := b.command("echo x >>once; cat once")
		p := b.spawn(cmd)
		q := b.spawn(cmd)
		b.ended(p)
		_, out, _ := b.ended(q)
		_, again, _ := b.ended(b.spawn(cmd))
		if out != "x\n" || again != "x\n" || p.ID() != q.ID() {
			t.Errorf("got %q, %q; want one run", out, again)
		}
	})
	t.Run("cancelled_call", func(t *testing.T) {
		b := b.in(t)
		ctx, cancel := context.WithCancel(s.ctx(t))
		c := b.command("read x; echo survived")
		c.OpenStdin = true
		p := b.spawn(c)
		go func() { time.Sleep(50 * time.Millisecond); cancel() }()
		if err := p.Wait(ctx, sandbox.Cursor{}, true); !errors.Is(err, context.Canceled) {
			t.Errorf("Wait with a cancelled context: got %v", err)
		}
		if err := p.Write(s.ctx(t), []byte("\n"), true); err != nil {
			t.Errorf("Write: %v", err)
		}
		if _, out, _ := b.ended(p); out != "survived\n" {
			t.Errorf("got %q: a cancelled Wait must not end the process", out)
		}
	})
	t.Run("root", func(t *testing.T) {
		if !s.can(t, RootUser) {
			return
		}
		cmd := b.command("id -u")
		cmd.User = "root"
		b := b.in(t)
		if _, out, _ := b.ended(b.spawn(cmd)); out != "0\n" {
			t.Errorf("id -u as root: got %q", out)
		}
		if out := b.must("id -u; id -un"); strings.HasPrefix(out, "0\n") {
			t.Errorf("id of the sandbox's user: got %q", out)
		}
	})
}

func testStdin(t *testing.T, s *suite) {
	b := s.make(t)
	open := func(t *testing.T, shell, first string) (*box, sandbox.Process) {
		b := b.in(t)
		c := b.command(shell)
		c.OpenStdin, c.Stdin = true, []byte(first)
		return b, b.spawn(c)
	}
	t.Run("lines", func(t *testing.T) {
		b, p := open(t, "while read l; do echo got $l; done; echo end", "first\n")
		b.waitFor(p, "got first\n")
		for i := range 3 {
			if err := p.Write(s.ctx(t), fmt.Appendf(nil, "%d\n", i), false); err != nil {
				t.Fatal(err)
			}
			b.waitFor(p, fmt.Sprintf("got %d\n", i))
		}
		if i, _ := p.Info(s.ctx(t)); !i.StdinOpen || i.State != sandbox.ProcessRunning || i.ExitCode != nil {
			t.Errorf("while it runs: got %+v", i)
		}
		if err := p.Write(s.ctx(t), []byte("last"), true); err != nil {
			t.Fatal(err)
		}
		if _, out, _ := b.ended(p); !strings.HasSuffix(out, "end\n") {
			t.Errorf("got %q", out)
		}
		wantErr(t, "Write after the exit", p.Write(s.ctx(t), []byte("x"), false), sandbox.ErrExited)
	})
	t.Run("end_only", func(t *testing.T) {
		b, p := open(t, "cat; echo end; sleep 0.2", "")
		if err := p.Write(s.ctx(t), nil, true); err != nil {
			t.Fatal(err)
		}
		wantErr(t, "Write after the end", p.Write(s.ctx(t), []byte("x"), false), sandbox.ErrStdinClosed, sandbox.ErrExited)
		if _, out, _ := b.ended(p); out != "end\n" {
			t.Errorf("got %q", out)
		}
	})
	t.Run("never_open", func(t *testing.T) {
		b := b.in(t)
		p := b.spawn(b.command("exec sleep 600"))
		wantErr(t, "Write to /dev/null", p.Write(s.ctx(t), []byte("x"), false), sandbox.ErrStdinClosed)
		b.kill(p)
	})
	t.Run("large", func(t *testing.T) {
		data := strings.Repeat("0123456789abcde\n", 8<<20/16)
		b := b.in(t)
		c := b.command("sleep 0.2; md5sum; ")
		c.Stdin = []byte(data)
		d := b.command("head -c 8388608 /dev/zero | wc -c; yes 0123456789abcde | head -c 8388608 | md5sum")
		_, sum, _ := b.ended(b.spawn(c))
		_, want, _ := b.ended(b.spawn(d))
		if !strings.HasSuffix(want, sum) || sum == "" {
			t.Errorf("8 MiB of stdin have the sum %q, want %q", sum, want)
		}
	})
	t.Run("unread", func(t *testing.T) {
		b, p := open(t, "until [ -e read-now ]; do sleep 0.1; done; wc -c", "")
		sent := 0
		var err error
		chunk := bytes.Repeat([]byte("y"), 256<<10)
		for range 40 {
			if err = p.Write(s.ctx(t), chunk, false); err != nil {
				break
			}
			sent += len(chunk)
		}
		wantErr(t, "Write beyond what waits", err, sandbox.ErrLimit)
		if sent < 1<<20 {
			t.Errorf("only %d bytes were taken, want 1 MiB", sent)
		}
		b.must("touch read-now")
		for end := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
			if err = p.Write(s.ctx(t), nil, true); err == nil || time.Now().After(end) {
				break
			}
		}
		if err != nil {
			t.Fatalf("end: %v", err)
		}
		if _, out, _ := b.ended(p); strings.TrimSpace(out) != fmt.Sprint(sent) {
			t.Errorf("the process read %s bytes, want %d: a refused write must send nothing", strings.TrimSpace(out), sent)
		}
	})
}

func (b *box) kill(p sandbox.Process) {
	b.t.Helper()
	if err := p.Kill(b.ctx(b.t), "KILL", 0, "the test is over"); err != nil {
		b.t.Errorf("Kill: %v", err)
	}
	b.ended(p)
}

func testOutput(t *testing.T, s *suite) {
	b := s.make(t)
	t.Run("bytes_kept", func(t *testing.T) {
		for _, c := range []struct{ shell, want string }{
			{"true", ""}, {`printf 'a\000b'`, "a\x00b"}, {`printf '\377\376'`, "\xff\xfe"}, {`printf '\r\n\033[1mx'`, "\r\n\x1b[1mx"},
			{`printf 'no newline'`, "no newline"}, {`printf '\001\001\001x\002\002\002y'`, "\x01\x01\x01x\x02\x02\x02y"},
		} {
			if _, out, _ := b.in(t).sh(c.shell); out != c.want {
				t.Errorf("%s: got %q, want %q", c.shell, out, c.want)
			}
		}
	})
	t.Run("20_MiB", func(t *testing.T) {
		b := b.in(t)
		p := b.spawn(b.command(`i=0; while [ $i -lt 20 ]; do head -c 1048576 /dev/zero | tr '\0' "$(printf "\\$(printf %o $((97+i)))")"; i=$((i+1)); done`))
		info, out, _ := b.ended(p)
		if code(info) != 0 || info.Produced.Stdout != 20<<20 || info.Kept.Stdout+int64(len(out)) != 20<<20 {
			t.Fatalf("got %+v and %d bytes", info, len(out))
		}
		for i := range 20 {
			at := int64(i)<<20 - info.Kept.Stdout
			if at < 0 {
				continue
			}
			if want := byte('a' + i); out[at] != want || out[at+1<<20-1] != want {
				t.Errorf("MiB %d holds %q and %q, want %q", i, out[at], out[at+1<<20-1], want)
			}
		}
	})
	t.Run("offsets", func(t *testing.T) {
		b := b.in(t)
		p := b.spawn(b.command("printf 0123456789; printf abcde >&2"))
		b.ended(p)
		for _, c := range []struct {
			at        sandbox.Cursor
			max       int64
			out, errs string
		}{
			{sandbox.Cursor{}, 100, "0123456789", "abcde"}, {sandbox.Cursor{Stdout: 3}, 4, "3456", ""},
			{sandbox.Cursor{Stdout: 8}, 4, "89", "ab"}, {sandbox.Cursor{Stdout: 10, Stderr: 4}, 4, "", "e"},
			{sandbox.Cursor{Stdout: 10, Stderr: 5}, 4, "", ""}, {sandbox.Cursor{}, 0, "", ""},
		} {
			o, err := p.Read(s.ctx(t), c.at, c.max)
			next := sandbox.Cursor{Stdout: c.at.Stdout + int64(len(c.out)), Stderr: c.at.Stderr + int64(len(c.errs))}
			if err != nil || string(o.Stdout) != c.out || string(o.Stderr) != c.errs || o.Next != next || o.Dropped != 0 {
				t.Errorf("Read(%v, %d): got %q, %q, %+v, %v", c.at, c.max, o.Stdout, o.Stderr, o.Next, err)
			}
		}
	})
	t.Run("while_running", func(t *testing.T) {
		b := b.in(t)
		c := b.command("echo one; read x; echo two >&2; read x")
		c.OpenStdin = true
		p := b.spawn(c)
		b.waitFor(p, "one\n")
		at := sandbox.Cursor{Stdout: 4}
		if o, err := p.Read(s.ctx(t), at, 100); err != nil || len(o.Stdout)+len(o.Stderr) > 0 || o.Next != at {
			t.Errorf("Read at the end waits or gives something: %+v, %v", o, err)
		}
		short, cancel := context.WithTimeout(s.ctx(t), 50*time.Millisecond)
		defer cancel()
		wantErr(t, "Wait without output", p.Wait(short, at, false), context.DeadlineExceeded)
		done := make(chan error, 1)
		go func() { done <- p.Wait(s.ctx(t), at, false) }()
		if err := p.Write(s.ctx(t), []byte("\n"), false); err != nil {
			t.Fatal(err)
		}
		if err := <-done; err != nil {
			t.Errorf("Wait: %v", err)
		}
		b.waitFor(p, "two\n")
		if err := p.Write(s.ctx(t), nil, true); err != nil {
			t.Fatal(err)
		}
		if _, out, errs := b.ended(p); out != "one\n" || errs != "two\n" {
			t.Errorf("got %q, %q", out, errs)
		}
	})
	t.Run("retention", func(t *testing.T) {
		if s.h.LogLimit == 0 {
			return
		}
		b := b.in(t)
		total := s.h.LogLimit*2 + 12345
		p := b.spawn(b.command(fmt.Sprintf("yes 0123456789abcde | head -c %d; echo err >&2", total)))
		info, out, errs := b.ended(p)
		if info.Produced.Stdout != total || info.Kept.Stdout == 0 || info.Kept.Stdout+int64(len(out)) != total || errs != "err\n" || code(info) != 0 {
			t.Fatalf("got %+v, %d bytes, stderr %q", info, len(out), errs)
		}
		if kept := int64(len(out)); kept > s.h.LogLimit+s.h.LogLimit/4 || kept < s.h.LogLimit/2 {
			t.Errorf("%d bytes are kept, the limit is %d", kept, s.h.LogLimit)
		}
		if want := "0123456789abcde\n"[info.Kept.Stdout%16]; out[0] != want {
			t.Errorf("the oldest byte is %q, want %q: offsets must stay true", out[0], want)
		}
		o, err := p.Read(s.ctx(t), sandbox.Cursor{Stdout: 5}, 16)
		if err != nil || o.Dropped != info.Kept.Stdout-5 || o.Next.Stdout != info.Kept.Stdout+16 || len(o.Stdout) != 16 {
			t.Errorf("Read of what is gone: got %d bytes, dropped %d, next %v, %v", len(o.Stdout), o.Dropped, o.Next, err)
		}
	})
	t.Run("exit_before_pipes_close", func(t *testing.T) {
		b := b.in(t)
		began := time.Now()
		p := b.spawn(b.command("sleep 987654 & until grep -q '^sleep' /proc/$!/cmdline; do :; done; echo $!; exit 4"))
		info, _, _ := b.ended(p)
		if d := time.Since(began); d > 5*time.Second || code(info) != 4 {
			t.Errorf("got exit %d after %v; a leftover must not hold it back", code(info), d)
		}
		if info, err := p.Info(s.ctx(t)); err != nil || len(info.Leftovers) != 1 || !strings.Contains(info.Leftovers[0], "sleep 987654") {
			t.Errorf("Leftovers: got %q, %v", info.Leftovers, err)
		}
		if err := p.Kill(s.ctx(t), "KILL", 0, "test"); err != nil {
			t.Errorf("Kill of leftovers: %v", err)
		}
		b.gone("sleep 987654")
	})
}
