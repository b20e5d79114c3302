//go:build linux

package local_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"berth/sandbox"
	"berth/sandbox/local"
	"berth/sandbox/local/journal"
	"berth/sandbox/local/wire"
)

// run runs shell text and returns both streams and the exit code, -1 when none.
func run(t *testing.T, in sandbox.Instance, user, shell string) (string, int) {
	t.Helper()
	p, err := in.Spawn(t.Context(), sandbox.Command{ID: sandbox.NewProcessID(), Shell: shell, Display: shell, Cwd: "/", User: user, Timeout: time.Minute})
	if err != nil {
		t.Fatalf("%s: %v", shell, err)
	}
	must(t, p.Wait(t.Context(), sandbox.Cursor{}, true))
	info, err := p.Info(t.Context())
	must(t, err)
	out, err := p.Read(t.Context(), sandbox.Cursor{}, 1<<20)
	must(t, err)
	code := -1
	if info.ExitCode != nil {
		code = *info.ExitCode
	}
	return strings.TrimSpace(string(out.Stdout) + string(out.Stderr)), code
}

// wantRun fails unless shell succeeds and prints want ("" = anything).
func wantRun(t *testing.T, in sandbox.Instance, user, shell, want string) {
	t.Helper()
	if out, code := run(t, in, user, shell); code != 0 || want != "" && out != want {
		t.Errorf("%s (as %s) = %d, %q; want 0, %q", shell, user, code, out, want)
	}
}

func TestDefaultRoot(t *testing.T) {
	host := t.TempDir()
	must(t, os.WriteFile(filepath.Join(host, "file"), []byte("host"), 0o600))
	p := provider(t, local.Options{Dir: stateDir(t), HostDirs: []sandbox.HostDir{{Host: host, Path: "/shown/rw"}, {Host: host, Path: "/shown/ro", ReadOnly: true}}})
	in, err := p.Create(t.Context(), testKey, sandbox.Spec{})
	must(t, err)
	ids, err := in.(*local.Instance).IDs()
	must(t, err)
	notRoot := "! touch /usr/bin/x 2>/dev/null && ! touch /etc/x 2>/dev/null"
	if ids.Mode == wire.IDsSingle {
		notRoot = "true" // where one id is everybody, the agent owns what root owns
	}
	for _, c := range []struct{ user, shell, want string }{
		{"agent", "id -un; id -u; echo $HOME; echo $LC_CTYPE", "agent\n1000\n/home/agent\nC.UTF-8"},
		{"agent", "echo $PATH | cut -d: -f1", "/home/agent/.local/bin"},
		{"agent", "touch ~/x /workspace/y /tmp/z && stat -c %U ~/x", "agent"},
		{"agent", "python3 -c 'print(6*7)'", "42"},
		{"agent", notRoot, ""},
		{"root", "id -un; id -u; echo $HOME", "root\n0\n/root"},
		{"root", "touch /usr/bin/new /usr/lib/new /etc/new /var/lib/new && mv /usr/bin/new /usr/bin/newer && ! test -e /usr/bin/new", ""},
		{"root", "rm /usr/bin/newer && rm -f /usr/bin/git && ! test -e /usr/bin/git", ""},
		{"agent", "cat /etc/hostname; ls -A /run /mnt /media /srv /boot /opt | grep -v : | grep -v -e berth -e lock | grep .", "x"},
		{"agent", "! ls /etc/shadow /etc/ssh /etc/machine-id /etc/sudoers /etc/docker /etc/krb5.conf 2>/dev/null", ""},
		{"agent", "! test -d /usr/local/etc || ls -A /usr/local/etc", ""},
		{"agent", "cat /shown/rw/file; echo new > /shown/rw/new; stat -c %U /shown/rw/new", "hostagent"},
		{"root", "! touch /shown/ro/x 2>/dev/null && ! mount -o remount,rw /shown/ro 2>/dev/null", ""},
	} {
		if c.want == "x" {
			if out, _ := run(t, in, c.user, c.shell); out != "berth" {
				t.Errorf("%s = %q, want only the host name", c.shell, out)
			}
			continue
		}
		wantRun(t, in, c.user, c.shell, c.want)
	}
	if b, err := os.ReadFile(filepath.Join(host, "new")); err != nil || string(b) != "new\n" {
		t.Errorf("file in the host folder = %q, %v", b, err)
	}
	if fi, err := os.Stat("/usr/bin/git"); err != nil || fi.Size() == 0 {
		t.Errorf("the host's git: %v", err)
	}
	if _, err := os.Stat("/var/lib/dpkg"); err == nil {
		wantRun(t, in, "root", "apt-get check >/dev/null && dpkg -s bash | grep -q installed", "")
		wantRun(t, in, "root", `mkdir -p /tmp/p/DEBIAN /tmp/p/usr/bin && printf 'Package: tried\nVersion: 1\nArchitecture: all\nMaintainer: x\nDescription: x\n' >/tmp/p/DEBIAN/control &&
			printf '#!/bin/sh\necho works\n' >/tmp/p/usr/bin/tried && chmod 755 /tmp/p/usr/bin/tried && dpkg-deb -b /tmp/p /tmp/p.deb >/dev/null && dpkg -i /tmp/p.deb >/dev/null && tried && dpkg -r tried >/dev/null && ! test -e /usr/bin/tried`, "works")
	}
}

