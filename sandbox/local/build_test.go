//go:build linux

package local_test

import (
	"archive/tar"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"berth/internal/dockerfile"
	"berth/sandbox"
	"berth/sandbox/local"
	"berth/sandbox/local/wire"
)

// dockerfileOf reads one whose files are texts.
func dockerfileOf(t *testing.T, text string, files map[string]string) sandbox.Build {
	t.Helper()
	given := map[string]sandbox.BuildFile{}
	for name, content := range files {
		given[name] = sandbox.TextFile(content)
	}
	b, err := dockerfile.Parse(text, given)
	must(t, err)
	return b
}

// logged builds a snapshot and returns the lines of its log.
func logged(t *testing.T, p *local.Provider, name string, b sandbox.Build) (sandbox.SnapshotInfo, string, error) {
	t.Helper()
	var lines []string
	ctx := sandbox.WithProgress(t.Context(), func(p sandbox.Progress) {
		if p.Log {
			lines = append(lines, p.Text)
		}
	})
	info, err := p.BuildSnapshot(ctx, testKey.Owner, name, b, sandbox.Spec{}.WithDefaults(sandbox.Spec{}))
	return info, strings.Join(lines, "\n"), err
}

func built(t *testing.T, p *local.Provider, name string, b sandbox.Build) (sandbox.SnapshotInfo, string) {
	t.Helper()
	info, log, err := logged(t, p, name, b)
	if err != nil {
		t.Fatalf("build %s: %v\n%s", name, err, log)
	}
	return info, log
}

// of makes a sandbox of a snapshot.
func of(t *testing.T, p *local.Provider, session, snapshot string, spec sandbox.Spec) sandbox.Instance {
	t.Helper()
	spec.Snapshot = snapshot
	in, err := p.Create(t.Context(), sandbox.Key{Owner: testKey.Owner, Session: sandbox.SessionID(session)}, spec)
	must(t, err)
	return in
}

// buildImage is an image to build on.
func buildImage(t *testing.T) string {
	t.Helper()
	return push(t, imageOf(t, v1.Config{User: "app", WorkingDir: "/srv", Env: []string{"PATH=/bin:/usr/bin", "GREETING=hello"}},
		layerOf(t, append(systemFiles(t), file{name: "srv/", kind: tar.TypeDir, uid: 7}, file{name: "home/app/", kind: tar.TypeDir, uid: 7, mode: 0o750},
			file{name: "etc/old", body: "old", mode: 0o644, uid: 7})...)), "team/base:1")
}

