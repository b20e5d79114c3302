package sandbox

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"
	"unicode/utf8"
)

// Bounds of the event log, in bytes.
const (
	maxEventText = 1024
	maxEventLine = 16 << 10
	maxEventFile = 4 << 20 // then it becomes the old half, and a new one begins
)

// eventLog keeps one file of JSON lines a sandbox. Several processes append to
// it: every line is one write with O_APPEND.
type eventLog struct {
	dir string
	mu  sync.Mutex
}

// eventLine is an event on disk.
type eventLine struct {
	Time       time.Time      `json:"time"`
	Session    SessionID      `json:"session"`
	Tool       string         `json:"tool"`
	Args       map[string]any `json:"args,omitempty"`
	Outcome    string         `json:"outcome"`
	Error      string         `json:"error,omitempty"`
	DurationMS int64          `json:"duration_ms"`
	Bytes      int64          `json:"bytes"`
	Call       string         `json:"call,omitempty"`
}

type beginKey struct{}

// WithBegin has f called once, just before a call of a tool begins to change
// something in a sandbox that runs. It records the beginning, so that what was done is known
// even when the server is killed before the end.
func WithBegin(ctx context.Context, f func()) context.Context {
	return context.WithValue(ctx, beginKey{}, sync.OnceFunc(f))
}

func begin(ctx context.Context) {
	if f, ok := ctx.Value(beginKey{}).(func()); ok {
		f()
	}
}

// private are arguments that hold file contents, input or secrets: of these
// only the size is kept.
var private = map[string]bool{"content": true, "base64": true, "text": true, "stdin": true, "edits": true, "old_text": true,
	"new_text": true, "credentials": true, "data": true, "token": true, "password": true, "secret": true}

func (l *eventLog) path(key Key) string {
	// An owner's name may hold anything; a session id is safe but for case,
	// which some file systems fold.
	sum := sha256.Sum256([]byte(string(key.Owner) + "\x00" + string(key.Session)))
	return filepath.Join(l.dir, string(key.Session)+"-"+hex.EncodeToString(sum[:6])+".jsonl")
}

// Record appends to the sandbox's event log: one JSON line, without the values
// of environment variables and of arguments that hold contents or secrets. A
// failure goes to the log, not to the caller.
func (m *Manager) Record(key Key, e Event) {
	if m.events == nil {
		return
	}
	if e.Time.IsZero() {
		e.Time = time.Now()
	}
	if e.Session == "" {
		e.Session = key.Session
	}
	if err := m.events.add(key, e); err != nil {
		m.log.Warn("event not recorded", slog.String("session", string(key.Session)), slog.String("tool", e.Tool), slog.Any("err", err))
	}
}

