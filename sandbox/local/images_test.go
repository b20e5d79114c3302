//go:build linux

package local_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"berth/sandbox"
	"berth/sandbox/local"
	"berth/sandbox/local/wire"
)

// layerOf makes a layer; of a header without a body the size is that of body.
type file struct {
	name, body, link string
	mode             int64
	uid              int
	kind             byte
}

func layerOf(t *testing.T, files ...file) v1.Layer {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range files {
		h := &tar.Header{Name: f.name, Linkname: f.link, Mode: f.mode, Uid: f.uid, Gid: f.uid, Size: int64(len(f.body)), Typeflag: f.kind, Format: tar.FormatPAX}
		if f.kind == 0 {
			h.Typeflag = tar.TypeReg
		}
		if f.mode == 0 {
			h.Mode = 0o755
		}
		must(t, w.WriteHeader(h))
		_, err := io.WriteString(w, f.body)
		must(t, err)
	}
	must(t, w.Close())
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b.Bytes())), nil })
	must(t, err)
	return l
}

// systemLayer holds some of the host's programs, with their libraries.
var systemLayer = sync.OnceValues(func() ([]file, error) {
	libs := map[string]bool{}
	var list []file
	add := func(at, from string) error {
		b, err := os.ReadFile(from)
		if err == nil {
			list = append(list, file{name: at, body: string(b)})
		}
		return err
	}
	lib := regexp.MustCompile(`(/\S+) \(0x`)
	for _, n := range []string{"sh", "bash", "ls", "cat", "id", "stat", "touch", "mkdir", "rm", "env", "readlink", "chown"} {
		p, err := exec.LookPath(n)
		if err != nil {
			return nil, err
		}
		if p, err = filepath.EvalSymlinks(p); err != nil {
			return nil, err
		}
		if err := add("bin/"+n, p); err != nil {
			return nil, err
		}
		out, err := exec.Command("ldd", p).Output()
		if err != nil {
			continue // static
		}
		for _, m := range lib.FindAllStringSubmatch(string(out), -1) {
			if !libs[m[1]] {
				libs[m[1]] = true
				if err := add(m[1], m[1]); err != nil {
					return nil, err
				}
			}
		}
	}
	return list, nil
})

func systemFiles(t *testing.T) []file {
	t.Helper()
	list, err := systemLayer()
	must(t, err)
	return append(slices.Clone(list),
		file{name: "etc/passwd", mode: 0o644, body: "root:x:0:0:root:/root:/bin/sh\napp:x:7:8:app:/home/app:/bin/bash\nother:x:9:9::/:/bin/sh\n"},
		file{name: "etc/group", mode: 0o644, body: "root:x:0:\napp:x:8:\nextra:x:33:app\n"},
		file{name: "tmp/", mode: 0o1777, kind: tar.TypeDir}, file{name: "root/", mode: 0o700, kind: tar.TypeDir})
}

func imageOf(t *testing.T, conf v1.Config, layers ...v1.Layer) v1.Image {
	t.Helper()
	im, err := mutate.AppendLayers(empty.Image, layers...)
	must(t, err)
	cf, err := im.ConfigFile()
	must(t, err)
	cf = cf.DeepCopy()
	cf.OS, cf.Architecture, cf.Config = "linux", runtime.GOARCH, conf
	im, err = mutate.ConfigFile(im, cf)
	must(t, err)
	return im
}

func push(t *testing.T, im v1.Image, repo string) string {
	t.Helper()
	s := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	t.Cleanup(s.Close)
	ref, err := name.ParseReference(strings.TrimPrefix(s.URL, "http://") + "/" + repo)
	must(t, err)
	must(t, remote.Write(ref, im))
	return ref.String()
}

