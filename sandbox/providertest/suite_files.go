package providertest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"berth/sandbox"
)

func (b *box) write(path, data string, o sandbox.WriteOptions) sandbox.WriteResult {
	b.t.Helper()
	res, err := b.inst.Files().Write(b.ctx(b.t), path, strings.NewReader(data), o)
	if err != nil {
		b.t.Fatalf("Write(%s): %v", path, err)
	}
	return res
}

func (b *box) read(path string) string {
	b.t.Helper()
	r, _, err := b.inst.Files().Open(b.ctx(b.t), path)
	if err != nil {
		b.t.Fatalf("Open(%s): %v", path, err)
	}
	defer r.Close()
	data, err := io.ReadAll(r)
	if err != nil {
		b.t.Fatalf("read %s: %v", path, err)
	}
	return string(data)
}

func testFiles(t *testing.T, s *suite) {
	b := s.make(t)
	home, files := b.info.Home, b.inst.Files()
	t.Run("bytes_kept", func(t *testing.T) {
		b := b.in(t)
		for name, data := range map[string]string{"empty": "", "nul": "a\x00b", "invalid": "\xff\xfe", "crlf": "a\r\nb", "large": strings.Repeat("0123456789abcdef", 20<<20/16)} {
			res := b.write(home+"/bytes/"+name, data, sandbox.WriteOptions{})
			if res.Bytes != int64(len(data)) || !res.Created {
				t.Errorf("%s: got %+v", name, res)
			}
			if got := b.read(home + "/bytes/" + name); got != data {
				t.Errorf("%s: got %d bytes, they differ from the %d written", name, len(got), len(data))
			}
			if out := b.must("wc -c <bytes/" + name); strings.TrimSpace(out) != fmt.Sprint(len(data)) {
				t.Errorf("%s: the sandbox sees %s bytes", name, strings.TrimSpace(out))
			}
		}
	})
	t.Run("write", func(t *testing.T) {
		b := b.in(t)
		p := home + "/new/deep er/fü"
		if res := b.write(p, "1", sandbox.WriteOptions{}); !res.Created {
			t.Error("Created is false")
		}
		if res := b.write(p, "22", sandbox.WriteOptions{}); res.Created || b.read(p) != "22" {
			t.Errorf("replacing: got %+v, %q", res, b.read(p))
		}
		if res := b.write(p, "3", sandbox.WriteOptions{Append: true}); res.Created || res.Bytes != 1 || b.read(p) != "223" {
			t.Errorf("appending: got %+v, %q", res, b.read(p))
		}
		if res := b.write(home+"/appended", "3", sandbox.WriteOptions{Append: true}); !res.Created {
			t.Errorf("appending to nothing: got %+v", res)
		}
		if out := b.must("stat -c '%a %U' 'new/deep er/fü'"); !strings.HasPrefix(out, "644 ") {
			t.Errorf("a new file: got %q", out)
		}
	})
	t.Run("mode", func(t *testing.T) {
		b := b.in(t)
		b.must("echo x >m; chmod 751 m")
		b.write(home+"/m", "y", sandbox.WriteOptions{})
		b.write(home+"/m", "y", sandbox.WriteOptions{Append: true})
		mode := fs.FileMode(0o600)
		b.write(home+"/n", "y", sandbox.WriteOptions{Mode: &mode})
		if out := b.must("stat -c %a m n"); out != "751\n600\n" {
			t.Errorf("got %q", out)
		}
		b.write(home+"/m", "y", sandbox.WriteOptions{Mode: &mode})
		if st, err := files.Stat(s.ctx(t), home+"/m"); err != nil || st.Mode != 0o600 || st.Size != 1 || st.Path == "" || time.Since(st.ModTime).Abs() > time.Hour {
			t.Errorf("Stat: got %+v, %v", st, err)
		}
	})
	t.Run("through_links", func(t *testing.T) {
		b := b.in(t)
		b.must("mkdir -p t; echo x >t/target; ln -s t/target link; ln -s t dir; ln -s nowhere/at-all dangling")
		b.write(home+"/link", "new", sandbox.WriteOptions{})
		b.write(home+"/dir/second", "2", sandbox.WriteOptions{})
		if out := b.must("cat t/target t/second; readlink link"); out != "new2t/target\n" {
			t.Errorf("got %q", out)
		}
		_, _, err := files.Open(s.ctx(t), home+"/dangling")
		wantErr(t, "Open of a dangling link", err, fs.ErrNotExist)
		b.must("ln -s loop loop")
		if _, err := files.Stat(s.ctx(t), home+"/loop"); err == nil {
			t.Error("Stat of a loop succeeded")
		}
	})
	t.Run("atomic", func(t *testing.T) {
		b := b.in(t)
		b.write(home+"/whole", "old", sandbox.WriteOptions{})
		broken := io.MultiReader(strings.NewReader("half"), failing{})
		if _, err := files.Write(s.ctx(t), home+"/whole", broken, sandbox.WriteOptions{}); err == nil {
			t.Error("Write from a reader that fails succeeded")
		}
		if got := b.read(home + "/whole"); got != "old" {
			t.Errorf("after a failed write: got %q", got)
		}
		var wg sync.WaitGroup
		texts := []string{strings.Repeat("a", 300<<10), strings.Repeat("b", 300<<10)}
		for _, text := range texts {
			wg.Go(func() {
				for range 10 {
					if _, err := files.Write(s.ctx(t), home+"/whole", strings.NewReader(text), sandbox.WriteOptions{}); err != nil {
						t.Errorf("Write: %v", err)
					}
				}
			})
		}
		for range 20 {
			if got := b.read(home + "/whole"); got != "old" && got != texts[0] && got != texts[1] {
				t.Errorf("a mixture of %d bytes was read", len(got))
			}
		}
		wg.Wait()
		if out := b.must("ls -A | grep -c -e tmp -e write || true"); out != "0\n" {
			t.Errorf("files are left behind: %q", b.must("ls -A"))
		}
	})
	t.Run("kinds", func(t *testing.T) {
		b := b.in(t)
		b.must("mkdir -p kinds/d; mkfifo kinds/fifo; echo x >kinds/f")
		began := time.Now()
		for _, c := range []struct {
			what, path string
			want       []error
		}{
			{"Open", "kinds/missing", []error{fs.ErrNotExist}}, {"Open", "kinds/d", []error{sandbox.ErrIsDir}},
			{"Open", "kinds/fifo", []error{sandbox.ErrNotRegular}}, {"Open", "kinds/f/x", []error{sandbox.ErrNotDir, fs.ErrNotExist}},
			{"Write", "kinds/d", []error{sandbox.ErrIsDir}}, {"Write", "kinds/fifo", []error{sandbox.ErrNotRegular}},
			{"Write", "kinds/f/x", []error{sandbox.ErrNotDir}}, {"ReadDir", "kinds/f", []error{sandbox.ErrNotDir}},
			{"ReadDir", "kinds/missing", []error{fs.ErrNotExist}}, {"Stat", "kinds/missing", []error{fs.ErrNotExist}},
		} {
			var err error
			p := home + "/" + c.path
			switch c.what {
			case "Open":
				var r io.ReadCloser
				if r, _, err = files.Open(s.ctx(t), p); err == nil {
					_ = r.Close()
				}
			case "Write":
				_, err = files.Write(s.ctx(t), p, strings.NewReader("x"), sandbox.WriteOptions{})
			case "ReadDir":
				_, err = files.ReadDir(s.ctx(t), p)
			case "Stat":
				_, err = files.Stat(s.ctx(t), p)
			}
			wantErr(t, c.what+" "+c.path, err, c.want...)
		}
		if d := time.Since(began); d > 5*time.Second {
			t.Errorf("it took %v: something blocked", d)
		}
		l, err := files.ReadDir(s.ctx(t), home+"/kinds")
		if err != nil || len(l) != 3 || !strings.HasSuffix(l[0].Path, "/d") || !l[0].Mode.IsDir() || l[2].Mode&fs.ModeNamedPipe == 0 && l[1].Mode&fs.ModeNamedPipe == 0 {
			t.Errorf("ReadDir: got %+v, %v", l, err)
		}
	})
	t.Run("mkdir", func(t *testing.T) {
		b := b.in(t)
		if err := files.Mkdir(s.ctx(t), home+"/made/deep er/dir", 0o750); err != nil {
			t.Fatalf("Mkdir: %v", err)
		}
		b.must("chmod 711 made; ln -s made made-link; echo x >made-file; ln -s nowhere made-dangling")
		for _, p := range []string{"/made", "/made/", "/made-link", "/made/deep er/dir"} {
			if err := files.Mkdir(s.ctx(t), home+p, 0o700); err != nil {
				t.Errorf("Mkdir of %s, which is there: %v", p, err)
			}
		}
		if err := files.Mkdir(s.ctx(t), home+"/made-link/second", 0o700); err != nil {
			t.Errorf("Mkdir through a link: %v", err)
		}
		if out := b.must("stat -c %a made 'made/deep er' 'made/deep er/dir' made/second"); out != "711\n755\n750\n700\n" {
			t.Errorf("modes: got %q", out)
		}
		wantErr(t, "Mkdir of a file", files.Mkdir(s.ctx(t), home+"/made-file", 0o755), sandbox.ErrNotDir)
		wantErr(t, "Mkdir in a file", files.Mkdir(s.ctx(t), home+"/made-file/x", 0o755), sandbox.ErrNotDir)
		if err := files.Mkdir(s.ctx(t), home+"/made-dangling", 0o755); err == nil {
			t.Error("Mkdir of a dangling link succeeded")
		}
	})
	t.Run("symlink", func(t *testing.T) {
		b := b.in(t)
		link := func(target, path string) {
			t.Helper()
			if err := files.Symlink(s.ctx(t), target, home+path); err != nil {
				t.Errorf("Symlink(%s, %s): %v", target, path, err)
			}
		}
		b.must("mkdir sl; echo x >sl/file; echo y >sl/target; ln -s file sl/old")
		link("../no where/at-all", "/sl/new/er/link")
		link("target", "/sl/file")
		link("/", "/sl/old")
		link(".", "/sl/self")
		if out := b.must("cd sl; readlink new/er/link file old self; cat target; ls -A"); out != "../no where/at-all\ntarget\n/\n.\ny\nfile\nnew\nold\nself\ntarget\n" {
			t.Errorf("got %q", out)
		}
		wantErr(t, "Symlink over a directory", files.Symlink(s.ctx(t), "x", home+"/sl/new"), sandbox.ErrIsDir)
		wantErr(t, "Symlink in a file", files.Symlink(s.ctx(t), "x", home+"/sl/target/x"), sandbox.ErrNotDir)
		if out := b.must("ls -A sl | grep -c berth || true"); out != "0\n" {
			t.Errorf("names are left behind: %q", b.must("ls -A sl"))
		}
	})
	t.Run("many", func(t *testing.T) {
		b := b.in(t)
		b.must("mkdir many; cd many; seq 9000 | xargs touch")
		if l, err := files.ReadDir(s.ctx(t), home+"/many"); err != nil || len(l) != 9000 {
			t.Errorf("ReadDir of 9,000 entries: got %d, %v", len(l), err)
		}
		// Beyond what can be told, all or an error, and never a part.
		b.must("cd many; seq 12000 | xargs touch")
		if l, err := files.ReadDir(s.ctx(t), home+"/many"); err == nil && len(l) != 12000 || err != nil && !errors.Is(err, sandbox.ErrLimit) {
			t.Errorf("ReadDir of 12,000 entries: got %d, %v", len(l), err)
		}
	})
	t.Run("permission", func(t *testing.T) {
		if !s.can(t, RootUser) {
			return
		}
		b := b.in(t)
		// What the user has closed is closed to the user, too.
		b.must("mkdir own; echo x >own/f; echo x >own/g; chmod 000 own/f; chmod 400 own/g; chmod 500 own; mkdir shut; echo x >shut/f; chmod 000 shut")
		closed := map[string]string{"open": home + "/own/f", "open_within": home + "/shut/f", "write": home + "/own/g", "make": home + "/own/new", "write_within": home + "/shut/f",
			"mkdir": home + "/own/dir", "mkdir_within": home + "/shut/dir/x", "symlink": home + "/own/link", "symlink_over": home + "/own/g", "symlink_within": home + "/shut/link"}
		if s.can(t, RootsOwn) {
			c := b.command("mkdir -p /opt/closed && echo x >/opt/closed/f && chmod 700 /opt/closed")
			c.User = "root"
			if info, _, errs := b.ended(b.spawn(c)); code(info) != 0 {
				t.Fatalf("got exit %d, %s", code(info), errs)
			}
			closed["open_roots"], closed["make_roots"] = "/opt/closed/f", "/opt/closed/g"
		}
		for what, path := range closed {
			var err error
			switch {
			case strings.HasPrefix(what, "open"):
				var r io.ReadCloser
				if r, _, err = files.Open(s.ctx(t), path); err == nil {
					_ = r.Close()
				}
			case strings.HasPrefix(what, "mkdir"):
				err = files.Mkdir(s.ctx(t), path, 0o755)
			case strings.HasPrefix(what, "symlink"):
				err = files.Symlink(s.ctx(t), "x", path)
			default:
				_, err = files.Write(s.ctx(t), path, strings.NewReader("y"), sandbox.WriteOptions{})
			}
			wantErr(t, what+" of "+path, err, fs.ErrPermission)
		}
		if out := b.must("chmod 700 own shut; chmod 600 own/f; cat own/f own/g shut/f; ls own"); out != "x\nx\nx\nf\ng\n" {
			t.Errorf("after what was refused: got %q", out)
		}
	})
}

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, errors.New("the test's reader fails") }

