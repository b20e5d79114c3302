package sandbox

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"slices"
	"strings"
	"time"
	"unicode/utf8"
)

// Bounds of the file tools, in bytes.
const (
	MaxText      = 30_000  // what one read of text gives
	maxTextLine  = 8 << 10 // of one line
	MaxRaw       = 7 << 20 // what one raw read gives, and an image; as base64 it must fit a stdio message of 10 MiB
	MaxWrite     = 16 << 20
	maxCounted   = 64 << 20 // how far lines are counted
	sniffed      = 8 << 10
	MaxEditFile  = 16 << 20
	MaxEditCount = 1000
)

// Files reaches the files of key's sandbox, for copying, and starts it when it must;
// it creates none.
func (m *Manager) Files(ctx context.Context, key Key) (Files, Info, error) {
	b, err := m.ready(withDeadline(ctx), key, startOnly, Spec{})
	if err != nil {
		return nil, Info{}, sayNoSession(err, key)
	}
	return b.inst.Files(), b.info, nil
}

// onFiles does work with the files of a running sandbox. One found dead is
// brought back once; work that may have begun is done again only if it failed
// with ErrNotRunning, which says that it had not.
func (m *Manager) onFiles(ctx context.Context, key Key, p string, work func(f Files, path string) error) (Notice, error) {
	var f faults
	f.path(p)
	if err := f.err(); err != nil {
		return Notice{}, err
	}
	var revived string
	for {
		b, err := m.ready(ctx, key, startOnly, Spec{})
		if err != nil {
			return Notice{}, sayNoSession(err, key)
		}
		where := resolve(b.info, p)
		begin(ctx)
		err = work(b.inst.Files(), where)
		if dead(err) && revived == "" {
			m.forget(key, b)
			revived = "the sandbox was found " + dying(err) + " and was brought back"
			continue
		}
		n := b.notice
		n.Revived = revived
		return n, fileError(err, where)
	}
}

func (f *faults) path(p string) {
	switch {
	case p == "":
		f.add("path", "it is missing", "absolute, relative to the default directory, or beginning with ~/", "")
	case !plainPath(p):
		f.add("path", "it is too long, or holds a NUL byte or invalid UTF-8", "at most 4,096 bytes of UTF-8", "")
	case strings.HasPrefix(p, "~") && p != "~" && p[1] != '/':
		f.add("path", fmt.Sprintf("%.200q begins with the home of somebody else", p), "absolute, relative to the default directory, or beginning with ~/", "a file of such a name is ./"+shorten(p, 200))
	case p != "/" && slices.Contains([]string{"", ".", ".."}, p[strings.LastIndexByte(p, '/')+1:]):
		// Cleaned it would be the name of a file, which it is for no program.
		f.add("path", fmt.Sprintf("%.200q is the name of a directory", p), "a file's path", "list a directory with a command such as ls")
	}
}

// fileError says in words what went wrong with a file; the kind stays.
func fileError(err error, path string) error {
	var user *UserError
	var field *FieldError
	say := func(kind error, format string, a ...any) error {
		return &UserError{Err: kind, Text: fmt.Sprintf(format, a...)}
	}
	switch {
	case err == nil, errors.As(err, &user), errors.As(err, &field):
		return err
	case errors.Is(err, fs.ErrNotExist):
		return say(fs.ErrNotExist, "path: %s does not exist in the sandbox; see what is there with a command such as ls -la, or make it with write_file", path)
	case errors.Is(err, fs.ErrExist):
		return say(fs.ErrExist, "path: %s exists already; give another one", path)
	case errors.Is(err, ErrReadOnly): // before fs.ErrPermission, which it is too
		return say(ErrReadOnly, "path: %s is on a read-only file system, for root too: a mount that is shown read-only, a bucket that is not mounted at the moment (get_sandbox shows mounts), or a part that nobody inside may change; write elsewhere", path)
	case errors.Is(err, fs.ErrPermission):
		return say(fs.ErrPermission, "path: permission denied for %s; a command with user root may read and change it", path)
	case errors.Is(err, ErrIsDir):
		return say(ErrIsDir, "path: %s is a directory; give a file's path, or list it with a command such as ls", path)
	case errors.Is(err, ErrNotDir):
		return say(ErrNotDir, "path: a part of %s is not a directory; check it with a command such as ls -ld", path)
	case errors.Is(err, ErrNotRegular):
		return say(ErrNotRegular, "path: %s is a device, FIFO or socket, not a file; use a command for it", path)
	}
	return fmt.Errorf("%s: %w", path, err)
}

