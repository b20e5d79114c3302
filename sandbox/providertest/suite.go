package providertest

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"berth/sandbox"
)

// Harness tells Run how to get at a provider and what it cannot do.
type Harness struct {
	// Open returns a provider over an empty store. What it needs is ended by
	// t's cleanup; sandboxes too.
	Open func(t *testing.T) sandbox.Provider
	// Reopen closes p and returns another provider over the same store, as
	// the next server process does.
	Reopen func(t *testing.T, p sandbox.Provider) sandbox.Provider
	// Crash is Reopen without closing p, as after kill -9 of the server. nil
	// when a server process cannot be ended in this test.
	Crash func(t *testing.T, p sandbox.Provider) sandbox.Provider
	// Another returns a second provider over p's store, as a second server
	// process beside the first has.
	Another func(t *testing.T, p sandbox.Provider) sandbox.Provider
	// Kill ends a running sandbox from outside, beneath its provider, as the
	// death of its machine does. It returns when that shows.
	Kill func(t *testing.T, p sandbox.Provider, key sandbox.Key)
	// Break damages a sandbox so that it has StatusError.
	Break func(t *testing.T, p sandbox.Provider, key sandbox.Key)
	// Outside starts an echo server for the test, where sandboxes may reach it.
	Outside func(t *testing.T) Echo
	// Bucket makes a bucket that p's sandboxes reach, empty, for the test. It has
	// its key in Job.Service.SecretAccessKey.
	Bucket func(t *testing.T, p sandbox.Provider) Bucket
	// Spec is what every sandbox of the suite is made of.
	Spec sandbox.Spec
	// LogLimit is how many bytes of one output stream are kept.
	LogLimit int64
	// Cannot names what the provider cannot do, and why. Each is logged.
	Cannot map[Ability]string
	// Timeout bounds one operation; 0 = 30 s.
	Timeout time.Duration
	// Only names the groups that are run, for what is a part of a provider; nil: all.
	Only []string
}

// Ability is something that a provider may be unable to do.
type Ability string

// The abilities that a harness may name in Cannot.
const (
	Terminals  Ability = "terminals"  // Command.TTY
	Isolation  Ability = "isolation"  // the host cannot be reached
	RootUser   Ability = "root user"  // Command.User root
	RootsOwn   Ability = "root's own" // what root closes is closed to the sandbox's user
	Accounts   Ability = "accounts"   // Spec.Account
	Archives   Ability = "archives"   // Archiver
	Updates    Ability = "updates"    // Updater
	Retirement Ability = "retirement" // Retirer
	// Afterlife: what processes of a stopped sandbox wrote, and how they ended,
	// can be read while it is stopped.
	Afterlife  Ability = "afterlife"
	Tombstones Ability = "tombstones" // Lookup of a destroyed sandbox
	Ports      Ability = "ports"      // PortDialer, PortKeeper, PortFinder, PortLister
	Links      Ability = "links"      // PortLinker, or Ports
	CountsRead Ability = "counts"     // ProcessInfo.CPU and Memory
	Usages     Ability = "usages"     // Info.Usage
	Resources  Ability = "resources"  // Spec.Resources
	Networks   Ability = "networks"   // Networker
	AnyRule    Ability = "any rule"   // NetworkPolicy.AllowDomains, and IPv6 ranges
	Forks      Ability = "forks"      // Forker
	Snapshots  Ability = "snapshots"  // Snapshotter, SnapshotKeeper, Spec.Snapshot
	Builds     Ability = "builds"     // SnapshotBuilder, BuildLogKeeper
	Records    Ability = "records"    // Command.Note, Command.Merge, ProcessForgetter
	FileChange Ability = "changes"    // FileRemover, FileRenamer, FilePermitter, FileInfo.Owner
	Volumes    Ability = "volumes"    // Spec.Volumes, VolumeLister, VolumeDeleter
	// OneInstant: forks and snapshots have the files as of one moment, also
	// while processes write.
	OneInstant Ability = "one instant"
	Mounts     Ability = "mounts" // MountChecker, Mounter, Spec.Mounts
	// RealMounts are mounts to the kernel: they can be read-only, and in use.
	RealMounts Ability = "real mounts"
	// ReadOnlyVolumes holds against root, too.
	ReadOnlyVolumes Ability = "read-only volumes"
)

