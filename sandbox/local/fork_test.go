//go:build linux

package local_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"berth/sandbox"
	"berth/sandbox/local"
	"berth/sandbox/local/client"
	"berth/sandbox/local/journal"
	"berth/sandbox/local/wire"
)

var forkKey = sandbox.Key{Owner: "o", Session: "forked"}

// fork forks in into a sandbox of key.
func fork(t *testing.T, in sandbox.Instance, key sandbox.Key) sandbox.Instance {
	t.Helper()
	info, err := in.Info(t.Context())
	must(t, err)
	to, err := in.(sandbox.Forker).Fork(t.Context(), key, info.Spec)
	must(t, err)
	return to
}

// make all that a user can make, and show it.
const (
	makeFiles = "cd; echo a >a; ln a b; ln -s a c; chmod 4711 a; mkfifo f; truncate -s 10G sparse; echo end >>sparse; mkdir -m 700 closed; echo in >closed/in; printf x >'odd\n\xff'; touch -d @1000 a; rm -f .profile"
	rootFiles = "mkdir -p /workspace/d && rm -rf /usr/games /usr/share/doc; rm -f /usr/bin/git; mkdir -p /usr/games; touch /usr/games/mine; echo root >/root/f; chmod 600 /root/f; echo x >/tmp/t"
	showFiles = "cd /home/agent; ls -A; stat -c '%n %F %a %U %h %s %Y' * | sort; cat a closed/in /tmp/t; tail -c4 sparse; ls -A /usr/games; test -e /usr/bin/git || echo no git; test -d /usr/share/doc || echo no doc"
)

func TestForkOfAQuietSandbox(t *testing.T) {
	p := provider(t, local.Options{Dir: stateDir(t)})
	in, err := p.Create(t.Context(), testKey, sandbox.Spec{})
	must(t, err)
	wantRun(t, in, "root", rootFiles, "")
	wantRun(t, in, "agent", makeFiles, "")
	before, _ := run(t, in, "agent", showFiles)
	to := fork(t, in, forkKey)
	for _, x := range []sandbox.Instance{in, to} {
		if got := status(t, x); got != sandbox.StatusRunning {
			t.Errorf("status = %q, want running", got)
		}
		if after, _ := run(t, x, "agent", showFiles); after != before {
			t.Errorf("files after the fork:\n%s\nwant:\n%s", after, before)
		}
	}
	wantRun(t, in, "agent", "echo source > ~/who; echo more >> ~/a; rm ~/closed/in", "")
	wantRun(t, to, "agent", "test ! -e ~/who && cat ~/a ~/closed/in && echo fork > ~/who", "a\nin")
	wantRun(t, in, "agent", "cat ~/who ~/a", "source\na\nmore")
	// What ran before is still known in the one and was never known in the other.
	list, err := in.Processes(t.Context())
	must(t, err)
	if len(list) < 4 || !strings.HasPrefix(list[0].Command, "mkdir") {
		t.Errorf("processes of the source after the fork = %+v", list)
	}
	list, err = to.Processes(t.Context())
	must(t, err)
	if len(list) != 2 {
		t.Errorf("processes of the fork = %+v, want the two run here", list)
	}
	must(t, in.Destroy(t.Context()))
	wantRun(t, to, "agent", "cat ~/who ~/closed/in", "fork\nin")
}

