//go:build linux

package promises_test

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"berth/internal/driver"
)

func TestPromise19Ephemeral(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	b := s.dial(t, driver.Stdio)
	b.start(args{"ephemeral": true}, "created")
	b.sh("echo x > ~/f")
	b.call("stop_sandbox", nil)
	if b.status() != gone || b.listed() {
		t.Errorf("after its stop: %v", b.sandbox())
	}
	if r := b.start(nil, afresh); !atDaytona {
		contains(t, fmt.Sprint(r.Structured["notice"]), "destroyed (stopped")
	}
	b.want("ls -A ~/f 2>/dev/null | wc -l", "0")
}

// 20 and 42: the same id finds the same sandbox from a new server; 24: a
// destroyed one is made afresh.
func TestPromise20Reconnect(t *testing.T) {
	t.Parallel()
	for _, how := range transports {
		t.Run(string(how), func(t *testing.T) {
			t.Parallel()
			s := newSite(t)
			var b *box
			if how == driver.Stdio {
				b = s.dial(t, how)
				b.start(nil, "created")
				b.sh("echo kept > ~/f")
				b.call("stop_sandbox", nil)
				b.Kill()
			} else {
				srv := s.listen(t)
				b = connect(t, srv, how)
				b.start(nil, "created")
				b.sh("echo kept > ~/f")
				b.call("stop_sandbox", nil)
				srv.Kill()
			}
			b = b.as(s.dial(t, how))
			b.start(nil, "connected")
			b.want("cat ~/f", "kept")
		})
	}
}

func TestPromise21Packages(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	b := s.dial(t, driver.Stdio)
	b.start(args{"env": args{"MARK": "set"}}, "created")
	b.sh(`mkdir -p ~/deb/DEBIAN ~/deb/usr/bin && cd ~/deb &&
		printf 'Package: promised\nVersion: 1.0\nArchitecture: all\nMaintainer: nobody <n@example.org>\nDescription: shows that packages stay\n' > DEBIAN/control &&
		printf '#!/bin/sh\necho promised works\n' > usr/bin/promised && chmod 755 usr/bin/promised && chmod 755 . DEBIAN usr usr/bin &&
		dpkg-deb --root-owner-group -b . ~/promised.deb`)
	b.sh("sudo dpkg -i ~/promised.deb")
	b.call("write_file", args{"path": "lib/setup.py", "content": "from setuptools import setup\nsetup(name='promisedpy', version='1', py_modules=['promisedpy'])\n"})
	b.call("write_file", args{"path": "lib/promisedpy.py", "content": "def f(): return 'python works'\n"})
	b.sh("python3 -m venv --without-pip ~/venv && site=$(~/venv/bin/python -c 'import site; print(site.getsitepackages()[0])') && cp ~/lib/promisedpy.py $site/")
	b.call("write_file", args{"path": "node/promisedjs/package.json", "content": `{"name":"promisedjs","version":"1.0.0","main":"index.js"}`})
	b.call("write_file", args{"path": "node/promisedjs/index.js", "content": "module.exports = 'node works'\n"})
	b.sh("mkdir -p ~/app && cd ~/app && npm init -y >/dev/null && npm install --offline --no-audit --no-fund ~/node/promisedjs")
	b.call("stop_sandbox", nil)
	b.want("promised; dpkg-query -W -f '${Status}\\n' promised", "promised works\ninstall ok installed")
	b.want("cd / && ~/venv/bin/python -c 'import promisedpy; print(promisedpy.f())'", "python works")
	b.want(`cd ~/app && node -e 'console.log(require("promisedjs"))'`, "node works")
	b.want("echo $MARK; pwd", "set\n"+home)
}

