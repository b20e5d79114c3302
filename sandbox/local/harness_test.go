//go:build linux

package local_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"berth/sandbox"
	"berth/sandbox/local"
	"berth/sandbox/local/box/entry"
	"berth/sandbox/local/client"
)

func TestMain(m *testing.M) {
	entry.Main(os.Args)
	if op := os.Getenv("BERTH_TEST_OPERATION"); op != "" {
		os.Exit(operate(op))
	}
	dir, err := os.MkdirTemp("", "berth-base-")
	if err != nil {
		panic(err)
	}
	sharedBase = dir
	code := m.Run()
	local.RemoveBases(dir)
	os.Exit(code)
}

var testKey = sandbox.Key{Owner: "o", Session: "s"}

func fake(t *testing.T, dir string) *local.Provider {
	t.Helper()
	return provider(t, local.Options{Dir: dir}.WithFakeEngine())
}

func provider(t *testing.T, o local.Options) *local.Provider {
	t.Helper()
	p, err := local.New(o)
	must(t, err)
	t.Cleanup(func() {
		destroyAll(t, p)
		if _, err := os.Stat(filepath.Join(o.Dir, "sealed")); err == nil {
			local.RemoveBases(filepath.Join(o.Dir, "sealed")) // the sweeper lets them be for a while
		}
		must(t, p.Close())
	})
	return p
}

func destroyAll(t *testing.T, p sandbox.Provider) {
	t.Helper()
	ctx := context.Background()
	list, err := p.List(ctx, "")
	must(t, err)
	for _, i := range list {
		in, err := p.Lookup(ctx, i.Key)
		if err == nil {
			err = in.Destroy(ctx)
		}
		if err != nil {
			t.Errorf("clean up %v: %v", i.Key, err)
		}
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// stateDir is a state directory that shares the layers of the default root with
// all other tests: they take a second to build.
func stateDir(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "state")
	must(t, os.Mkdir(dir, 0o700))
	must(t, os.Symlink(sharedBase, filepath.Join(dir, "base")))
	return dir
}

var sharedBase string

func status(t *testing.T, in sandbox.Instance) sandbox.Status {
	t.Helper()
	i, err := in.Info(t.Context())
	must(t, err)
	return i.Status
}

func ptr[T any](v T) *T { return &v }

// operate runs in a process of its own: one operation on the state directory of
// BERTH_TEST_DIR, killing itself with SIGKILL at the step BERTH_TEST_STEP, or
// some time later ("create:exists+5ms"). With "!" at its end, all monitors and
// all that runs inside is killed before.
func operate(op string) int {
	ctx := context.Background()
	if host := os.Getenv("BERTH_TEST_HOST"); host != "" {
		local.ShowOnly(host)
	}
	step, everything := strings.CutSuffix(os.Getenv("BERTH_TEST_STEP"), "!")
	die := func() {
		if everything {
			killMonitors(os.Getenv("BERTH_TEST_DIR"))
		}
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	}
	at, later, _ := strings.Cut(step, "+")
	o := local.Options{Dir: os.Getenv("BERTH_TEST_DIR")}.WithStep(func(step string) error {
		if step != at {
			return nil
		}
		if wait, err := time.ParseDuration(later); err == nil {
			time.AfterFunc(wait, die)
			return nil
		}
		die()
		select {}
	})
	if os.Getenv("BERTH_TEST_ENGINE") != "real" {
		o = o.WithFakeEngine()
	}
	p, err := local.New(o)
	if err != nil {
		fmt.Println(err)
		return 1
	}
	if op == "create" {
		spec := sandbox.Spec{}
		if os.Getenv("BERTH_TEST_DISK") != "" {
			spec = diskSpec
		}
		_, err := p.Create(ctx, testKey, spec)
		if errors.Is(err, sandbox.ErrExists) {
			return 17
		}
		if err != nil {
			fmt.Println(err)
			return 1
		}
		return 0
	}
	if op == "build" {
		b := killedBuild()
		if os.Getenv("BERTH_TEST_DISK") != "" {
			_, err = p.BuildSnapshot(ctx, testKey.Owner, "built", b, diskSpec.WithDefaults(sandbox.Spec{}))
		} else {
			_, err = p.BuildSnapshot(ctx, testKey.Owner, "built", b, sandbox.Spec{}.WithDefaults(sandbox.Spec{}))
		}
		if err != nil {
			fmt.Println(err)
			return 1
		}
		return 0
	}
	switch op {
	case "import":
		_, err = p.ImportSnapshot(ctx, testKey.Owner, "moved", os.Getenv("BERTH_TEST_FILE"))
	case "export":
		_, err = p.ExportSnapshot(ctx, testKey.Owner, "moved", sandbox.ExportOptions{To: os.Getenv("BERTH_TEST_FILE")})
	}
	if op == "import" || op == "export" {
		if err != nil {
			fmt.Println(err)
			return 1
		}
		return 0
	}
	if op == "sweep" {
		if err := p.Sweep(ctx); err != nil {
			fmt.Println(err)
			return 1
		}
		return 0
	}
	in, err := p.Lookup(ctx, testKey)
	if err == nil {
		err = do(ctx, in, op)
	}
	if err != nil {
		fmt.Println(err)
		return 1
	}
	return 0
}

// killMonitors ends all monitors of a state directory, and all inits, at once.
func killMonitors(dir string) {
	entries, _ := os.ReadDir(filepath.Join(dir, "sandboxes"))
	for _, e := range entries {
		if r, _, err := client.Alive(filepath.Join(dir, "sandboxes", e.Name())); err == nil && r != nil {
			for _, pid := range []int{r.MonitorPID, r.Ready.InitPID} {
				if pid > 1 {
					_ = syscall.Kill(pid, syscall.SIGKILL)
				}
			}
		}
	}
}

func do(ctx context.Context, in sandbox.Instance, op string) error {
	switch op {
	case "start":
		return in.Start(ctx)
	case "stop":
		return in.Stop(ctx)
	case "destroy":
		return in.Destroy(ctx)
	case "archive":
		return in.(sandbox.Archiver).Archive(ctx)
	case "fork":
		info, err := in.Info(ctx)
		if err == nil {
			_, err = in.(sandbox.Forker).Fork(ctx, forkKey, info.Spec)
		}
		return err
	case "snapshot":
		_, err := in.(sandbox.Snapshotter).Snapshot(ctx, "kept")
		return err
	case "retire":
		_, err := in.(sandbox.Retirer).Retire(ctx, "test")
		return err
	}
	return errors.New("unknown operation " + op)
}

// operation starts operate in a new process.
func operation(t *testing.T, dir, op, step string) *exec.Cmd {
	t.Helper()
	exe, err := os.Executable()
	must(t, err)
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), "BERTH_TEST_OPERATION="+op, "BERTH_TEST_DIR="+dir, "BERTH_TEST_STEP="+step)
	return cmd
}

