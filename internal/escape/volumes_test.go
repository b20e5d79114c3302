//go:build linux

package escape_test

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"berth/internal/escape"
	"berth/sandbox"
	"berth/sandbox/local"
)

// TestSubpathRaces attaches a part of a volume, again and again, while code in
// another sandbox makes that part a link that leads out, and back. Each time it is
// the part or a refusal; nothing is seen, and nothing made, elsewhere.
func TestSubpathRaces(t *testing.T) {
	eachMode(t, func(t *testing.T, o local.Options) {
		w := newWorld(t)
		if o.Dir == "" {
			o.Dir = filepath.Join(shared.dir, "races")
		}
		m := newManager(t, o)
		volume := func(path, sub string) sandbox.Spec {
			return sandbox.Spec{Volumes: []sandbox.VolumeMount{{Volume: "raced", Path: path, Subpath: sub}}}
		}
		swapper := newBoxOf(t, m, volume("/vol", ""))
		if out, r := swapper.run(t, "root", "sh", "-c", "mkdir -m 777 /vol/race && mkdir -m 777 /vol/race/x && echo within > /vol/race/x/marker && cp /vol/race/x/marker /vol/race/"); *r.Process.ExitCode != 0 {
			t.Fatal(out)
		}
		// Up to the volumes' directory, to the root of the host, to a file's parent.
		host := filepath.Dir(w.Files[0])
		swapper.spawn(t, "agent", "swapping", attackerPath, "tool", "swappart", "/vol/race", "x", "../..", "/", "../../../../../../../..", host, "/proc/self/root", "/etc")
		before := entries(t, filepath.Join(o.Dir, "volumes"))
		attached, refused := 0, 0
		rounds := 24
		if testing.Short() {
			rounds = 6
		}
		for i := range rounds {
			// A part that is there, and one that is to be made in it.
			sub := []string{"race/x", "race/x/made/deep", "race/x-link", "race/x/.."}[i%4]
			key := sandbox.Key{Owner: sandbox.LocalOwner, Session: sandbox.NewSessionID()}
			_, err := m.StartSandbox(t.Context(), key, volume("/part", sub))
			if err != nil {
				var fe *sandbox.FieldError
				var ue *sandbox.UserError
				if !errors.As(err, &fe) && !errors.As(err, &ue) {
					t.Errorf("start with %s: %v, want a refusal in a sentence", sub, err)
				}
				refused++
			} else {
				attached++
				b := &box{m: m, key: key, ids: swapper.ids}
				out, _ := b.run(t, "root", "sh", "-c", "ls -A /part; cat /part/marker")
				for line := range strings.Lines(out) {
					switch line = strings.TrimSpace(line); line {
					case "marker", "within", "deep", "made", "cat: /part/marker: No such file or directory":
					default:
						t.Errorf("the part %s shows %q", sub, out)
					}
				}
			}
			_, err = m.DestroySandbox(t.Context(), key)
			must(t, err)
		}
		t.Logf("%d attached, %d refused", attached, refused)
		if attached == 0 || refused == 0 {
			t.Error("the race was not met: everything or nothing was refused")
		}
		if after := entries(t, filepath.Join(o.Dir, "volumes")); after != before {
			t.Errorf("beside the volume: %s, was %s", after, before)
		}
		for _, dir := range []string{host, "/etc", "/"} {
			for _, name := range []string{"made", "deep"} {
				if _, err := os.Lstat(filepath.Join(dir, name)); err == nil {
					t.Errorf("%s was made in %s", name, dir)
				}
			}
		}
		w.check(t)
		swapper.alive(t)
	})
}

// entries of a directory and of the directories in it.
func entries(t *testing.T, dir string) string {
	t.Helper()
	var all []string
	must(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(dir, path)
		all = append(all, rel)
		if d.IsDir() && strings.Count(rel, "/") >= 1 {
			return filepath.SkipDir
		}
		return nil
	}))
	if len(all) < 2 {
		t.Fatalf("%s is empty", dir)
	}
	return strings.Join(all, " ")
}

