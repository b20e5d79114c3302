//go:build linux

package local_test

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/validate"

	"berth/sandbox"
	"berth/sandbox/local"
	"berth/sandbox/local/isolate/rootfs"
	"berth/sandbox/local/wire"
)

// shown lists all that a sandbox of a snapshot sees.
func shown(t *testing.T, p *local.Provider, name string) []string {
	t.Helper()
	var b bytes.Buffer
	must(t, p.SnapshotTree(t.Context(), &b, testKey.Owner, name))
	var list []string
	for r := tar.NewReader(&b); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		must(t, err)
		sum := sha256.New()
		_, err = io.Copy(sum, r)
		must(t, err)
		var attrs []string
		for k, v := range h.PAXRecords {
			if strings.HasPrefix(k, "SCHILY.xattr.") {
				attrs = append(attrs, fmt.Sprintf("%s=%q", k, v))
			}
		}
		slices.Sort(attrs)
		list = append(list, fmt.Sprintf("%q %c %q %o %d:%d %d bytes %x at %s %q", h.Name, h.Typeflag, h.Linkname, h.Mode, h.Uid, h.Gid, h.Size, sum.Sum(nil)[:6], h.ModTime.UTC(), attrs))
	}
	return list
}

// changeFiles are commands for a sandbox of changedImage.
const changeFiles = `cd /srv && (umask 027; echo new >new) && touch -d '2001-02-03 04:05:06.789' new && rm gone dir/a && rm -r dir2 other && mkdir other && echo x >other/x && echo y >dir/y &&
 echo changed >>kept && mkdir -m 700 closed && echo in >closed/in && echo odd >"$(printf 'odd\n\303\244 name')" && echo later >again && echo w >.wh.file`

func changedImage(t *testing.T) v1.Image {
	return imageOf(t, v1.Config{User: "app", WorkingDir: "/srv", Env: []string{"PATH=/bin", "GREETING=hello"}},
		layerOf(t, systemFiles(t)...),
		layerOf(t, file{name: "srv/", kind: tar.TypeDir, uid: 7}, file{name: "srv/gone", body: "1", uid: 7}, file{name: "srv/kept", body: "kept", uid: 7}, file{name: "srv/dir/", kind: tar.TypeDir, uid: 7},
			file{name: "srv/dir/a", body: "a", uid: 7}, file{name: "srv/dir/b", body: "b", uid: 7}, file{name: "srv/dir/c", link: "srv/dir/b", kind: tar.TypeLink}, file{name: "srv/dir2/", kind: tar.TypeDir, uid: 7},
			file{name: "srv/dir2/d", body: "d", uid: 7}, file{name: "srv/other/", kind: tar.TypeDir, uid: 7}, file{name: "srv/other/o", body: "o", uid: 9}),
		layerOf(t, file{name: "srv/", kind: tar.TypeDir, uid: 7}, file{name: "srv/dir2/", kind: tar.TypeDir, uid: 7}, file{name: "srv/dir2/.wh..wh..opq"}, file{name: "srv/dir2/e", body: "e", uid: 7}, file{name: "srv/suid", mode: 0o4711}, file{name: "etc/.wh.nothing"}))
}

