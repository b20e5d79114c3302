//go:build linux

package isolate_test

import (
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"berth/sandbox/local/wire"
)

func (b *box) read(user, path string) (string, error) {
	var f wire.File
	files, err := b.call(wire.OpOpen, wire.Path{Path: path, User: user}, &f)
	if err != nil {
		return "", err
	}
	defer files[0].Close()
	text, err := io.ReadAll(files[0])
	return string(text), err
}

func (b *box) write(r wire.Create, text string) (wire.File, error) {
	var c wire.Created
	var f wire.File
	files, err := b.call(wire.OpCreate, r, &c)
	if err != nil {
		return f, err
	}
	_, err = files[0].WriteString(text)
	files[0].Close()
	if err != nil {
		return f, err
	}
	_, err = b.call(wire.OpCommit, wire.Commit{Token: c.Token}, &f)
	return f, err
}

// File operations have the user's rights, no more and no less, follow links, and
// never block.
func TestFiles(t *testing.T) {
	for _, mode := range modes(t) {
		t.Run(mode, func(t *testing.T) {
			b := start(t, launch(t, mode))
			root := wire.Create{Path: "/root/x", User: "root", Mode: -1}
			if f, err := b.write(root, "root's"); err != nil || f.Path != "/root/x" || f.Mode&0o7777 != 0o644 || f.Size != 6 {
				t.Fatalf("write as root: %+v, %v", f, err)
			}
			b.sh("root", "chmod 600 /root/x; chmod 700 /root; chmod 777 /workspace; printf open > /etc/open; chmod 666 /etc/open; mkfifo -m 666 /workspace/fifo; ln -s /workspace/sub/target /workspace/link; ln -s loop /workspace/loop; ln -s /proc/self/mem /workspace/mem")
			for _, c := range []struct {
				op, path, user, fail string
			}{
				{wire.OpOpen, "/root/x", "root", ""},
				{wire.OpOpen, "/etc/passwd", "agent", ""},
				{wire.OpOpen, "/proc/cpuinfo", "agent", ""},
				{wire.OpOpen, "/nowhere", "agent", wire.CodeNotExist},
				{wire.OpOpen, "/etc/passwd/x", "agent", wire.CodeNotDir},
				{wire.OpOpen, "/etc", "agent", wire.CodeIsDir},
				{wire.OpOpen, "/workspace/fifo", "agent", wire.CodeNotRegular},
				{wire.OpOpen, "/dev/zero", "agent", wire.CodeNotRegular},
				{wire.OpOpen, "/dev/ptmx", "root", wire.CodeNotRegular},
				{wire.OpOpen, "/run/berth/sudo.sock", "root", wire.CodeNotRegular},
				{wire.OpOpen, "/workspace/loop", "root", wire.CodeInvalid},
				{wire.OpOpen, "/workspace/mem", "root", wire.CodePermission},
				{wire.OpOpen, "/proc/self/environ", "root", wire.CodePermission},
				{wire.OpOpen, "/proc/1/maps", "root", wire.CodePermission},
				{wire.OpOpen, "/proc/thread-self/mem", "root", wire.CodePermission},
				{wire.OpOpen, "/proc/self/root/etc/passwd", "root", wire.CodeInvalid},
				{wire.OpOpen, "/dev/stdin", "root", wire.CodeInvalid},
				{wire.OpOpen, "relative", "root", wire.CodeInvalid},
				{wire.OpReadDir, "/etc/passwd", "root", wire.CodeNotDir},
				{wire.OpReadDir, "/proc/self/fd", "root", wire.CodePermission},
				{wire.OpStat, "/workspace/fifo", "agent", ""},
				{wire.OpStat, "/etc", "no-one", wire.CodeNoUser},
			} {
				files, err := b.call(c.op, wire.Path{Path: c.path, User: c.user}, nil)
				if code(err) != c.fail {
					t.Errorf("%s %s as %s: %v (code %q), want code %q", c.op, c.path, c.user, err, code(err), c.fail)
				}
				for _, f := range files {
					f.Close()
				}
			}
			// What the kernel makes up it makes up for us, and not for who reads outside.
			for _, file := range []string{"/proc/sys/kernel/hostname", "/sys/kernel/mm/transparent_hugepage/enabled", "/proc/filesystems"} {
				inside, _ := b.sh("agent", "cat "+file)
				if text, err := b.read("agent", file); err != nil || text != inside || text == "" {
					t.Errorf("read of %s: %q, %v; a command reads %q", file, text, err, inside)
				}
			}
			if out, _ := b.sh("agent", "stat -c %s /sys/kernel/btf/vmlinux || echo 0"); len(out) > 7 { // a million and a newline
				if _, err := b.read("agent", "/sys/kernel/btf/vmlinux"); code(err) != wire.CodeInvalid {
					t.Errorf("read of a file of the kernel's of %s bytes: %v", out, err)
				}
			}
			if mode != wire.IDsSingle {
				if _, err := b.read("agent", "/root/x"); code(err) != wire.CodePermission {
					t.Errorf("read of root's file as the user: %v", err)
				}
				if _, err := b.write(wire.Create{Path: "/etc/new", Mode: -1}, "x"); code(err) != wire.CodePermission {
					t.Errorf("write to /etc as the user: %v", err)
				}
				if _, err := b.write(wire.Create{Path: "/etc/passwd", Mode: -1}, "x"); code(err) != wire.CodePermission {
					t.Errorf("write of /etc/passwd as the user: %v", err)
				}
				// A file that the user may write, in a directory that is not theirs.
				if _, err := b.write(wire.Create{Path: "/etc/open", Mode: -1}, "changed"); err != nil {
					t.Errorf("write of a file open to all: %v", err)
				}
				if out, _ := b.sh("root", "cat /etc/open; stat -c ' %U %a' /etc/open"); out != "changed root 666\n" {
					t.Errorf("a file open to all: %q", out)
				}
			}
			// Directories and links are made with the user's rights, and not through
			// what only init itself may follow.
			for _, c := range []struct {
				path, user, mkdir, symlink string
			}{
				{"/workspace/made", "agent", "", wire.CodeIsDir},
				{"/workspace/../workspace/made/", "agent", "", wire.CodeIsDir},
				{"/root/made", "root", "", wire.CodeIsDir},
				{"/proc/self/cwd/x", "root", wire.CodeInvalid, wire.CodeInvalid},
				{"/proc/self/root/x", "agent", wire.CodeInvalid, wire.CodeInvalid},
				{"/workspace/loop/x", "root", wire.CodeInvalid, wire.CodeInvalid},
				{"/workspace/fifo", "agent", wire.CodeNotDir, ""},
				{"/etc", "no-one", wire.CodeNoUser, wire.CodeNoUser},
				{"relative", "root", wire.CodeInvalid, wire.CodeInvalid},
				{"/workspace/\x00", "root", wire.CodeInvalid, wire.CodeInvalid},
				{"/", "root", "", wire.CodeIsDir},
			} {
				_, err := b.call(wire.OpMkdir, wire.Mkdir{Path: c.path, User: c.user, Mode: 0o755}, nil)
				if code(err) != c.mkdir {
					t.Errorf("mkdir %q as %s: %v (code %q), want code %q", c.path, c.user, err, code(err), c.mkdir)
				}
				_, err = b.call(wire.OpSymlink, wire.Symlink{Path: c.path, User: c.user, Target: "x"}, nil)
				if code(err) != c.symlink {
					t.Errorf("symlink %q as %s: %v (code %q), want code %q", c.path, c.user, err, code(err), c.symlink)
				}
			}
			for _, r := range []any{wire.Mkdir{Path: "/workspace/m", Mode: 0o10000}, wire.Mkdir{Path: "/workspace/m", Mode: 1 << 31}} {
				if _, err := b.call(wire.OpMkdir, r, nil); code(err) != wire.CodeInvalid {
					t.Errorf("%+v: %v", r, err)
				}
			}
			for _, target := range []string{"", "a\x00b"} {
				if _, err := b.call(wire.OpSymlink, wire.Symlink{Path: "/workspace/l", Target: target}, nil); code(err) != wire.CodeInvalid {
					t.Errorf("symlink to %q: %v", target, err)
				}
			}
			if out, _ := b.sh("root", "stat -c '%n %F %U %a' /workspace/made; rmdir /workspace/made; rm /workspace/fifo; mkfifo -m 666 /workspace/fifo"); out != "/workspace/made directory agent 755\n" && mode != wire.IDsSingle {
				t.Errorf("made: %q", out)
			}
			// Through a link to nowhere, with parents; then mode and owner stay.
			if f, err := b.write(wire.Create{Path: "/workspace/link", Mode: 0o750}, "one"); err != nil || f.Path != "/workspace/sub/target" {
				t.Errorf("write through a link: %+v, %v", f, err)
			}
			if f, err := b.write(wire.Create{Path: "/workspace/link", User: "root", Mode: -1}, "two"); err != nil || f.Mode&0o7777 != 0o750 {
				t.Errorf("second write: %+v, %v", f, err)
			}
			if f, err := b.write(wire.Create{Path: "/workspace/link", Append: true, Mode: -1}, "three"); err != nil || f.Size != 8 {
				t.Errorf("append: %+v, %v", f, err)
			}
			if out, _ := b.sh("agent", "cat /workspace/link; stat -c ' %U %a' /workspace/sub/target; ls -A /workspace/sub"); out != "twothree agent 750\ntarget\n" {
				t.Errorf("written: %q", out)
			}
			for path, want := range map[string]string{
				"/workspace/fifo": wire.CodeNotRegular, "/workspace": wire.CodeIsDir, "/": wire.CodeIsDir, "/workspace/..": wire.CodeIsDir,
				"/proc/self/mem": wire.CodePermission, "/workspace/mem": wire.CodePermission, "/proc/sys/kernel/hostname": wire.CodePermission,
				"/workspace/loop": wire.CodeInvalid, "/dev/null": wire.CodeNotRegular, "/etc/passwd/x": wire.CodeNotDir,
			} {
				for _, add := range []bool{false, true} {
					if _, err := b.call(wire.OpCreate, wire.Create{Path: path, User: "root", Append: add, Mode: -1}, nil); code(err) != want {
						t.Errorf("create %s, append %v: %v (code %q), want %q", path, add, err, code(err), want)
					}
				}
			}
			var c wire.Created
			files, err := b.call(wire.OpCreate, wire.Create{Path: "/workspace/dropped", Mode: -1}, &c)
			if err != nil || !c.Fresh {
				t.Fatalf("create: %+v, %v", c, err)
			}
			files[0].Close()
			if _, err := b.call(wire.OpCommit, wire.Commit{Token: c.Token, Abort: true}, nil); err != nil {
				t.Errorf("abort: %v", err)
			}
			if _, err := b.call(wire.OpCommit, wire.Commit{Token: c.Token}, nil); code(err) != wire.CodeInvalid {
				t.Errorf("commit after abort: %v", err)
			}
			var list wire.Files
			if _, err := b.call(wire.OpReadDir, wire.Path{Path: "/workspace"}, &list); err != nil || len(list.Files) != 5 || list.Files[0].Path != "fifo" {
				t.Errorf("list: %+v, %v", list, err)
			}
			b.sh("agent", "mkdir /tmp/many && cd /tmp/many && seq 10050 | xargs touch")
			if _, err := b.call(wire.OpReadDir, wire.Path{Path: "/tmp/many"}, &list); err != nil || len(list.Files) != 10000 || !list.Truncated {
				t.Errorf("list of many: %d, %v, %v", len(list.Files), list.Truncated, err)
			}
		})
	}
}