// TestOwnersByName reaches for what another owner has, under every name that
// could lead there.
func TestOwnersByName(t *testing.T) {
	m := newManager(t, local.Options{Dir: filepath.Join(shared.dir, "owners")})
	ctx := t.Context()
	one := sandbox.Key{Owner: "one", Session: "s"}
	_, err := m.StartSandbox(ctx, one, sandbox.Spec{Volumes: []sandbox.VolumeMount{{Volume: "data", Path: "/data"}}})
	must(t, err)
	t.Cleanup(func() { destroyed(t, m, one) })
	say := func(key sandbox.Key, command string) string {
		r, err := m.ExecuteCommand(ctx, key, sandbox.RunRequest{Command: command, Cwd: "/"})
		must(t, err)
		return r.Stdout.Head
	}
	say(one, "echo "+escape.Canary+" | tee /data/secret > ~/secret; chmod 644 /data/secret")
	_, err = m.CreateSnapshot(ctx, one, sandbox.SnapshotRequest{Name: "snap"})
	must(t, err)
	t.Cleanup(func() { must(t, m.DeleteSnapshot(context.Background(), "one", "snap")) })

	for i, owner := range []sandbox.Owner{"two", "On", "ones", "one2"} {
		two := sandbox.Key{Owner: owner, Session: "s"}
		_, err := m.StartSandbox(ctx, two, sandbox.Spec{Volumes: []sandbox.VolumeMount{{Volume: "data", Path: "/data"}}})
		must(t, err)
		t.Cleanup(func() { destroyed(t, m, two) })
		if out := say(two, "ls -A /data; cat /data/* ~/secret 2>/dev/null; true"); out != "" {
			t.Errorf("owner %s finds in a volume of the same name: %q", owner, out)
		}
		if i > 0 {
			continue
		}
		for _, name := range []string{"../one/data", "one/data", "../data", "..", ".", "data/", "/data", "data\x00", "DATA", "data/../../one/data", "%2e%2e", "one:data"} {
			key := sandbox.Key{Owner: owner, Session: "tricks"}
			if _, err := m.StartSandbox(ctx, key, sandbox.Spec{Volumes: []sandbox.VolumeMount{{Volume: name, Path: "/data"}}}); err == nil || !strings.Contains(err.Error(), "volume") {
				t.Errorf("a volume named %q: %v", name, err)
			}
			if err := m.DeleteVolume(ctx, owner, name); err == nil {
				t.Errorf("deleted a volume named %q", name)
			}
			for _, sub := range []string{name, "../one/data"} {
				if name == "." || name == "data/" || name == "DATA" || name == "%2e%2e" || name == "one:data" || name == "one/data" {
					continue // names of directories like any other
				}
				if _, err := m.StartSandbox(ctx, key, sandbox.Spec{Volumes: []sandbox.VolumeMount{{Volume: "data", Path: "/data", Subpath: sub}}}); err == nil {
					t.Errorf("attached the part %q", sub)
				}
			}
		}
		for _, name := range []string{"snap", "../one/snap", "one/snap", "..", "/snap", "SNAP/../snap", "snap\x00"} {
			key := sandbox.Key{Owner: owner, Session: "tricks"}
			if _, err := m.StartSandbox(ctx, key, sandbox.Spec{Snapshot: name}); err == nil || !strings.Contains(err.Error(), "snapshot") {
				t.Errorf("a snapshot named %q: %v", name, err)
			}
			if err := m.DeleteSnapshot(ctx, owner, name); err == nil {
				t.Errorf("deleted a snapshot named %q", name)
			}
		}
		for _, session := range []sandbox.SessionID{"../one/s", "one/s", "..", "s/../../one/s"} {
			if _, err := m.ForkSandbox(ctx, sandbox.Key{Owner: owner, Session: session}, sandbox.ForkRequest{}); err == nil {
				t.Errorf("forked the session %q", session)
			}
			// The tools refuse such ids; to the Manager they are names like any other.
			key := sandbox.Key{Owner: owner, Session: session}
			if out := say(key, "ls -A ~/secret /data 2>/dev/null; true"); out != "" {
				t.Errorf("the session %q shows %q", session, out)
			}
			destroyed(t, m, key)
		}
	}
	if out := say(one, "cat /data/secret ~/secret"); out != escape.Canary+"\n"+escape.Canary+"\n" {
		t.Errorf("the first owner now reads %q", out)
	}
}

func destroyed(t *testing.T, m *sandbox.Manager, key sandbox.Key) {
	t.Helper()
	_, err := m.DestroySandbox(context.Background(), key)
	must(t, err)
}