// What is exported and imported elsewhere is the same to the last attribute,
// and others read it as an image.
func TestSnapshotRoundTrip(t *testing.T) {
	ctx := t.Context()
	p := withImages(t)
	in, err := p.Create(ctx, testKey, sandbox.Spec{Image: push(t, changedImage(t), "team/app:1")})
	must(t, err)
	ids, err := in.(*local.Instance).IDs()
	must(t, err)
	suid := "4711 0 0"
	if ids.Mode == wire.IDsSingle {
		suid = "4711 7 0" // one id is everybody
	}
	wantRun(t, in, "", changeFiles, "")
	// In two layers, and in two places of one.
	_, err = in.(sandbox.Snapshotter).Snapshot(ctx, "before")
	must(t, err)
	wantRun(t, in, "", "cd /srv && rm again && mkdir again && echo z >again/z && rm -r other && echo 2 >>new && touch -d '2001-02-03 04:05:06.789' new", "")
	_, err = in.(sandbox.Snapshotter).Snapshot(ctx, "Kept.It")
	must(t, err)
	want := slices.DeleteFunc(shown(t, p, "Kept.It"), func(entry string) bool {
		return strings.Contains(entry, ` "" `) && slices.ContainsFunc(rootfs.Placeholders, func(name string) bool { return strings.HasPrefix(entry, fmt.Sprintf("%q ", name[1:])) })
	})
	for _, dir := range []bool{false, true} {
		t.Run(fmt.Sprintf("directory_%t", dir), func(t *testing.T) {
			to := filepath.Join(t.TempDir(), "kept")
			told := 0
			ctx := sandbox.WithProgress(ctx, func(pr sandbox.Progress) {
				if strings.HasPrefix(pr.Text, "exporting Kept.It: layer ") && pr.Total > 0 {
					told++
				}
			})
			out, err := p.ExportSnapshot(ctx, testKey.Owner, "Kept.It", sandbox.ExportOptions{To: to, Dir: dir})
			must(t, err)
			if out.Layers != 4 || out.Image != "berth/kept.it:latest" || told == 0 || len(out.Remarks) != 1 || !strings.Contains(out.Remarks[0], ".wh.") {
				t.Errorf("ExportSnapshot = %+v, told %d times", out, told)
			}
			if left, err := os.ReadDir(filepath.Dir(to)); err != nil || len(left) != 1 {
				t.Errorf("beside the export: %v, %v", left, err)
			}
			// As others read it.
			var im v1.Image
			if dir {
				index, err := layout.ImageIndexFromPath(to)
				must(t, err)
				must(t, validate.Index(index))
				m, err := index.IndexManifest()
				must(t, err)
				im, err = index.Image(m.Manifests[0].Digest)
				must(t, err)
			} else {
				im, err = tarball.ImageFromPath(to, nil)
				must(t, err)
			}
			must(t, validate.Image(im))
			conf, err := im.ConfigFile()
			must(t, err)
			if conf.Config.User != "app" || conf.Config.WorkingDir != "/srv" || !slices.Contains(conf.Config.Env, "GREETING=hello") || len(conf.RootFS.DiffIDs) != 4 {
				t.Errorf("configuration = %+v", conf.Config)
			}
			// Elsewhere, and of the file alone.
			q := withImages(t)
			s, err := q.ImportSnapshot(t.Context(), testKey.Owner, "back", to)
			must(t, err)
			if s.Name != "back" || s.Size == 0 || !strings.HasPrefix(s.Digest, "sha256:") {
				t.Errorf("ImportSnapshot = %+v", s)
			}
			must(t, os.RemoveAll(to))
			if diff := cmp.Diff(want, shown(t, q, "back")); diff != "" {
				t.Errorf("imported (-exported +imported):\n%s", diff)
			}
			back, err := q.Create(t.Context(), testKey, sandbox.Spec{Snapshot: "back"})
			must(t, err)
			wantRun(t, back, "", "cd /srv; id -u; echo $GREETING; cat new kept again/z dir/y closed/in; ls; ls dir; stat -c '%a %u %Y' new suid",
				"7\nhello\nnew\n2\nkeptchanged\nz\ny\nin\nagain\nclosed\ndir\nkept\nnew\nodd\nä name\nsuid\nb\nc\ny\n640 7 981173106\n"+suid)
			if info, err := back.Info(t.Context()); err != nil || info.Spec.WorkingDirectory != "/srv" || info.User != "app" {
				t.Errorf("info of a sandbox of an imported snapshot = %+v, %v", info, err)
			}
			// It can be exported and snapshotted in its turn.
			wantRun(t, back, "", "echo more >/srv/more", "")
			_, err = back.(sandbox.Snapshotter).Snapshot(t.Context(), "more")
			must(t, err)
			out, err = q.ExportSnapshot(t.Context(), testKey.Owner, "more", sandbox.ExportOptions{To: to})
			must(t, err)
			if out.Layers != 5 {
				t.Errorf("layers of the next export = %d, want 5", out.Layers)
			}
			if err := q.DeleteSnapshot(t.Context(), testKey.Owner, "back"); err == nil || !strings.Contains(err.Error(), "in use") {
				t.Errorf("deleting an imported snapshot in use: %v", err)
			}
		})
	}
}