// testWalls checks what the file methods and commands see of the host. Each
// provider has an escape suite of its own besides.
func testWalls(t *testing.T, s *suite) {
	secret := t.TempDir() + "/host-secret"
	if err := os.WriteFile(secret, []byte("host"), 0o644); err != nil {
		t.Fatal(err)
	}
	b := s.make(t)
	files := b.inst.Files()
	b.must("ln -s " + secret + " out; ln -s / root; ln -s ../../../../../../../../../.. up")
	for _, p := range []string{secret, b.info.Home + "/out", b.info.Home + "/../../../../../../../.." + secret, b.info.Home + "/root" + secret, b.info.Home + "/up" + secret} {
		r, _, err := files.Open(s.ctx(t), p)
		if err == nil {
			data, _ := io.ReadAll(r)
			_ = r.Close()
			if bytes.Contains(data, []byte("host")) {
				t.Errorf("Open(%s) reads the host's file", p)
			}
		}
		_, _ = files.Write(s.ctx(t), p, strings.NewReader("inside"), sandbox.WriteOptions{})
		if made := p + "-made"; s.can(t, Isolation) {
			_ = files.Mkdir(s.ctx(t), made, 0o755)
			_ = files.Symlink(s.ctx(t), "/", made+"-link")
			if l, err := os.ReadDir(filepath.Dir(secret)); err != nil || len(l) != 1 {
				t.Fatalf("Mkdir or Symlink of %s reached the host: %v, %v", made, l, err)
			}
		}
		if data, err := os.ReadFile(secret); err != nil || string(data) != "host" {
			t.Fatalf("Write(%s) reached the host's file: %q, %v", p, data, err)
		}
	}
	if s.can(t, Isolation) {
		c := s.make(t)
		if info, out, _ := c.sh("cat " + secret); code(info) == 0 {
			t.Errorf("a command reads the host's file: %q", out)
		}
	}
}
