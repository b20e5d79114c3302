package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/url"
	"path/filepath"
	"slices"
	"strings"

	"berth/internal/config"
)

type clientConfigCommand struct {
	Name      string   `arg:"" enum:"claude-desktop,claude-code,cursor,vscode,codex,sse,http" help:"claude-desktop, claude-code, cursor, vscode, codex, sse or http."`
	Container string   `help:"Reach the berth in this running container, for macOS and Windows." placeholder:"NAME"`
	WSL       bool     `help:"Reach the berth in WSL, for Windows."`
	URL       string   `help:"Where berth serves HTTP, for sse and http; http://127.0.0.1:8080 unless told." placeholder:"URL"`
	Args      []string `arg:"" optional:"" passthrough:"partial" help:"Flags for berth serve, after --."`
}

// Help is shown by --help.
func (*clientConfigCommand) Help() string {
	return "The configuration goes to stdout, where to put it to stderr. --state, --config, --log-level and --log-format, and " +
		"all flags of berth serve that come after --, are written into it: berth client-config cursor -- --session work. " +
		"Variables BERTH_* of this shell are not."
}

// Where each client keeps its configuration.
var clientFiles = map[string]string{
	"claude-desktop": "claude_desktop_config.json (Settings, Developer, Edit Config)",
	"claude-code":    ".mcp.json in the project",
	"cursor":         ".cursor/mcp.json in the project, or ~/.cursor/mcp.json",
	"vscode":         ".vscode/mcp.json in the project",
	"codex":          "~/.codex/config.toml",
	"sse":            "the client's list of servers, where it cannot do Streamable HTTP",
	"http":           "the client's list of servers",
}

type clientServer struct {
	Type    string            `json:"type,omitempty"`
	Command string            `json:"command,omitempty"`
	Args    []string          `json:"args,omitempty"`
	URL     string            `json:"url,omitempty"`
	Headers map[string]string `json:"headers,omitempty"`
}

func (c *clientConfigCommand) Run(a *App) error {
	server, err := c.server(a)
	if err != nil {
		return err
	}
	c.explain(a, server)
	if c.Name == "codex" {
		return codexTOML(a.Stdout, server)
	}
	root := "mcpServers"
	if c.Name == "vscode" {
		root = "servers"
	}
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	if err := e.Encode(map[string]map[string]clientServer{root: {"berth": server}}); err != nil {
		return err
	}
	_, err = a.Stdout.Write(b.Bytes())
	return err
}

// server is what a client is to start, or to reach.
func (c *clientConfigCommand) server(a *App) (clientServer, error) {
	if c.Name == "sse" || c.Name == "http" {
		if len(c.Args) > 0 || c.Container != "" || c.WSL || len(a.flags) > 0 || a.commands.Config != "" {
			return clientServer{}, usagef("client-config: %s takes --url alone: such a client starts no berth; give other flags to berth serve --http", c.Name)
		}
		u, err := serverURL(c.URL, map[string]string{"sse": "/sse", "http": "/mcp"}[c.Name])
		return clientServer{Type: c.Name, URL: u, Headers: map[string]string{"Authorization": "Bearer ${BERTH_TOKEN}"}}, err
	}
	if c.URL != "" {
		return clientServer{}, usagef("client-config: --url is for sse and http; %s starts berth itself", c.Name)
	}
	if c.Container != "" && c.WSL {
		return clientServer{}, usagef("client-config: --container and --wsl exclude each other")
	}
	args, err := c.arguments(a)
	if err != nil {
		return clientServer{}, err
	}
	server := clientServer{Command: a.Executable, Args: args}
	switch {
	case c.Container != "":
		server = clientServer{Command: "docker", Args: append([]string{"exec", "-i", c.Container, "berth"}, args...)}
	case c.WSL:
		server = clientServer{Command: "wsl.exe", Args: append([]string{"--exec", a.Executable}, args...)}
	}
	if c.Name == "vscode" {
		server.Type = "stdio"
	}
	return server, nil
}

