package sandbox

import (
	"bytes"
	"context"
	"fmt"
)

// Bounds of what one answer shows of a process's output, in bytes.
const (
	MaxOutput    = 30_000
	MaxReadBytes = 1 << 20
)

// The streams of a process.
const (
	stdout = iota
	stderr
)

func (c Cursor) of(stream int) int64 {
	if stream == stdout {
		return c.Stdout
	}
	return c.Stderr
}

func (c *Cursor) set(stream int, at int64) {
	if stream == stdout {
		c.Stdout = at
	} else {
		c.Stderr = at
	}
}

// piece is what was read of one stream: b ends at offset end. Bytes that were
// lost or dropped are left out of it and counted by gone.
type piece struct {
	b    []byte
	end  int64
	gone int64
}

// readRange reads one stream's bytes in [from, to); produced is past what the
// other stream is asked for.
func readRange(ctx context.Context, p Process, produced Cursor, stream int, from, to int64) (piece, error) {
	r := piece{end: from}
	for r.end < to {
		c := produced
		c.set(stream, r.end)
		o, err := p.Read(ctx, c, to-r.end)
		if err != nil {
			return r, fmt.Errorf("read the output: %w", err)
		}
		got, next := o.Stdout, o.Next.Stdout
		if stream == stderr {
			got, next = o.Stderr, o.Next.Stderr
		}
		if next <= r.end {
			break
		}
		r.gone += next - r.end - int64(len(got))
		if r.b == nil { // mostly one read brings all
			r.b, r.end = got, next
			continue
		}
		r.b, r.end = append(r.b, got...), next
	}
	return r, nil
}

// shares divides n bytes between streams that have a and b: each gets at least
// a third if it needs it, and what the other leaves.
func shares(n, a, b int64) (int64, int64) {
	if a+b <= n {
		return a, b
	}
	sb := min(b, max(n/3, n-a))
	return min(a, n-sb), sb
}

// collect puts a process's output in [from, info.Produced) into res: all of it
// when it fits into most bytes, else the first 20 % and the last 80 % of that.
func collect(ctx context.Context, p Process, info ProcessInfo, from Cursor, most int64, res *RunResult) error {
	begin := from.atLeast(info.Kept)
	res.Dropped = begin.minus(from).sum()
	end := info.Produced
	have := end.minus(begin)
	var budget [2]int64
	budget[stdout], budget[stderr] = shares(most, have.Stdout, have.Stderr)
	next, cut, wasCut := end, end, false
	for s := range budget {
		t, stop, err := window(ctx, p, info, s, begin.of(s), budget[s], res)
		if err != nil {
			return err
		}
		if s == stdout {
			res.Stdout = t.text
		} else {
			res.Stderr = t.text
		}
		next.set(s, stop)
		cut.set(s, stop)
		if t.text.Cut > 0 {
			cut.set(s, t.headEnd)
			wasCut = true
		}
	}
	res.Cursor = next.String()
	if wasCut {
		res.CutCursor = cut.String()
	}
	return nil
}

type windowText struct {
	text    Text
	headEnd int64 // absolute
}

// window reads head and tail of one stream; stop is where reading goes on.
func window(ctx context.Context, p Process, info ProcessInfo, stream int, from, budget int64, res *RunResult) (windowText, int64, error) {
	to := info.Produced.of(stream)
	hold := func(b []byte) int64 {
		if info.State != ProcessRunning {
			return 0
		}
		return int64(incomplete(b))
	}
	if to-from <= budget {
		all, err := readRange(ctx, p, info.Produced, stream, from, to)
		if err != nil {
			return windowText{}, from, err
		}
		res.Dropped += all.gone
		h := hold(all.b)
		return windowText{text: Text{Head: clean(all.b[:int64(len(all.b))-h])}}, all.end - h, nil
	}
	head, err := readRange(ctx, p, info.Produced, stream, from, from+budget/5)
	if err != nil {
		return windowText{}, from, err
	}
	res.Dropped += head.gone
	keep := headEnd(head.b)
	headStop := head.end - int64(len(head.b)-keep)
	tailFrom := max(headStop, to-(budget-budget/5))
	look := max(headStop, tailFrom-256)
	tail, err := readRange(ctx, p, info.Produced, stream, look, to)
	if err != nil {
		return windowText{}, from, err
	}
	skip := tailStart(tail.b, int(min(tailFrom-look, int64(len(tail.b)))))
	h := hold(tail.b[skip:])
	shown := tail.b[skip : int64(len(tail.b))-h]
	begin := tail.end - h - int64(len(shown))
	return windowText{text: Text{Head: clean(head.b[:keep]), Tail: clean(shown), Cut: begin - headStop}, headEnd: headStop}, tail.end - h, nil
}

