//go:build linux

package escape_test

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"berth/internal/escape"
	"berth/sandbox"
	"berth/sandbox/local"
	"berth/sandbox/local/box/entry"
	"berth/sandbox/local/tree"
)

// shared is what all tests use: built programs and two providers. Everything of
// it lies below dir.
var shared struct {
	dir       string
	providers []*local.Provider
}

func TestMain(m *testing.M) {
	entry.Main(os.Args) // this test program stands in for berth's helper
	os.Exit(run(m))
}

func run(m *testing.M) (code int) {
	dir, err := os.MkdirTemp("", "escape")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	shared.dir = dir
	defer func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		for _, p := range shared.providers {
			if err := destroyAll(ctx, p); err != nil {
				fmt.Fprintln(os.Stderr, "clean up:", err)
				code = 1
			}
			_ = p.Close()
		}
		if err := removeState(dir); err != nil {
			fmt.Fprintln(os.Stderr, "clean up:", err)
			code = 1
		}
	}()
	// What berth's own environment holds must not be found inside.
	for _, name := range []string{"BERTH_ESCAPE_TOKEN", "AWS_SECRET_ACCESS_KEY", "ESCAPE_CANARY"} {
		_ = os.Setenv(name, escape.Canary)
	}
	return m.Run()
}

func destroyAll(ctx context.Context, p *local.Provider) error {
	all, err := p.List(ctx, "")
	for _, i := range all {
		in, lerr := p.Lookup(ctx, i.Key)
		if lerr == nil {
			lerr = in.Destroy(ctx)
		}
		err = errors.Join(err, lerr)
	}
	return err
}

// removeState removes what berth made, also what belongs to the caller's
// subordinate ids.
func removeState(dir string) error {
	as := tree.As{}
	if u, err := user.Current(); err == nil && u.Uid != "0" {
		sub := func(file string) uint32 {
			b, _ := os.ReadFile(file)
			for line := range strings.Lines(string(b)) {
				if f := strings.Split(strings.TrimSpace(line), ":"); len(f) == 3 && (f[0] == u.Username || f[0] == u.Uid) {
					n, _ := strconv.ParseUint(f[1], 10, 32)
					return uint32(n)
				}
			}
			return 0
		}
		if uid, gid := sub("/etc/subuid"), sub("/etc/subgid"); uid != 0 && gid != 0 {
			as.Map = &tree.IDs{SubUID: uid, SubGID: gid, Count: 2000}
		}
	}
	return as.Remove(context.Background(), dir)
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// build compiles a program of this module, static, once.
func build(t *testing.T, pkg string) string {
	t.Helper()
	path := filepath.Join(shared.dir, filepath.Base(pkg))
	built := builds(pkg, func() error {
		cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", path, pkg)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("build %s: %w\n%s", pkg, err, out)
		}
		return nil
	})
	must(t, built)
	return path
}

var builds = func() func(string, func() error) error {
	var mu sync.Mutex
	done := map[string]error{}
	return func(name string, f func() error) error {
		mu.Lock()
		defer mu.Unlock()
		if err, ok := done[name]; ok {
			return err
		}
		done[name] = f()
		return done[name]
	}
}()

const attackerPackage = "berth/internal/escape/attacker"

// world is what there is to find outside, and what must not change.
type world struct {
	escape.Outside
	victim *exec.Cmd
	before map[string]string
}

