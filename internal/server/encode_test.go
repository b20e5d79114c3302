package server

import (
	"bytes"
	"encoding/json"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/mark3labs/mcp-go/mcp"
)

// FuzzString holds appendEscaped to the standard decoder: it reads back what
// was written, with U+FFFD for bytes that are no UTF-8.
func FuzzString(f *testing.F) {
	for _, s := range []string{"", "plain", "tab\tand\nline\r", `quote " and \ slash`, "\x00\x1f\x7f", "ü€😀\u2028\u2029", "bad \xff\xc3", "1234567\"", "12345678\x01"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		b := append(appendEscaped([]byte{'"'}, s), '"')
		var got string
		if err := json.Unmarshal(b, &got); err != nil {
			t.Fatalf("%q: %v", b, err)
		}
		if want := strings.ToValidUTF8(string([]rune(s)), "\uFFFD"); got != want {
			t.Fatalf("%q came back as %q", want, got)
		}
		if bytes.ContainsAny(b, "\n\r\u2028") {
			t.Fatalf("%q has a line end", b)
		}
	})
}

type inPieces struct {
	mcp.TextContent
	pieces []string
}

func (p inPieces) Pieces() []string { return p.pieces }

// An answer with large texts is what the library alone would write.
func TestEncodeLarge(t *testing.T) {
	var text strings.Builder
	r := rand.New(rand.NewPCG(1, 2))
	for text.Len() < 100_000 {
		text.WriteRune(rune(r.IntN(0x3000)))
	}
	res := mcp.NewToolResultText(text.String())
	res.Content = append(res.Content, mcp.NewTextContent("small"), mcp.NewTextContent(strings.Repeat("x\n", largeText)), mcp.NewImageContent("AAAA", "image/png"))
	res.Content = append(res.Content, inPieces{mcp.NewTextContent("before" + strings.Repeat("y\n", largeText)), []string{"before", strings.Repeat("y\n", largeText)}}, inPieces{mcp.NewTextContent(""), nil})
	res.Meta = &mcp.Meta{AdditionalFields: map[string]any{"k": "v"}}
	res.StructuredContent = map[string]any{"a": 1}
	res.IsError = true
	var got, want any
	err := encode(mcp.JSONRPCResponse{JSONRPC: "2.0", ID: mcp.NewRequestId(int64(7)), Result: res}, func(b []byte) error { return json.Unmarshal(b, &got) })
	if err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(mcp.JSONRPCResponse{JSONRPC: "2.0", ID: mcp.NewRequestId(int64(7)), Result: res})
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, &want); err != nil {
		t.Fatal(err)
	}
	a, _ := json.Marshal(got)
	b, _ = json.Marshal(want)
	if !bytes.Equal(a, b) {
		t.Errorf("written was %.300s, want %.300s", a, b)
	}
}