// ReadFile reads a file: text by lines, or bytes when Raw or an image. Binary
// files are refused otherwise.
func (m *Manager) ReadFile(ctx context.Context, key Key, r ReadFileRequest) (*FileContent, error) {
	ctx = withDeadline(ctx)
	var f faults
	if r.Offset < 0 {
		f.add("offset", fmt.Sprintf("%d does not fit", r.Offset), "a line number from 1", "")
	}
	if r.Limit < 0 {
		f.add("limit", fmt.Sprintf("%d does not fit", r.Limit), "1 or more lines", "")
	}
	if r.Raw && (r.Offset > 0 || r.Limit > 0) {
		f.add("base64", "offset and limit count lines of text", "base64 alone", "read a part with a command such as dd")
	}
	if err := f.err(); err != nil {
		return nil, err
	}
	var res *FileContent
	notice, err := m.onFiles(ctx, key, r.Path, func(files Files, path string) error {
		body, info, err := files.Open(ctx, path)
		if err != nil {
			return err
		}
		defer body.Close()
		res, err = readContent(&patient{ctx: ctx, r: body, info: info}, info, r)
		return err
	})
	if err != nil {
		return nil, err
	}
	res.Notice = notice
	return res, nil
}

// patient reads until the call is over: a file of petabytes costs its writer
// nothing, and whoever reads on would do so for days, answer or not.
type patient struct {
	ctx  context.Context
	r    io.Reader
	info FileInfo
}

func (p *patient) Read(b []byte) (int, error) {
	if err := p.ctx.Err(); err != nil {
		return 0, err
	}
	if !time.Now().Before(callDeadline(p.ctx)) {
		return 0, &UserError{Err: ErrLimit, Text: fmt.Sprintf("%s has %d bytes, too many to be read as far as was asked within %d s; read a part with a command such as head, tail or dd", p.info.Path, p.info.Size, int(MaxWait/time.Second))}
	}
	return p.r.Read(b)
}

func readContent(body io.Reader, info FileInfo, r ReadFileRequest) (*FileContent, error) {
	in := bufio.NewReaderSize(body, 64<<10)
	start, err := in.Peek(sniffed)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("read: %w", err)
	}
	res := &FileContent{File: info, MIME: sniff(start), Lines: -1}
	image := isImage(res.MIME)
	if r.Raw || image && r.Offset == 0 && r.Limit == 0 {
		data, err := io.ReadAll(io.LimitReader(in, MaxRaw+1))
		if err != nil {
			return nil, fmt.Errorf("read: %w", err)
		}
		if len(data) > MaxRaw {
			return nil, &UserError{Err: ErrLimit, Text: fmt.Sprintf("%s has %d bytes, more than the 7,340,032 that one read gives; read a part with a command such as dd, or berth cp", info.Path, info.Size)}
		}
		res.Data = data
		return res, nil
	}
	if res.MIME != "text/plain" {
		return nil, &UserError{Err: ErrUnsupported, Text: fmt.Sprintf("%s is binary (%s, %d bytes); base64 gives its bytes, or use a command such as file, xxd or strings", info.Path, res.MIME, info.Size)}
	}
	return res, readLines(in, r, res)
}

// readLines takes the wanted lines and counts all of them. Memory stays
// bounded whatever the file holds.
func readLines(in *bufio.Reader, r ReadFileRequest, res *FileContent) error {
	first := max(1, r.Offset)
	var out []byte
	line, taken, read := 0, 0, int64(0)
	full := false
	for {
		done := full || r.Limit > 0 && taken >= r.Limit
		wanted := line+1 >= first && !done
		if done && read > maxCounted {
			break // how many there are is not known
		}
		most := int64(math.MaxInt64)
		if done {
			most = maxCounted - read
		}
		text, n, err := readLine(in, wanted, most)
		if errors.Is(err, errFar) {
			break
		}
		read += n
		if n > 0 {
			line++
		}
		if err != nil && !errors.Is(err, io.EOF) {
			return fmt.Errorf("read: %w", err)
		}
		if wanted && n > 0 {
			if len(out)+len(text) > MaxText && taken > 0 {
				full = true
			} else {
				out = append(out, text...)
				taken++
			}
		}
		if err != nil {
			res.Lines = line
			break
		}
	}
	if taken == 0 && line > 0 && first > line {
		return &FieldError{Field: "offset", Problem: fmt.Sprintf("%d lies beyond the file's %d lines", r.Offset, line), Allowed: fmt.Sprintf("1 to %d", line)}
	}
	if !utf8.Valid(out) {
		out = bytes.ToValidUTF8(out, []byte("\uFFFD"))
	}
	res.Data = out
	if taken > 0 {
		res.First, res.Last = first, first+taken-1
	}
	res.Truncated = res.Lines < 0 || res.Last < res.Lines
	return nil
}