// Python packages are installed by pip, for the user and in an environment.
func TestPromise21Pip(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	b := s.dial(t, driver.Stdio)
	if r := b.call("execute_command", args{"command": "python3 -m pip --version && python3 -c 'import setuptools'"}); exit(r) != 0 {
		t.Skip("pip or setuptools is not on this machine")
	}
	b.call("write_file", args{"path": "src/promisedpy/__init__.py", "content": "def f(): return 'python works'\n"})
	b.call("write_file", args{"path": "src/promisedpy/__main__.py", "content": "from . import f\ndef main(): print('tool', f())\n"})
	b.call("write_file", args{"path": "src/setup.py", "content": "from setuptools import setup\n" +
		"setup(name='promisedpy', version='1', packages=['promisedpy'], entry_points={'console_scripts': ['promisedtool=promisedpy.__main__:main']})\n"})
	b.call("execute_command", args{"command": "cd ~/src && python3 setup.py -q sdist -d ~/dist 2>&1"})
	b.want("ls ~/dist", "promisedpy-1.tar.gz")
	b.sh("pip wheel -q --no-index --no-build-isolation --no-deps -w ~/dist ~/dist/promisedpy-1.tar.gz 2>&1")
	b.sh("pip install -q --no-index --find-links ~/dist promisedpy 2>&1")
	b.sh("python3 -m venv --without-pip ~/env && pip --python ~/env/bin/python install -q --no-index ~/dist/*.whl 2>&1")
	b.call("stop_sandbox", nil)
	b.want("cd / && python3 -c 'import promisedpy; print(promisedpy.f())'", "python works")
	b.want("promisedtool", "tool python works")
	b.want("cd / && ~/env/bin/python -c 'import promisedpy, sys; print(promisedpy.f(), promisedpy.__file__.startswith(sys.prefix))'", "python works True")
	b.want("~/env/bin/promisedtool; . ~/env/bin/activate; command -v promisedtool", "tool python works\n"+home+"/env/bin/promisedtool")
	b.sh("pip uninstall -q -y promisedpy 2>&1")
	b.run(args{"command": "cd / && python3 -c 'import promisedpy' 2>&1"}, 1)
}

func TestPromise22StoppedRestarts(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	b := s.dial(t, driver.Stdio)
	b.sh("echo x > ~/f")
	b.call("stop_sandbox", nil)
	b.want("cat ~/f", "x")
	if b.status() != "running" {
		t.Errorf("status %s", b.status())
	}
	b.call("stop_sandbox", nil)
	b.start(nil, "connected")
}

func TestPromise23ArchivedRestarts(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	b := s.dial(t, driver.Stdio)
	b.sh("echo x > ~/f; ln -s f ~/l")
	if got := record(t, b.call("stop_sandbox", args{"archive": true}))["status"]; got != "archived" {
		t.Fatalf("status %v", got)
	}
	b.start(nil, "connected")
	b.want("cat ~/l; readlink ~/l", "x\nf")
}

func TestPromise24DestroyedIsFresh(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	b := s.dial(t, driver.Stdio)
	b.start(nil, "created")
	b.sh("echo x > ~/f")
	b.call("destroy_sandbox", nil)
	// It is a new sandbox, and the answer says that there was another.
	if r := b.start(nil, afresh); !atDaytona {
		contains(t, fmt.Sprint(r.Structured["notice"]), "the former one was destroyed")
	}
	b.run(args{"command": "cat ~/f"}, 1)
}

