//go:build linux

package promises_test

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"log"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
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
	"github.com/mark3labs/mcp-go/mcp"

	"berth/internal/driver"
)

// fakes stand for the programs that would fetch packages from the internet: each
// does what its namesake leaves behind, and fails where that would.
var fakes = map[string]string{
	"usr/bin/apt-get": `test $(id -u) = 0 || exit 100
case "$*" in
"update -qq") mkdir -p /var/lib/apt/lists && touch /var/lib/apt/lists/done ;;
"install -y s3fs") test -e /var/lib/apt/lists/done && printf '#!/bin/sh\necho s3fs works\n' > /usr/bin/s3fs && chmod 755 /usr/bin/s3fs && echo Setting up s3fs ;;
"install -y gcsfuse") cat /etc/apt/keyrings/gcsfuse.gpg /etc/apt/sources.list.d/gcsfuse.list > /dev/null && printf '#!/bin/sh\necho gcsfuse works\n' > /usr/bin/gcsfuse && chmod 755 /usr/bin/gcsfuse ;;
*) echo "E: unable to locate $*" >&2; exit 100 ;;
esac`,
	"usr/bin/curl": `test "$1 $3" = "-fsSL -o" && echo key > "$4"`,
	"usr/bin/gpg":  `test "$1 $2 $3 $4" = "--batch --yes --dearmor -o" && cat "$6" > "$5"`,
}

// examples is a registry with what the page's two examples begin with, made of
// programs of this machine; it returns its host.
func examples(t *testing.T) string {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	seen := map[string]bool{}
	add := func(at string, mode int64, content []byte) {
		if !seen[at] {
			seen[at] = true
			must(t, w.WriteHeader(&tar.Header{Name: at, Mode: mode, Size: int64(len(content)), Typeflag: tar.TypeReg}))
			_, err := w.Write(content)
			must(t, err)
		}
	}
	dir := func(at string, uid int, mode int64) {
		must(t, w.WriteHeader(&tar.Header{Name: at + "/", Mode: mode, Uid: uid, Gid: uid, Typeflag: tar.TypeDir}))
	}
	lib := regexp.MustCompile(`(/\S+) \(0x`)
	for _, n := range []string{"sh", "bash", "cat", "id", "mkdir", "touch", "chmod", "tee", "ls", "true", "sleep", "uname", "wc", "tr", "mv", "rm"} {
		p, err := exec.LookPath(n)
		must(t, err)
		p, err = filepath.EvalSymlinks(p)
		must(t, err)
		content, err := os.ReadFile(p)
		must(t, err)
		add("bin/"+n, 0o755, content)
		out, err := exec.Command("ldd", p).Output()
		if err != nil {
			continue // static
		}
		for _, m := range lib.FindAllStringSubmatch(string(out), -1) {
			content, err := os.ReadFile(m[1])
			must(t, err)
			add(m[1], 0o755, content)
		}
	}
	for at, script := range fakes {
		add(at, 0o755, []byte("#!/bin/sh\n"+script+"\n"))
	}
	add("etc/passwd", 0o644, []byte("root:x:0:0::/root:/bin/sh\ndaytona:x:1000:1000::/home/daytona:/bin/bash\n"))
	add("etc/group", 0o644, []byte("root:x:0:\ndaytona:x:1000:\n"))
	dir("home/daytona", 1000, 0o755)
	dir("tmp", 0, 0o1777)
	dir("etc/apt/sources.list.d", 0, 0o755)
	must(t, w.Close())
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b.Bytes())), nil })
	must(t, err)
	im, err := mutate.AppendLayers(empty.Image, layer)
	must(t, err)
	conf, err := im.ConfigFile()
	must(t, err)
	conf = conf.DeepCopy()
	conf.OS, conf.Architecture = "linux", runtime.GOARCH
	conf.Config = v1.Config{User: "daytona", WorkingDir: "/home/daytona", Env: []string{"PATH=/usr/bin:/bin"}}
	im, err = mutate.ConfigFile(im, conf)
	must(t, err)
	s := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	t.Cleanup(s.Close)
	host := strings.TrimPrefix(s.URL, "http://")
	ref, err := name.ParseReference(host + "/daytonaio/sandbox")
	must(t, err)
	must(t, remote.Write(ref, im))
	return host
}

