package cli

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"berth/sandbox"
)

// progress draws one line on a terminal; elsewhere it is silent. It is safe for
// concurrent use.
type progress struct {
	app     *App
	on      bool
	started time.Time

	mu    sync.Mutex
	drawn bool
	last  time.Time
	files int
	bytes int64 // in all
}

func newProgress(a *App, quiet bool) *progress {
	return &progress{app: a, on: !quiet && a.terminal(a.Stderr), started: time.Now()}
}

// file counts the bytes of r as those of a file that is being copied.
func (p *progress) file(name string, size int64, r io.Reader) io.Reader {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.files++
	return &progressReader{p: p, r: r, name: name, size: size}
}

type progressReader struct {
	p          *progress
	r          io.Reader
	name       string
	done, size int64
}

func (r *progressReader) Read(b []byte) (int, error) {
	n, err := r.r.Read(b)
	r.done += int64(n)
	p := r.p
	p.mu.Lock()
	defer p.mu.Unlock()
	p.bytes += int64(n)
	if now := time.Now(); p.on && now.Sub(p.last) > 50*time.Millisecond && now.Sub(p.started) > 200*time.Millisecond {
		p.last = now
		p.draw(r)
	}
	return n, err
}

// report shows how far other work is.
func (p *progress) report(r sandbox.Progress) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	if !p.on || r.Log {
		return
	}
	text := oneLine(r.Text)
	if r.Total <= 0 {
		// How far it is, nobody knows. It comes once, and is worth a line of its
		// own whenever it comes: without, a first start looks like a hang.
		p.last, p.drawn = now, true
		fmt.Fprintf(p.app.Stderr, "\r\x1b[K%s", p.fit(text+" …", 0))
		return
	}
	if now.Sub(p.last) > 50*time.Millisecond && now.Sub(p.started) > 200*time.Millisecond {
		p.last, p.drawn = now, true
		fmt.Fprintf(p.app.Stderr, "\r\x1b[K%s %s", p.app.paint(p.app.Stderr, "36", bar(r.Done, r.Total)), p.fit(text, cells+2))
	}
}

// fit cuts a line so that it does not wrap beside what takes used columns.
func (p *progress) fit(text string, used int) string {
	line := []rune(text)
	if w := p.app.width(p.app.Stderr); w > used && len(line) > w-used {
		line = line[:w-used]
	}
	return string(line)
}

const cells = 24 // of a bar

func bar(done, total int64) string {
	filled := cells
	if total > 0 {
		filled = int(min(max(done, 0), total) * cells / total)
	}
	return strings.Repeat("█", filled) + strings.Repeat("░", cells-filled)
}

func (p *progress) draw(r *progressReader) {
	bar := bar(r.done, r.size)
	name := oneLine(r.name)
	if r := []rune(name); len(r) > 30 {
		name = "…" + string(r[len(r)-29:])
	}
	p.drawn = true
	fmt.Fprintf(p.app.Stderr, "\r\x1b[K%s %s  %s of %s  %s/s", p.app.paint(p.app.Stderr, "36", bar), name, size(r.done), size(r.size), size(p.rate()))
}

func (p *progress) rate() int64 {
	return int64(float64(p.bytes) / max(time.Since(p.started).Seconds(), 0.001))
}

// say writes a line where the progress is.
func (p *progress) say(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.clear()
	fmt.Fprintf(p.app.Stderr, format, args...)
}

func (p *progress) clear() {
	if p.drawn {
		fmt.Fprint(p.app.Stderr, "\r\x1b[K")
	}
}

func (p *progress) end(ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.clear()
	if p.on && ok {
		fmt.Fprintf(p.app.Stderr, "%s, %s, %s/s\n", count(p.files, "file"), size(p.bytes), size(p.rate()))
	}
}