// A writer keeps two files in step, and a third that it has mapped: the fork
// has them as of one moment, and the writer goes on.
func TestForkWhileFilesAreWritten(t *testing.T) {
	p := provider(t, local.Options{Dir: stateDir(t)})
	in, err := p.Create(t.Context(), testKey, sandbox.Spec{})
	must(t, err)
	const writer = `import mmap, os
os.chdir(os.environ["HOME"])
for n in "a", "b", "m": open(n, "wb").write(b"%020d" % 0)
a, b, f = (open(n, "r+b", buffering=0) for n in ("a", "b", "m"))
m = mmap.mmap(f.fileno(), 20)
n = 0
while not os.path.exists("end"):
    n += 1
    for g in a, b: os.pwrite(g.fileno(), b"%020d" % n, 0)
    m[:] = b"%020d" % n
    if n == 1: print("ready", flush=True)
print("ended", flush=True)
`
	must(t, writeFile(t, in, "/home/agent/w.py", writer))
	wantRun(t, in, "agent", "head -c 30000000 /dev/urandom > ~/ballast; cp ~/ballast ~/ballast2", "")
	proc, err := in.Spawn(t.Context(), sandbox.Command{ID: sandbox.NewProcessID(), Shell: "python3 ~/w.py & sleep 1000 & kill -STOP $!; wait %1; kill -KILL %2", Cwd: "/", User: "agent"})
	must(t, err)
	must(t, proc.Wait(t.Context(), sandbox.Cursor{}, false))
	for i := range 5 {
		to := fork(t, in, sandbox.Key{Owner: "o", Session: sandbox.SessionID("f" + string(rune('0'+i)))})
		// The writer stores the three one after the other, so each may be one
		// ahead of the next, and never more.
		out, code := run(t, to, "agent", `cd; python3 -c '
a, b, m = (int(open(n).read()) for n in ("a", "b", "m"))
print("in step" if a > 0 and a >= b >= m >= a - 1 else (a, b, m))'; cmp ballast ballast2; ls`)
		if !strings.HasPrefix(out, "in step\n") || code != 0 {
			t.Errorf("files of fork %d = %d, %s", i, code, out)
		}
		must(t, to.Destroy(t.Context()))
	}
	// What was stopped before is stopped still, and what ran runs.
	wantRun(t, in, "agent", "ps -eo stat= | grep -o ^T; a=$(cat ~/a); sleep 0.1; test $(cat ~/a) -gt $a && touch ~/end", "T")
	must(t, proc.Wait(t.Context(), sandbox.Cursor{}, true))
	out, err := proc.Read(t.Context(), sandbox.Cursor{}, 1<<16)
	must(t, err)
	if !strings.Contains(string(out.Stdout), "ready\nended\n") {
		t.Errorf("the writer printed %q", out.Stdout)
	}
}

func writeFile(t *testing.T, in sandbox.Instance, path, text string) error {
	t.Helper()
	_, err := in.Files().Write(t.Context(), path, strings.NewReader(text), sandbox.WriteOptions{})
	return err
}

func TestForkOfAStoppedSandbox(t *testing.T) {
	p := provider(t, local.Options{Dir: stateDir(t)})
	in, err := p.Create(t.Context(), testKey, sandbox.Spec{})
	must(t, err)
	wantRun(t, in, "root", rootFiles, "")
	wantRun(t, in, "agent", makeFiles, "")
	before, _ := run(t, in, "agent", showFiles)
	must(t, in.Stop(t.Context()))
	to := fork(t, in, forkKey)
	if got := status(t, in); got != sandbox.StatusStopped {
		t.Errorf("status of the source = %q, want stopped", got)
	}
	if after, _ := run(t, to, "agent", showFiles); after != before {
		t.Errorf("files of the fork:\n%s\nwant:\n%s", after, before)
	}
	wantRun(t, to, "agent", "echo one > ~/one", "")
	// Archived and restored, both stand on the shared layer still.
	must(t, do(t.Context(), in, "archive"))
	must(t, to.Stop(t.Context()))
	must(t, do(t.Context(), to, "archive"))
	third := fork(t, to, sandbox.Key{Owner: "o", Session: "third"})
	must(t, to.Destroy(t.Context()))
	must(t, in.Start(t.Context()))
	if after, _ := run(t, in, "agent", showFiles); after != before {
		t.Errorf("files of the restored source:\n%s\nwant:\n%s", after, before)
	}
	wantRun(t, third, "agent", "cat ~/one ~/a; test ! -e /usr/bin/git", "one\na")
}

// A disk limit counts what a sandbox has written itself: so its fork has a copy.
func TestForkWithADiskLimit(t *testing.T) {
	p := provider(t, local.Options{Dir: stateDir(t), BestEffort: true})
	in, err := p.Create(t.Context(), testKey, sandbox.Spec{Resources: sandbox.Resources{Disk: 128 << 20}})
	must(t, err)
	wantRun(t, in, "agent", "echo kept > ~/f; head -c 20000000 /dev/urandom > ~/big; sha256sum ~/big > ~/sum", "")
	to := fork(t, in, forkKey)
	for _, x := range []sandbox.Instance{in, to} {
		wantRun(t, x, "agent", "cat ~/f && sha256sum --status -c ~/sum && echo whole", "kept\nwhole")
	}
	must(t, in.Stop(t.Context()))
	third := fork(t, in, sandbox.Key{Owner: "o", Session: "third"})
	wantRun(t, third, "agent", "cat ~/f && sha256sum --status -c ~/sum && echo whole", "kept\nwhole")
}