func TestPromise25ErroredIsReplaced(t *testing.T) {
	t.Parallel()
	for name, damage := range map[string]func(t *testing.T, dir string){
		"record": func(t *testing.T, dir string) {
			for _, f := range []string{"sandbox.json", "sandbox.json.copy"} {
				must(t, os.WriteFile(filepath.Join(dir, f), []byte(`{"version": 1, "ow`), 0o600))
			}
		},
		"layers": func(t *testing.T, dir string) {
			must(t, os.Rename(filepath.Join(dir, "layers"), filepath.Join(dir, "lost")))
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if name == "record" {
				notAtDaytona(t, "what a sandbox is, the platform keeps")
			}
			s := ownSite(t)
			b := s.dial(t, driver.Stdio)
			b.sh("echo x > ~/f")
			b.call("stop_sandbox", nil)
			damage(t, s.dir(b))
			info := b.sandbox()
			if info["status"] != "error" || info["reason"] == "" {
				t.Errorf("a damaged one is %v: %v", info["status"], info["reason"])
			}
			r := b.start(nil, "replaced")
			t.Log(r.Structured["notice"])
			contains(t, fmt.Sprint(r.Structured["notice"]), "replaced")
			b.want("ls ~/f 2>/dev/null | wc -l", "0")
			kept, err := os.ReadDir(filepath.Join(s.beneath, "retired"))
			if !atDaytona && (err != nil || len(kept) == 0) { // the platform keeps none
				t.Errorf("the old one is not kept: %v, %v", kept, err)
			}
		})
	}
}

func TestPromise50IdleStop(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	c := s.dial(t, driver.Stdio)
	standard, idle, busy, never := c.other(), c.other(), c.other(), c.other()
	standard.start(nil, "created")
	if got := standard.sandbox()["spec"].(args)["auto_stop_minutes"]; fmt.Sprint(got) != "15" {
		t.Errorf("the default is %v", got)
	}
	begin := time.Now()
	idle.start(args{"auto_stop_minutes": 1}, "created")
	busy.start(args{"auto_stop_minutes": 1}, "created")
	never.start(args{"auto_stop_minutes": 0}, "created")
	busy.call("spawn_process", args{"command": "sleep 1000"})
	// Being looked at is no use: nothing here keeps it awake.
	wait(t, 90*time.Second, "the idle one stops", func() bool { return idle.status() == "stopped" })
	if took := time.Since(begin); took < 59*time.Second {
		t.Errorf("it stopped after %s already", took)
	}
	if idle.sandbox()["stopped"] == nil {
		t.Error("it is not told when it stopped")
	}
	for name, b := range map[string]*box{"default": standard, "busy": busy, "never": never} {
		if got := b.status(); got != "running" {
			t.Errorf("%s: %s", name, got)
		}
	}
	idle.want("echo back", "back")
}

// Stopped sandboxes are dated back; the server that sweeps is a real one.
func TestPromise51Archive(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	c := s.dial(t, driver.Stdio)
	day := 24 * time.Hour
	cases := []struct {
		name string
		set  args
		ago  time.Duration
		want string
	}{
		{"six days of the default seven", nil, 6 * day, "stopped"},
		{"the default of seven days", nil, 7*day + time.Minute, "archived"},
		{"a minute", args{"auto_archive_minutes": 1}, 61 * time.Second, "archived"},
		{"29 days of the maximum", args{"auto_archive_minutes": 0}, 29 * day, "stopped"},
		{"the maximum of 30 days", args{"auto_archive_minutes": 0}, 30*day + time.Minute, "archived"},
	}
	boxes := make([]*box, len(cases))
	for i, k := range cases {
		boxes[i] = c.other()
		boxes[i].start(k.set, "created")
		boxes[i].sh("echo kept > ~/f")
		boxes[i].call("stop_sandbox", nil)
		s.backdate(boxes[i], k.ago)
	}
	s.sweep()
	for i, k := range cases {
		if k.want == "archived" {
			wait(t, 90*time.Second, k.name+" is archived", func() bool { return boxes[i].status() == "archived" })
		}
	}
	for i, k := range cases {
		if got := boxes[i].status(); got != k.want {
			t.Errorf("%s: %s, want %s", k.name, got, k.want)
		}
		boxes[i].want("cat ~/f", "kept")
	}
}