// withImages is a provider that may pull from anywhere, and removes what it
// pulled.
func withImages(t *testing.T) *local.Provider {
	t.Helper()
	ended := false
	p, err := local.New(local.Options{Dir: stateDir(t), Images: local.ImageOptions{Private: []string{"*"}}}.WithNow(func() time.Time {
		if ended {
			return time.Now().Add(24 * time.Hour)
		}
		return time.Now()
	}))
	must(t, err)
	t.Cleanup(func() {
		destroyAll(t, p)
		snapshots, err := p.Snapshots(context.Background(), "")
		must(t, err)
		for _, s := range snapshots {
			must(t, p.DeleteSnapshot(context.Background(), s.Owner, s.Name))
		}
		if _, err := p.PruneBuilds(context.Background(), 0, false); err != nil {
			t.Errorf("prune builds: %v", err)
		}
		ended = true
		if err := p.Sweep(context.Background()); err != nil { // what forks stood on
			t.Errorf("sweep: %v", err)
		}
		if _, err := p.PruneImages(context.Background(), 0, nil, false); err != nil {
			t.Errorf("prune: %v", err)
		}
		must(t, p.Close())
	})
	return p
}

func TestImageSandbox(t *testing.T) {
	white := func(n string) file { return file{name: n} }
	ref := push(t, imageOf(t, v1.Config{User: "app", WorkingDir: "/srv/work", Env: []string{"PATH=/opt/bin:/bin:/usr/bin", "GREETING=hello"}, Entrypoint: []string{"/bin/false"}},
		layerOf(t, append(systemFiles(t),
			file{name: "opt/bin/", kind: tar.TypeDir}, file{name: "opt/bin/tool", body: "#!/bin/sh\necho old\n"},
			file{name: "gone/a", mode: 0o644, body: "a"}, file{name: "dir/low", mode: 0o644}, file{name: "dir2/low", mode: 0o644}, file{name: "file", mode: 0o644},
			file{name: "home/app/", kind: tar.TypeDir, uid: 7, mode: 0o750}, file{name: "home/app/mine", uid: 7, mode: 0o600, body: "secret"},
			file{name: "su", mode: 0o4755}, file{name: "hard", mode: 0o644, body: "h"}, file{name: "hard2", kind: tar.TypeLink, link: "hard"})...),
		layerOf(t, file{name: "opt/bin/tool", body: "#!/bin/sh\necho new\n"}, white(".wh.gone"), white("dir/.wh..wh..opq"), file{name: "dir/top", mode: 0o644}, white("dir2/.wh.low"), white(".wh.file")),
	), "team/app:1")
	p := withImages(t)
	in, err := p.Create(t.Context(), testKey, sandbox.Spec{Image: ref})
	must(t, err)
	ids, err := in.(*local.Instance).IDs()
	must(t, err)
	many := ids.Mode != wire.IDsSingle
	info, err := in.Info(t.Context())
	must(t, err)
	if info.User != "app" || info.Home != "/home/app" || info.Spec.WorkingDirectory != "/srv/work" || info.Image == nil || !strings.HasPrefix(info.Image.Digest, "sha256:") || info.Runtimes[sandbox.Bash] != "/bin/bash" || info.BaseChanged != "" {
		t.Errorf("info = %+v", info)
	}
	for _, c := range []struct{ user, shell, want string }{
		{"", "id -u; id -g; echo $HOME $USER $GREETING; tool", "7\n8\n/home/app app hello\nnew"},
		{"", "cat ~/mine; ls /dir /dir2; test -e /gone || echo no gone; test -e /file || echo no file", "secret/dir:\ntop\n\n/dir2:\nno gone\nno file"},
		{"", "ls /", ""},
		{"", "touch /srv/work/x /workspace/y ~/z /tmp/t && echo fine", "fine"},
		{"", "stat -c %h /hard /hard2", "2\n2"},
		{"root", "id -u; echo $HOME; cat /etc/hostname", "0\n/root\nberth"},
		{"", "sudo id -u; sudo -u other id -u", "0\n9"},
		{"other", "id -u", "9"},
		{"root", "touch /bin/new /etc/new /lib/new && rm /bin/new && mkdir /gone && touch /gone/b && ls /gone", "b"},
		{"", "stat -c %a /su; test -d /run/berth && echo run", "4755\nrun"},
	} {
		if !many && strings.Contains(c.shell, "-u other") {
			continue // nobody else exists there
		}
		wantRun(t, in, c.user, c.shell, c.want)
	}
	if many {
		wantRun(t, in, "", "id -G; stat -c '%U %u' /home/app/mine; ! touch /bin/x 2>/dev/null", "8 33\napp 7")
		wantRun(t, in, "other", "! cat /home/app/mine 2>/dev/null", "")
	}
	if out, _ := run(t, in, "", "ls -la / /dir /dir2"); strings.Contains(out, "?") || strings.Contains(out, ".wh.") {
		t.Errorf("whiteouts show: %s", out)
	}

	// Another sandbox of it has the layers and none of the changes; what the
	// first has changed survives a stop, and an archive.
	start := time.Now()
	second, err := p.Create(t.Context(), sandbox.Key{Owner: "o", Session: "second"}, sandbox.Spec{Image: ref, User: "root"})
	must(t, err)
	t.Logf("the second sandbox took %v", time.Since(start))
	wantRun(t, second, "", "id -u; ls /gone 2>/dev/null || echo none", "0\nnone")
	// A fork stands on the image, too.
	fork, err := in.(sandbox.Forker).Fork(t.Context(), sandbox.Key{Owner: "o", Session: "fork"}, info.Spec)
	must(t, err)
	wantRun(t, fork, "", "id -u; ls /gone /home/app; tool", "7\n/gone:\nb\n\n/home/app:\nmine\nz\nnew")
	must(t, in.Stop(t.Context()))
	must(t, in.(sandbox.Archiver).Archive(t.Context()))
	if got, err := p.PruneImages(t.Context(), 0, nil, false); err != nil || len(got.Images) != 0 {
		t.Errorf("pruned %+v, %v, though an archived sandbox stands on it", got, err)
	}
	must(t, in.Start(t.Context()))
	wantRun(t, in, "", "ls /gone /home/app; tool", "/gone:\nb\n\n/home/app:\nmine\nz\nnew")
	list, err := p.Images(t.Context())
	must(t, err)
	if len(list) != 1 || list[0].Sandboxes != 3 || list[0].Digest != info.Image.Digest {
		t.Errorf("images = %+v", list)
	}
	// Nothing of the image can be reached by what is left when they are gone.
	must(t, in.Destroy(t.Context()))
	must(t, second.Destroy(t.Context()))
	must(t, fork.Destroy(t.Context()))
	if got, err := p.PruneImages(t.Context(), 0, nil, false); err != nil || len(got.Images) != 1 || got.Bytes == 0 {
		t.Errorf("pruned %+v, %v, want the image", got, err)
	}
}