// Run holds a provider against the promises of package sandbox's contracts. What
// the harness leaves out is logged by name.
func Run(t *testing.T, h Harness) {
	t.Helper()
	if h.Timeout == 0 {
		h.Timeout = 30 * time.Second
	}
	for _, c := range []struct {
		missing bool
		what    string
	}{{h.Reopen == nil, "Reopen"}, {h.Crash == nil, "Crash"}, {h.Another == nil, "Another"}, {h.Kill == nil, "Kill"}, {h.Break == nil, "Break"}, {h.Outside == nil, "Outside"}, {h.LogLimit == 0, "LogLimit"}} {
		if c.missing {
			t.Logf("the harness has no %s: what needs it is not shown", c.what)
		}
	}
	for a, why := range h.Cannot {
		t.Logf("the provider cannot do %s: %s", a, why)
	}
	for _, g := range []struct {
		name string
		test func(*testing.T, *suite)
	}{
		{"life", testLife}, {"recovery", testRecovery}, {"racing", testRacing}, {"spec", testSpec}, {"account", testAccount},
		{"commands", testCommands}, {"plain_commands", testPlainCommands}, {"stdin", testStdin}, {"output", testOutput}, {"killing", testKilling},
		{"processes", testProcesses}, {"terminals", testTerminals}, {"records", testRecords}, {"files", testFiles}, {"changes", testChanges}, {"walls", testWalls}, {"ports", testPorts}, {"links", testLinks}, {"network", testNetwork},
		{"forks", testForks}, {"snapshots", testSnapshots}, {"builds", testBuilds}, {"volumes", testVolumes}, {"mounts", testMounts},
	} {
		if h.Only != nil && !slices.Contains(h.Only, g.name) {
			continue
		}
		t.Run(g.name, func(t *testing.T) {
			s := &suite{h: h}
			s.p = h.Open(t)
			g.test(t, s)
		})
	}
}

// suite is one group's provider and the helpers of its tests.
type suite struct {
	h Harness
	p sandbox.Provider
	n int
}

func (s *suite) can(t *testing.T, a Ability) bool {
	t.Helper()
	if why, no := s.h.Cannot[a]; no {
		t.Logf("not shown, %s: %s", a, why)
		return false
	}
	return true
}

func (s *suite) ctx(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), s.h.Timeout)
	t.Cleanup(cancel)
	return ctx
}

func (s *suite) key() sandbox.Key {
	s.n++
	return sandbox.Key{Owner: "suite", Session: sandbox.SessionID(fmt.Sprintf("session-%d", s.n))}
}

// spec is the complete spec that providers are given.
func (s *suite) spec(change func(*sandbox.Spec)) sandbox.Spec {
	spec := s.h.Spec.Clone()
	if change != nil {
		change(&spec)
	}
	return spec.WithDefaults(sandbox.Spec{})
}

// box is a running sandbox.
type box struct {
	*suite
	t    *testing.T
	key  sandbox.Key
	inst sandbox.Instance
	info sandbox.Info
}

// in is b for a subtest, whose failures are its own.
func (b *box) in(t *testing.T) *box {
	c := *b
	c.t = t
	return &c
}

func (s *suite) make(t *testing.T) *box { return s.makeWith(t, nil) }

func (s *suite) makeWith(t *testing.T, change func(*sandbox.Spec)) *box {
	t.Helper()
	key := s.key()
	spec := s.spec(change)
	if spec.Name == "" {
		spec.Name = string(key.Session)
	}
	inst, err := s.p.Create(s.ctx(t), key, spec)
	if err != nil {
		t.Fatalf("Create(%v): %v", key, err)
	}
	s.destroyAtEnd(t, key)
	b := &box{suite: s, t: t, key: key, inst: inst}
	b.info = b.status(sandbox.StatusRunning)
	return b
}

// destroyAtEnd destroys the key's sandbox when t ends, if it is there then.
func (s *suite) destroyAtEnd(t *testing.T, key sandbox.Key) {
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), s.h.Timeout)
		defer cancel()
		if i, err := s.p.Lookup(ctx, key); err == nil {
			if err := i.Destroy(ctx); err != nil {
				t.Errorf("Destroy at the end: %v", err)
			}
		}
	})
}

// status reads the state anew and compares its status.
func (b *box) status(want sandbox.Status) sandbox.Info {
	b.t.Helper()
	info, err := b.inst.Info(b.ctx(b.t))
	if err != nil {
		b.t.Fatalf("Info: %v", err)
	}
	if info.Status != want {
		b.t.Fatalf("got status %s (%s), want %s", info.Status, info.Reason, want)
	}
	if info.Key != b.key {
		b.t.Errorf("got key %v, want %v", info.Key, b.key)
	}
	if g, can := b.inst.(sandbox.Glancer); can {
		glance, err := g.Glance(b.ctx(b.t))
		if err != nil || glance.Key != info.Key || !glance.Created.Equal(info.Created) || !reflect.DeepEqual(glance.Spec, info.Spec) {
			b.t.Errorf("Glance: got %+v, %v; want the like of %+v", glance, err, info)
		}
	}
	return info
}