// page reads forward from c, at most most bytes, for read_output.
func page(ctx context.Context, p Process, info ProcessInfo, c Cursor, most int64, raw bool, res *RunResult) error {
	begin := c.atLeast(info.Kept)
	res.Dropped = begin.minus(c).sum()
	have := info.Produced.minus(begin)
	var budget [2]int64
	budget[stdout], budget[stderr] = shares(most, have.Stdout, have.Stderr)
	next := begin
	for s := range budget {
		from := begin.of(s)
		got, err := readRange(ctx, p, info.Produced, s, from, from+budget[s])
		if err != nil {
			return err
		}
		res.Dropped += got.gone
		b := got.b
		if !raw {
			switch {
			case got.end < info.Produced.of(s):
				b = b[:progress(b, headEnd(b))]
			case info.State == ProcessRunning:
				b = b[:len(b)-incomplete(b)]
			}
		}
		next.set(s, got.end-int64(len(got.b)-len(b)))
		res.put(s, b, raw)
	}
	res.Cursor = next.String()
	return nil
}

// progress keeps a page from being empty for ever when a rune or sequence does
// not fit into it.
func progress(b []byte, end int) int {
	if end == 0 {
		return len(b)
	}
	return end
}

// newest reads the last most bytes, or the last lines of each stream when lines
// is positive.
func newest(ctx context.Context, p Process, info ProcessInfo, most int64, lines int, raw bool, res *RunResult) error {
	have := info.Produced.minus(info.Kept)
	var budget [2]int64
	budget[stdout], budget[stderr] = shares(most, have.Stdout, have.Stderr)
	next, more := info.Produced, false
	for s := range budget {
		to := info.Produced.of(s)
		from := to - budget[s]
		look := max(info.Kept.of(s), from-256)
		got, err := readRange(ctx, p, info.Produced, s, look, to)
		if err != nil {
			return err
		}
		b := got.b
		skip := int(min(from-look, int64(len(b))))
		if !raw && from > info.Kept.of(s) {
			skip = tailStart(b, skip)
		}
		if lines > 0 {
			skip = max(skip, lastLines(b, lines))
		}
		h := 0
		if !raw && info.State == ProcessRunning {
			h = incomplete(b[skip:])
		}
		more = more || from-look+int64(skip) > 0 && got.end-int64(len(b)-skip) > info.Kept.of(s)
		next.set(s, got.end-int64(h))
		res.put(s, b[skip:len(b)-h], raw)
	}
	res.Cursor = next.String()
	if more {
		res.Oldest = info.Kept.String()
	}
	res.Dropped = info.Kept.sum()
	return nil
}

// lastLines is where the last n lines of b begin.
func lastLines(b []byte, n int) int {
	at := len(b)
	if at > 0 && b[at-1] == '\n' {
		at--
	}
	for ; n > 0; n-- {
		i := bytes.LastIndexByte(b[:at], '\n')
		if i < 0 {
			return 0
		}
		at = i
	}
	return at + 1
}

func (r *RunResult) put(stream int, b []byte, raw bool) {
	switch {
	case raw && stream == stdout:
		r.RawStdout = b
	case raw:
		r.RawStderr = b
	case stream == stdout:
		r.Stdout = Text{Head: clean(b)}
	default:
		r.Stderr = Text{Head: clean(b)}
	}
}
