package toolbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"unicode/utf8"

	"berth/sandbox"
)

// The streams of a process, and what marks their bytes where both travel as
// one: three bytes at the beginning of what one stream wrote.
const (
	stdout = iota
	stderr
)

var marks = [2][]byte{{1, 1, 1}, {2, 2, 2}}

// pieceSize is how much output is read at once, in bytes.
const pieceSize = 64 << 10

// readAll gives emit all that is kept of one stream before to.
func readAll(ctx context.Context, p sandbox.Process, stream int, to sandbox.Cursor, emit func([]byte) error) error {
	at, end := to, to.Stdout
	if stream == stdout {
		at.Stdout = 0
	} else {
		at.Stderr, end = 0, to.Stderr
	}
	for {
		o, err := p.Read(ctx, at, pieceSize)
		if err != nil {
			return fmt.Errorf("read the output: %w", err)
		}
		b, was, now := o.Stdout, at.Stdout, o.Next.Stdout
		if stream == stderr {
			b, was, now = o.Stderr, at.Stderr, o.Next.Stderr
		}
		if over := now - end; over > 0 {
			b = b[:max(0, int64(len(b))-over)]
		}
		if len(b) > 0 {
			if err := emit(b); err != nil {
				return err
			}
		}
		if now <= was || now >= end {
			return nil
		}
		if stream == stdout {
			at.Stdout = now
		} else {
			at.Stderr = now
		}
	}
}

// follow gives emit what p writes, in the order in which it comes as far as
// that is known, until the end of p or of ctx.
func follow(ctx context.Context, p sandbox.Process, from sandbox.Cursor, emit func(stream int, b []byte) error) error {
	at := from
	for {
		if err := p.Wait(ctx, at, false); err != nil {
			return err
		}
		// The state first: what is read after an end is all there is.
		info, err := p.Info(ctx)
		if err != nil {
			return err
		}
		for {
			o, err := p.Read(ctx, at, pieceSize)
			if err != nil {
				return err
			}
			if len(o.Stdout) > 0 {
				if err := emit(stdout, o.Stdout); err != nil {
					return err
				}
			}
			if len(o.Stderr) > 0 {
				if err := emit(stderr, o.Stderr); err != nil {
					return err
				}
			}
			if o.Next == at {
				break
			}
			at = o.Next
		}
		if info.State != sandbox.ProcessRunning {
			return nil
		}
	}
}

// jsonWriter writes an answer whose long texts are never held in memory.
type jsonWriter struct {
	w    io.Writer
	err  error
	part []byte // an incomplete rune
	buf  []byte
}

func newJSONWriter(w http.ResponseWriter, status int) *jsonWriter {
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.WriteHeader(status)
	return &jsonWriter{w: w}
}

func (j *jsonWriter) raw(s string) {
	if j.err == nil {
		_, j.err = io.WriteString(j.w, s)
	}
}

// open begins a text, which text goes on with and shut ends.
func (j *jsonWriter) open() { j.raw(`"`) }

const hexDigits = "0123456789abcdef"

// text adds bytes; what is no UTF-8 becomes U+FFFD.
func (j *jsonWriter) text(b []byte) error {
	if len(j.part) > 0 {
		b = append(j.part, b...)
		j.part = nil
	}
	out := j.buf[:0]
	for len(b) > 0 {
		c := b[0]
		if c < utf8.RuneSelf {
			b = b[1:]
			switch {
			case c == '"' || c == '\\':
				out = append(out, '\\', c)
			case c == '\n':
				out = append(out, '\\', 'n')
			case c == '\r':
				out = append(out, '\\', 'r')
			case c == '\t':
				out = append(out, '\\', 't')
			case c < ' ' || c == 0x7f:
				out = append(out, '\\', 'u', '0', '0', hexDigits[c>>4], hexDigits[c&15])
			default:
				out = append(out, c)
			}
			continue
		}
		if !utf8.FullRune(b) {
			j.part = append([]byte(nil), b...)
			break
		}
		r, n := utf8.DecodeRune(b)
		out, b = utf8.AppendRune(out, r), b[n:]
	}
	j.buf = out
	if j.err == nil {
		_, j.err = j.w.Write(out)
	}
	return j.err
}

func (j *jsonWriter) shut() {
	for range j.part {
		j.raw("\uFFFD")
	}
	j.part = nil
	j.raw(`"`)
}

// end tells whether the answer is whole.
func (j *jsonWriter) end(err error) error {
	if err = errors.Join(err, j.err); err != nil {
		return fmt.Errorf("%w: %w", errAborted, err)
	}
	return nil
}