// lookup finds the sandbox again through the present provider.
func (b *box) lookup() {
	b.t.Helper()
	inst, err := b.p.Lookup(b.ctx(b.t), b.key)
	if err != nil {
		b.t.Fatalf("Lookup: %v", err)
	}
	b.inst = inst
}

// command is a shell command with what every command has.
func (b *box) command(shell string) sandbox.Command {
	return sandbox.Command{ID: sandbox.NewProcessID(), Shell: shell, Display: shell, Cwd: b.info.Home, User: b.info.User, Busy: true}
}

func (b *box) spawn(c sandbox.Command) sandbox.Process {
	b.t.Helper()
	p, err := b.inst.Spawn(b.ctx(b.t), c)
	if err != nil {
		b.t.Fatalf("Spawn(%s): %v", c.Display, err)
	}
	return p
}

// ended waits for the exit and returns all output that is kept.
func (b *box) ended(p sandbox.Process) (sandbox.ProcessInfo, string, string) {
	b.t.Helper()
	ctx := b.ctx(b.t)
	if err := p.Wait(ctx, sandbox.Cursor{}, true); err != nil {
		b.t.Fatalf("Wait for the exit: %v", err)
	}
	info, err := p.Info(ctx)
	if err != nil {
		b.t.Fatalf("Info: %v", err)
	}
	var out, errs strings.Builder
	at := info.Kept
	for {
		o, err := p.Read(ctx, at, 1<<20)
		if err != nil {
			b.t.Fatalf("Read(%v): %v", at, err)
		}
		if len(o.Stdout)+len(o.Stderr) == 0 {
			return info, out.String(), errs.String()
		}
		out.Write(o.Stdout)
		errs.Write(o.Stderr)
		if want := (sandbox.Cursor{Stdout: at.Stdout + int64(len(o.Stdout)), Stderr: at.Stderr + int64(len(o.Stderr))}); o.Next != want || o.Dropped != 0 {
			b.t.Fatalf("Read(%v): got Next %v, Dropped %d; want %v, 0", at, o.Next, o.Dropped, want)
		}
		at = o.Next
	}
}

// sh runs a command to its end.
func (b *box) sh(shell string) (sandbox.ProcessInfo, string, string) {
	b.t.Helper()
	return b.ended(b.spawn(b.command(shell)))
}

// must runs a command that succeeds and returns its stdout.
func (b *box) must(shell string) string {
	b.t.Helper()
	info, out, errs := b.sh(shell)
	if code(info) != 0 {
		b.t.Fatalf("%s: got exit %d, stdout %q, stderr %q", shell, code(info), out, errs)
	}
	return out
}

// waitFor waits until the output from the beginning on holds part.
func (b *box) waitFor(p sandbox.Process, part string) string {
	b.t.Helper()
	ctx := b.ctx(b.t)
	var all strings.Builder
	at := sandbox.Cursor{}
	for !strings.Contains(all.String(), part) {
		if err := p.Wait(ctx, at, false); err != nil {
			b.t.Fatalf("waiting for %q, got %q so far: %v", part, all.String(), err)
		}
		o, err := p.Read(ctx, at, 1<<20)
		if err != nil {
			b.t.Fatal(err)
		}
		if len(o.Stdout)+len(o.Stderr) == 0 {
			b.t.Fatalf("it ended without %q: %q", part, all.String())
		}
		all.Write(o.Stdout)
		all.Write(o.Stderr)
		at = o.Next
	}
	return all.String()
}

// alive tells whether a process whose argument is mark runs inside.
func (b *box) alive(mark string) bool {
	b.t.Helper()
	// The pattern does not match the command that looks.
	pattern := "[" + mark[:1] + "]" + mark[1:]
	out := b.must("cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' ' | grep -q '" + pattern + "' && echo yes; true")
	return strings.Contains(out, "yes")
}

// gone waits until no process with mark runs.
func (b *box) gone(mark string) {
	b.t.Helper()
	for end := time.Now().Add(5 * time.Second); b.alive(mark); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			b.t.Errorf("a process with %q still runs", mark)
			return
		}
	}
}

// code is the exit code, or -1 when it is not known.
func code(i sandbox.ProcessInfo) int {
	if i.ExitCode == nil {
		return -1
	}
	return *i.ExitCode
}

func wantErr(t *testing.T, what string, got error, want ...error) {
	t.Helper()
	for _, w := range want {
		if errors.Is(got, w) {
			return
		}
	}
	t.Errorf("%s: got error %v, want %v", what, got, want)
}
