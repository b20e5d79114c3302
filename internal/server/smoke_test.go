package server_test

import (
	"bytes"
	"context"
	"io"
	"strings"
	"testing"

	"github.com/mark3labs/mcp-go/mcp"

	"berth/internal/server"
)

func TestStdioAnswersAfterEOF(t *testing.T) {
	m := server.NewMCP("t", "1", server.MCPOptions{})
	m.AddTool(mcp.NewTool("hello"), func(context.Context, mcp.CallToolRequest) (*mcp.CallToolResult, error) {
		return mcp.NewToolResultText("world"), nil
	})
	s, err := server.New(m, server.Options{})
	if err != nil {
		t.Fatal(err)
	}
	in := strings.NewReader(`{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-06-18","capabilities":{},"clientInfo":{"name":"t","version":"1"}}}
{"jsonrpc":"2.0","method":"notifications/initialized"}
nonsense
{"jsonrpc":"2.0","id":2,"method":"tools/call","params":{"name":"hello","arguments":{}}}`)
	var out bytes.Buffer
	if err := s.ServeStdio(t.Context(), io.Reader(in), &out); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`"protocolVersion":"2025-06-18"`, "world", "-32700"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("output has no %s:\n%s", want, out.String())
		}
	}
}
