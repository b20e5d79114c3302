//go:build unix

package main

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

const (
	initialize = `{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{},"clientInfo":{"name":"test","version":"1"}}}`
	token      = "a-token-of-the-test-0123456789"
)

// printed is what client-config prints, as a client reads it.
type printed struct {
	Type, Command, URL string
	Args               []string
	Headers            map[string]string
}

// Every configuration that client-config prints is used as its client would:
// what it names is started or reached, and answers initialize.
func TestClientConfigWorks(t *testing.T) {
	// The program under its own name, as it is installed.
	bin := t.TempDir()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	program, err := os.ReadFile(exe)
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"berth": string(program),
		// Stand-ins that check what they are given, and start berth.
		"docker":  "#!/bin/sh\n[ \"$1 $2 $3\" = 'exec -i box' ] || exit 9\nshift 3\nexec \"$@\"\n",
		"wsl.exe": "#!/bin/sh\n[ \"$1\" = --exec ] || exit 9\nshift\nexec \"$@\"\n",
		"claude":  "#!/bin/sh\n[ \"$1 $2 $3 $4\" = 'mcp add berth --' ] || exit 9\nshift 4\nexec \"$@\"\n",
	} {
		if err := os.WriteFile(filepath.Join(bin, name), []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	dir := t.TempDir()
	env := append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"), "HOME="+dir, "XDG_CONFIG_HOME=", "BERTH_TOKEN="+token)
	berth := func(args ...string) *exec.Cmd {
		return &exec.Cmd{Path: filepath.Join(bin, "berth"), Args: append([]string{"berth"}, args...), Env: env, Dir: dir}
	}
	config := func(t *testing.T, args ...string) (stdout, stderr string) {
		t.Helper()
		c := berth(append([]string{"client-config"}, args...)...)
		var errs strings.Builder
		c.Stderr = &errs
		out, err := c.Output()
		if err != nil {
			t.Fatalf("berth client-config %s: %v: %s", strings.Join(args, " "), err, errs.String())
		}
		return string(out), errs.String()
	}
	answers := func(t *testing.T, p printed) {
		t.Helper()
		path := p.Command
		if !filepath.IsAbs(path) {
			path = filepath.Join(bin, path)
		}
		c := exec.Cmd{Path: path, Args: append([]string{p.Command}, p.Args...), Env: env, Dir: "/", Stdin: strings.NewReader(initialize + "\n")}
		out, err := c.Output()
		if err != nil || !strings.Contains(string(out), `"serverInfo":{"name":"berth"`) {
			t.Errorf("%s %q: %v, answer %q", p.Command, p.Args, err, out)
		}
	}
	// A state directory whose name needs quotes in every format.
	state := filepath.Join(dir, `my "state" é\$HOME 'x'`)
	flags := []string{"--state", state, "--", "--session", "work", "--log-level=debug"}
	want := []string{"serve", "--state", state, "--session", "work", "--log-level=debug"}

	for _, c := range []struct {
		name   string
		root   string
		reach  []string
		before []string // arguments before berth's own
	}{
		{name: "claude-desktop", root: "mcpServers"},
		{name: "claude-code", root: "mcpServers"},
		{name: "cursor", root: "mcpServers"},
		{name: "vscode", root: "servers"},
		{name: "codex"},
		{name: "cursor", root: "mcpServers", reach: []string{"--container", "box"}, before: []string{"exec", "-i", "box", "berth"}},
		{name: "claude-desktop", root: "mcpServers", reach: []string{"--wsl"}, before: []string{"--exec", filepath.Join(bin, "berth")}},
	} {
		t.Run(c.name+strings.Join(c.reach, ""), func(t *testing.T) {
			text, said := config(t, append(append([]string{c.name}, c.reach...), flags...)...)
			var p printed
			if c.root == "" {
				p = parseTOML(t, text)
			} else {
				p = parseJSON(t, text, c.root)
			}
			if got := strings.Join(p.Args, "\n"); got != strings.Join(append(c.before, want...), "\n") {
				t.Errorf("args: got %q, want %q, then %q", p.Args, c.before, want)
			}
			answers(t, p)
			if c.name == "claude-code" {
				line := regexp.MustCompile(`(?m)^  (claude mcp add .*)$`).FindStringSubmatch(said)
				if line == nil {
					t.Fatalf("stderr names no command: %q", said)
				}
				answers(t, printed{Command: "/bin/sh", Args: []string{"-c", line[1]}})
			}
		})
	}

	// A server that listens, for those that reach one.
	serve := berth("serve", "--http", "127.0.0.1:0", "--log-format", "json", "--state", state)
	log, err := serve.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := serve.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = serve.Process.Kill(); _ = serve.Wait() })
	var base string
	for lines := bufio.NewScanner(log); base == "" && lines.Scan(); {
		var l struct{ URL string }
		if json.Unmarshal(lines.Bytes(), &l) == nil {
			base = strings.TrimSuffix(l.URL, "/mcp")
		}
	}
	go func() { _, _ = io.Copy(io.Discard, log) }()
	if base == "" {
		t.Fatal("the server says no address")
	}
	t.Run("http", func(t *testing.T) {
		text, _ := config(t, "http", "--url", base)
		p := parseJSON(t, text, "mcpServers")
		if body := post(t, p, p.URL); !strings.Contains(body, `"serverInfo":{"name":"berth"`) {
			t.Errorf("POST to %s: %q", p.URL, body)
		}
	})
	t.Run("sse", func(t *testing.T) {
		text, _ := config(t, "sse", "--url", base+"/mcp")
		p := parseJSON(t, text, "mcpServers")
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		stream := request(ctx, t, p, http.MethodGet, p.URL, "")
		defer stream.Body.Close()
		for lines := bufio.NewScanner(stream.Body); lines.Scan(); {
			data, ok := strings.CutPrefix(lines.Text(), "data: ")
			switch {
			case ok && strings.Contains(data, `"serverInfo":{"name":"berth"`):
				return
			case ok && !strings.HasPrefix(data, "{"):
				post(t, p, base+strings.TrimPrefix(data, base))
			}
		}
		t.Errorf("GET of %s: no answer to initialize", p.URL)
	})
}