func TestBuildOfAnImage(t *testing.T) {
	ref := buildImage(t)
	p := withImages(t)
	text := "ARG BASE=" + ref + `
FROM $BASE AS ignored
LABEL org.example/kind="a test" by=me
ARG WORD=one
ENV A="$WORD two" PATH=/opt/bin:$PATH
RUN echo "$GREETING $A $WORD $(id -u) $(pwd)"; echo kept > kept; echo to stderr >&2
USER root
WORKDIR /opt
WORKDIR bin
COPY --chmod=755 --chown=7:8 tool .
COPY conf/ /etc/conf/
COPY <<one <<'two' /etc/docs/
$A
one
$A
two
ADD etc/*.txt /etc/old /etc/
RUN ["/bin/sh", "-c", "echo \"$0\"", "exec form"]
SHELL ["/bin/bash", "-c"]
RUN [[ a == a ]] && echo bash; mkdir /home/new /home/new/x; echo 'new:x:33:33::/home/new:/bin/sh' >> /etc/passwd
RUN <<EOF
echo first
echo second > /document
EOF
USER new
WORKDIR /home/new/x/y
`
	files := map[string]string{"tool": "#!/bin/sh\necho tooled\n", "conf/a": "1", "conf/b/c": "2", "etc/x.txt": "x", "etc/old": "new", "unused": "u"}
	text = strings.Replace(text, "ADD etc/*.txt /etc/old /etc/", "ADD etc/*.txt etc/old /etc/", 1)
	b := dockerfileOf(t, text, files)
	info, log := built(t, p, "one", b)
	for _, want := range []string{"RUN echo", "hello one two one 7 /srv", "to stderr", "exec form", "\nbash\n", "first"} {
		if !strings.Contains(log, want) {
			t.Errorf("the log lacks %q:\n%s", want, log)
		}
	}
	if !info.Built || info.From != "" || info.Labels["org.example/kind"] != "a test" || !strings.HasPrefix(info.Digest, "sha256:") || info.Size == 0 || info.State != sandbox.SnapshotActive || info.Image != ref {
		t.Errorf("info = %+v", info)
	}
	if kept, err := p.BuildLog(t.Context(), testKey.Owner, "one", 1<<20); err != nil || strings.TrimSpace(kept) != strings.TrimSpace(log) {
		t.Errorf("the kept log is %q, %v", kept, err)
	}
	in := of(t, p, "one", "one", sandbox.Spec{})
	ids, err := in.(*local.Instance).IDs()
	must(t, err)
	many := ids.Mode != wire.IDsSingle
	wantRun(t, in, "", "echo $A; tool; cat /etc/conf/a /etc/conf/b/c /etc/x.txt; cat /etc/old; cat /srv/kept /document", "one two\ntooled\n12xnewkept\nsecond")
	wantRun(t, in, "", "cat /etc/docs/one /etc/docs/two; echo \"[$WORD]\"; test ! -e /etc/unused", "one two\n$A\n[]")
	i, err := in.Info(t.Context())
	must(t, err)
	if i.User != "new" || i.Home != "/home/new" || i.Spec.WorkingDirectory != "/home/new/x/y" || i.Image == nil {
		t.Errorf("a sandbox of it: %+v", i)
	}
	if many {
		wantRun(t, in, "", "id -u; stat -c '%u %a' /srv/kept /opt/bin/tool /etc/old /home/new/x/y", "33\n7 644\n7 755\n0 644\n33 755")
	}
	// Another user, if somebody asks for one.
	wantRun(t, of(t, p, "user", "one", sandbox.Spec{User: "root"}), "", "id -u; echo $HOME", "0\n/root")

	// The same again is there already; under another name every step is known.
	again, log := built(t, p, "one", b)
	if log != "" || again.Digest != info.Digest {
		t.Errorf("the same again: %+v\n%s", again, log)
	}
	start := time.Now()
	two, log := built(t, p, "two", b)
	if took := time.Since(start); took > 3*time.Second || strings.Count(log, "[cached]") != 11 || strings.Contains(log, "hello") || two.Digest != info.Digest {
		t.Errorf("built again in %s as %+v\n%s", took, two, log)
	}
	// A step that changed is done, and those after it.
	files["tool"] += "echo more\n"
	three, log := built(t, p, "three", dockerfileOf(t, text, files))
	if strings.Count(log, "[cached]") != 3 || strings.Contains(log, "hello") || !strings.Contains(log, "exec form") || three.Digest == info.Digest {
		t.Errorf("a changed file: %+v\n%s", three, log)
	}
	wantRun(t, of(t, p, "three", "three", sandbox.Spec{}), "", "tool; cat /srv/kept", "tooled\nmore\nkept")
	// Another content under a name that is taken.
	if _, _, err := logged(t, p, "one", dockerfileOf(t, text, files)); !errors.Is(err, sandbox.ErrExists) {
		t.Errorf("another build of the name: %v", err)
	}
	b.Fresh = true
	if _, log := built(t, p, "fresh", b); strings.Contains(log, "[cached]") {
		t.Errorf("without what is known:\n%s", log)
	}
}