// kill runs op in a process that dies at step.
func kill(t *testing.T, dir, op, step string) {
	t.Helper()
	out, err := operation(t, dir, op, step).CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || !exit.Sys().(syscall.WaitStatus).Signaled() {
		t.Fatalf("%s was not killed at %s: %v, %s", op, step, err, out)
	}
}

// put writes a file where the sandbox would have written it.
func put(t *testing.T, in sandbox.Instance, text string) {
	t.Helper()
	dir := filepath.Join(in.(*local.Instance).Dir(), "layers/root/upper/home")
	must(t, os.MkdirAll(dir, 0o755))
	must(t, os.WriteFile(filepath.Join(dir, "file"), []byte(text), 0o640))
}

func get(t *testing.T, in sandbox.Instance) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(in.(*local.Instance).Dir(), "layers/root/upper/home/file"))
	must(t, err)
	return string(b)
}

// Killed at any step, the sandbox is found in a state that its contract knows,
// the same operation can be repeated, and its files are intact.
func contains(list []sandbox.Status, s sandbox.Status) bool {
	for _, x := range list {
		if x == s {
			return true
		}
	}
	return false
}

// nothingLeft checks that of destroyed sandboxes only tombstones remain.
func nothingLeft(t *testing.T, dir string) {
	t.Helper()
	for _, d := range []string{"sandboxes", "locks", "ids", "tmp", "trash", "retired", "sealed", "snapshots"} {
		entries, err := os.ReadDir(filepath.Join(dir, d))
		must(t, err)
		for _, e := range entries {
			if d == "locks" && e.Name() == "ids" {
				continue
			}
			t.Errorf("left behind: %s/%s", d, e.Name())
		}
	}
}

func descriptors(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	return len(entries)
}