func random() string {
	var b [6]byte
	_, _ = rand.Read(b[:])
	return hex.EncodeToString(b[:])
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{before: map[string]string{}}
	name := "berth-escape-" + random()
	dirs := []string{t.TempDir(), os.TempDir(), "/var/tmp", "/dev/shm", shared.dir}
	if home, err := os.UserHomeDir(); err == nil {
		dirs = append(dirs, home)
	}
	for _, dir := range dirs {
		path := filepath.Join(dir, name)
		must(t, os.WriteFile(path, []byte(escape.Canary+"\n"), 0o644))
		t.Cleanup(func() { _ = os.Remove(path) })
		w.Files = append(w.Files, path)
	}
	w.Dirs = []string{shared.dir, t.TempDir()}
	if b, err := os.ReadFile("/etc/shadow"); err == nil {
		sum := sha256.Sum256(b)
		w.Shadow = hex.EncodeToString(sum[:])
	}
	b, err := os.ReadFile("/etc/passwd")
	must(t, err)
	for line := range strings.Lines(string(b)) {
		f := strings.Split(line, ":")
		if len(f) > 2 && f[0] != "agent" && f[0] != "nobody" {
			if uid, err := strconv.Atoi(f[2]); err == nil && uid >= 1000 {
				w.Users = append(w.Users, f[0])
			}
		}
	}
	if me, err := user.Current(); err == nil && me.Username != "root" {
		w.Users = append(w.Users, me.Username)
	}
	w.Argument = fmt.Sprintf("864%06d", time.Now().UnixNano()%1e6)
	w.victim = exec.Command("sleep", w.Argument)
	must(t, w.victim.Start())
	t.Cleanup(func() { _ = w.victim.Process.Kill(); _ = w.victim.Wait() })
	// Numbers that small sandboxes do not reach themselves.
	w.PIDs = []int{os.Getpid(), os.Getppid(), w.victim.Process.Pid}

	abstract, err := net.Listen("unix", "@"+name)
	must(t, err)
	path := filepath.Join(t.TempDir(), "s")
	plain, err := net.Listen("unix", path)
	must(t, err)
	w.Abstract, w.Sockets = []string{name}, []string{path}
	listeners := []net.Listener{abstract, plain}
	for _, addr := range append(hostAddresses(), "127.0.0.1", "::1") {
		l, err := net.Listen("tcp", net.JoinHostPort(addr, "0"))
		if err != nil {
			continue // this machine has no such address
		}
		listeners = append(listeners, l)
		w.TCP = append(w.TCP, l.Addr().String())
		u, err := net.ListenPacket("udp", net.JoinHostPort(addr, "0"))
		must(t, err)
		w.UDP = append(w.UDP, u.LocalAddr().String())
		go func() {
			b := make([]byte, 64)
			for {
				n, from, err := u.ReadFrom(b)
				if err != nil {
					return
				}
				_, _ = u.WriteTo(b[:n], from)
			}
		}()
		t.Cleanup(func() { _ = u.Close() })
	}
	for _, l := range listeners {
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func() { // who says something is answered, or could take us for a gate that resets
					_ = c.SetDeadline(time.Now().Add(10 * time.Second))
					_, _ = c.Read(make([]byte, 16))
					_, _ = c.Write([]byte("reached"))
					_ = c.Close()
				}()
			}
		}()
		t.Cleanup(func() { _ = l.Close() })
	}
	w.Shm = 0x45000000 | os.Getpid()&0xffff
	id, err := unix.SysvShmGet(w.Shm, 4096, unix.IPC_CREAT|0o666)
	must(t, err)
	t.Cleanup(func() { _, _ = unix.SysvShmCtl(id, unix.IPC_RMID, nil) })
	queue, err := unix.BytePtrFromString(name)
	must(t, err)
	if fd, _, e := unix.Syscall6(unix.SYS_MQ_OPEN, uintptr(unsafe.Pointer(queue)), unix.O_CREAT|unix.O_RDWR, 0o666, 0, 0, 0); e == 0 {
		_ = unix.Close(int(fd))
		w.Queue = name
		t.Cleanup(func() { _, _, _ = unix.Syscall(unix.SYS_MQ_UNLINK, uintptr(unsafe.Pointer(queue)), 0, 0) })
	}
	w.Namespaces = map[string]string{}
	for _, ns := range []string{"user", "mnt", "pid", "net", "ipc", "uts", "cgroup"} {
		w.Namespaces[ns], err = os.Readlink("/proc/self/ns/" + ns)
		must(t, err)
	}
	w.Hostname, err = os.Hostname()
	must(t, err)
	for _, p := range append([]string{"/usr/bin/env", "/etc/passwd", "/etc/group", "/etc/os-release", "/usr/bin/dpkg", "/usr/bin", "/usr", "/etc", "/dev/null"}, w.Files...) {
		w.before[p] = fingerprint(p)
	}
	return w
}