// What fails says which step and how, and leaves the steps before it.
func TestBuildFails(t *testing.T) {
	ref := buildImage(t)
	p := withImages(t)
	head := "FROM " + ref + "\nRUN echo good > /srv/good\n"
	for _, tt := range []struct {
		name, step string
		files      map[string]string
		code       int // -1: none
		want       []string
	}{
		{"exit", "RUN echo said; echo why >&2; exit 7", nil, 7, []string{"build_failed: step 2 of 2, line 3 (RUN echo said; echo why >&2; exit 7) exited with 7"}},
		{"signal", "RUN kill -9 $$", nil, 137, []string{"was ended by SIGKILL"}},
		{"no_program", `RUN ["/none"]`, nil, -1, []string{`there is no program "/none"`}},
		{"no_file", "COPY none /", map[string]string{"some": "x"}, -1, []string{`there is no file "none"`, "some"}},
		{"no_files", "COPY none /", nil, -1, []string{"no file for COPY is given"}},
		{"out", "COPY ../x /", map[string]string{"x": "x"}, -1, []string{"leads out of"}},
		{"directory", "COPY x /srv/../etc/../srv/good/y", map[string]string{"x": "x"}, -1, []string{"is no directory"}},
		{"archive", "ADD x.tgz /", map[string]string{"x.tgz": "\x1f\x8b\x08\x00"}, -1, []string{"ADD would unpack"}},
		{"no_user", "USER nobody-there\nRUN true", nil, -1, []string{"nobody-there"}},
		{"unset", "ENV A=${B:?needed}", nil, -1, []string{"B: needed"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, log, err := logged(t, p, "bad", dockerfileOf(t, head+tt.step, tt.files))
			var failed *sandbox.BuildError
			if !errors.As(err, &failed) || !errors.Is(err, sandbox.ErrBuildFailed) {
				t.Fatalf("build = %v", err)
			}
			for _, want := range tt.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error %q lacks %q", err, want)
				}
			}
			if tt.code >= 0 && (failed.ExitCode == nil || *failed.ExitCode != tt.code) || tt.code < 0 && failed.ExitCode != nil {
				t.Errorf("exit code %v, want %d", failed.ExitCode, tt.code)
			}
			// Two streams have no order between them.
			inOrder := strings.Contains(failed.Log, "said\nwhy\nbuild_failed: ") || strings.Contains(failed.Log, "why\nsaid\nbuild_failed: ")
			if tt.name == "exit" && (!inOrder || !strings.Contains(log, "said")) {
				t.Errorf("log %q", failed.Log)
			}
			if list, err := p.Snapshots(t.Context(), testKey.Owner); err != nil || len(list) != 0 {
				t.Errorf("snapshots after a failure: %v, %v", list, err)
			}
			if list, err := p.List(t.Context(), ""); err != nil || len(list) != 0 {
				t.Errorf("sandboxes after a failure: %v, %v", list, err)
			}
		})
	}
	if _, log := built(t, p, "good", dockerfileOf(t, head, nil)); !strings.Contains(log, "[cached]") {
		t.Errorf("the good step is not kept:\n%s", log)
	}
	asking := push(t, imageOf(t, v1.Config{OnBuild: []string{"RUN touch /asked"}}, layerOf(t, systemFiles(t)...)), "team/asking:1")
	if _, _, err := logged(t, p, "none", dockerfileOf(t, "FROM "+asking+"\nRUN true", nil)); !errors.Is(err, sandbox.ErrBuildFailed) || !strings.Contains(err.Error(), "RUN touch /asked") {
		t.Errorf("of an image with ONBUILD: %v", err)
	}
	if _, _, err := logged(t, p, "none", dockerfileOf(t, "FROM "+ref+"x\nRUN true", nil)); !errors.Is(err, sandbox.ErrBuildFailed) || !strings.Contains(err.Error(), "there is no image") {
		t.Errorf("of an image that is not there: %v", err)
	}
}