func parseJSON(t *testing.T, text, root string) printed {
	t.Helper()
	var all map[string]map[string]printed
	if err := json.Unmarshal([]byte(text), &all); err != nil || len(all) != 1 || len(all[root]) != 1 {
		t.Fatalf("%v: %s", err, text)
	}
	return all[root]["berth"]
}

// parseTOML reads the little TOML that is printed: the strings in it are JSON's.
func parseTOML(t *testing.T, text string) printed {
	t.Helper()
	var p printed
	m := regexp.MustCompile(`^\[mcp_servers\.berth\]\ncommand = (".*")\nargs = (\[.*\])\n$`).FindStringSubmatch(text)
	if m == nil || json.Unmarshal([]byte(m[1]), &p.Command) != nil || json.Unmarshal([]byte(m[2]), &p.Args) != nil {
		t.Fatalf("no TOML: %s", text)
	}
	return p
}

func request(ctx context.Context, t *testing.T, p printed, method, url, body string) *http.Response {
	t.Helper()
	r, err := http.NewRequestWithContext(ctx, method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for name, value := range p.Headers {
		r.Header.Set(name, strings.ReplaceAll(value, "${BERTH_TOKEN}", token))
	}
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("Accept", "application/json, text/event-stream")
	resp, err := (&http.Client{Transport: &http.Transport{Proxy: nil, DisableKeepAlives: true}}).Do(r)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode/100 != 2 {
		t.Fatalf("%s %s: %s", method, url, resp.Status)
	}
	return resp
}

func post(t *testing.T, p printed, url string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	resp := request(ctx, t, p, http.MethodPost, url, initialize)
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