// A fork is on the disk soon, and when the machine went down before, that is
// said.
func TestForkIsBroughtToTheDisk(t *testing.T) {
	dir := stateDir(t)
	p := provider(t, local.Options{Dir: dir})
	in, err := p.Create(t.Context(), testKey, sandbox.Spec{})
	must(t, err)
	wantRun(t, in, "agent", "head -c 20000000 /dev/urandom > ~/big", "")
	to := fork(t, in, forkKey)
	marks := []string{filepath.Join(to.(*local.Instance).Dir(), wire.SyncedName)}
	layers, err := filepath.Glob(filepath.Join(dir, "sealed", "*"))
	must(t, err)
	if len(layers) != 1 {
		t.Fatalf("sealed layers = %q, want one", layers)
	}
	marks = append(marks, filepath.Join(layers[0], wire.SyncedName))
	for _, m := range marks {
		for end := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
			if _, err := os.Lstat(m); err == nil {
				break
			}
			if time.Now().After(end) {
				t.Fatalf("%s is not made", m)
			}
		}
	}
	crashed := func(x sandbox.Instance) string {
		crash(t, x, true)
		info, err := x.Info(t.Context())
		must(t, err)
		return info.Reason
	}
	// The layer was sealed in an earlier boot by now.
	note := filepath.Join(layers[0], "layer.json")
	b, err := os.ReadFile(note)
	must(t, err)
	boot, err := journal.BootID()
	must(t, err)
	must(t, os.WriteFile(note, bytes.ReplaceAll(b, []byte(boot), []byte("another-boot")), 0o600))
	if got := crashed(to); !strings.HasPrefix(got, "the machine was restarted") || strings.Contains(got, "missing") {
		t.Errorf("reason = %q, want a restart and no more", got)
	}
	must(t, os.Remove(marks[1]))
	if got := crashed(in); !strings.HasPrefix(got, "the machine was restarted") || !strings.Contains(got, "may be missing or cut short") {
		t.Errorf("reason without the mark = %q, want that files may be missing", got)
	}
	for _, x := range []sandbox.Instance{in, to} {
		must(t, x.Start(t.Context()))
		wantRun(t, x, "agent", "stat -c %s ~/big", "20000000")
	}
}

// What is a sandbox's own does not go along: its ports. All that its spec says does.
func TestForkTakesItsSpecAlong(t *testing.T) {
	p := provider(t, local.Options{Dir: stateDir(t)})
	spec := sandbox.Spec{Labels: map[string]string{"team": "a"}, Env: map[string]string{"X": "y"}, User: "agent", Volumes: []sandbox.VolumeMount{{Volume: "v", Path: "/data"}}}
	in, err := p.Create(t.Context(), testKey, spec)
	must(t, err)
	_, err = in.(sandbox.PortKeeper).KeepPort(t.Context(), sandbox.NewPort(8080))
	must(t, err)
	wantRun(t, in, "agent", "echo shared > /data/f; echo own > ~/f", "")
	to := fork(t, in, forkKey)
	wantRun(t, to, "agent", "cat /data/f ~/f; echo back > /data/g", "shared\nown")
	wantRun(t, in, "agent", "cat /data/g", "back")
	for x, ports := range map[sandbox.Instance]int{in: 1, to: 0} {
		info, err := x.Info(t.Context())
		must(t, err)
		if len(info.Ports) != ports {
			t.Errorf("ports of %s = %v, want %d", info.Key.Session, info.Ports, ports)
		}
		if info.Spec.Labels["team"] != "a" || info.Spec.Env["X"] != "y" || len(info.Spec.Volumes) != 1 {
			t.Errorf("spec of %s = %+v", info.Key.Session, info.Spec)
		}
	}
	labels, err := p.PortLabels(t.Context())
	must(t, err)
	if len(labels) != 1 {
		t.Errorf("labels of ports = %q, want the source's alone", labels)
	}
}

