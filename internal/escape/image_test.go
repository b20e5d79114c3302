//go:build linux

package escape_test

import (
	"archive/tar"
	"bytes"
	"context"
	"debug/elf"
	"io"
	"io/fs"
	"log"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"golang.org/x/sys/unix"

	"berth/sandbox"
	"berth/sandbox/local"
	"berth/sandbox/local/boxbin"
)

// capabilities of a file that give whoever runs it everything.
const capabilities = "\x01\x00\x00\x02\xff\xff\xff\xff\x00\x00\x00\x00\xff\xff\x00\x00\x00\x00\x00\x00"

// hostileImage is an image of the attacker, who is also its few commands; with
// set-user-id files, capabilities, devices and overlay's notes. It is pushed to a
// registry of the test's own, and named.
func hostileImage(t *testing.T) string {
	t.Helper()
	program, err := os.ReadFile(build(t, attackerPackage))
	must(t, err)
	notes := map[string]string{}
	for _, n := range []string{"redirect", "opaque", "metacopy", "origin"} {
		notes["SCHILY.xattr.trusted.overlay."+n], notes["SCHILY.xattr.user.overlay."+n] = "/etc", "/etc"
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	type file struct {
		tar.Header
		body string
	}
	files := []file{
		{tar.Header{Name: "bin/cat", Mode: 0o755}, string(program)},
		{tar.Header{Name: "bin/echo", Typeflag: tar.TypeLink, Linkname: "bin/cat"}, ""},
		{tar.Header{Name: "bin/id", Typeflag: tar.TypeSymlink, Linkname: "cat"}, ""},
		{tar.Header{Name: "bin/setuid", Mode: 0o6755}, string(program)},
		{tar.Header{Name: "bin/capable", Mode: 0o755, PAXRecords: map[string]string{"SCHILY.xattr.security.capability": capabilities}}, string(program)},
		{tar.Header{Name: "dev/mem", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 1, Mode: 0o666}, ""},
		{tar.Header{Name: "disk", Typeflag: tar.TypeBlock, Devmajor: 8, Mode: 0o666}, ""},
		{tar.Header{Name: "noted/", Typeflag: tar.TypeDir, Mode: 0o755, PAXRecords: notes}, ""},
		{tar.Header{Name: "noted/file", Mode: 0o644, PAXRecords: notes}, "of the image"},
		{tar.Header{Name: "etc/passwd", Mode: 0o644}, "root:x:0:0:root:/root:/bin/cat\nagent:x:1000:1000::/home/agent:/bin/cat\n"},
		{tar.Header{Name: "etc/group", Mode: 0o644}, "root:x:0:\nagent:x:1000:\n"},
		{tar.Header{Name: "link-out", Typeflag: tar.TypeSymlink, Linkname: "../../../../../../etc/shadow"}, ""},
		{tar.Header{Name: "tmp/", Typeflag: tar.TypeDir, Mode: 0o1777}, ""},
		{tar.Header{Name: "var/tmp/", Typeflag: tar.TypeDir, Mode: 0o1777}, ""},
	}
	for _, name := range libraries(t) {
		lib, err := os.ReadFile(name)
		must(t, err)
		files = append(files, file{tar.Header{Name: strings.TrimPrefix(name, "/"), Mode: 0o755}, string(lib)})
	}
	for _, f := range files {
		f.Format, f.Size = tar.FormatPAX, int64(len(f.body))
		must(t, w.WriteHeader(&f.Header))
		_, err := io.WriteString(w, f.body)
		must(t, err)
	}
	must(t, w.Close())
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b.Bytes())), nil })
	must(t, err)
	im, err := mutate.AppendLayers(empty.Image, layer)
	must(t, err)
	cf, err := im.ConfigFile()
	must(t, err)
	cf = cf.DeepCopy()
	cf.OS, cf.Architecture, cf.Config = "linux", runtime.GOARCH, v1.Config{User: "agent", Env: []string{"PATH=/usr/bin:/bin", "HOME=/home/agent"}}
	im, err = mutate.ConfigFile(im, cf)
	must(t, err)
	s := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	t.Cleanup(s.Close)
	ref, err := name.ParseReference(strings.TrimPrefix(s.URL, "http://") + "/hostile/image")
	must(t, err)
	must(t, remote.Write(ref, im))
	return ref.String()
}