func (l *eventLog) add(key Key, e Event) error {
	line := eventLine{Time: e.Time.UTC(), Session: e.Session, Tool: e.Tool, Args: discreet(e.Args, 0), Outcome: clip(e.Outcome),
		Error: clip(e.Error), DurationMS: e.Duration.Milliseconds(), Bytes: e.Bytes, Call: e.Call}
	b, err := json.Marshal(line)
	if err != nil || len(b) > maxEventLine {
		line.Args = map[string]any{"left_out": fmt.Sprintf("%d arguments", len(e.Args))}
		if b, err = json.Marshal(line); err != nil {
			return err
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	p := l.path(key)
	f, err := os.OpenFile(p, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if errors.Is(err, fs.ErrNotExist) {
		if err = os.MkdirAll(l.dir, 0o700); err == nil {
			f, err = os.OpenFile(p, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
		}
	}
	if err != nil {
		return err
	}
	_, err = f.Write(append(b, '\n'))
	if st, serr := f.Stat(); serr == nil && st.Size() > maxEventFile {
		err = errors.Join(err, l.turnOver(p, st))
	}
	return errors.Join(err, f.Close())
}

// lock takes a lock against all processes that share the directory; release is
// nil when another holds it.
func (l *eventLog) lock(name string) (release func(), err error) {
	if err := os.MkdirAll(l.dir, 0o700); err != nil {
		return nil, err
	}
	return TryLock(filepath.Join(l.dir, name))
}

// turnOver makes the file at p the old half. Of several
// processes that find it full one does so; the others go on, and a file that
// nobody turned over is found full again by the next line.
func (l *eventLog) turnOver(p string, full fs.FileInfo) error {
	release, err := l.lock(".turnover")
	if err != nil || release == nil {
		return err
	}
	defer release()
	// Only the file that was written to is moved: another process may have
	// been faster, and what is at p now is the new one.
	if now, err := os.Stat(p); err != nil || !os.SameFile(full, now) {
		return nil // somebody else has moved it
	}
	return os.Rename(p, p+".old")
}

// discreet copies arguments for the log: long texts are clipped, private ones
// and the values of env only counted.
func discreet(args map[string]any, depth int) map[string]any {
	if args == nil || depth > 4 {
		return nil
	}
	out := make(map[string]any, len(args))
	for k, v := range args {
		switch {
		case k == "env":
			out[k] = names(v)
		case private[k]:
			out[k] = size(v)
		default:
			out[k] = discreetValue(v, depth)
		}
	}
	return out
}

func discreetValue(v any, depth int) any {
	switch v := v.(type) {
	case string:
		return clip(v)
	case map[string]any:
		return discreet(v, depth+1)
	case []any:
		out := make([]any, 0, min(len(v), 20))
		for _, e := range v[:min(len(v), 20)] {
			out = append(out, discreetValue(e, depth+1))
		}
		return out
	case []string:
		out := make([]string, 0, min(len(v), 20))
		for _, e := range v[:min(len(v), 20)] {
			out = append(out, clip(e))
		}
		return out
	case nil, bool, int, int64, uint16, float64, json.Number, time.Duration:
		return v
	case fmt.Stringer:
		return clip(v.String())
	}
	return fmt.Sprintf("(%T)", v)
}

func names(v any) []string {
	switch v := v.(type) {
	case map[string]any:
		return slices.Sorted(maps.Keys(v))
	case map[string]string:
		return slices.Sorted(maps.Keys(v))
	case map[string]*string:
		return slices.Sorted(maps.Keys(v))
	}
	return nil
}

func size(v any) string {
	switch v := v.(type) {
	case string:
		return fmt.Sprintf("%d bytes", len(v))
	case []byte:
		return fmt.Sprintf("%d bytes", len(v))
	case []any:
		return fmt.Sprintf("%d entries", len(v))
	}
	return "(left out)"
}

func clip(s string) string {
	if len(s) <= maxEventText {
		return s
	}
	cut := maxEventText
	for cut > 0 && !utf8.RuneStart(s[cut]) {
		cut--
	}
	return fmt.Sprintf("%s… (%d bytes)", s[:cut], len(s))
}

// Events reads the sandbox's event log, oldest first. It is bounded: the oldest
// events are gone. A line that was torn by a crash is skipped. The beginning of
// a call is among them, with the outcome Begun, while there is no end.
func (m *Manager) Events(ctx context.Context, key Key) ([]Event, error) {
	if m.events == nil {
		return nil, &UserError{Err: ErrUnsupported, Text: "no event log is kept: the operator has configured none"}
	}
	p := m.events.path(key)
	var events []Event
	for _, name := range []string{p + ".old", p} {
		b, err := os.ReadFile(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read the event log: %w", err)
		}
		lines := bufio.NewScanner(bytes.NewReader(b))
		lines.Buffer(nil, 2*maxEventLine)
		for lines.Scan() {
			var l eventLine
			if json.Unmarshal(lines.Bytes(), &l) != nil {
				continue
			}
			events = append(events, Event{Time: l.Time, Session: l.Session, Tool: l.Tool, Args: l.Args, Outcome: l.Outcome,
				Error: l.Error, Duration: time.Duration(l.DurationMS) * time.Millisecond, Bytes: l.Bytes, Call: l.Call})
		}
	}
	ended := map[string]bool{}
	for _, e := range events {
		ended[e.Call] = ended[e.Call] || e.Outcome != Begun
	}
	return slices.DeleteFunc(events, func(e Event) bool { return e.Outcome == Begun && ended[e.Call] }), ctx.Err()
}