var errFar = errors.New("the line does not end within what is read")

// readLine reads one line with its end; n counts its bytes. Of a long line the
// beginning is kept and the rest is told. It fails with errFar when the line
// has more than most bytes.
func readLine(in *bufio.Reader, keep bool, most int64) (text []byte, n int64, err error) {
	for {
		part, err := in.ReadSlice('\n')
		if n += int64(len(part)); n > most {
			return nil, n, errFar
		}
		if keep && len(text) <= maxTextLine {
			text = append(text, part...)
		}
		if errors.Is(err, bufio.ErrBufferFull) {
			continue
		}
		if keep && n > maxTextLine {
			cut := min(maxTextLine, len(text))
			for cut > 0 && !utf8.RuneStart(text[cut]) {
				cut--
			}
			text = fmt.Appendf(text[:cut], "… [%d more bytes in this line]", n-int64(cut))
			if err == nil {
				text = append(text, '\n')
			}
		}
		return text, n, err
	}
}

var magics = []struct{ magic, mime string }{
	{"\x89PNG\r\n\x1a\n", "image/png"}, {"\xff\xd8\xff", "image/jpeg"}, {"GIF87a", "image/gif"}, {"GIF89a", "image/gif"},
	{"%PDF-", "application/pdf"}, {"PK\x03\x04", "application/zip"}, {"\x1f\x8b", "application/gzip"}, {"\x7fELF", "application/x-elf"},
}

// sniff tells what a file's beginning looks like.
func sniff(b []byte) string {
	for _, m := range magics {
		if bytes.HasPrefix(b, []byte(m.magic)) {
			return m.mime
		}
	}
	if len(b) >= 12 && string(b[:4]) == "RIFF" && string(b[8:12]) == "WEBP" {
		return "image/webp"
	}
	// Text is without NUL bytes and, but for a few bytes of an old encoding,
	// UTF-8.
	if bytes.IndexByte(b, 0) >= 0 {
		return "application/octet-stream"
	}
	bad := 0
	for i := 0; i < len(b); {
		r, n := utf8.DecodeRune(b[i:])
		if r == utf8.RuneError && n == 1 && (utf8.FullRune(b[i:]) || len(b) < sniffed) {
			bad++
		}
		i += n
	}
	if bad*10 > len(b) {
		return "application/octet-stream"
	}
	return "text/plain"
}

func isImage(mime string) bool {
	switch mime {
	case "image/png", "image/jpeg", "image/gif", "image/webp":
		return true
	}
	return false
}

// WriteFile makes a file hold exactly the data, at once or not at all, or adds
// the data at its end.
func (m *Manager) WriteFile(ctx context.Context, key Key, r WriteFileRequest) (*WriteFileResult, error) {
	ctx = withDeadline(ctx)
	var f faults
	if len(r.Data) > MaxWrite {
		f.add("content", fmt.Sprintf("it has %d bytes", len(r.Data)), "at most 16,777,216", "write it in parts with append")
	}
	if r.Mode != nil && *r.Mode&^0o7777 != 0 {
		f.add("mode", fmt.Sprintf("%o does not fit", uint32(*r.Mode)), "permission bits, such as 0644", "")
	}
	if err := f.err(); err != nil {
		return nil, err
	}
	res := &WriteFileResult{}
	notice, err := m.onFiles(ctx, key, r.Path, func(files Files, path string) error {
		// A write that has begun is carried out, caller or not.
		wctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Until(callDeadline(ctx)))
		defer cancel()
		w, err := files.Write(wctx, path, bytes.NewReader(r.Data), WriteOptions{Append: r.Append, Mode: r.Mode})
		res.WriteResult = w
		return err
	})
	if err != nil {
		return nil, err
	}
	res.Notice = notice
	return res, nil
}