// Everything that a user can make inside survives archiving.
func TestArchiveOfARealSandbox(t *testing.T) {
	p := provider(t, local.Options{Dir: stateDir(t)})
	in, err := p.Create(t.Context(), testKey, sandbox.Spec{})
	must(t, err)
	wantRun(t, in, "root", "mkdir -p /workspace/d && rm -rf /usr/games /usr/share/doc; rm -f /usr/bin/git; mkdir -p /usr/games; touch /usr/games/mine; chmod 700 /root; echo root >/root/f; chmod 000 /root/f", "")
	wantRun(t, in, "agent", "cd; echo a >a; ln a b; ln -s a c; chmod 4711 a; mkfifo f; truncate -s 10G sparse; mkdir -m 0 closed; printf x >'odd\n\xff'", "")
	show := "cd /home/agent; stat -c '%n %F %a %U %h %s %y' * | sort; ls -A /usr/games; test -e /usr/bin/git || echo no git; test -d /usr/share/doc || echo no doc"
	before, _ := run(t, in, "agent", show)
	must(t, in.Stop(t.Context()))
	must(t, in.(sandbox.Archiver).Archive(t.Context()))
	if got := status(t, in); got != sandbox.StatusArchived {
		t.Fatalf("status = %q, want archived", got)
	}
	must(t, in.Start(t.Context()))
	after, _ := run(t, in, "agent", show)
	if after != before || !strings.Contains(after, "no git") || !strings.Contains(after, "mine") {
		t.Errorf("after a restore:\n%s\nbefore:\n%s", after, before)
	}
	wantRun(t, in, "root", "chmod 400 /root/f && cat /root/f && stat -c %U /root/f", "root\nroot")
}

// A full disk is the host's fault: the sandbox stays stopped, and its files are
// intact when there is room again.
func TestFullDisk(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounting a small file system needs root")
	}
	dir := t.TempDir()
	must(t, syscall.Mount("berth-test", dir, "tmpfs", 0, "size=80m,mode=700"))
	t.Cleanup(func() { must(t, syscall.Unmount(dir, syscall.MNT_DETACH)) })
	p := provider(t, local.Options{Dir: filepath.Join(dir, "state")})
	in, err := p.Create(t.Context(), testKey, sandbox.Spec{})
	must(t, err)
	wantRun(t, in, "agent", "echo precious > ~/f; head -c 20M /dev/urandom > ~/big", "")
	must(t, in.Stop(t.Context()))
	filler := filepath.Join(dir, "filler")
	f, err := os.Create(filler)
	must(t, err)
	chunk := make([]byte, 1<<20)
	for err == nil {
		_, err = f.Write(chunk)
	}
	_ = f.Close()
	if err := in.(sandbox.Archiver).Archive(t.Context()); !errors.Is(err, sandbox.ErrUnavailable) || !strings.Contains(err.Error(), "full") {
		t.Errorf("Archive on a full disk = %v, want ErrUnavailable that says so", err)
	}
	if err := in.Start(t.Context()); !errors.Is(err, sandbox.ErrUnavailable) {
		t.Errorf("Start on a full disk = %v, want ErrUnavailable", err)
	}
	if _, err := p.Create(t.Context(), sandbox.Key{Owner: "o", Session: "other"}, sandbox.Spec{}); !errors.Is(err, sandbox.ErrUnavailable) {
		t.Errorf("Create on a full disk = %v, want ErrUnavailable", err)
	}
	if got := status(t, in); got != sandbox.StatusStopped {
		t.Errorf("status on a full disk = %q, want stopped", got)
	}
	must(t, os.Remove(filler))
	must(t, in.Start(t.Context()))
	wantRun(t, in, "agent", "cat ~/f", "precious")
	// Destroying needs no room.
	f, err = os.Create(filler)
	must(t, err)
	for err == nil {
		_, err = f.Write(chunk)
	}
	_ = f.Close()
	must(t, in.Destroy(t.Context()))
}

func TestLinkedStateDirectory(t *testing.T) {
	dir := stateDir(t)
	link := filepath.Join(t.TempDir(), "link")
	must(t, os.Symlink(dir, link))
	in, err := provider(t, local.Options{Dir: link}).Create(t.Context(), testKey, sandbox.Spec{})
	must(t, err)
	wantRun(t, in, "agent", "echo hello", "hello")
	again, err := provider(t, local.Options{Dir: dir}).Lookup(t.Context(), testKey)
	must(t, err)
	wantRun(t, again, "agent", "echo again", "again")
}