// withExamples is a site which knows the page's image.
func withExamples(t *testing.T) *site {
	host := examples(t)
	s := ownSite(t, fmt.Sprintf("limits:\n  network_allow_list: [127.0.0.1/32]\n  allowed_images: ['%s/*']\nlocal:\n  images:\n    aliases: {daytonaio/sandbox: '%s/daytonaio/sandbox'}\n", host, host))
	s.Args = append(s.Args, "--toolsets", "all")
	return s
}

// The page's commands, with sudo as they are written.
const (
	aptKey = "sudo mkdir -p /etc/apt/keyrings && curl -fsSL https://packages.cloud.google.com/apt/doc/apt-key.gpg -o /tmp/gcsfuse-key.gpg && " +
		"sudo gpg --batch --yes --dearmor -o /etc/apt/keyrings/gcsfuse.gpg /tmp/gcsfuse-key.gpg && " +
		`echo "deb [signed-by=/etc/apt/keyrings/gcsfuse.gpg] https://packages.cloud.google.com/apt gcsfuse-jammy main" | sudo tee /etc/apt/sources.list.d/gcsfuse.list`
	aptUpdate  = "sudo apt-get update -qq"
	aptS3FS    = "sudo apt-get install -y s3fs"
	aptGCSFuse = "sudo apt-get update -qq && sudo apt-get install -y gcsfuse"
)

// watched calls create_snapshot and returns the lines that came while it was built.
func (b *box) watched(a args) (*driver.Answer, []string) {
	b.t.Helper()
	r, lines, _ := b.timed(a)
	return r, lines
}

// timed is watched, with when each line came.
func (b *box) timed(a args) (*driver.Answer, []string, []time.Time) {
	b.t.Helper()
	var mu sync.Mutex
	var lines []string
	var at []time.Time
	b.Watch(func(got any, message string) {
		mu.Lock()
		defer mu.Unlock()
		if fmt.Sprint(got) == "build" {
			for line := range strings.SplitSeq(message, "\n") {
				lines, at = append(lines, line), append(at, time.Now())
			}
		}
	})
	req := mcp.CallToolRequest{Params: mcp.CallToolParams{Name: "create_snapshot", Arguments: a, Meta: &mcp.Meta{ProgressToken: "build"}}}
	answer, err := b.Do(b.t.Context(), req)
	must(b.t, err)
	mu.Lock()
	defer mu.Unlock()
	return answer, append([]string(nil), lines...), append([]time.Time(nil), at...)
}

// ownSnapshots are those of list_snapshots, without the platform's own.
func ownSnapshots(r *driver.Answer) (own []args) {
	for _, s := range r.Structured["snapshots"].([]any) {
		if s := s.(args); !strings.HasPrefix(fmt.Sprint(s["name"]), "daytona-") {
			own = append(own, s)
		}
	}
	return own
}

// buildSite is a site where something stands to build on: at Daytona the platform
// wants to be told, by what args says.
func buildSite(t *testing.T) (*site, func(args) args) {
	if !atDaytona {
		return withSnapshots(t), func(a args) args { return a }
	}
	return withExamples(t), func(a args) args {
		a["image"] = "daytonaio/sandbox"
		return a
	}
}

// inOrder fails the test for what does not follow what stands before it.
func inOrder(t testing.TB, lines []string, want ...string) {
	t.Helper()
	at := 0
	for _, w := range want {
		for at < len(lines) && !strings.Contains(lines[at], w) {
			at++
		}
		if at == len(lines) {
			t.Errorf("%q does not come where it should in\n%s", w, strings.Join(lines, "\n"))
			return
		}
	}
}