// An image without a shell, and without anything else, runs programs.
func TestScratchImage(t *testing.T) {
	const static = "/usr/sbin/ldconfig"
	if out, err := exec.Command("ldd", static).CombinedOutput(); err == nil && !strings.Contains(string(out), "static") {
		t.Skip("needs a static program: " + static)
	}
	b, err := os.ReadFile(static)
	must(t, err)
	ref := push(t, imageOf(t, v1.Config{User: "1234"}, layerOf(t, file{name: "prog", body: string(b)})), "scratch")
	p := withImages(t)
	in, err := p.Create(t.Context(), testKey, sandbox.Spec{Image: ref})
	must(t, err)
	spawn := func(c sandbox.Command) (sandbox.Process, error) {
		c.ID, c.Cwd, c.Timeout = sandbox.NewProcessID(), "/", time.Minute
		return in.Spawn(t.Context(), c)
	}
	proc, err := spawn(sandbox.Command{Argv: []string{"/prog", "--version"}})
	must(t, err)
	must(t, proc.Wait(t.Context(), sandbox.Cursor{}, true))
	out, err := proc.Read(t.Context(), sandbox.Cursor{}, 1<<20)
	must(t, err)
	if !strings.Contains(string(out.Stdout), "ldconfig") {
		t.Errorf("output = %q, %q", out.Stdout, out.Stderr)
	}
	if _, err := spawn(sandbox.Command{Shell: "echo"}); !errors.Is(err, sandbox.ErrNoProgram) {
		t.Errorf("shell = %v, want no such program", err)
	}
	if _, err := in.Files().Write(t.Context(), "/workspace/f", strings.NewReader("x"), sandbox.WriteOptions{}); err != nil {
		t.Errorf("write: %v", err)
	}
	// A user that the image lacks is refused, and nothing is left.
	_, err = p.Create(t.Context(), sandbox.Key{Owner: "o", Session: "x"}, sandbox.Spec{Image: ref, User: "nobody"})
	var fe *sandbox.FieldError
	if !errors.As(err, &fe) || fe.Field != "user" {
		t.Errorf("create as nobody = %v", err)
	}
}

