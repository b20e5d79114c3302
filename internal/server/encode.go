package server

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"math/bits"
	"strconv"
	"sync"
	"unicode/utf8"

	"github.com/mark3labs/mcp-go/mcp"
)

// A text of this size is put into its answer as it is, since to hand it through
// the library's encoder, which copies it four times, is most of what a large
// answer costs.
const largeText = 8 << 10

// Buffers larger than this are not kept.
const maxKept = 2 << 20

// buffers are those of usual answers. A large one's is kept beside them, since a
// pool loses what is in it to every second garbage collection, of which each large
// answer causes one or two.
var (
	buffers = sync.Pool{New: func() any { return new([]byte) }}
	spare   = make(chan []byte, 1)
)

// mark stands in for a large text while the library encodes what is around it.
// Nobody can know it, so no text holds it.
var mark = rand.Text()

// encode hands v to send as one line of JSON, without a newline at its end but
// with room for one. The bytes are send's until it returns.
func encode(v any, send func([]byte) error) error {
	p := buffers.Get().(*[]byte)
	b, err := appendJSON((*p)[:0], v)
	if err == nil {
		err = send(b)
	}
	switch {
	case cap(b) <= 8*largeText:
		*p = b
		buffers.Put(p)
	case cap(b) <= maxKept:
		select {
		case spare <- b:
		default:
		}
	}
	return err
}

func appendJSON(dst []byte, v any) ([]byte, error) {
	// An answer whose result writes itself is put together here: the encoder
	// would read the result's JSON once more.
	if r, ok := v.(mcp.JSONRPCResponse); ok {
		if result, ok := r.Result.(json.Marshaler); ok {
			id, err := json.Marshal(r.ID)
			if err != nil {
				return dst, err
			}
			dst = fmt.Appendf(dst, `{"jsonrpc":%q,"id":%s,"result":`, r.JSONRPC, id)
			if dst, err = appendResult(dst, result); err != nil {
				return dst, err
			}
			return append(dst, '}'), nil
		}
	}
	w := bytes.NewBuffer(dst)
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false) // '<' as six characters makes command output larger for nothing
	err := enc.Encode(v)
	return bytes.TrimSuffix(w.Bytes(), []byte("\n")), err
}

// piecewise is a text content whose text is these pieces, one after the other.
type piecewise interface {
	mcp.Content
	Pieces() []string
}

// appendResult appends what result writes of itself, its large texts escaped
// here.
func appendResult(dst []byte, result json.Marshaler) ([]byte, error) {
	var texts [][]string
	if r, ok := result.(*mcp.CallToolResult); ok {
		short := *r
		short.Content = nil
		for _, c := range r.Content {
			switch t := c.(type) {
			case mcp.TextContent:
				if len(t.Text) >= largeText {
					texts = append(texts, []string{t.Text})
					t.Text = mark
					c = t
				}
			case piecewise:
				texts = append(texts, t.Pieces())
				c = mcp.NewTextContent(mark)
			}
			short.Content = append(short.Content, c)
		}
		if texts != nil {
			result = &short
		}
	}
	body, err := result.MarshalJSON()
	if err != nil {
		return dst, err
	}
	size := len(body) + 64
	for _, pieces := range texts {
		for _, p := range pieces {
			size += len(p) + len(p)/8 // for its newlines
		}
	}
	if cap(dst)-len(dst) < size {
		dst = grown(dst, size)
	}
	quoted := []byte(strconv.Quote(mark))
	for _, pieces := range texts {
		before, after, ok := bytes.Cut(body, quoted)
		if !ok {
			return dst, fmt.Errorf("the answer's encoder left out a text")
		}
		dst = append(append(dst, before...), '"')
		for _, p := range pieces {
			dst = appendEscaped(dst, p)
		}
		dst = append(dst, '"')
		body = after
	}
	return append(dst, body...), nil
}

// grown is dst with room for size more.
func grown(dst []byte, size int) []byte {
	select {
	case b := <-spare:
		if cap(b) >= len(dst)+size {
			return append(b[:0], dst...)
		}
	default:
	}
	return append(make([]byte, 0, len(dst)+size), dst...)
}

// appendEscaped appends what stands for s between the quotes of a JSON string.
// Invalid UTF-8 becomes U+FFFD.
func appendEscaped(dst []byte, s string) []byte {
	const hex = "0123456789abcdef"
	for len(s) > 0 {
		n := plain(s)
		dst = append(dst, s[:n]...)
		if s = s[n:]; s == "" {
			break
		}
		switch c := s[0]; {
		case c == '"' || c == '\\':
			dst = append(dst, '\\', c)
		case c == '\n':
			dst = append(dst, '\\', 'n')
		case c == '\t':
			dst = append(dst, '\\', 't')
		case c == '\r':
			dst = append(dst, '\\', 'r')
		case c < 0x20:
			dst = append(dst, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
		case c < utf8.RuneSelf:
			dst = append(dst, c)
		default:
			r, size := utf8.DecodeRuneInString(s)
			switch {
			case r == '\u2028' || r == '\u2029': // no line ends in JSON, but in older JavaScript
				dst = append(dst, '\\', 'u', '2', '0', '2', hex[r&15])
			default:
				dst = utf8.AppendRune(dst, r)
			}
			s = s[size:]
			continue
		}
		s = s[1:]
	}
	return dst
}

// plain counts the bytes at the start of s that stand for themselves in a JSON
// string.
func plain(s string) int {
	const ones, tops = 0x0101010101010101, 0x8080808080808080
	i := 0
	for ; i+8 <= len(s); i += 8 {
		w := s[i : i+8]
		x := uint64(w[0]) | uint64(w[1])<<8 | uint64(w[2])<<16 | uint64(w[3])<<24 |
			uint64(w[4])<<32 | uint64(w[5])<<40 | uint64(w[6])<<48 | uint64(w[7])<<56 // one load
		quote, slash := x^ones*'"', x^ones*'\\'
		// A top bit is set for a byte that is below 0x20, a quote, a backslash, or not
		// ASCII. What follows the first of these may be set for its sake.
		if found := ((x - ones*0x20) | (quote - ones) | (slash - ones) | x) & tops; found != 0 {
			return i + bits.TrailingZeros64(found)/8
		}
	}
	for ; i < len(s) && s[i] >= 0x20 && s[i] < utf8.RuneSelf && s[i] != '"' && s[i] != '\\'; i++ {
	}
	return i
}