// 62: a snapshot is built from an image and steps, as on the page.
func TestPromise62Steps(t *testing.T) {
	t.Parallel()
	s := withExamples(t)
	b := s.dial(t, driver.Stdio)
	steps := []args{{"run": aptUpdate}, {"run": aptS3FS}, {"run": aptKey}, {"run": aptGCSFuse}}
	r, lines := b.watched(args{"name": "cloud-fs-mounting", "image": "daytonaio/sandbox", "steps": steps})
	if r.IsError {
		t.Fatal(r.Text)
	}
	inOrder(t, lines, "[1/4] RUN "+aptUpdate, "[2/4] RUN "+aptS3FS, "Setting up s3fs", "[3/4] RUN", "deb [signed-by", "[4/4] RUN")
	listed, err := b.Must(t.Context(), "list_snapshots", args{})
	must(t, err)
	list := ownSnapshots(listed)
	if len(list) != 1 || list[0]["name"] != "cloud-fs-mounting" || list[0]["state"] != "active" {
		t.Errorf("list_snapshots: %s", listed.Text)
	}
	b.Kill()

	// By name, through another server; and once more, which does nothing.
	b = s.dial(t, driver.HTTP)
	b.start(args{"snapshot": "cloud-fs-mounting"}, "created")
	b.want("s3fs; gcsfuse; id -un; pwd", "s3fs works\ngcsfuse works\ndaytona\n/home/daytona")
	start := time.Now()
	if r, lines := b.watched(args{"name": "again", "image": "daytonaio/sandbox", "steps": steps}); r.IsError || time.Since(start) > 5*time.Second || strings.Count(strings.Join(lines, "\n"), "[cached]") != 4 {
		t.Errorf("built again in %s: %s\n%s", time.Since(start), r.Text, strings.Join(lines, "\n"))
	}
}

// 63: … or from a Dockerfile; a failing step answers build_failed with the end
// of the log, and leaves no snapshot.
func TestPromise63Dockerfile(t *testing.T) {
	t.Parallel()
	s := withExamples(t)
	b := s.dial(t, driver.Stdio)
	text := "FROM daytonaio/sandbox\nRUN " + aptUpdate + "\nRUN " + aptS3FS + "\n# Use gcsfuse-jammy for Ubuntu, gcsfuse-bookworm for Debian\nRUN " + aptKey + "\nRUN " + aptGCSFuse + "\n"
	bad, _ := b.watched(args{"name": "x", "dockerfile": text + "RUN echo so far && sudo apt-get install -y nothing-like-it"})
	if !bad.IsError {
		t.Fatalf("a failing step: %s", bad.Text)
	}
	contains(t, bad.Text, "build_failed: step 5 of 5, line 7 (RUN echo so far && sudo apt-get install -y nothing-like-it) exited with 100", "so far\n", "E: unable to locate install -y nothing-like-it")
	if r, err := b.Must(t.Context(), "list_snapshots", args{}); err != nil || len(ownSnapshots(r)) != 0 {
		t.Errorf("after a failure: %v, %v", r, err)
	}
	contains(t, b.refused("start_sandbox", args{"snapshot": "x"}), "there is no snapshot x")
	r, lines := b.watched(args{"name": "x", "dockerfile": text + "COPY tool /usr/bin/\nRUN sudo chmod 755 /usr/bin/tool\n", "files": args{"tool": "#!/bin/sh\necho given\n"}})
	if r.IsError {
		t.Fatal(r.Text)
	}
	if n := strings.Count(strings.Join(lines, "\n"), "[cached]"); n != 4 {
		t.Errorf("of the good steps %d were kept, want 4:\n%s", n, strings.Join(lines, "\n"))
	}
	contains(t, fmt.Sprint(r.Structured["log"]), "[6/6] RUN sudo chmod")
	b.start(args{"snapshot": "x"}, "created")
	b.want("s3fs; gcsfuse; tool", "s3fs works\ngcsfuse works\ngiven")
	for text, want := range map[string]string{"FROM daytonaio/sandbox\nEXPOSE 80": "line 2: EXPOSE", "FROM daytonaio/sandbox AS a\nFROM daytonaio/sandbox": "line 2: a second FROM", "FROM daytonaio/sandbox\nRUN --mount=type=cache true": "line 2: RUN has no flag"} {
		r, _ := b.watched(args{"name": "y", "dockerfile": text})
		contains(t, r.Text, want)
	}
}