// Steps on this machine's own system, and on a snapshot of it.
func TestBuildOfTheDefaultRoot(t *testing.T) {
	host := t.TempDir()
	p := provider(t, local.Options{Dir: stateDir(t), HostDirs: []sandbox.HostDir{{Host: host, Path: "/shown"}}})
	steps := []dockerfile.Step{
		{Run: "sudo touch /usr/bin/made && id -un && pwd && test ! -e /shown && echo alone"}, {Env: map[string]string{"A": "x", "PATH": "/opt/own:$PATH"}},
		{WorkDir: "app"}, {Copy: "main.py ."}, {Run: "python3 main.py > out; (sleep 1000 >/dev/null 2>&1 &) ; stat -c %U . main.py"},
	}
	b, err := dockerfile.Steps("", steps, map[string]sandbox.BuildFile{"main.py": sandbox.TextFile("print(6*7)\n")})
	must(t, err)
	_, log := built(t, p, "root", b)
	if !strings.Contains(log, "agent\n/home/agent\nalone") || !strings.Contains(log, "agent\nagent") {
		t.Errorf("log:\n%s", log)
	}
	in := of(t, p, "a", "root", sandbox.Spec{})
	wantRun(t, in, "agent", "cat ~/app/out; test -e /usr/bin/made; echo $A; case $PATH in /opt/own:/home/agent/*) echo path; esac; test -d /shown", "42\nx\npath")
	if i, err := in.Info(t.Context()); err != nil || i.Spec.WorkingDirectory != "/home/agent/app" || i.User != "agent" {
		t.Errorf("info %+v, %v", i, err)
	}
	// Of the snapshot, and of a sandbox of it: what it says of commands stays.
	next, err := dockerfile.Steps("snapshot:root", []dockerfile.Step{{Run: "cat out; echo $A > more"}, {User: "root"}}, nil)
	must(t, err)
	if _, log = built(t, p, "next", next); !strings.Contains(log, "42") {
		t.Errorf("log:\n%s", log)
	}
	in = of(t, p, "b", "next", sandbox.Spec{})
	wantRun(t, in, "root", "cat /home/agent/app/more; test -e /usr/bin/made", "x")
	if i, err := in.Info(t.Context()); err != nil || i.User != "root" {
		t.Errorf("info %+v, %v", i, err)
	}
	_, err = in.(sandbox.Snapshotter).Snapshot(t.Context(), "kept")
	must(t, err)
	in = of(t, p, "c", "kept", sandbox.Spec{})
	wantRun(t, in, "root", "echo $A", "x")
	must(t, p.Sweep(t.Context()))
	if list, err := p.List(t.Context(), ""); err != nil || len(list) != 3 {
		t.Errorf("sandboxes: %v, %v", list, err)
	}
}

// A build that is left ends, and the next one goes on from its finished steps.
func TestBuildIsCancelled(t *testing.T) {
	p := provider(t, local.Options{Dir: stateDir(t)})
	b, err := dockerfile.Steps("", []dockerfile.Step{{Run: "echo one > ~/one"}, {Run: "echo begun; sleep 1000"}}, nil)
	must(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	begun := sandbox.WithProgress(ctx, func(p sandbox.Progress) {
		if p.Text == "begun" {
			cancel()
		}
	})
	if _, err := p.BuildSnapshot(begun, testKey.Owner, "x", b, sandbox.Spec{}.WithDefaults(sandbox.Spec{})); !errors.Is(err, context.Canceled) {
		t.Errorf("a build that was cancelled: %v", err)
	}
	if list, err := os.ReadDir(filepath.Join(local.StateOf(p), "sandboxes")); err != nil || len(list) != 0 {
		t.Errorf("left behind: %v, %v", list, err)
	}
	b.Steps = b.Steps[:1]
	if _, log := built(t, p, "x", b); !strings.Contains(log, "[cached]") {
		t.Errorf("log:\n%s", log)
	}
}

// Steps have the limits and the network of their spec, and the log names what
// struck.
func TestBuildWithinLimits(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Log("limits and addresses of the host's are shown for root; how they hold for others: TestAskedLimits")
		return
	}
	p := provider(t, local.Options{Dir: stateDir(t)})
	b, err := dockerfile.Steps("", []dockerfile.Step{{Run: "echo kept > ~/f"}, {Run: "python3 -c 'x = bytearray(300 << 20)'"}}, nil)
	must(t, err)
	spec := sandbox.Spec{Resources: sandbox.Resources{Memory: 64 << 20}, Network: &sandbox.NetworkPolicy{BlockAll: true}}.WithDefaults(sandbox.Spec{})
	_, err = p.BuildSnapshot(t.Context(), testKey.Owner, "x", b, spec)
	var failed *sandbox.BuildError
	if !errors.As(err, &failed) || failed.Step != 2 || !strings.Contains(err.Error(), "memory limit 64 MiB") {
		t.Errorf("a step beyond its memory: %v", err)
	}
	b.Steps = append(b.Steps[:1], sandbox.BuildStep{Kind: sandbox.StepRun, Text: "RUN connect", Script: "python3 -c 'import socket; socket.create_connection((\"192.0.2.1\", 80), 5).recv(1)'"})
	_, err = p.BuildSnapshot(t.Context(), testKey.Owner, "x", b, spec)
	if !errors.As(err, &failed) || !strings.Contains(failed.Log, "[network: refused 192.0.2.1:80") {
		t.Errorf("a step that may reach nothing: %v\n%s", err, failed.Log)
	}
}