// libraries are the files that this test program needs to start where it stands as
// sudo, in an image without a C library: none when it is linked statically, or when
// the helper program, which is, is embedded.
func libraries(t *testing.T) (names []string) {
	t.Helper()
	if boxbin.Open(runtime.GOARCH) != nil {
		return nil
	}
	exe, err := os.Executable()
	must(t, err)
	self, err := elf.Open(exe)
	must(t, err)
	defer self.Close()
	if !slices.ContainsFunc(self.Progs, func(p *elf.Prog) bool { return p.Type == elf.PT_INTERP }) {
		return nil
	}
	out, err := exec.Command("ldd", exe).Output()
	must(t, err)
	for word := range strings.FieldsSeq(string(out)) {
		if filepath.IsAbs(word) {
			names = append(names, word)
		}
	}
	return names
}

// laid are the fingerprints of all files below dir.
func laid(t *testing.T, dir string) map[string]string {
	t.Helper()
	all := map[string]string{}
	must(t, filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err == nil {
			all[path] = fingerprint(path)
		}
		return err
	}))
	return all
}

// openFolder is a host folder that is shown to be written.
func openFolder(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if os.Geteuid() == 0 {
		must(t, os.Chown(dir, 12345, 12345))
	}
	return dir
}

// TestProbesInAnImage runs every probe in a sandbox of a hostile image, with
// volumes that another sandbox has filled with traps; with host folders, and for
// an ordinary user without, since they mean a single id; and in a fork of it.
func TestProbesInAnImage(t *testing.T) {
	variants := []string{"folders"}
	if os.Geteuid() != 0 {
		variants = append(variants, "volumes")
	}
	for _, variant := range variants {
		t.Run(variant, func(t *testing.T) {
			w := newWorld(t)
			ref := hostileImage(t)
			state, err := os.MkdirTemp(shared.dir, "image-"+variant) //nolint:usetesting // TestMain removes what has other owners
			must(t, err)
			o := local.Options{Dir: state, Images: local.ImageOptions{Private: []string{"*"}}}
			w.ReadOnly, w.Writable = []string{"/filled", "/part-ro"}, []string{"/vol", "/part"}
			open := ""
			if variant == "folders" {
				shown := folder(t)
				open = openFolder(t)
				for _, f := range []string{"", "marker", "victim"} {
					w.before[filepath.Join(shown, f)] = fingerprint(filepath.Join(shown, f))
				}
				o.HostDirs = []sandbox.HostDir{{Host: shown, Path: "/shown", ReadOnly: true}, {Host: open, Path: "/open"}}
				w.ReadOnly, w.Writable = append(w.ReadOnly, "/shown"), append(w.Writable, "/open")
			}
			w.Whole, w.Part = "/vol", "/part"
			w.Planted = []string{"/bin/setuid", "/bin/capable", "/vol/setuid", "/vol/capable", "/filled/setuid", "/filled/capable"}
			m := newManager(t, o)
			vol := func(name, path string) sandbox.VolumeMount { return sandbox.VolumeMount{Volume: name, Path: path} }

			planter := newBoxOf(t, m, sandbox.Spec{Image: ref, Volumes: []sandbox.VolumeMount{vol("shared", "/a"), vol("filled", "/b")}})
			if out, _ := planter.run(t, "root", attackerPath, "tool", "seed", "/a", "/b"); !strings.Contains(out, "seeded") {
				t.Fatal(out)
			}
			layers := laid(t, filepath.Join(o.Dir, "images", "layers"))

			part, partRO := vol("shared", "/part"), vol("shared", "/part-ro")
			part.Subpath, partRO.Subpath, partRO.ReadOnly = "part", "part", true
			filled := vol("filled", "/filled")
			filled.ReadOnly = true
			b := newBoxOf(t, m, sandbox.Spec{Image: ref, Volumes: []sandbox.VolumeMount{vol("shared", "/vol"), part, partRO, filled}})
			t.Logf("user ids are mapped as %s", b.ids)
			w.Sockets = append(w.Sockets, stateSockets(t)...)
			impossible := map[string]bool{"own_setuid_file": b.ids == "single"}
			b.attack(t, w, impossible)

			// What overlay notes down is read when it is mounted: the next start shows
			// whether a planted note counts.
			_, err = m.StopSandbox(t.Context(), b.key, false)
			must(t, err)
			if out, _ := b.run(t, "root", "cat", "/noted/file"); out != "of the image" {
				t.Errorf("a file of the image reads %q after a new start", out)
			}
			f, err := m.ForkSandbox(t.Context(), b.key, sandbox.ForkRequest{})
			must(t, err)
			fork := &box{m: m, key: f.Info.Key, ids: b.ids}
			t.Cleanup(func() {
				_, err := m.DestroySandbox(context.Background(), fork.key) // the test's own is over
				must(t, err)
			})
			t.Run("fork", func(t *testing.T) { fork.attack(t, w, impossible) })

			// All of it is shared; none of it has changed, whatever was written inside.
			out, _ := b.run(t, "root", attackerPath, "tool", "ruin", "/bin/cat", "/bin/setuid", "/noted/file", "/etc/passwd")
			if !strings.Contains(out, "replace") {
				t.Errorf("nothing was ruined, so nothing is shown: %s", out)
			}
			after := laid(t, filepath.Join(o.Dir, "images", "layers"))
			if len(layers) < 15 || len(after) != len(layers) {
				t.Errorf("%d files of layers, were %d", len(after), len(layers))
			}
			for path, before := range layers {
				if after[path] != before && !strings.HasSuffix(path, "/layer.json") {
					t.Errorf("%s changed:\nbefore %s\nafter  %s", path, before, after[path])
				}
			}
			if out, _ := planter.run(t, "agent", "/bin/cat", "/noted/file"); out != "of the image" {
				t.Errorf("another sandbox of the image reads %q", out)
			}
			if open != "" {
				for _, user := range []string{"agent", "root"} {
					_, _ = b.run(t, user, attackerPath, "tool", "seed", "/open/by-"+user)
				}
				ownersOnly(t, open)
			}
			w.check(t)
			planter.alive(t)
			outOfReach(t, o.Dir)
		})
	}
}