// 64: the log comes while the build runs, in order, over every transport.
func TestPromise64Log(t *testing.T) {
	t.Parallel()
	s, on := buildSite(t)
	for i, how := range transports {
		b := s.dial(t, how)
		name := fmt.Sprintf("log-%s-%d", b.id, i)
		r, lines, at := b.timed(on(args{"name": name, "steps": []args{{"run": fmt.Sprintf("echo o1 %d; sleep 0.6; echo e2 >&2; sleep 0.6; echo o3", i)}, {"run": "echo o4"}}}))
		if r.IsError {
			t.Fatal(r.Text)
		}
		if spread := at[len(at)-1].Sub(at[0]); spread < 700*time.Millisecond {
			t.Errorf("the lines came within %s, not as they were written", spread)
		}
		inOrder(t, lines, "[1/2] RUN", "o1", "e2", "o3", "[2/2] RUN", "o4")
		b.call("delete_snapshot", args{"name": name})
	}
}

// At Daytona the platform goes on building when the server is killed: the same call
// to the next one waits on, and a step has run once.
func platformBuildsOn(t *testing.T) {
	s, on := buildSite(t)
	b := s.dial(t, driver.Stdio)
	name := "killed-" + b.id
	build := func() args {
		return on(args{"name": name, "steps": []args{{"run": "echo ran >> ~/f"}, {"run": "echo be''gun; sleep 4; echo ran >> ~/f"}}})
	}
	b.begin(60*time.Second, build())
	b.Kill()
	b = s.dial(t, driver.Stdio)
	r, _ := b.watched(build())
	if r.IsError {
		t.Fatal(r.Text)
	}
	b.start(args{"snapshot": name}, "created")
	b.want("cat ~/f", "ran\nran")
}

// begin calls create_snapshot without waiting for its answer, and returns when the
// build says that its second step has begun.
func (b *box) begin(within time.Duration, a args) {
	b.t.Helper()
	begun := make(chan struct{})
	var once sync.Once
	b.Watch(func(_ any, message string) {
		if strings.Contains(message, "begun") {
			once.Do(func() { close(begun) })
		}
	})
	go func() {
		req := mcp.CallToolRequest{Params: mcp.CallToolParams{Name: "create_snapshot", Arguments: a, Meta: &mcp.Meta{ProgressToken: "build"}}}
		_, _ = b.Do(b.t.Context(), req) // the server dies of it
	}()
	select {
	case <-begun:
	case <-time.After(within):
		b.t.Fatal("the second step does not begin")
	}
}

// A server that is killed in the middle of a build leaves its finished steps,
// and nothing that runs; the next server goes on from them.
func TestBuildOfAKilledServer(t *testing.T) {
	t.Parallel()
	if atDaytona {
		platformBuildsOn(t)
		return
	}
	s := withSnapshots(t)
	b := s.dial(t, driver.Stdio)
	name := "killed-" + b.id
	b.begin(30*time.Second, args{"name": name, "steps": []args{{"run": "echo kept > ~/f"}, {"run": "echo be''gun; sleep 1000"}}})
	b.Kill()
	b = s.dial(t, driver.Stdio)
	r, lines := b.watched(args{"name": name, "steps": []args{{"run": "echo kept > ~/f"}, {"run": "cat ~/f"}}})
	if r.IsError {
		t.Fatal(r.Text)
	}
	inOrder(t, lines, "[1/2] RUN", "[cached]", "[2/2] RUN", "kept")
	found, err := filepath.Glob(filepath.Join(s.beneath, "sandboxes", "*", "sandbox.json"))
	must(t, err)
	for _, f := range found {
		if record, err := os.ReadFile(f); err == nil && strings.Contains(string(record), name) {
			t.Errorf("left behind: %s", f)
		}
	}
	b.call("delete_snapshot", args{"name": name})
}
