//go:build linux

package promises_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mark3labs/mcp-go/mcp"

	"berth/internal/driver"
)

func TestPromise01Isolated(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	a := s.dial(t, driver.Stdio)
	b := a.other()
	marker := filepath.Join(t.TempDir(), "marker")
	must(t, os.WriteFile(marker, []byte("of the host"), 0o644))
	a.sh("echo of-a > /tmp/of-a; echo of-a > ~/of-a")
	a.call("spawn_process", args{"command": "exec -a only-in-a sleep 1000"})
	a.want("cat /proc/*/cmdline | tr '\\0' ' ' | grep -c '^only-in-a\\|only-in-a 1000'", "1")
	b.want("ls /tmp/of-a ~/of-a 2>/dev/null | wc -l", "0")
	b.want("for f in /proc/[0-9]*/cmdline; do tr '\\0' ' ' < $f; echo; done | grep '^only-in-[a]' | wc -l", "0")
	if out := b.run(args{"command": "cat " + marker}, 1); strings.Contains(out, "of the host") {
		t.Errorf("the host's file is read: %s", out)
	}
	host, err := os.Hostname()
	must(t, err)
	if got := a.sh("uname -n"); got == host {
		t.Errorf("the host's name is seen inside: %s", got)
	}
	for _, ns := range []string{"pid", "mnt", "net", "uts", "ipc", "user"} {
		outside, err := os.Readlink("/proc/self/ns/" + ns)
		must(t, err)
		inA, inB := a.sh("readlink /proc/self/ns/"+ns), b.sh("readlink /proc/self/ns/"+ns)
		if !strings.HasPrefix(inA, ns+":[") || inA == outside || inB == outside || inA == inB {
			t.Errorf("namespaces %s: host %s, a %s, b %s", ns, outside, inA, inB)
		}
	}
}

func TestPromise02Languages(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	c := s.dial(t, driver.Stdio)
	for _, l := range []struct{ language, code, want string }{
		{"python", "print(sum(n * n for n in range(10)))", "285"},
		{"javascript", "console.log([3, 1, 2].sort().join('<'))", "1<2<3"},
		{"typescript", "const xs: number[] = [3, 1, 2]; console.log(xs.sort().join('<'))", "1<2<3"},
	} {
		b := c.other()
		b.start(args{"language": l.language}, "created")
		r := b.call("run_code", args{"code": l.code})
		if got := strings.TrimSpace(r.Output()); got != l.want || exit(r) != 0 {
			t.Errorf("%s prints %q, exit %d; want %q, 0", l.language, got, exit(r), l.want)
		}
	}
	b := c.other()
	contains(t, b.refused("start_sandbox", args{"language": "cobol"}), "language", "cobol", "typescript, javascript, python")
	if b.status() != "pending" {
		t.Error("a refused start made a sandbox")
	}
}

// Top-level await, require and imports relative to the working directory.
func TestPromise02Modules(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	b := s.dial(t, driver.Stdio)
	b.sh("mkdir -p ~/work")
	b.call("write_file", args{"path": "work/twice.cjs", "content": "module.exports = n => 2 * n\n"})
	b.call("write_file", args{"path": "work/thrice.mjs", "content": "export default n => 3 * n\n"})
	b.call("write_file", args{"path": "work/util.ts", "content": "import {four} from './lib/more.js'\nexport const five: number = four + 1\n"})
	b.call("write_file", args{"path": "work/lib/more.ts", "content": "export const four: number = 4\n"})
	for _, l := range []struct{ language, code, want string }{
		{"typescript", "import {five} from './util'; const n: number = five; console.log(n)", "5"},
		{"javascript", "import {five} from './util.ts'; console.log(five)", "5"},
		{"python", "import os; print(os.path.dirname(__file__))", home + "/work"},
		{"javascript", "const n = await Promise.resolve(21); console.log(n)", "21"},
		{"javascript", "const twice = require('./twice.cjs'); console.log(twice(21), require('path').basename(process.cwd()))", "42 work"},
		{"javascript", "import thrice from './thrice.mjs'; console.log(await Promise.resolve(thrice(7)))", "21"},
		{"javascript", "console.log((await import('./thrice.mjs')).default(7), require('./twice.cjs')(1))", "21 2"},
		{"typescript", "const n: number = await Promise.resolve(21); console.log(n)", "21"},
		{"typescript", "const twice = require('./twice.cjs') as (n: number) => number; console.log(twice(21))", "42"},
		{"typescript", "import thrice from './thrice.mjs'; const n: number = thrice(5); console.log(n)", "15"},
		{"python", "import os; print(os.path.basename(os.getcwd()))", "work"},
	} {
		r := b.call("run_code", args{"language": l.language, "code": l.code, "cwd": home + "/work"})
		if got := strings.TrimSpace(r.Output()); got != l.want || exit(r) != 0 {
			t.Errorf("%s %s: %s; want %q", l.language, l.code, r.Text, l.want)
		}
	}
}