// Of two servers that build the same at once, one does the work.
func TestBuildByTwoServers(t *testing.T) {
	dir := stateDir(t)
	one, two := provider(t, local.Options{Dir: dir}), provider(t, local.Options{Dir: dir})
	b, err := dockerfile.Steps("", []dockerfile.Step{{Run: "echo done; sleep 0.3"}, {Run: "echo more"}}, nil)
	must(t, err)
	type result struct {
		info sandbox.SnapshotInfo
		log  string
		err  error
	}
	results := make(chan result, 2)
	for _, p := range []*local.Provider{one, two} {
		go func() {
			info, log, err := logged(t, p, "x", b)
			results <- result{info, log, err}
		}()
	}
	first, second := <-results, <-results
	if first.err != nil || second.err != nil || first.info.Digest != second.info.Digest {
		t.Errorf("two at once: %+v and %+v", first, second)
	}
	if n := strings.Count(first.log+"\n"+second.log, "\ndone"); n != 1 {
		t.Errorf("the first step was done %d times:\n%s\n%s", n, first.log, second.log)
	}
}

// What builds keep goes when it was not used for long, but for what a snapshot
// stands on.
func TestBuildCacheIsSwept(t *testing.T) {
	now := time.Now()
	dir := stateDir(t)
	p := provider(t, local.Options{Dir: dir}.WithNow(func() time.Time { return now }))
	steps := []dockerfile.Step{{Run: "echo kept > ~/f"}, {Run: "echo more > ~/g"}}
	b, err := dockerfile.Steps("", steps, nil)
	must(t, err)
	left := func() (layers, entries, logs int) {
		for n, pattern := range map[*int]string{&layers: "sealed/*", &entries: "builds/cache/*", &logs: "builds/*.log"} {
			found, err := filepath.Glob(filepath.Join(dir, pattern))
			must(t, err)
			*n = len(found)
		}
		return layers, entries, logs
	}
	built(t, p, "x", b)
	b.Steps = b.Steps[:1]
	built(t, p, "short", b)
	if would, err := p.PruneBuilds(t.Context(), 0, true); err != nil || would.Steps != 2 || would.Bytes != 0 {
		t.Errorf("what would be forgotten: %+v, %v, want 2 steps, none of whose files go", would, err)
	}
	must(t, p.DeleteSnapshot(t.Context(), testKey.Owner, "x"))
	now = now.Add(8 * 24 * time.Hour)
	must(t, p.Sweep(t.Context()))
	if layers, entries, logs := left(); layers != 2 || entries != 2 || logs != 1 {
		t.Errorf("after 8 days: %d layers, %d steps, %d logs; want 2, 2, 1", layers, entries, logs)
	}
	if _, log := built(t, p, "again", b); !strings.Contains(log, "[cached]") { // its step is used again
		t.Errorf("log:\n%s", log)
	}
	now = now.Add(8 * 24 * time.Hour)
	must(t, p.Sweep(t.Context()))
	if layers, entries, _ := left(); layers != 1 || entries != 1 {
		t.Errorf("after 16 days: %d layers, %d steps; want 1, 1", layers, entries)
	}
	now = now.Add(16 * 24 * time.Hour)
	must(t, p.Sweep(t.Context()))
	if layers, entries, _ := left(); layers != 1 || entries != 0 {
		t.Errorf("after 32 days: %d layers, %d steps; want 1, 0", layers, entries)
	}
	wantRun(t, of(t, p, "s", "again", sandbox.Spec{}), "agent", "cat ~/f", "kept")
}
