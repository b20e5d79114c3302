package tools

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/mark3labs/mcp-go/mcp"
)

// A text in pieces reads as the one that they make, and what is long in it was
// not copied.
func TestTextBuilder(t *testing.T) {
	long := strings.Repeat("é\n", ownPiece)
	for name, parts := range map[string][]string{
		"empty": nil, "short": {"a", "", "b"}, "long": {long}, "both": {"a", "b", long, long, "c\n"},
	} {
		var b textBuilder
		for _, p := range parts {
			b.WriteString(p)
		}
		fmt.Fprintf(&b, "%s", "[end]")
		want := strings.Join(parts, "") + "[end]"
		c := b.content()
		data, err := json.Marshal(&mcp.CallToolResult{Content: []mcp.Content{c}})
		if err != nil {
			t.Fatal(err)
		}
		var got mcp.CallToolResult
		if err := json.Unmarshal(data, &got); err != nil {
			t.Fatal(err)
		}
		if text := textOf(&got); text != want {
			t.Errorf("%s: %d bytes, want %d: %.100q", name, len(text), len(want), text)
		}
		if p, ok := c.(piecewise); ok != strings.Contains(want, long) || ok && strings.Join(p.Pieces(), "") != want {
			t.Errorf("%s: %T with %d pieces", name, c, len(p.pieces))
		}
	}
}