// Killed anywhere, a fork leaves the source whole and can be repeated, and
// nothing is left of it in the end.
func TestServerKilledInAFork(t *testing.T) {
	created := []string{"create:prepared", "create:written", "create:exists", "create:exists+5ms", "create:launched"}
	for _, tt := range []struct {
		name, leave string
		stop        bool
		steps       []string
	}{
		{"quiet", "", false, append([]string{"seal:intended", "seal:intended+1ms", "seal:intended+3ms", "seal:halted", "seal:renamed", "seal:prepared", "seal:prepared+4ms", "seal:launched", "fork:shared",
			"seal:intended!", "seal:renamed!", "seal:prepared+4ms!", "seal:launched!", "create:exists+10ms!", "create:launched!"}, created...)},
		{"busy", "(setsid sleep 1000 >/dev/null 2>&1 &)", false, append([]string{"fork:copying", "fork:copying+2ms", "fork:shared", "fork:copying!", "fork:shared!", "create:launched!"}, created[1:3]...)},
		{"stopped", "", true, append([]string{"seal:intended", "seal:renamed", "fork:shared"}, created[2])},
	} {
		for _, step := range tt.steps {
			t.Run(tt.name+"_"+stepName(step), func(t *testing.T) {
				ctx := t.Context()
				dir := stateDir(t)
				now := time.Now()
				p := provider(t, local.Options{Dir: dir}.WithNow(func() time.Time { return now }))
				var w watched
				in, err := p.Create(ctx, testKey, sandbox.Spec{Ephemeral: ptr(strings.HasPrefix(step, "seal:") && !tt.stop && !strings.HasSuffix(step, "!"))})
				must(t, err)
				wantRun(t, in, "agent", "echo precious > ~/f; mkdir -p /workspace/a/b && ln ~/f ~/g;"+tt.leave, "")
				if tt.stop {
					must(t, in.Stop(ctx))
				}
				killReal(t, dir, "fork", step, sandbox.Spec{})
				w.note(t, dir)
				switch got := status(t, in); got {
				case sandbox.StatusRunning, sandbox.StatusStopping, sandbox.StatusStopped:
				default:
					t.Fatalf("status of the source after a kill at %s = %q", step, got)
				}
				must(t, in.Start(ctx))
				w.note(t, dir)
				const whole = "cat ~/f && test ~/f -ef ~/g && test -d /workspace/a/b"
				wantRun(t, in, "agent", whole, "precious")
				to, err := p.Lookup(ctx, forkKey)
				if errors.Is(err, sandbox.ErrNotFound) {
					must(t, do(ctx, in, "fork"))
					to, err = p.Lookup(ctx, forkKey)
				}
				must(t, err)
				must(t, to.Start(ctx))
				w.note(t, dir)
				wantRun(t, to, "agent", whole, "precious")
				must(t, in.Destroy(ctx))
				wantRun(t, to, "agent", whole, "precious")
				must(t, to.Destroy(ctx))
				now = now.Add(time.Hour)
				must(t, p.Sweep(ctx))
				w.gone(t, dir)
			})
		}
	}
}

// stepName makes a test's name of a step.
func stepName(step string) string {
	return strings.NewReplacer(":", "_", "!", "_everything").Replace(step)
}

// A monitor that is killed while its sandbox stands still, or server and monitor
// at once, leave the same.
func TestMonitorKilledInAFork(t *testing.T) {
	dir := stateDir(t)
	var kill func()
	p := provider(t, local.Options{Dir: dir}.WithStep(func(step string) error {
		if step == "fork:copying" || step == "seal:intended" {
			kill()
		}
		return nil
	}))
	in, err := p.Create(t.Context(), testKey, sandbox.Spec{})
	must(t, err)
	kill = func() {
		r, _, err := client.Alive(in.(*local.Instance).Dir())
		must(t, err)
		must(t, syscall.Kill(r.MonitorPID, syscall.SIGKILL))
	}
	// With nothing running, nothing is lost: it was to be restarted anyway.
	wantRun(t, in, "agent", "echo precious > ~/f", "")
	to := fork(t, in, sandbox.Key{Owner: "o", Session: "other"})
	for _, x := range []sandbox.Instance{in, to} {
		wantRun(t, x, "agent", "cat ~/f", "precious")
	}
	wantRun(t, in, "agent", "(setsid sleep 1000 >/dev/null 2>&1 &)", "")
	if err := do(t.Context(), in, "fork"); err == nil {
		t.Error("the fork of a sandbox whose monitor was killed meanwhile succeeded")
	}
	if _, err := p.Lookup(t.Context(), forkKey); !errors.Is(err, sandbox.ErrNotFound) {
		t.Errorf("a fork was made: %v", err)
	}
	must(t, in.Start(t.Context()))
	wantRun(t, in, "agent", "cat ~/f", "precious")
}

