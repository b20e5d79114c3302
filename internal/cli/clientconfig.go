package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
)

type clientConfigCommand struct {
	Name      string   `arg:"" enum:"claude-desktop,claude-code,cursor,vscode,codex,sse,http" help:"claude-desktop, claude-code, cursor, vscode, codex, sse or http."`
	Container string   `help:"Reach the berth in this running container, for macOS and Windows." placeholder:"NAME"`
	WSL       bool     `help:"Reach the berth in WSL, for Windows."`
	URL       string   `help:"Where berth serves HTTP, for sse and http." default:"http://127.0.0.1:8080" placeholder:"URL"`
	Args      []string `arg:"" optional:"" passthrough:"" help:"More arguments for berth serve, after --."`
}

// Where each client keeps its configuration.
var clientFiles = map[string]string{
	"claude-desktop": "claude_desktop_config.json (Settings, Developer, Edit Config)",
	"claude-code":    ".mcp.json in the project, or run: claude mcp add-json berth 'JSON of \"berth\"'",
	"cursor":         ".cursor/mcp.json in the project, or ~/.cursor/mcp.json",
	"vscode":         ".vscode/mcp.json in the project",
	"codex":          "~/.codex/config.toml",
	"sse":            "the client's list of servers; only for clients that cannot do Streamable HTTP",
	"http":           "the client's list of servers, or .mcp.json of Claude Code",
}

type clientServer struct {
	Type    string            `json:"type,omitempty"`
	Command string            `json:"command,omitempty"`
	Args    []string          `json:"args,omitempty"`
	URL     string            `json:"url,omitempty"`
	Headers map[string]string `json:"headers,omitempty"`
}

func (c *clientConfigCommand) Run(a *App) error {
	args := append([]string{"serve"}, command(c.Args)...)
	server := clientServer{Command: a.Executable, Args: args}
	switch {
	case c.Container != "" && c.WSL:
		return usagef("client-config: --container and --wsl exclude each other")
	case c.Container != "":
		server = clientServer{Command: "docker", Args: append([]string{"exec", "-i", c.Container, "berth"}, args...)}
	case c.WSL:
		server = clientServer{Command: "wsl.exe", Args: append([]string{"--exec", a.Executable}, args...)}
	}
	root := "mcpServers"
	switch c.Name {
	case "vscode":
		root, server.Type = "servers", "stdio"
	case "sse", "http":
		path := map[string]string{"sse": "/sse", "http": "/mcp"}[c.Name]
		server = clientServer{Type: c.Name, URL: strings.TrimSuffix(c.URL, "/") + path,
			Headers: map[string]string{"Authorization": "Bearer ${BERTH_TOKEN}"}}
		fmt.Fprintln(a.Stderr, "Write the token for ${BERTH_TOKEN} where the client does not fill variables in; leave headers out where berth asks for none.")
	}
	fmt.Fprintf(a.Stderr, "For %s:\n", clientFiles[c.Name])
	if c.Name == "codex" {
		quoted := make([]string, len(server.Args))
		for i, s := range server.Args {
			quoted[i] = strconv.Quote(s)
		}
		_, err := fmt.Fprintf(a.Stdout, "[mcp_servers.berth]\ncommand = %q\nargs = [%s]\n", server.Command, strings.Join(quoted, ", "))
		return err
	}
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	if err := e.Encode(map[string]map[string]clientServer{root: {"berth": server}}); err != nil {
		return err
	}
	_, err := a.Stdout.Write(b.Bytes())
	return err
}