// progress runs a command with a progress token, unless that is nil, and returns the
// messages that came before its answer.
func progress(b *box, token any, a args) (*driver.Answer, string) {
	b.t.Helper()
	var mu sync.Mutex
	var messages strings.Builder
	b.Watch(func(got any, message string) {
		mu.Lock()
		defer mu.Unlock()
		if fmt.Sprint(got) == fmt.Sprint(token) {
			messages.WriteString(message)
		}
	})
	req := mcp.CallToolRequest{Params: mcp.CallToolParams{Name: "execute_command", Arguments: b.with(a)}}
	if token != nil {
		req.Params.Meta = &mcp.Meta{ProgressToken: token}
	}
	answer, err := b.Do(b.t.Context(), req)
	must(b.t, err)
	mu.Lock()
	defer mu.Unlock()
	return answer, messages.String()
}

// A command writes to both streams, and goes on once that was seen: three times.
func TestPromise06Streams(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, _ *site, b *box) {
		b.sh("true")
		var mu sync.Mutex
		var all strings.Builder
		b.Watch(func(token any, message string) {
			mu.Lock()
			defer mu.Unlock()
			if fmt.Sprint(token) == "six" {
				all.WriteString(message)
			}
		})
		seen := func() string {
			mu.Lock()
			defer mu.Unlock()
			return all.String()
		}
		type outcome struct {
			*driver.Answer
			error
		}
		answered := make(chan outcome, 1)
		go func() {
			r, err := b.Do(t.Context(), mcp.CallToolRequest{Params: mcp.CallToolParams{Name: "execute_command", Meta: &mcp.Meta{ProgressToken: "six"},
				Arguments: b.with(args{"command": "for i in 1 2 3; do echo o$i; echo e$i >&2; until test -e ~/seen$i; do sleep 0.05; done; done"})}})
			answered <- outcome{r, err}
		}()
		for i := range 3 {
			out, errs := fmt.Sprint("o", i+1), fmt.Sprint("e", i+1)
			wait(t, 40*time.Second, out+" and "+errs+" arrive", func() bool { return strings.Contains(seen(), out) && strings.Contains(seen(), errs) })
			b.sh(fmt.Sprint("touch ~/seen", i+1))
		}
		o := <-answered
		must(t, o.error)
		if exit(o.Answer) != 0 {
			t.Errorf("the result: %s", o.Text)
		}
		if s := seen(); strings.Index(s, "o1") > strings.Index(s, "o2") || strings.Index(s, "o2") > strings.Index(s, "o3") {
			t.Errorf("out of order: %q", s)
		}
	})
}

func TestPromise07StreamsAreIndependent(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, _ *site, b *box) {
		for _, c := range []struct {
			name, command  string
			token          any
			stdout, stderr int64
			seen           []string
		}{
			{"stdout", "echo out", "o", 4, 0, []string{"out"}},
			{"stderr", "echo err >&2", "e", 0, 4, []string{"err"}},
			{"both", "echo out; echo err >&2", "b", 4, 4, []string{"out", "err"}},
			{"unwatched", "echo out; echo err >&2", nil, 4, 4, nil},
		} {
			r, messages := progress(b, c.token, args{"command": c.command + "; sleep 0.7"})
			if exit(r) != 0 || r.Result.StdoutBytes != c.stdout || r.Result.StderrBytes != c.stderr {
				t.Errorf("%s: the result is not whole: %+v %s", c.name, r.Result, r.Text)
			}
			contains(t, messages, c.seen...)
			if c.token == nil && messages != "" {
				t.Errorf("unasked messages: %q", messages)
			}
		}
	})
}