// However fast links and directories are swapped, the user's writes reach nothing that
// is root's, and reads nothing but what the user may read.
func TestFileRaces(t *testing.T) {
	mode := modes(t)[0]
	if mode == wire.IDsSingle {
		for _, m := range modes(t) {
			if m != wire.IDsSingle {
				mode = m
			}
		}
		if mode == wire.IDsSingle {
			t.Skip("user and root are one id here; install uidmap and give this user lines in /etc/subuid and /etc/subgid")
		}
	}
	b := start(t, launch(t, mode))
	b.sh("root", "printf secret > /root/secret; chmod 700 /root; chmod 777 /workspace; mkdir /etc/d; printf keep > /etc/d/f; chmod 644 /etc/d/f")
	p, err := b.spawn(wire.StartProcess{Argv: []string{"python3", "-c", `
import os
os.chdir("/workspace"); os.mkdir("a"); os.symlink("/etc/d", "b"); os.symlink("/root", "c"); open("a/f","w").write("mine"); open("a/secret","w").write("mine")
while True:
    for n in ("a", "b", "c"):
        try: os.rename(n, "x")
        except OSError: continue
        os.rename("x", n) if n == "a" and os.path.exists("a") else None
        try:
            os.symlink({"a":"/etc/d","b":"/root","c":"/workspace/real"}[n], "cur.new"); os.rename("cur.new", "cur")
        except OSError: pass
        try: os.rename("x", n)
        except OSError: pass
    try: os.mkdir("real"); open("real/f","w").write("mine"); open("real/secret","w").write("mine")
    except OSError: pass
`}})
	if err != nil {
		t.Fatal(err)
	}
	b.sh("agent", "until test -e /workspace/cur; do sleep 0.01; done")
	good := 0
	for end := time.Now().Add(1500 * time.Millisecond); time.Now().Before(end); {
		if text, err := b.read("agent", "/workspace/cur/secret"); err == nil && strings.Contains(text, "secret") {
			t.Fatal("root's file was read")
		}
		if _, err := b.write(wire.Create{Path: "/workspace/cur/f", Mode: -1}, "evil"); err == nil {
			good++
		}
	}
	if _, err := b.call(wire.OpSignal, wire.Signal{ID: p.id, Signal: 9}, nil); err != nil {
		t.Fatal(err)
	}
	if out, _ := b.sh("root", "cat /etc/d/f; ls -A /etc/d /root"); strings.Contains(out, "evil") || strings.Contains(out, ".berth") || !strings.HasPrefix(out, "keep") {
		t.Errorf("root's files: %q", out)
	}
	t.Logf("%d writes went to the user's own files", good)
}

var _ = os.Getpid
