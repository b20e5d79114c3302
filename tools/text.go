package tools

import (
	"encoding/json"
	"strings"

	"github.com/mark3labs/mcp-go/mcp"
)

// ownPiece is the length from which a string is not copied into its answer's text
// but stays a piece of its own.
const ownPiece = 8 << 10

// textBuilder puts an answer's text together, without copying what is long: a
// page of output is a mebibyte, and the answer that is sent is a copy anyway.
type textBuilder struct {
	pieces []string
	last   strings.Builder
}

func (b *textBuilder) WriteString(s string) {
	if len(s) < ownPiece {
		b.last.WriteString(s)
		return
	}
	b.flush()
	b.pieces = append(b.pieces, s)
}

// Write makes a textBuilder an io.Writer. It never fails.
func (b *textBuilder) Write(p []byte) (int, error) { return b.last.Write(p) }

func (b *textBuilder) flush() {
	if b.last.Len() > 0 {
		b.pieces = append(b.pieces, b.last.String())
		b.last = strings.Builder{}
	}
}

// content is the text as an answer's content.
func (b *textBuilder) content() mcp.Content {
	b.flush()
	if len(b.pieces) == 1 {
		return mcp.NewTextContent(b.pieces[0])
	}
	return piecewise{TextContent: mcp.NewTextContent(""), pieces: b.pieces}
}

// piecewise is a text content whose text is its pieces, one after the other; no
// rune lies in two of them. Who sends it need not put them together first.
type piecewise struct {
	mcp.TextContent
	pieces []string
}

// Pieces are what the text consists of.
func (p piecewise) Pieces() []string { return p.pieces }

func (p piecewise) MarshalJSON() ([]byte, error) {
	whole := p.TextContent
	whole.Text = strings.Join(p.pieces, "")
	return json.Marshal(whole)
}