// Forks of forks stand on ever more layers, and start all the same.
func TestManyLayers(t *testing.T) {
	dir := stateDir(t)
	p := provider(t, local.Options{Dir: dir})
	in, err := p.Create(t.Context(), testKey, sandbox.Spec{})
	must(t, err)
	n := 300
	if os.Geteuid() != 0 {
		n = 20 // each takes two seconds to lay down there
	}
	must(t, local.StandOnLayers(in, n))
	must(t, in.Start(t.Context()))
	wantRun(t, in, "agent", fmt.Sprintf("cat ~/f1 ~/f%d ~/same | tr '\\n' ' '; ls ~ | wc -l", n), fmt.Sprintf("1 %d %d %d", n, n, n+1))
	wantRun(t, in, "agent", "rm ~/f7; echo x > ~/f8", "")
	to := fork(t, in, forkKey)
	wantRun(t, to, "agent", fmt.Sprintf("test ! -e ~/f7 && cat ~/f8 ~/f%d", n), fmt.Sprintf("x\n%d", n))
	_, err = to.(sandbox.Snapshotter).Snapshot(t.Context(), "deep")
	must(t, err)
	must(t, in.Destroy(t.Context()))
	must(t, to.Destroy(t.Context()))
	of, err := p.Create(t.Context(), testKey, sandbox.Spec{Snapshot: "deep"})
	must(t, err)
	wantRun(t, of, "agent", fmt.Sprintf("test ! -e ~/f7 && cat ~/f1 ~/f8 ~/f%d", n), fmt.Sprintf("1\nx\n%d", n))
}

// Snapshots of sandboxes of snapshots are made one layer of, before there are
// too many.
func TestSnapshotsOfSnapshots(t *testing.T) {
	defer local.MostLayers(4)()
	p := provider(t, local.Options{Dir: stateDir(t)})
	in, err := p.Create(t.Context(), testKey, sandbox.Spec{})
	must(t, err)
	wantRun(t, in, "root", rootFiles, "")
	wantRun(t, in, "agent", makeFiles, "")
	want, _ := run(t, in, "agent", showFiles)
	wantRun(t, in, "agent", "mkdir -p ~/d/e; echo .wh >~/.wh.x; touch ~/d/e/gone", "")
	n := 12
	if os.Geteuid() != 0 {
		n = 6
	}
	for i := range n {
		name := fmt.Sprintf("s%d", i)
		_, err := in.(sandbox.Snapshotter).Snapshot(t.Context(), name)
		must(t, err)
		must(t, in.Destroy(t.Context()))
		if in, err = p.Create(t.Context(), testKey, sandbox.Spec{Snapshot: name}); err != nil {
			t.Fatal(err)
		}
		if got, err := local.SealedLayers(in); err != nil || got > 4 {
			t.Errorf("snapshot %d stands on %d layers, %v; at most 4 were allowed", i, got, err)
		}
		wantRun(t, in, "agent", fmt.Sprintf("rm -rf ~/d; mkdir -p ~/d/e; echo %d > ~/d/e/n; ls -A ~/d/e; test ! -e /tmp/x%d; rm -f /tmp/x*; touch /tmp/x%d", i, i, i+1), "n")
	}
	wantRun(t, in, "agent", "rm -r ~/d; ls /tmp; cat ~/.wh.x", fmt.Sprintf("t\nx%d\n.wh", n))
	wantRun(t, in, "agent", "rm ~/.wh.x", "")
	if got, _ := run(t, in, "agent", showFiles); got != want {
		t.Errorf("files after %d generations:\n%s\nwant:\n%s", n, got, want)
	}
}

// A sandbox that is forked again and again stands on a layer more each time,
// and so does each fork of a fork; those on too many get copies.
func TestForkedAgainAndAgain(t *testing.T) {
	n, most := 300, 290
	if os.Geteuid() != 0 || testing.Short() {
		n, most = 12, 9
	}
	defer local.MostLayers(most)()
	p := provider(t, local.Options{Dir: stateDir(t)})
	in, err := p.Create(t.Context(), testKey, sandbox.Spec{})
	must(t, err)
	for i := 1; i <= n; i++ {
		wantRun(t, in, "agent", fmt.Sprintf("echo %d > ~/same; echo %d > ~/f%d", i, i, i), "")
		to := fork(t, in, sandbox.Key{Owner: "o", Session: sandbox.SessionID(fmt.Sprintf("f%d", i))})
		// Now the one goes on, now the other.
		if i%2 == 0 {
			in, to = to, in
		}
		if i%50 == 0 || i > n-3 {
			wantRun(t, to, "agent", fmt.Sprintf("cat ~/f1 ~/same; ls ~ | wc -l; echo mine > ~/same; rm ~/f%d", i), fmt.Sprintf("1\n%d\n%d", i, i+1))
		}
		must(t, to.Destroy(t.Context()))
	}
	wantRun(t, in, "agent", fmt.Sprintf("cat ~/f1 ~/f%d ~/same; ls ~ | wc -l", n), fmt.Sprintf("1\n%d\n%d\n%d", n, n, n+1))
	must(t, in.Stop(t.Context()))
	must(t, in.Start(t.Context()))
	wantRun(t, in, "agent", "cat ~/same", fmt.Sprint(n))
}
