//go:build linux

package local

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"time"

	"berth/sandbox"
	"golang.org/x/sys/unix"
)

// Bounds of a build's log, in bytes: of the file, but for its end; of the end;
// of a line.
const (
	maxBuildLog  = 4 << 20
	maxLogTail   = 64 << 10
	maxLogLine   = 4 << 10
	buildLogTime = 7 * 24 * time.Hour // of builds that made no snapshot
)

func (s *store) buildLogPath(owner sandbox.Owner, name string) string {
	return s.path("builds", snapshotID(owner, name)+".log")
}

// buildLog is what a build says: told line by line, and kept in a file. One
// goroutine at a time uses it.
type buildLog struct {
	tell    func(line string)
	f       *os.File
	written int64
	left    int64 // bytes that the file does not have
	tail    []byte
	partial [2][]byte // of stdout and stderr, lines without an end yet
}

func (s *store) openBuildLog(ctx context.Context, owner sandbox.Owner, name string) (*buildLog, error) {
	f, err := os.OpenFile(s.buildLogPath(owner, name), os.O_RDWR|os.O_CREATE|os.O_TRUNC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	return &buildLog{f: f, tell: func(line string) { sandbox.Report(ctx, sandbox.Progress{Text: line, Log: true}) }}, nil
}

// line says one line, or several.
func (l *buildLog) line(text string) {
	for one := range strings.SplitSeq(strings.TrimSuffix(text, "\n"), "\n") {
		if len(one) > maxLogLine {
			one = strings.ToValidUTF8(one[:maxLogLine], "") + "…"
		}
		one = sandbox.CleanText([]byte(one)) // also what a Dockerfile says
		l.tell(one)
		l.keep(one + "\n")
	}
}

func (l *buildLog) keep(line string) {
	if l.tail = append(l.tail, line...); len(l.tail) > 2*maxLogTail {
		l.tail = append(l.tail[:0], l.tail[len(l.tail)-maxLogTail:]...)
	}
	if l.left > 0 || l.written+int64(len(line)) > maxBuildLog {
		l.left += int64(len(line))
		return
	}
	// What cannot be written, on a full disk, is no reason to end the build.
	n, _ := l.f.WriteString(line)
	l.written += int64(n)
}

// output takes what a command wrote.
func (l *buildLog) output(o sandbox.Output) {
	if o.Dropped > 0 {
		l.line(fmt.Sprintf("[%d bytes of output came too fast to be kept]", o.Dropped))
	}
	for i, b := range [][]byte{o.Stdout, o.Stderr} {
		held := append(l.partial[i], b...)
		end := bytes.LastIndexByte(held, '\n') + 1
		if end == 0 && len(held) > maxLogLine {
			end = len(held)
		}
		if end > 0 {
			l.line(sandbox.CleanText(held[:end]))
		}
		l.partial[i] = append(l.partial[i][:0], held[end:]...)
	}
}

// flush says what did not end in a newline.
func (l *buildLog) flush() {
	for i, b := range l.partial {
		if len(b) > 0 {
			l.line(sandbox.CleanText(b))
		}
		l.partial[i] = nil
	}
}

// close ends the log and returns its end.
func (l *buildLog) close() string {
	l.flush()
	tail := lastBytes(l.tail, maxLogTail)
	if l.left > 0 {
		if more := l.left - int64(len(tail)); more > 0 {
			_, _ = fmt.Fprintf(l.f, "[%d bytes left out]\n", more)
			_, _ = l.f.WriteString(tail)
		} else {
			_, _ = l.f.WriteString(lastBytes(l.tail, int(l.left)))
		}
	}
	_ = l.f.Close()
	return lastBytes([]byte(tail), sandbox.MaxBuildLog)
}

// lastBytes are the last lines of b, at most n bytes.
func lastBytes(b []byte, n int) string {
	if len(b) <= n {
		return string(b)
	}
	b = b[len(b)-n:]
	if i := bytes.IndexByte(b, '\n'); i >= 0 && i < len(b)-1 {
		b = b[i+1:]
	}
	return strings.ToValidUTF8(string(b), "")
}

// BuildLog reads the end of a build's log.
func (p *Provider) BuildLog(_ context.Context, owner sandbox.Owner, name string, max int64) (string, error) {
	s, err := p.store()
	if err != nil {
		return "", err
	}
	text, err := s.readBuildLog(owner, name, max)
	if errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("the log of %s: %w", name, sandbox.ErrNotFound)
	}
	return text, err
}

func (s *store) readBuildLog(owner sandbox.Owner, name string, max int64) (string, error) {
	f, err := os.OpenFile(s.buildLogPath(owner, name), os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return "", err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return "", err
	}
	from := fi.Size() - max - 1 // one more tells whether a line begins there
	if from > 0 {
		if _, err := f.Seek(from, io.SeekStart); err != nil {
			return "", err
		}
	}
	b, err := io.ReadAll(io.LimitReader(f, max+1))
	return lastBytes(b, int(max)), err
}

func firstLine(s string) string {
	s, rest, more := strings.Cut(s, "\n")
	if more && rest != "" || len(s) > 200 {
		return strings.ToValidUTF8(s[:min(len(s), 200)], "") + "…"
	}
	return s
}

var _ sandbox.BuildLogKeeper = (*Provider)(nil)
