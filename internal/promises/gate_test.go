//go:build linux

package promises_test

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"compress/gzip"
	"crypto/sha512"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/cgi"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"berth/internal/driver"
)

// hostLoopback is the machine's own loopback as a sandbox sees it, where the
// operator opens it.
const hostLoopback = "10.0.2.2"

// loopbackOpen lets sessions ask for it.
const loopbackOpen = "limits: {network_allow_list: [127.0.0.1/32]}\n"

// atLoopback has a text name the machine's loopback as a sandbox does.
func atLoopback(text string) string { return strings.ReplaceAll(text, "127.0.0.1", hostLoopback) }

// opened is a site whose operator lets sessions ask for the machine's
// loopback, where a test's servers are.
func opened(t *testing.T, s *site) *site {
	t.Helper()
	s.Args = append(s.Args, "--toolsets", "all")
	return s.configured(loopbackOpen)
}

// onlyLoopback is the policy of a session that reaches the test's servers.
func onlyLoopback() args {
	return args{"network_block_all": true, "network_allow_list": "127.0.0.1"}
}

// inside is how a sandbox calls a server of the test.
func inside(srv *httptest.Server) string {
	return atLoopback(srv.URL)
}

func TestPromise69Git(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	git := func(args ...string) {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), "git", append([]string{"-c", "init.defaultBranch=main", "-c", "user.name=n", "-c", "user.email=n@example.org", "-C", dir}, args...)...)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("git %v: %v\n%s", args, err, out)
		}
	}
	git("init", "-q", "work")
	must(t, os.WriteFile(filepath.Join(dir, "work", "README"), []byte("from the host\n"), 0o600))
	git("-C", "work", "add", "README")
	git("-C", "work", "commit", "-q", "-m", "first")
	git("clone", "-q", "--bare", "work", "repo.git")
	git("-C", "repo.git", "config", "http.receivepack", "true")
	backend, err := exec.CommandContext(t.Context(), "git", "--exec-path").Output()
	must(t, err)
	srv := httptest.NewServer(&cgi.Handler{Path: filepath.Join(strings.TrimSpace(string(backend)), "git-http-backend"),
		Env: []string{"GIT_PROJECT_ROOT=" + dir, "GIT_HTTP_EXPORT_ALL=1", "GIT_CONFIG_COUNT=1", "GIT_CONFIG_KEY_0=safe.directory", "GIT_CONFIG_VALUE_0=*"}})
	defer srv.Close()

	b := opened(t, newSite(t)).dial(t, driver.Stdio)
	b.call("start_sandbox", args{"network_block_all": true})
	clone := args{"command": "git clone -q " + inside(srv) + "/repo.git && cat repo/README"}
	r := b.call("execute_command", clone)
	if exit(r) != 128 {
		t.Errorf("cloned through a closed network: %s", r.Text)
	}
	if !atDaytona { // the platform does not tell what it refuses
		says(t, r.Text, "refused "+hostLoopback+":", "the host's loopback is closed")
	}
	b.call("set_network", onlyLoopback())
	says(t, b.call("execute_command", clone).Text, "from the host")
	b.sh("cd repo && git config user.name a && git config user.email a@example.org && git switch -q -c change && echo more >> README && git commit -qam second && git push -q origin change")
	git("-C", "repo.git", "rev-parse", "--verify", "change")
	b.want("cd repo && echo lost >> README && git pull -q origin main && git log --format=%s | head -1", "second")
}

// However an address is written, and whoever names it, the metadata service and
// the private ranges are not reached.
func TestDisguisedAddresses(t *testing.T) {
	notAtDaytona(t, "which addresses are special, and whom it refuses, the platform says")
	t.Parallel()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, r.URL.Query().Get("to"), http.StatusFound)
	}))
	defer srv.Close()
	b := opened(t, newSite(t)).dial(t, driver.Stdio)
	b.call("start_sandbox", args{"network_allow_list": "127.0.0.1,0.0.0.0/0,::/0"})
	for url, host := range map[string]string{
		"http://169.254.169.254/":                   "169.254.169.254:80",
		"http://2852039166/":                        "169.254.169.254:80",
		"http://0251.0376.0251.0376/":               "169.254.169.254:80",
		"http://0xa9fea9fe/":                        "169.254.169.254:80",
		"http://[::ffff:169.254.169.254]/":          "169.254.169.254:80",
		"http://[64:ff9b::169.254.169.254]/":        "[64:ff9b::a9fe:a9fe]:80",
		"http://[fd00:ec2::254]/":                   "[fd00:ec2::254]:80",
		"http://10.0.0.1:8080/":                     "10.0.0.1:8080",
		inside(srv) + "/?to=http://169.254.169.254": "169.254.169.254:80",
		inside(srv) + "/?to=http://192.168.1.1:88":  "192.168.1.1:88",
	} {
		r := b.call("execute_command", args{"argv": []string{"curl", "-sSL", "-m", "20", url}})
		if exit(r) == 0 {
			t.Errorf("%s answers: %s", url, r.Text)
		}
		says(t, r.Text, "refused "+host+":")
	}
	// The sandbox's own loopback is its own in all its forms.
	b.want("curl -sS -m 20 http://2130706433:1/ 2>&1 | grep -o 'Connection refused\\|Failed to connect' | head -1 | wc -l", "1")
}