func hostAddresses() []string {
	addrs, _ := net.InterfaceAddrs()
	var all []string
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok && !n.IP.IsLoopback() && !n.IP.IsLinkLocalUnicast() {
			all = append(all, n.IP.String())
		}
	}
	return all
}

// fingerprint of a file: all that an attack could change. Change time of
// directories is left out, since the machine itself lives on.
func fingerprint(path string) string {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return err.Error()
	}
	s := fmt.Sprintf("inode %d mode %o owner %d:%d", st.Ino, st.Mode, st.Uid, st.Gid)
	if st.Mode&unix.S_IFMT == unix.S_IFREG {
		b, err := os.ReadFile(path)
		s += fmt.Sprintf(" size %d changed %d.%d %x %v", st.Size, st.Ctim.Sec, st.Ctim.Nsec, sha256.Sum256(b), err)
	}
	return s
}

// check looks from outside whether anything of the host changed.
func (w *world) check(t *testing.T) {
	t.Helper()
	if err := w.victim.Process.Signal(unix.Signal(0)); err != nil {
		t.Errorf("a process of the host is gone: %v", err)
	}
	if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", w.victim.Process.Pid)); err != nil || !strings.Contains(string(b), ") S ") {
		t.Errorf("a process of the host does not sleep any more: %s, %v", b, err)
	}
	for path, before := range w.before {
		if after := fingerprint(path); after != before {
			t.Errorf("%s of the host changed:\nbefore %s\nafter  %s", path, before, after)
		}
	}
	if name, err := os.Hostname(); err != nil || name != w.Hostname {
		t.Errorf("the host's name is %q, was %q (%v)", name, w.Hostname, err)
	}
	b, err := os.ReadFile("/proc/self/mountinfo")
	must(t, err)
	for line := range strings.Lines(string(b)) {
		if strings.Contains(line, shared.dir) {
			t.Errorf("a mount of a sandbox is seen outside: %s", line)
		}
	}
}

// box is a sandbox under attack.
type box struct {
	m   *sandbox.Manager
	key sandbox.Key
	ids string
}

const attackerPath = "/home/agent/attacker"

// newManager makes a Manager of the shared provider, or of a new one when the
// options differ from the usual.
func newManager(t *testing.T, o local.Options) *sandbox.Manager {
	t.Helper()
	if o.Dir == "" {
		o.Dir = filepath.Join(shared.dir, "state")
	}
	p, err := local.New(o)
	must(t, err)
	shared.providers = append(shared.providers, p)
	m, err := sandbox.NewManager(p, sandbox.Options{})
	must(t, err)
	t.Cleanup(func() { _ = m.Close() })
	return m
}

// eachMode runs a test in every way that the test's user can map ids: root and
// those with subordinate ids have many; an ordinary user whose sandbox is shown a
// host folder has a single one.
func eachMode(t *testing.T, test func(t *testing.T, o local.Options)) {
	t.Run("many", func(t *testing.T) { test(t, local.Options{}) })
	if os.Geteuid() != 0 {
		t.Run("single", func(t *testing.T) {
			dir := folder(t)
			test(t, local.Options{Dir: filepath.Join(shared.dir, "single-"+random()), HostDirs: []sandbox.HostDir{{Host: dir, Path: "/shown", ReadOnly: true}}})
		})
	}
}

func newBox(t *testing.T, m *sandbox.Manager) *box {
	t.Helper()
	return newBoxOf(t, m, sandbox.Spec{})
}