func TestCheckImage(t *testing.T) {
	p, err := local.New(local.Options{Dir: t.TempDir(), Images: local.ImageOptions{Aliases: map[string]string{"daytonaio/sandbox": "ghcr.io/own/sandbox:1"}}})
	must(t, err)
	for _, tt := range []struct {
		image   string
		allowed []string
		ok      bool
	}{
		{"debian:12", []string{"*"}, true}, {"debian:12", []string{}, false}, {"debian:12", []string{"ghcr.io/*"}, false}, {"debian:12", nil, true},
		{"oci:/x", []string{"*"}, false}, {"oci:/x", nil, true}, {"oci:/x", []string{"oci:/x"}, true}, {"docker-archive:/etc/passwd", []string{"*", "oci:*"}, false},
		{"daytonaio/sandbox:1", []string{"x"}, true}, {"no image", nil, false},
	} {
		err := p.CheckImage(tt.image, tt.allowed)
		var fe *sandbox.FieldError
		if (err == nil) != tt.ok || err != nil && (!errors.As(err, &fe) || fe.Field != "image") {
			t.Errorf("CheckImage(%s, %q) = %v, want ok %t", tt.image, tt.allowed, err, tt.ok)
		}
	}
}

// A fork of a sandbox of an image, running or stopped, is one of that image, with
// its files, its user and its environment.
func TestForkOfAnImageSandbox(t *testing.T) {
	p := withImages(t)
	spec := sandbox.Spec{Image: push(t, changedImage(t), "team/app:1"), Labels: map[string]string{"team": "a"}}
	in, err := p.Create(t.Context(), testKey, spec)
	must(t, err)
	wantRun(t, in, "", changeFiles, "")
	for _, stop := range []bool{false, true} {
		if stop {
			must(t, in.Stop(t.Context()))
		}
		key := sandbox.Key{Owner: testKey.Owner, Session: sandbox.SessionID(fmt.Sprintf("stopped-%t", stop))}
		to := fork(t, in, key)
		wantRun(t, to, "", "cd /srv; id -u; echo $GREETING; cat new other/x dir/b; ls dir; echo fork >new", "7\nhello\nnew\nx\nbb\nc\ny")
		info, err := to.Info(t.Context())
		must(t, err)
		if info.Image == nil || info.Image.Name == "" || info.User != "app" || info.Spec.WorkingDirectory != "/srv" || info.Spec.Labels["team"] != "a" || info.Spec.Image != spec.Image {
			t.Errorf("info of the fork = %+v, image %+v", info, info.Image)
		}
	}
	must(t, in.Start(t.Context()))
	wantRun(t, in, "", "cat /srv/new", "new")
	// The image stays as long as any of them.
	must(t, in.Destroy(t.Context()))
	_, err = p.PruneImages(t.Context(), 0, nil, false)
	must(t, err)
	if list, err := p.Images(t.Context()); err != nil || len(list) != 1 || list[0].Sandboxes != 2 {
		t.Errorf("images = %+v, %v, want the one, of two sandboxes", list, err)
	}
}