// Packages of the three usual registries come through the gate; here from
// registries of the test's own.
func TestPackagesThroughTheGate(t *testing.T) {
	t.Parallel()
	reg := newRegistry(t)
	b := opened(t, newSite(t)).dial(t, driver.Stdio)
	b.call("start_sandbox", onlyLoopback())
	b.sh("pip install -q --trusted-host " + hostLoopback + " -i " + inside(reg) + "/simple promisedpy 2>&1 && cd / && python3 -c 'import promisedpy; print(promisedpy.f())'")
	b.want("mkdir app && cd app && npm init -y >/dev/null && npm install --silent --no-audit --registry "+inside(reg)+"/npm promisedjs && node -e 'console.log(require(\"promisedjs\"))'", "node works")
	b.sh("echo 'deb [trusted=yes] " + inside(reg) + "/apt ./' | sudo tee /etc/apt/sources.list >/dev/null && sudo rm -f /etc/apt/sources.list.d/* && sudo apt-get -q update 2>&1 && sudo apt-get -q install -y promised 2>&1")
	b.want("promised", "promised works")
	if r := b.call("execute_command", args{"command": "pip download -q nosuchpackage 2>&1 | tail -1"}); !strings.Contains(r.Text, "the name pypi.org was refused") && !atDaytona {
		t.Errorf("another registry: %s", r.Text)
	}
}

// newRegistry serves a Python, a JavaScript and a Debian package.
func newRegistry(t *testing.T) *httptest.Server {
	t.Helper()
	var wheel bytes.Buffer
	z := zip.NewWriter(&wheel)
	for name, text := range map[string]string{
		"promisedpy.py":                    "def f(): return 'python works'\n",
		"promisedpy-1.dist-info/METADATA":  "Metadata-Version: 2.1\nName: promisedpy\nVersion: 1\n",
		"promisedpy-1.dist-info/WHEEL":     "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
		"promisedpy-1.dist-info/RECORD":    "promisedpy.py,,\npromisedpy-1.dist-info/METADATA,,\npromisedpy-1.dist-info/WHEEL,,\npromisedpy-1.dist-info/RECORD,,\n",
		"promisedpy-1.dist-info/top_level": "promisedpy\n",
	} {
		w, err := z.Create(name)
		must(t, err)
		_, err = io.WriteString(w, text)
		must(t, err)
	}
	must(t, z.Close())

	var tgz bytes.Buffer
	gz := gzip.NewWriter(&tgz)
	tw := tar.NewWriter(gz)
	for name, text := range map[string]string{"package/package.json": `{"name":"promisedjs","version":"1.0.0","main":"index.js"}`, "package/index.js": "module.exports = 'node works'\n"} {
		must(t, tw.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(text))}))
		_, err := io.WriteString(tw, text)
		must(t, err)
	}
	must(t, tw.Close())
	must(t, gz.Close())
	sum := sha512.Sum512(tgz.Bytes())

	deb := filepath.Join(t.TempDir(), "deb")
	for name, text := range map[string]string{
		"DEBIAN/control":   "Package: promised\nVersion: 1.0\nArchitecture: all\nMaintainer: nobody <n@example.org>\nDescription: comes through the gate\n",
		"usr/bin/promised": "#!/bin/sh\necho promised works\n",
	} {
		must(t, os.MkdirAll(filepath.Dir(filepath.Join(deb, name)), 0o755))
		must(t, os.WriteFile(filepath.Join(deb, name), []byte(text), 0o755)) //nolint:gosec // a program
	}
	for _, dir := range []string{"", "DEBIAN", "usr", "usr/bin"} {
		must(t, os.Chmod(filepath.Join(deb, dir), 0o755)) //nolint:gosec // dpkg-deb wants it
	}
	out, err := exec.CommandContext(t.Context(), "dpkg-deb", "--root-owner-group", "-b", deb, deb+".deb").CombinedOutput()
	if err != nil {
		t.Fatalf("dpkg-deb: %v %s", err, out)
	}
	debFile, err := os.ReadFile(deb + ".deb")
	must(t, err)

	var srv *httptest.Server
	mux := http.NewServeMux()
	serve := func(path string, body func() []byte) {
		mux.HandleFunc(path, func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(body()) })
	}
	fixed := func(path string, b []byte) { serve(path, func() []byte { return b }) }
	fixed("/simple/promisedpy/", []byte(`<a href="/files/promisedpy-1-py3-none-any.whl">promisedpy-1-py3-none-any.whl</a>`))
	fixed("/files/promisedpy-1-py3-none-any.whl", wheel.Bytes())
	fixed("/files/promisedjs-1.0.0.tgz", tgz.Bytes())
	serve("/npm/promisedjs", func() []byte {
		b, _ := json.Marshal(args{"name": "promisedjs", "dist-tags": args{"latest": "1.0.0"}, "versions": args{"1.0.0": args{"name": "promisedjs", "version": "1.0.0",
			"dist": args{"tarball": inside(srv) + "/files/promisedjs-1.0.0.tgz", "integrity": "sha512-" + base64.StdEncoding.EncodeToString(sum[:])}}}})
		return b
	})
	fixed("/apt/promised.deb", debFile)
	fixed("/apt/Packages", fmt.Appendf(nil, "Package: promised\nVersion: 1.0\nArchitecture: all\nMaintainer: nobody <n@example.org>\nFilename: ./promised.deb\nSize: %d\nSHA512: %x\nDescription: comes through the gate\n", len(debFile), sha512.Sum512(debFile)))
	srv = httptest.NewServer(mux)
	t.Cleanup(srv.Close)
	return srv
}