// attack runs every probe as the user, as root, and as root through sudo.
func (b *box) attack(t *testing.T, w *world, impossible map[string]bool) {
	t.Helper()
	outside := b.tell(t, w.Outside)
	for _, as := range []struct {
		name, user, rights string
		argv               []string
	}{
		{"agent", "agent", "agent", []string{attackerPath, "run", "agent", outside}},
		{"root", "root", "root", []string{attackerPath, "run", "root", outside}},
		{"sudo", "agent", "root", []string{"sudo", attackerPath, "run", "root", outside}},
	} {
		t.Run(as.name, func(t *testing.T) {
			out, r := b.run(t, as.user, as.argv...)
			if r.Process.ExitCode == nil || *r.Process.ExitCode != 0 {
				t.Errorf("the attacker ended with %+v", r.Process)
			}
			judge(t, names(t, as.rights), out, impossible)
			w.check(t)
			b.alive(t)
		})
	}
}

// ownersOnly checks that all that was made inside, in a host folder shown to be
// written, belongs to the folder's owner: nobody inside makes files of others, of
// root above all.
func ownersOnly(t *testing.T, dir string) {
	t.Helper()
	var owner, st unix.Stat_t
	must(t, unix.Lstat(dir, &owner))
	made := 0
	must(t, filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		must(t, unix.Lstat(path, &st))
		made++
		if st.Uid != owner.Uid || st.Gid != owner.Gid {
			t.Errorf("%s belongs to %d:%d, want the folder's %d:%d", path, st.Uid, st.Gid, owner.Uid, owner.Gid)
		}
		if kind := st.Mode & unix.S_IFMT; kind == unix.S_IFBLK || kind == unix.S_IFCHR && st.Rdev != 0 {
			t.Errorf("%s is a device", path)
		}
		return nil
	}))
	if made < 5 {
		t.Errorf("only %d files were made in the folder, so nothing is shown", made)
	}
}

// outOfReach finds what was planted with rights below the state directory dir:
// it is there, and nobody on the machine but its owner can get to it.
func outOfReach(t *testing.T, dir string) {
	t.Helper()
	planted := 0
	_ = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil {
			return nil //nolint:nilerr // of another id of ours
		}
		if fi, err := d.Info(); err == nil && fi.Mode()&os.ModeSetuid != 0 {
			planted++
		}
		return nil
	})
	if planted == 0 {
		t.Error("no planted program was found in the state directory, so nothing is shown")
	}
	var st unix.Stat_t
	must(t, unix.Stat(dir, &st))
	if st.Mode&0o777 != 0o700 || int(st.Uid) != os.Geteuid() {
		t.Errorf("the state directory has the mode %o and belongs to %d", st.Mode&0o777, st.Uid)
	}
}
