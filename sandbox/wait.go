package sandbox

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"regexp"
	"time"
)

const (
	// streamChunk is read at once for streaming and matching.
	streamChunk = 64 << 10
	// streamBehind is how far a streaming reader may lag before it jumps to
	// the newest output; what is skipped stays in the log.
	streamBehind = 1 << 20
	// matchWindow is how much text one pattern match may span.
	matchWindow = 64 << 10
	// settle is for how long output must pause before a wait for output
	// answers, so that what belongs together comes together; settleMost
	// bounds it.
	settle     = 30 * time.Millisecond
	settleMost = 250 * time.Millisecond
)

// waiting is one wait on a process.
type waiting struct {
	from     Cursor
	what     WaitFor
	pattern  *regexp.Regexp
	deadline time.Time
	onOutput func(Output)
}

// parseWait checks what a caller waits for.
func parseWait(f *faults, what WaitFor, pattern string, usual WaitFor) (WaitFor, *regexp.Regexp) {
	switch what {
	case "":
		what = usual
		if pattern != "" {
			what = WaitPattern
		}
	case WaitNone, WaitOutput, WaitExit, WaitPattern:
	default:
		f.add("wait_for", fmt.Sprintf("%.40q is not known", what), "none, output, exit, pattern", "")
		return usual, nil
	}
	switch {
	case what == WaitPattern && pattern == "":
		f.add("pattern", "it is missing", "an RE2 regular expression", "give it, or another wait_for")
	case what != WaitPattern && pattern != "":
		f.add("pattern", "it has no effect with wait_for "+string(what), "", "leave it out, or set wait_for to pattern")
	case len(pattern) > 4096:
		f.add("pattern", fmt.Sprintf("it has %d bytes", len(pattern)), "at most 4,096", "")
	case what == WaitPattern:
		// ^ and $ mean the ends of lines: where the output begins depends on
		// the cursor, and where it ends on the moment.
		re, err := regexp.Compile("(?m:" + pattern + ")")
		if err != nil {
			var detail string
			if _, perr := regexp.Compile(pattern); perr != nil {
				detail = ": " + perr.Error()
			}
			f.add("pattern", "it is not a regular expression"+detail, "RE2 syntax, as in Go", "")
			return what, nil
		}
		return what, re
	}
	return what, nil
}

// parseSpan checks a wait; nil means usual. Longer waits than MaxWait are cut.
func parseSpan(f *faults, field string, d *time.Duration, usual time.Duration) time.Duration {
	if d == nil {
		return usual
	}
	if *d < 0 {
		f.add(field, fmt.Sprintf("%v does not fit", *d), "0 to 50 seconds", "")
		return usual
	}
	return min(*d, MaxWait)
}

// needless tells that waiting would neither wait nor show anything: the process is
// over, and no match and no output on the way are asked for.
func (w waiting) needless(i ProcessInfo) bool {
	return i.over() && (w.what == WaitOutput || w.what == WaitExit && w.onOutput == nil)
}

// wait returns when what is waited for is there, the process has exited, the
// deadline has passed (all without an error), or ctx ends, with its error.
func (w waiting) wait(ctx context.Context, p Process) (matched bool, err error) {
	if w.what == WaitNone {
		return false, nil
	}
	limited, cancel := context.WithDeadline(ctx, w.deadline)
	defer cancel()
	switch {
	case w.what == WaitExit && w.onOutput == nil:
		err = p.Wait(limited, w.from, true)
	case w.what == WaitOutput:
		err = w.output(limited, p)
	default:
		matched, err = w.follow(limited, p)
	}
	if err != nil && ctx.Err() == nil && errors.Is(err, context.DeadlineExceeded) {
		err = nil
	}
	if ctx.Err() != nil && err != nil {
		err = ctx.Err()
	}
	return matched, err
}

// output waits until there is something that can be shown, and then until it
// pauses.
func (w waiting) output(ctx context.Context, p Process) error {
	at := w.from
	for {
		if err := p.Wait(ctx, at, false); err != nil {
			return err
		}
		o, err := p.Read(ctx, w.from, streamChunk)
		if err != nil {
			return err
		}
		if len(o.Stdout)+len(o.Stderr) == 0 { // ended, or beyond what there is
			return nil
		}
		if len(o.Stdout) > incomplete(o.Stdout) || len(o.Stderr) > incomplete(o.Stderr) {
			break
		}
		at = o.Next // half a rune: wait for its rest
		i, err := p.Info(ctx)
		if err != nil || i.State != ProcessRunning {
			return err
		}
	}
	until := time.Now().Add(settleMost)
	for time.Now().Before(until) {
		i, err := p.Info(ctx)
		if err != nil {
			return err
		}
		if i.State != ProcessRunning || i.Produced.minus(w.from).sum() >= MaxOutput {
			return nil
		}
		at = i.Produced
		quiet, cancel := context.WithTimeout(ctx, settle)
		err = p.Wait(quiet, at, false)
		cancel()
		if err != nil {
			if ctx.Err() == nil && errors.Is(err, context.DeadlineExceeded) {
				return nil // it pauses
			}
			return err
		}
	}
	return nil
}

// follow reads on until the pattern matches or the process has ended, and hands
// the output to onOutput.
func (w waiting) follow(ctx context.Context, p Process) (bool, error) {
	at := w.from
	var seen [2]matcher
	for {
		if err := p.Wait(ctx, at, false); err != nil {
			return false, err
		}
		// The state first: what is read after an end is all there is.
		info, err := p.Info(ctx)
		if err != nil {
			return false, err
		}
		if w.pattern == nil && info.Produced.minus(at).sum() > streamBehind {
			skip := info.Produced.minus(at)
			at.Stdout += max(0, skip.Stdout-streamChunk)
			at.Stderr += max(0, skip.Stderr-streamChunk)
		}
		o, err := p.Read(ctx, at, streamChunk)
		if err != nil {
			return false, err
		}
		if len(o.Stdout)+len(o.Stderr) == 0 {
			if info.State != ProcessRunning {
				return false, nil
			}
			at = o.Next
			continue
		}
		at = o.Next
		if w.onOutput != nil {
			w.onOutput(o)
		}
		if w.pattern != nil {
			out := seen[stdout].add(o.Stdout, w.pattern)
			if seen[stderr].add(o.Stderr, w.pattern) || out {
				return true, nil
			}
		}
	}
}

// matcher looks for a pattern in text that comes in pieces. It keeps the last
// matchWindow bytes, escape sequences stripped.
type matcher struct {
	raw    []byte // not yet stripped: the beginning of a sequence
	window []byte
}

func (m *matcher) add(b []byte, re *regexp.Regexp) bool {
	if len(b) == 0 {
		return false
	}
	m.raw = append(m.raw, b...)
	ready := len(m.raw) - unfinished(m.raw)
	m.window = append(m.window, stripEscapes(m.raw[:ready])...)
	m.raw = append(m.raw[:0], m.raw[ready:]...)
	if re.Match(m.window) {
		return true
	}
	if over := len(m.window) - matchWindow; over > 0 {
		// Cut at a line, where ^ is true.
		if i := bytes.IndexByte(m.window[over:], '\n'); i >= 0 {
			over += i + 1
		}
		m.window = append(m.window[:0], m.window[over:]...)
	}
	return false
}

// unfinished is incomplete without the carriage return, which a prompt may
// well end in.
func unfinished(b []byte) int {
	if len(b) > 0 && b[len(b)-1] == '\r' {
		return 0
	}
	return incomplete(b)
}