// Init's end, whoever caused it, ends the sandbox: what ran is lost and says
// why, the sandbox counts as stopped, and starts again with its files.
func TestInitKilled(t *testing.T) {
	p := provider(t, local.Options{Dir: stateDir(t)})
	in, err := p.Create(t.Context(), testKey, sandbox.Spec{})
	must(t, err)
	wantRun(t, in, "agent", "echo kept > ~/f", "")
	c := sandbox.Command{ID: sandbox.NewProcessID(), Shell: "echo before; sleep 100", Display: "sleep", Cwd: "/", Busy: true}
	proc, err := in.Spawn(t.Context(), c)
	must(t, err)
	must(t, proc.Wait(t.Context(), sandbox.Cursor{}, false))
	rec, err := journal.ReadRecord(in.(*local.Instance).Dir())
	must(t, err)
	must(t, syscall.Kill(rec.Ready.InitPID, syscall.SIGKILL))
	must(t, proc.Wait(t.Context(), sandbox.Cursor{}, true))
	i, err := proc.Info(t.Context())
	must(t, err)
	if i.State != sandbox.ProcessLost || i.ExitCode != nil || i.Reason == "" {
		t.Errorf("what ran: %+v, want it lost, with a reason and no exit code", i)
	}
	if o, err := proc.Read(t.Context(), sandbox.Cursor{}, 100); err != nil || string(o.Stdout) != "before\n" {
		t.Errorf("its output = %q, %v", o.Stdout, err)
	}
	for end := time.Now().Add(10 * time.Second); status(t, in) != sandbox.StatusStopped; {
		if time.Now().After(end) {
			t.Fatalf("status = %q, want stopped", status(t, in))
		}
		time.Sleep(5 * time.Millisecond)
	}
	must(t, in.Start(t.Context()))
	wantRun(t, in, "agent", "cat ~/f", "kept")
}

// What the kernel tells of mounts inside names no path of the host.
func TestMountsNameNoHostPaths(t *testing.T) {
	host := t.TempDir()
	dir := stateDir(t)
	p := provider(t, local.Options{Dir: dir, HostDirs: []sandbox.HostDir{{Host: host, Path: "/shown"}}})
	in, err := p.Create(t.Context(), testKey, sandbox.Spec{})
	must(t, err)
	out, _ := run(t, in, "root", "cat /proc/self/mounts /proc/1/mounts /proc/self/mountstats")
	if !strings.Contains(out, " / overlay ") {
		t.Fatalf("mounts inside: %s", out)
	}
	for line := range strings.Lines(out) {
		for _, path := range []string{dir, sharedBase, host, os.TempDir() + "/"} {
			if strings.Contains(line, path) {
				t.Errorf("a mount inside names %s: %s", path, line)
			}
		}
	}
}

// A start that comes while the idle sandbox is being stopped waits for the end
// and starts it: what follows finds it running.
func TestStartDuringIdleStop(t *testing.T) {
	p := provider(t, local.Options{Dir: stateDir(t)})
	in, err := p.Create(t.Context(), testKey, sandbox.Spec{AutoStop: ptr(time.Second)})
	must(t, err)
	// It holds the stop up until it is killed, and does not count as busy.
	wantRun(t, in, "agent", "trap '' TERM; (trap '' TERM; while :; do sleep 0.05; done) >/dev/null 2>&1 & echo kept > ~/file", "")
	for {
		info, err := in.Info(t.Context())
		must(t, err)
		if info.Status == sandbox.StatusStopping {
			break
		}
		if info.Status != sandbox.StatusRunning {
			t.Fatalf("the sandbox went from running to %s", info.Status)
		}
		time.Sleep(time.Millisecond)
	}
	must(t, in.Start(t.Context()))
	wantRun(t, in, "agent", "cat ~/file", "kept")
}

// Calls of a server that has no connection to the sandbox yet make one, and none
// takes it from another.
func TestFirstCallsAtOnce(t *testing.T) {
	dir := stateDir(t)
	p := provider(t, local.Options{Dir: dir})
	_, err := p.Create(t.Context(), testKey, sandbox.Spec{})
	must(t, err)
	for range 5 {
		other, err := local.New(local.Options{Dir: dir})
		must(t, err)
		in, err := other.Lookup(t.Context(), testKey)
		must(t, err)
		var wg sync.WaitGroup
		begin := make(chan struct{})
		for range 16 {
			wg.Go(func() {
				<-begin
				p, err := in.Spawn(t.Context(), sandbox.Command{ID: sandbox.NewProcessID(), Argv: []string{"true"}, Cwd: "/", User: "agent"})
				if err == nil {
					err = p.Wait(t.Context(), sandbox.Cursor{}, true)
				}
				if err != nil {
					t.Error(err)
				}
			})
		}
		close(begin)
		wg.Wait()
		must(t, other.Close())
	}
}