func newBoxOf(t *testing.T, m *sandbox.Manager, spec sandbox.Spec) *box {
	t.Helper()
	b := &box{m: m, key: sandbox.Key{Owner: sandbox.LocalOwner, Session: sandbox.NewSessionID()}}
	_, err := m.StartSandbox(t.Context(), b.key, spec)
	must(t, err)
	t.Cleanup(func() {
		if _, err := m.DestroySandbox(context.Background(), b.key); err != nil {
			t.Errorf("destroy: %v", err)
		}
	})
	program, err := os.ReadFile(build(t, attackerPackage))
	must(t, err)
	b.write(t, attackerPath, program, 0o755)
	out, _ := b.run(t, "root", "cat", "/proc/self/uid_map")
	f := strings.Fields(out)
	switch {
	case len(f) == 3 && f[2] == "1":
		b.ids = "single"
	case os.Geteuid() == 0:
		b.ids = "range"
	default:
		b.ids = "sub"
	}
	return b
}

func (b *box) write(t *testing.T, path string, data []byte, mode fs.FileMode) {
	t.Helper()
	_, err := b.m.WriteFile(t.Context(), b.key, sandbox.WriteFileRequest{Path: path, Data: data, Mode: &mode})
	must(t, err)
}

// run runs a program to its end and returns all of its output.
func (b *box) run(t *testing.T, user string, argv ...string) (string, *sandbox.RunResult) {
	t.Helper()
	limit := 3 * time.Minute
	r, err := b.m.ExecuteCommand(t.Context(), b.key, sandbox.RunRequest{Argv: argv, User: user, Cwd: "/", Timeout: &limit})
	if err != nil {
		t.Fatalf("%s: %v", strings.Join(argv, " "), err)
	}
	p, err := b.m.Process(t.Context(), b.key, r.Process.ID)
	must(t, err)
	if r.HandedOver {
		must(t, p.Wait(t.Context(), sandbox.Cursor{}, true))
	}
	r.Process, err = p.Info(t.Context())
	must(t, err)
	out, err := p.Read(t.Context(), r.Process.Kept, 4<<20)
	must(t, err)
	return string(out.Stdout) + string(out.Stderr), r
}

// spawn starts a program and waits for the words in its output.
func (b *box) spawn(t *testing.T, user, words string, argv ...string) (sandbox.ProcessID, string) {
	t.Helper()
	wait := 20 * time.Second
	r, err := b.m.SpawnProcess(t.Context(), b.key, sandbox.SpawnRequest{
		RunRequest: sandbox.RunRequest{Argv: argv, User: user, Cwd: "/", Wait: &wait}, WaitFor: sandbox.WaitPattern, Pattern: words,
	})
	must(t, err)
	if !r.Matched {
		t.Fatalf("%s did not say %q: %s %s", strings.Join(argv, " "), words, r.Stdout.Head, r.Stderr.Head)
	}
	return r.Process.ID, r.Stdout.Head
}

// alive fails the test unless the sandbox still answers, by its own init and
// not by one that was started again.
func (b *box) alive(t *testing.T) {
	t.Helper()
	r, err := b.m.ExecuteCommand(t.Context(), b.key, sandbox.RunRequest{Argv: []string{"echo", "here"}, Cwd: "/"})
	if err != nil {
		t.Fatalf("the sandbox does not answer: %v", err)
	}
	if r.Stdout.Head != "here\n" {
		t.Errorf("echo answered %q", r.Stdout.Head)
	}
	if n := r.Notice; n.Started || n.Replaced != "" || n.Revived != "" || n.Created {
		t.Errorf("the sandbox had died and was brought back: %+v", n)
	}
}

// tell puts what is known of the outside into the sandbox.
func (b *box) tell(t *testing.T, o escape.Outside) string {
	t.Helper()
	o.IDs = b.ids
	data, err := json.Marshal(o)
	must(t, err)
	const path = "/home/agent/outside.json"
	b.write(t, path, data, 0o644)
	return path
}

// names lists the probes that the attacker has for user.
func names(t *testing.T, user string) []string {
	t.Helper()
	out, err := exec.Command(build(t, attackerPackage), "list", user).Output()
	must(t, err)
	var all []string
	for line := range strings.Lines(string(out)) {
		name, _, _ := strings.Cut(line, "\t")
		all = append(all, name)
	}
	if len(all) < 50 {
		t.Fatalf("only %d probes", len(all))
	}
	return all
}