func TestPromise52Delete(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	c := s.dial(t, driver.Stdio)
	never, atOnce, later, soon := c.other(), c.other(), c.other(), c.other()
	never.start(args{"auto_delete_minutes": -1}, "created")
	atOnce.start(args{"auto_delete_minutes": 0}, "created")
	later.start(args{"auto_delete_minutes": 2}, "created")
	soon.start(args{"auto_delete_minutes": 20}, "created")
	for _, b := range []*box{never, atOnce, later, soon} {
		b.call("stop_sandbox", nil)
	}
	if atOnce.status() != gone {
		t.Errorf("0: %s", atOnce.status())
	}
	s.backdate(never, 6*24*time.Hour)
	s.backdate(later, 2*time.Minute+time.Second)
	s.backdate(soon, 10*time.Minute)
	s.sweep()
	wait(t, 90*time.Second, "the one of two minutes is deleted", func() bool { return later.status() == gone })
	for name, b := range map[string]*box{"never": never, "20 minutes": soon} {
		if got := b.status(); got != "stopped" {
			t.Errorf("%s: %s", name, got)
		}
	}
}

func TestPromise53Validated(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	b := s.dial(t, driver.Stdio)
	for _, c := range []struct {
		args args
		want []string
	}{
		{args{"auto_stop_minutes": -1}, []string{"auto_stop_minutes", "-1", "0 to 525600"}},
		{args{"auto_archive_minutes": -5}, []string{"auto_archive_minutes", "0 to 43200"}},
		{args{"auto_stop_minutes": 0.5}, []string{"auto_stop_minutes", "0.5", "a whole number"}},
		{args{"auto_delete_minutes": 1e9}, []string{"auto_delete_minutes", "525600"}},
		{args{"auto_stop_minutes": "soon"}, []string{"auto_stop_minutes", "soon"}},
		{args{"autostop": 1}, []string{"autostop", "no such argument"}},
		{args{"labels": "x"}, []string{"labels"}},
		{args{"ephemeral": "perhaps"}, []string{"ephemeral"}},
		{args{"env": args{"A": 1.5, "b=": "x"}}, []string{"env"}},
		{args{"working_directory": "relative"}, []string{"working_directory", "absolute"}},
		{args{"timeout_seconds": -1}, []string{"timeout_seconds", "0 to 86400"}},
		{args{"auto_stop_minutes": -1, "language": "cobol", "nonsense": true}, []string{"auto_stop_minutes", "language", "nonsense"}},
	} {
		contains(t, b.refused("start_sandbox", c.args), c.want...)
	}
	if b.status() != "pending" || b.listed() {
		t.Error("a refused start made a sandbox")
	}
	if dir := s.find(b); dir != "" {
		t.Errorf("on disk: %s", dir)
	}
	b.start(nil, "created")
	b.call("write_file", args{"path": home + "/deep.ts", "content": strings.Repeat("(", 300_000)})
	deep := []string{"code: it is nested too deeply or too large to be compiled (limit: 10 seconds", "execute_command", "nothing was run"}
	for _, c := range []struct {
		tool string
		args args
		want []string
	}{
		// The server would not be there for the rest if it had compiled these.
		{"run_code", args{"language": "typescript", "code": "let x=" + strings.Repeat("[", 500_000)}, deep},
		{"run_code", args{"language": "javascript", "code": strings.Repeat("!", 1_000_000) + "1"}, deep},
		{"run_code", args{"language": "typescript", "code": "import './deep'"}, deep},
		{"execute_command", args{"argv": []string{"nosuch", "x"}}, []string{`no program "nosuch" on the PATH`, "nothing was run"}},
		{"execute_command", args{"argv": []string{"/no/such"}}, []string{`no program "/no/such" in the sandbox`, "nothing was run"}},
		{"execute_command", args{"argv": []string{"echo hi"}}, []string{`"echo hi"`, "each argument by itself", "nothing was run"}},
		{"execute_command", args{"command": "true", "cwd": "/no/such"}, []string{"cwd: /no/such", "nothing was run"}},
		{"run_code", args{"language": "typescript", "code": "import './nosuch'"}, []string{"run_code.ts:1:8", home + "/nosuch", "nothing was run"}},
		{"read_file", args{"path": "/no/such"}, []string{"path: /no/such does not exist", "ls -la"}},
		{"edit_file", args{"path": "/etc", "edits": []args{{"old_text": "a", "new_text": "b"}}}, []string{"path: /etc is a directory"}},
		{"read_output", args{"process_id": "p-aaaaaaaaaaaaaaaa"}, []string{"p-aaaaaaaaaaaaaaaa", "list_processes"}},
	} {
		contains(t, b.refused(c.tool, c.args), c.want...)
	}
}

