//go:build linux

package toolbox_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"encoding/json"

	"berth/internal/daytonaapi/toolbox"
)

func TestInfo(t *testing.T) {
	w := newWorld(t)
	var v struct{ Version, Dir string }
	w.do("GET", "/version", nil, 200, &v)
	if v.Version == "" {
		t.Error("no version")
	}
	for _, path := range []string{"/work-dir", "/user-home-dir", "/project-dir"} {
		w.do("GET", path, nil, 200, &v)
		if v.Dir != "/home/agent" {
			t.Errorf("%s: %s", path, v.Dir)
		}
	}
	w.session("s")
	id := w.begin("s", "python3 -u -m http.server 4567", true)
	w.until("s", id, "Serving")
	var p struct {
		Ports   []int
		IsInUse bool
	}
	w.do("GET", "/port", nil, 200, &p)
	if !slices.Contains(p.Ports, 4567) {
		t.Errorf("ports: %v", p.Ports)
	}
	for port, used := range map[int]bool{4567: true, 4568: false} {
		w.do("GET", fmt.Sprintf("/port/%d/in-use", port), nil, 200, &p)
		if p.IsInUse != used {
			t.Errorf("port %d in use: %v", port, p.IsInUse)
		}
	}
	w.problem(w.do("GET", "/port/80/in-use", nil, 400, nil), 400, "BAD_REQUEST", "port")
	var m1 map[string]any
	w.do("GET", "/system/metrics", nil, 200, &m1)
	for _, k := range []string{"cpuCount", "memTotal", "diskTotal", "timestampUnix"} {
		if n, ok := m1[k].(float64); !ok || n <= 0 {
			t.Errorf("metrics: %s is %v", k, m1[k])
		}
	}
	w.do("POST", "/env", m{"set": m{"A": "1", "B": "secret-2", "C": "3"}}, 200, nil)
	w.do("POST", "/env", m{"unset": []string{"A"}, "unsetValuePrefix": "secret-", "set": m{"D": "4"}}, 200, nil)
	if out := w.run("echo ${A-none} ${B-none} $C $D"); out != "none none 3 4\n" {
		t.Errorf("env: %s", out)
	}
	w.problem(w.do("POST", "/env", m{"set": m{"1": ""}}, 400, nil), 400, "BAD_REQUEST", "env")
	for _, path := range []string{"/lsp/start", "/computeruse/screenshot", "/proxy/3000/x"} {
		w.problem(w.do("POST", path, nil, 501, nil), 501, "NOT_IMPLEMENTED", "not supported")
	}
}

func TestCodeRun(t *testing.T) {
	w := newWorld(t)
	for _, c := range []struct {
		name string
		body m
		code int
		out  string
	}{
		{"python", m{"language": "python", "code": "import sys, os\nprint(sys.argv[1:], os.environ['A'])\nprint('e', file=sys.stderr)\nsys.exit(3)", "argv": []string{"a b", "-x"}, "envs": m{"A": "1"}}, 3, "['a b', '-x'] 1\ne\n"},
		{"javascript", m{"language": "javascript", "code": "console.log(process.argv.slice(2)); console.error('e')", "argv": []string{"a b", "--version"}}, 0, "[ 'a b', '--version' ]\ne\n"},
		{"typescript", m{"language": "typescript", "code": "const x: number = 6; console.log(x * 7)"}, 0, "42\n"},
		{"no arguments", m{"language": "javascript", "code": "console.log(process.argv.length)"}, 0, "1\n"},
		{"input at its end", m{"language": "python", "code": "import sys; print(repr(sys.stdin.read()))"}, 0, "''\n"},
	} {
		var r execResult
		w.do("POST", "/process/code-run", c.body, 200, &r)
		if r.ExitCode == nil || *r.ExitCode != c.code || r.Result != c.out {
			t.Errorf("%s: %v %q, want %d %q", c.name, r.ExitCode, r.Result, c.code, c.out)
		}
	}
	var r execResult
	w.do("POST", "/process/code-run", m{"language": "typescript", "code": "const x: = 1"}, 200, &r)
	if *r.ExitCode != 1 || r.Result == "" {
		t.Errorf("what cannot be compiled: %d %q", *r.ExitCode, r.Result)
	}
	w.do("POST", "/process/code-run", m{"language": "python", "code": "1/0"}, 200, &r)
	if *r.ExitCode != 1 || !strings.Contains(r.Result, "ZeroDivisionError") {
		t.Errorf("an error: %d %q", *r.ExitCode, r.Result)
	}
	w.problem(w.do("POST", "/process/code-run", m{"language": "ruby", "code": "1"}, 400, nil), 400, "BAD_REQUEST", "language")
	w.problem(w.do("POST", "/process/code-run", m{"language": "python", "code": " "}, 400, nil), 400, "BAD_REQUEST", "code")
	w.problem(w.do("POST", "/process/code-run", m{"language": "python", "code": "import time; time.sleep(1000)", "timeout": 1}, 408, nil), 408, "PROCESS_EXECUTION_TIMEOUT", "")
}

func FuzzJSONText(f *testing.F) {
	f.Add([]byte("a\xffü\x00\"\\\u2028"), 1)
	f.Add([]byte("\xf0\x9f\x98\x80\xf0\x9f"), 3)
	f.Fuzz(func(t *testing.T, b []byte, piece int) {
		text := toolbox.JSONText(b, max(1, piece))
		var got string
		if err := json.Unmarshal([]byte(text), &got); err != nil {
			t.Fatalf("%q is no JSON: %v", text, err)
		}
		want := string([]rune(string(b))) // each byte that is no UTF-8 becomes U+FFFD
		if got != want || !utf8.ValidString(got) {
			t.Errorf("%q in pieces of %d: %q, want %q", b, piece, got, want)
		}
	})
}

// What is read of the inside may be anything.
func FuzzParsers(f *testing.F) {
	f.Add("# branch.head main\x00# branch.ab +1 -2\x001 .M N... 100644 100644 100644 0 0 a b\x002 R. N... 1 2 3 4 5 R100 new\x00old\x00? x\x00u UU a b c d e f g h i\x00")
	f.Add("  sl  local_address\n   0: 0100007F:11D7 00000000:0000 0A 0\n")
	f.Add("abc\x00a\x00b\x0012\x00m\x00")
	f.Add("4\nMemTotal: 12 kB\noverlay 1 2 3 4% /\n")
	f.Add("files[12].path")
	f.Fuzz(func(t *testing.T, s string) {
		toolbox.GitStatus(s)
		toolbox.History(s)
		toolbox.System(s)
		for _, p := range toolbox.Ports(s) {
			if p < 1 || p > 65535 {
				t.Errorf("port %d", p)
			}
		}
		if _, kind, ok := toolbox.UploadField(s); ok && kind != "path" && kind != "file" {
			t.Errorf("field %q", s)
		}
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		r.Header.Set("X-Daytona-SDK-Version", s)
		if n := toolbox.Form(r); n < 0 || n > 2 {
			t.Errorf("form %d", n)
		}
	})
}