// echoServer listens on the machine's loopback; it says the port.
func echoServer(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_, _ = io.Copy(c, c)
			}()
		}
	}()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	return port
}

// gateOf finds the gate of the only sandbox of a state directory; 0 without one.
func gateOf(t *testing.T, state string) int {
	t.Helper()
	files, _ := filepath.Glob(filepath.Join(state, "sandboxes", "*", "monitor.json"))
	if len(files) != 1 {
		t.Fatalf("there are %d monitors", len(files))
	}
	var record struct {
		MonitorPID int `json:"monitor_pid"`
	}
	b, err := os.ReadFile(files[0])
	must(t, err)
	must(t, json.Unmarshal(b, &record))
	procs, err := filepath.Glob("/proc/[0-9]*")
	must(t, err)
	for _, p := range procs {
		if line, _ := os.ReadFile(filepath.Join(p, "cmdline")); string(line) != "box\x00gate\x00" {
			continue
		}
		stat, _ := os.ReadFile(filepath.Join(p, "stat"))
		fields := strings.Fields(string(stat[max(0, bytes.LastIndexByte(stat, ')')):]))
		if len(fields) > 2 && fields[2] == strconv.Itoa(record.MonitorPID) {
			pid, _ := strconv.Atoi(filepath.Base(p))
			return pid
		}
	}
	return 0
}

func TestNetworkOutlivesGateAndServer(t *testing.T) {
	notAtDaytona(t, "the gate is the platform's")
	t.Parallel()
	port := echoServer(t)
	s := opened(t, ownSite(t))
	b := s.dial(t, driver.Stdio)
	b.call("start_sandbox", onlyLoopback())
	if pid := gateOf(t, s.State); pid != 0 {
		t.Errorf("gate %d runs before there is a connection", pid)
	}
	const speak = "exec 3<>/dev/tcp/" + hostLoopback + "/%s && echo hello >&3 && head -1 <&3"
	b.want(fmt.Sprintf(speak, port), "hello")
	// A program talks all the time.
	talk := b.spawn(args{"command": fmt.Sprintf("exec 3<>/dev/tcp/%s/%s; while echo tick >&3 && read -t 20 l <&3; do echo $l; sleep 0.1; done; echo lost", hostLoopback, port)})
	b.call("read_output", args{"process_id": talk, "wait_for": "pattern", "pattern": "tick", "wait_seconds": 20})

	b.Kill() // the server
	b = b.as(s.dial(t, driver.Stdio))
	r := b.call("read_output", args{"process_id": talk, "wait_for": "pattern", "pattern": "(tick\n){5}", "wait_seconds": 20})
	if strings.Contains(r.Text, "lost") {
		t.Errorf("the connection ended with the server: %s", r.Text)
	}

	pid := gateOf(t, s.State)
	if pid == 0 {
		t.Fatal("there is no gate while a connection is open")
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	must(t, err)
	contains(t, string(status), "CapEff:\t0000000000000000", "CapPrm:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2")
	if os.Geteuid() == 0 && strings.Contains(string(status), "\nUid:\t0") {
		t.Errorf("the gate is root's:\n%s", status)
	}
	must(t, syscall.Kill(pid, syscall.SIGKILL))
	says(t, b.ended(talk).Text, "lost", "the egress gate died")
	b.want(fmt.Sprintf(speak, port), "hello")
	if now := gateOf(t, s.State); now == pid || now == 0 {
		t.Errorf("gate %d serves after %d was killed", now, pid)
	}
	// One that is stopped does not keep an old policy in force.
	pid = gateOf(t, s.State)
	must(t, syscall.Kill(pid, syscall.SIGSTOP))
	begin := time.Now()
	b.call("set_network", args{"network_block_all": true})
	if took := time.Since(begin); took > 20*time.Second {
		t.Errorf("set_network took %v", took)
	}
	r = b.call("execute_command", args{"command": fmt.Sprintf(speak, port)})
	if strings.Contains(r.Output(), "hello") {
		t.Errorf("the old policy holds: %s", r.Text)
	}
	says(t, r.Text, "the host's loopback is closed")
}