// arguments is the command line of berth serve. It is tried first: a client
// shows little of why its server does not start.
func (c *clientConfigCommand) arguments(a *App) ([]string, error) {
	here := func(path string) string {
		if c.Container != "" || filepath.IsAbs(path) { // a path in the container is none here
			return path
		}
		return filepath.Join(a.Dir, path)
	}
	args := []string{"serve"}
	if a.commands.Config != "" {
		args = append(args, "--config", here(a.commands.Config))
	}
	for _, f := range a.flags {
		if f.Key == "state" {
			f.Value = here(f.Value)
		}
		args = append(args, f.Name, f.Value)
	}
	args = append(args, command(c.Args)...)

	var s commands
	trial := *a
	trial.Stdout, trial.Stderr, trial.flags, trial.commands = io.Discard, io.Discard, nil, &s
	parsed, shown, err := trial.parse(&s, args)
	switch {
	case err != nil:
		return nil, usagef("client-config: berth %s: %v; berth serve --help lists its flags", strings.Join(args, " "), err)
	case shown:
		return nil, usagef("client-config: berth %s serves nothing", strings.Join(args, " "))
	case s.Serve.HTTP != "":
		return nil, usagef("client-config: --http: %s speaks to berth over stdio; use client-config http for a berth that listens", c.Name)
	case c.Container != "":
		return args, nil // the settings there are not known here
	}
	trial.flagsOf(parsed)
	// What is relative would count from where the client starts berth, which is
	// nobody's choice.
	if !filepath.IsAbs(s.Config) && s.Config != "" {
		return nil, usagef("client-config: --config %s is relative; write %s", s.Config, filepath.Join(a.Dir, s.Config))
	}
	for _, f := range trial.flags {
		if d, err := config.ParseHostDir(f.Value); f.Name == "--dir" && err == nil && !filepath.IsAbs(d.Host) && !strings.HasPrefix(d.Host, "~/") {
			return nil, usagef("client-config: --dir %s is relative; write %s", f.Value, filepath.Join(a.Dir, d.Host)+strings.TrimPrefix(f.Value, d.Host))
		}
	}
	trial.flags = trial.absoluteDirs(trial.flags)
	cfg, err := trial.load()
	if err != nil {
		return nil, err
	}
	if cfg.Listens() && !s.Serve.Stdio {
		args = append(args, "--stdio") // the settings name an address
	}
	return args, nil
}

// serverURL is the address of path on the server at base, which may end with
// the path of either transport.
func serverURL(base, path string) (string, error) {
	if base == "" {
		base = "http://127.0.0.1:8080"
	}
	u, err := url.Parse(base)
	bad := func(why string) (string, error) {
		return "", usagef("client-config: --url: %q %s; allowed: http or https, a host, and a path if a proxy adds one, such as https://berth.example:8443", base, why)
	}
	switch {
	case err != nil:
		return bad("is no address")
	case u.Scheme != "http" && u.Scheme != "https":
		return bad("does not begin with http:// or https://")
	case u.Hostname() == "":
		return bad("names no host")
	case u.User != nil:
		return "", usagef("client-config: --url holds a user or password, which berth does not ask for; clients send a token")
	case u.RawQuery != "" || u.Fragment != "" || u.ForceQuery:
		return bad("has a query or a fragment")
	}
	p := strings.TrimRight(u.Path, "/")
	for _, known := range []string{"/mcp", "/sse"} {
		p = strings.TrimSuffix(p, known)
	}
	return u.Scheme + "://" + u.Host + (&url.URL{Path: strings.TrimRight(p, "/") + path}).EscapedPath(), nil
}

// explain says on stderr where the configuration goes.
func (c *clientConfigCommand) explain(a *App, s clientServer) {
	fmt.Fprintf(a.Stderr, "For %s", clientFiles[c.Name])
	switch c.Name {
	case "claude-code":
		fmt.Fprintf(a.Stderr, "; or run:\n  claude mcp add berth -- %s\n", shellWords(append([]string{s.Command}, s.Args...)))
	case "http", "sse":
		fmt.Fprintf(a.Stderr, "; for Claude Code .mcp.json in the project, or run:\n  claude mcp add --transport %s berth %s --header \"Authorization: Bearer ${BERTH_TOKEN}\"\n", c.Name, shellWords([]string{s.URL}))
		fmt.Fprintln(a.Stderr, "Write the token for ${BERTH_TOKEN} where the client does not fill variables in; leave headers out where berth asks for none.")
	default:
		fmt.Fprintln(a.Stderr)
	}
	var set []string
	for _, e := range a.Environ {
		if name, value, _ := strings.Cut(e, "="); value != "" && strings.HasPrefix(name, "BERTH_") && !strings.HasPrefix(name, "BERTH_TEST_") && s.URL == "" {
			set = append(set, name)
		}
	}
	if len(set) > 0 {
		slices.Sort(set)
		fmt.Fprintf(a.Stderr, "berth: set in this shell, and not for the client: %s; give them as flags after --, or in the client's env\n", strings.Join(slices.Compact(set), ", "))
	}
}

// codexTOML writes the server as TOML, whose strings may be written as JSON's.
func codexTOML(w io.Writer, s clientServer) error {
	quoted := func(s string) string {
		var b strings.Builder
		if err := plainJSON(&b, s); err != nil {
			panic(err) // a string always can be
		}
		return strings.ReplaceAll(strings.TrimSpace(b.String()), "\x7f", `\u007f`)
	}
	args := make([]string, len(s.Args))
	for i, a := range s.Args {
		args[i] = quoted(a)
	}
	_, err := fmt.Fprintf(w, "[mcp_servers.berth]\ncommand = %s\nargs = [%s]\n", quoted(s.Command), strings.Join(args, ", "))
	return err
}

// shellWords writes a command line for a POSIX shell.
func shellWords(words []string) string {
	out := make([]string, len(words))
	for i, w := range words {
		if out[i] = w; w == "" || strings.ContainsFunc(w, func(r rune) bool {
			return !strings.ContainsRune("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_./:=,@%+", r)
		}) {
			out[i] = "'" + strings.ReplaceAll(w, "'", `'\''`) + "'"
		}
	}
	return strings.Join(out, " ")
}