func TestPromise09Interface(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	b := s.dial(t, driver.Stdio)
	state := func(want string) {
		t.Helper()
		if got := b.status(); got != want {
			t.Errorf("status %q, want %q", got, want)
		}
	}
	state("pending")
	b.start(nil, "created")
	state("running")
	contains(t, fmt.Sprint(b.sandbox()["instructions"]), home)
	b.want("echo here", "here")
	b.call("stop_sandbox", nil)
	state("stopped")
	b.start(nil, "connected")
	state("running")
	b.call("destroy_sandbox", nil)
	state(gone)
}

func TestPromise10Handshake(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	begin := time.Now()
	b := s.dial(t, driver.Stdio)
	if took := time.Since(begin); took > 10*time.Second {
		t.Errorf("the handshake took %s", took)
	}
	if info := b.Client.GetServerCapabilities(); info.Tools == nil {
		t.Error("the server offers no tools")
	}
}

func TestPromise11ManyClients(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	srv := s.listen(t)
	script := func(b *box) string {
		b.start(args{"language": "python"}, "created")
		b.call("write_file", args{"path": "f", "content": "é 😀\n"})
		return strings.Join([]string{b.sh("cat f; pwd"), b.run(args{"command": "exit 7"}, 7), strings.TrimSpace(b.call("run_code", args{"code": "print(6*7)"}).Output())}, "|")
	}
	want := "é 😀\n" + home + "||42"
	clients := []*box{s.dial(t, driver.Stdio), s.dial(t, driver.Stdio), connect(t, srv, driver.HTTP), connect(t, srv, driver.HTTP), connect(t, srv, driver.SSE), connect(t, srv, driver.SSE)}
	for i, b := range clients {
		if got := script(b); got != want {
			t.Errorf("client %d: %q, want %q", i, got, want)
		}
	}
	// A session is reached through every one of them.
	for i, c := range clients {
		clients[i/2*2].as(c).want("cat f", "é 😀")
	}
	clients[2].as(clients[4]).want("cat f", "é 😀")
}

func TestPromise15Tools(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, _ *site, b *box) {
		list, err := b.Client.ListTools(t.Context(), mcp.ListToolsRequest{})
		must(t, err)
		if len(list.Tools) < 10 {
			t.Errorf("only %d tools", len(list.Tools))
		}
		for _, tool := range list.Tools {
			if tool.Description == "" || tool.InputSchema.Type != "object" || tool.InputSchema.Properties["session_id"] == nil {
				t.Errorf("%s: %q, %+v", tool.Name, tool.Description, tool.InputSchema)
			}
		}
		b.want(`echo "Hello, world!"; pwd`, "Hello, world!\n"+home)
	})
}

func TestPromise16AtOnce(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, _ *site, b *box) {
		b.sh("true")
		// Each waits for the other: they end only if they run at the same time.
		meet := func(own, other string) string {
			return fmt.Sprintf("touch /tmp/%s; until test -e /tmp/%s; do sleep 0.05; done; echo %s", own, other, own)
		}
		var answers [2]*driver.Answer
		var errs [2]error
		var wg sync.WaitGroup
		for i, c := range []string{meet("one", "two"), meet("two", "one")} {
			wg.Go(func() {
				answers[i], errs[i] = b.Must(t.Context(), "execute_command", b.with(args{"command": c, "timeout_seconds": 20}))
			})
		}
		wg.Wait()
		for i, want := range []string{"one\n", "two\n"} {
			must(t, errs[i])
			if got := answers[i].Output(); got != want || exit(answers[i]) != 0 {
				t.Errorf("%d: %s", i, answers[i].Text)
			}
		}
	})
}

func TestPromise17Home(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	b := s.dial(t, driver.Stdio)
	b.want("pwd; echo $HOME", home+"\n"+home)
	contains(t, fmt.Sprint(b.sandbox()["instructions"]), "default directory: "+home)
}

func TestPromise18Timeout(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	b := s.dial(t, driver.Stdio)
	b.sh("true")
	r := b.call("execute_command", args{"command": "echo partial; (exec -a left-over sleep 10) & sleep 10", "timeout_seconds": 1})
	if exit(r) != 124 || !r.Result.TimedOut || r.Output() != "partial\n" || r.Result.DurationMS > 5000 {
		t.Errorf("%+v %s", r.Result, r.Text)
	}
	b.want("for f in /proc/[0-9]*/cmdline; do tr '\\0' ' ' < $f; echo; done 2>/dev/null | grep -c '^left-[o]ver\\|^sleep' || true", "0")
}