// What dpkg is told inside, and where berth's programs stand, is no part of an
// exported image.
func TestExportWithoutOurs(t *testing.T) {
	p := withImages(t)
	const theirs = "/bin/sh\n/bin/sh.distrib\ndash\n"
	im := imageOf(t, v1.Config{Env: []string{"PATH=/bin"}}, layerOf(t, append(systemFiles(t), file{name: "var/lib/dpkg/status", mode: 0o644}, file{name: "var/lib/dpkg/diversions", mode: 0o644, body: theirs})...))
	in, err := p.Create(t.Context(), testKey, sandbox.Spec{Image: push(t, im, "dpkg:1")})
	must(t, err)
	wantRun(t, in, "", "echo x >/var/lib/mine; test -e /usr/bin/sudo && for i in 1 2 3 4; do read -r l; echo $l; done </var/lib/dpkg/diversions", "/bin/sh\n/bin/sh.distrib\ndash\n/usr/bin/sudo")
	_, err = in.(sandbox.Snapshotter).Snapshot(t.Context(), "s")
	must(t, err)
	to := filepath.Join(t.TempDir(), "s.tar")
	_, err = p.ExportSnapshot(t.Context(), testKey.Owner, "s", sandbox.ExportOptions{To: to})
	must(t, err)
	out, err := tarball.ImageFromPath(to, nil)
	must(t, err)
	must(t, validate.Image(out))
	layers, err := out.Layers()
	must(t, err)
	text, err := layers[len(layers)-1].Uncompressed()
	must(t, err)
	defer text.Close()
	seen := map[string]string{}
	for r := tar.NewReader(text); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		must(t, err)
		body, err := io.ReadAll(r)
		must(t, err)
		seen[h.Name] = string(body)
	}
	if seen["var/lib/mine"] != "x\n" || seen["var/lib/dpkg/diversions"] != theirs || strings.Contains(seen["var/lib/dpkg/statoverride"], "fusermount") {
		t.Errorf("the changes are %q", seen)
	}
	for name := range seen {
		if strings.HasSuffix(name, "/sudo") || strings.Contains(name, "fusermount") {
			t.Errorf("%s is exported", name)
		}
	}
}

func TestImportForeign(t *testing.T) {
	im := changedImage(t)
	dir := t.TempDir()
	lay := filepath.Join(dir, "layout")
	l, err := layout.Write(lay, empty.Index)
	must(t, err)
	must(t, l.AppendImage(im, layout.WithAnnotations(map[string]string{"org.opencontainers.image.ref.name": "one"})))
	must(t, l.AppendImage(imageOf(t, v1.Config{User: "root"}, layerOf(t, systemFiles(t)...)), layout.WithAnnotations(map[string]string{"org.opencontainers.image.ref.name": "two"})))
	saved := filepath.Join(dir, "saved.tar")
	must(t, tarball.WriteToFile(saved, nil, im))
	single := filepath.Join(dir, "single")
	l, err = layout.Write(single, empty.Index)
	must(t, err)
	must(t, l.AppendImage(im))
	packed := filepath.Join(dir, "packed.oci.tar")
	f, err := os.Create(packed)
	must(t, err)
	w := tar.NewWriter(f)
	must(t, w.AddFS(os.DirFS(single)))
	must(t, w.Close())
	must(t, f.Close())
	broken := filepath.Join(dir, "broken.tar")
	b, err := os.ReadFile(packed)
	must(t, err)
	at := bytes.LastIndex(b, []byte("\x1f\x8b"))
	if at < 0 {
		t.Fatal("no compressed layer in the archive")
	}
	b[at+200] ^= 1
	must(t, os.WriteFile(broken, b, 0o600))

	p := withImages(t)
	for name, from := range map[string]string{"layout": lay + ":one", "saved": saved, "single": single, "packed": packed} {
		_, err := p.ImportSnapshot(t.Context(), testKey.Owner, name, from)
		must(t, err)
		in, err := p.Create(t.Context(), sandbox.Key{Owner: testKey.Owner, Session: sandbox.SessionID("of-" + name)}, sandbox.Spec{Snapshot: name})
		must(t, err)
		wantRun(t, in, "", "id -u; cat /srv/dir/b /srv/dir2/e", "7\nbe")
		must(t, in.Destroy(t.Context()))
	}
	q := withImages(t) // without the layers, which are taken as they are where they are
	for from, want := range map[string]string{broken: "damaged", lay: "several images", lay + ":three": "has no image three", dir + "/none": "cannot be opened", "/etc/passwd": "is no docker save file"} {
		_, err := q.ImportSnapshot(t.Context(), testKey.Owner, "bad", from)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("import of %s: %v, want %q", from, err, want)
		}
	}
	if _, err := p.ImportSnapshot(t.Context(), testKey.Owner, "saved", saved); !errors.Is(err, sandbox.ErrExists) {
		t.Errorf("import under a name that is taken: %v", err)
	}
	list, err := p.Snapshots(t.Context(), testKey.Owner)
	must(t, err)
	if len(list) != 4 {
		t.Errorf("snapshots = %+v, want four", list)
	}
}