func TestPromise54Properties(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	b := s.dial(t, driver.Stdio)
	var walk []string
	note := func() {
		t.Helper()
		i := b.sandbox()
		if i["session_id"] != b.id || i["name"] != b.id {
			t.Errorf("%v", i)
		}
		walk = append(walk, fmt.Sprint(i["status"]))
	}
	note()
	b.start(nil, "created")
	note()
	if p := b.sandbox()["provider"]; p != map[bool]string{false: "local", true: "daytona"}[atDaytona] {
		t.Errorf("provider %v", p)
	}
	b.call("stop_sandbox", nil)
	note()
	b.call("destroy_sandbox", nil)
	note()
	if got := strings.Join(walk, " "); got != "pending running stopped "+gone {
		t.Error(got)
	}
}

// Another client sees every status on the way, also those that end by
// themselves.
func TestPromise54Walk(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	b := s.dial(t, driver.Stdio)
	watcher := b.as(s.dial(t, driver.Stdio))
	var walk []string
	look := func() {
		r, err := watcher.Call(t.Context(), "get_sandbox", watcher.with(nil))
		if err != nil || r.IsError {
			t.Errorf("get_sandbox: %v %v", err, r)
			return
		}
		status := fmt.Sprint(r.Structured["sandbox"].(args)["status"])
		if len(walk) == 0 || walk[len(walk)-1] != status {
			walk = append(walk, status)
		}
	}
	while := func(act func()) {
		done, stop := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(done)
			for {
				look()
				select {
				case <-stop:
					look()
					return
				default:
				}
			}
		}()
		act()
		close(stop)
		<-done
	}
	while(func() { b.start(nil, "created") })
	// What takes its time: a process that does not want to end, and files that
	// must be packed and unpacked.
	b.sh("head -c 40M /dev/urandom > ~/f")
	b.spawn(args{"command": "trap '' TERM; echo ready; while :; do sleep 1; done", "wait_for": "output", "wait_seconds": 10})
	while(func() { b.call("stop_sandbox", nil) })
	while(func() { b.call("stop_sandbox", args{"archive": true}) })
	while(func() { b.start(nil, "connected") })
	while(func() { b.call("destroy_sandbox", nil) })
	got := strings.Join(walk, " ")
	t.Log(got)
	// The first start and the end may be too quick to be seen on the way.
	if !regexp.MustCompile(`^pending (starting )?running stopping stopped archiving archived starting running (stopping )?(destroying )?` + gone + `$`).MatchString(got) {
		t.Errorf("the walk was %s", got)
	}
}

func TestPromise55NotReady(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	b := s.dial(t, driver.Stdio)
	for tool, a := range map[string]args{
		"read_file": {"path": "f"}, "write_file": {"path": "f", "content": "x"}, "list_processes": nil,
		"edit_file": {"path": "f", "edits": []args{{"old_text": "a", "new_text": "b"}}},
	} {
		contains(t, b.refused(tool, a), "session "+b.id+" has no sandbox", "start_sandbox")
	}
	if b.status() != "pending" {
		t.Error("a refused call made a sandbox")
	}
	b.start(nil, "created")
	b.call("write_file", args{"path": "f", "content": "x\n"})
	contains(t, b.call("read_file", args{"path": "f"}).Text, "x")
	b.want("cat f", "x")
}