func TestExportRefused(t *testing.T) {
	p := provider(t, local.Options{Dir: stateDir(t)})
	in, err := p.Create(t.Context(), testKey, sandbox.Spec{})
	must(t, err)
	_, err = in.(sandbox.Snapshotter).Snapshot(t.Context(), "host")
	must(t, err)
	to := filepath.Join(t.TempDir(), "x.tar")
	if _, err := p.ExportSnapshot(t.Context(), testKey.Owner, "host", sandbox.ExportOptions{To: to}); !errors.Is(err, sandbox.ErrUnsupported) || !strings.Contains(err.Error(), "own system directories") {
		t.Errorf("export of a snapshot over the host's directories: %v", err)
	}
	if _, err := p.ExportSnapshot(t.Context(), testKey.Owner, "none", sandbox.ExportOptions{To: to}); !errors.Is(err, sandbox.ErrNotFound) {
		t.Errorf("export of no snapshot: %v", err)
	}
	if _, err := os.Lstat(to); err == nil {
		t.Error("a refused export wrote a file")
	}
}

// Killed anywhere, an import or export leaves nothing that is half done, and can
// be repeated.
func TestServerKilledInATransfer(t *testing.T) {
	saved := filepath.Join(t.TempDir(), "saved.tar")
	// Large enough to be killed in.
	var big []file
	for i := range 200 {
		big = append(big, file{name: fmt.Sprintf("big/%d", i), body: strings.Repeat(fmt.Sprintf("%d %x\n", i, sha256.Sum256([]byte{byte(i)})), 1000)})
	}
	must(t, tarball.WriteToFile(saved, nil, imageOf(t, v1.Config{}, layerOf(t, systemFiles(t)...), layerOf(t, big...))))
	run := func(t *testing.T, p *local.Provider, op, to, step string) {
		t.Helper()
		cmd := operation(t, local.StateOf(p), op, step)
		cmd.Env = append(cmd.Env, "BERTH_TEST_ENGINE=real", "BERTH_TEST_FILE="+to)
		out, err := cmd.CombinedOutput()
		if cmd.ProcessState.Exited() && (err != nil || !strings.Contains(step, "+")) {
			t.Fatalf("%s was not killed at %s: %v, %s", op, step, err, out)
		}
	}
	for _, step := range []string{"import:begun", "import:begun+3ms", "import:begun+15ms", "import:begun+40ms", "import:pulled", "import:pulled+2ms"} {
		t.Run(stepName(step), func(t *testing.T) {
			p := withImages(t)
			run(t, p, "import", saved, step)
			list, err := p.Snapshots(t.Context(), testKey.Owner)
			must(t, err)
			if len(list) == 0 {
				_, err = p.ImportSnapshot(t.Context(), testKey.Owner, "moved", saved)
				// What the killed one was just starting holds its locks for a moment.
				for end := time.Now().Add(10 * time.Second); errors.Is(err, sandbox.ErrExists) && time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
					_, err = p.ImportSnapshot(t.Context(), testKey.Owner, "moved", saved)
				}
				must(t, err)
			}
			in, err := p.Create(t.Context(), testKey, sandbox.Spec{Snapshot: "moved"})
			must(t, err)
			wantRun(t, in, "", "cat /big/199 | (read -r n rest; echo $n); set -- /big/*; echo $#", "199\n200")
			must(t, in.Destroy(t.Context()))
			must(t, p.DeleteSnapshot(t.Context(), testKey.Owner, "moved"))
		})
	}
	p := withImages(t)
	_, err := p.ImportSnapshot(t.Context(), testKey.Owner, "moved", saved)
	must(t, err)
	for _, step := range []string{"export:begun", "export:begun+3ms", "export:begun+15ms", "export:begun+60ms"} {
		t.Run(stepName(step), func(t *testing.T) {
			dir := t.TempDir()
			to := filepath.Join(dir, "moved.tar")
			run(t, p, "export", to, step)
			left, err := os.ReadDir(dir)
			must(t, err)
			if len(left) > 1 || len(left) == 1 && left[0].Name() != "moved.tar" {
				t.Errorf("left behind: %v", left)
			}
			if len(left) == 1 {
				return // it was faster
			}
			_, err = p.ExportSnapshot(t.Context(), testKey.Owner, "moved", sandbox.ExportOptions{To: to})
			must(t, err)
			im, err := tarball.ImageFromPath(to, nil)
			must(t, err)
			must(t, validate.Image(im))
		})
	}
}
