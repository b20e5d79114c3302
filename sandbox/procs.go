package sandbox

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// SendStdin writes to a process's stdin, waits as asked and answers the output
// that came since the write. It starts nothing.
func (m *Manager) SendStdin(ctx context.Context, key Key, r StdinRequest) (*RunResult, error) {
	ctx = withDeadline(ctx)
	began := time.Now()
	var f faults
	f.process(r.Process)
	if len(r.Data) > MaxStdin {
		f.add("text", fmt.Sprintf("it has %d bytes", len(r.Data)), "at most 8,388,608", "send it in parts")
	}
	if len(r.Data) == 0 && !r.End && r.Resize == nil {
		f.add("text", "there is nothing to send", "text or base64, end, or cols and rows", "")
	}
	if r.Resize != nil {
		f.window(*r.Resize)
	}
	what, pattern := parseWait(&f, r.WaitFor, r.Pattern, WaitOutput)
	span := parseSpan(&f, "wait_seconds", r.Wait, 2*time.Second)
	if err := f.err(); err != nil {
		return nil, err
	}
	p, err := m.Process(ctx, key, r.Process)
	if err != nil {
		return nil, err
	}
	begin(ctx)
	info, err := p.Info(ctx)
	if err != nil {
		return nil, m.processError(err, key, r.Process)
	}
	if info.State != ProcessRunning {
		return nil, exitedError(info)
	}
	if r.Resize != nil {
		if err := p.Resize(ctx, *r.Resize); err != nil {
			if errors.Is(err, ErrUnsupported) {
				return nil, &FieldError{Field: "cols", Problem: fmt.Sprintf("process %s has no terminal", r.Process), Hint: "spawn_process with tty true gives one"}
			}
			return nil, m.writeError(ctx, err, p, key, r.Process)
		}
	}
	if len(r.Data) > 0 || r.End {
		if err := p.Write(ctx, r.Data, r.End); err != nil {
			return nil, m.writeError(ctx, err, p, key, r.Process)
		}
	}
	w := waiting{from: info.Produced, what: what, pattern: pattern, deadline: earlier(time.Now().Add(span), callDeadline(ctx))}
	matched, err := w.wait(ctx, p)
	if err != nil && ctx.Err() == nil {
		return nil, m.processError(err, key, r.Process)
	}
	actx, cancel := context.WithTimeout(context.WithoutCancel(ctx), killWait)
	defer cancel()
	res, err := m.result(actx, p, info.Produced, began)
	if err != nil {
		return nil, m.processError(err, key, r.Process)
	}
	res.Matched, res.Duration = matched, time.Since(began)
	if n := len(r.Data); n > 0 && !r.End && r.Data[n-1] != '\n' && (!info.TTY || r.Data[n-1] >= ' ') {
		res.Remarks = append(res.Remarks, "the text did not end in a newline, and none was added")
	}
	return res, nil
}

func exitedError(i ProcessInfo) error {
	return &UserError{Err: ErrExited, Text: fmt.Sprintf("process %s has %s; read_output shows its output", i.ID, ending(i))}
}

// ending says how a process ended, in words.
func ending(i ProcessInfo) string {
	switch {
	case i.State == ProcessLost:
		return "been lost" + because(i.Reason)
	case i.ExitCode == nil:
		return "ended, its exit code is not known"
	case i.TimedOut:
		return fmt.Sprintf("timed out and was killed, exit %d", *i.ExitCode)
	case i.Killed:
		return fmt.Sprintf("been killed, exit %d", *i.ExitCode)
	}
	return fmt.Sprintf("exited, exit %d", *i.ExitCode)
}

func (m *Manager) writeError(ctx context.Context, err error, p Process, key Key, id ProcessID) error {
	switch {
	case errors.Is(err, ErrExited):
		if i, ierr := p.Info(ctx); ierr == nil {
			return exitedError(i)
		}
	case errors.Is(err, ErrStdinClosed):
		return &UserError{Err: ErrStdinClosed, Text: fmt.Sprintf("stdin of process %s is closed; spawn_process leaves it open unless open_stdin is false or end was sent", id)}
	case errors.Is(err, ErrLimit):
		return &UserError{Err: ErrLimit, Text: fmt.Sprintf("process %s does not read its stdin and 1 MiB waits for it; nothing of this was sent, try again when it has read", id)}
	}
	return m.processError(err, key, id)
}

// processError says in words what went wrong with a process.
func (m *Manager) processError(err error, key Key, id ProcessID) error {
	switch {
	case errors.Is(err, ErrNoProcess):
		return &UserError{Err: ErrNoProcess, Text: fmt.Sprintf("there is no process %s in session %s; list_processes shows those there are (the oldest finished ones are forgotten)", id, key.Session)}
	case errors.Is(err, ErrNotFound):
		return noSession(key)
	}
	return fmt.Errorf("process %s: %w", id, err)
}

func (f *faults) process(id ProcessID) {
	if id == "" || len(id) > 128 || !printable(string(id)) {
		f.add("process_id", fmt.Sprintf("%.80q is not a process id", string(id)), "one that execute_command, spawn_process or list_processes gave", "")
	}
}

// Process is the raw handle, for terminals; it starts nothing.
func (m *Manager) Process(ctx context.Context, key Key, id ProcessID) (Process, error) {
	inst, err := m.peek(ctx, key)
	if err != nil {
		return nil, m.processError(err, key, id)
	}
	p, err := inst.Process(ctx, id)
	if dead(err) || errors.Is(err, ErrNoProcess) {
		// What was believed of the sandbox may be old: look again.
		m.forget(key, nil)
		if inst, err = m.peek(ctx, key); err == nil {
			p, err = inst.Process(ctx, id)
		}
	}
	if err != nil {
		return nil, m.processError(err, key, id)
	}
	return p, nil
}

// ReadOutput reads a process's output, waiting as asked; also of a stopped
// sandbox, which it does not start.
func (m *Manager) ReadOutput(ctx context.Context, key Key, r ReadRequest) (*RunResult, error) {
	ctx = withDeadline(ctx)
	began := time.Now()
	var f faults
	f.process(r.Process)
	var cursor Cursor
	if r.Cursor != "" {
		c, err := ParseCursor(r.Cursor)
		if err != nil {
			f = append(f, err)
		}
		cursor = c
		if r.TailLines != 0 {
			f.add("tail_lines", "cursor is given too", "at most one of cursor and tail_lines", "")
		}
	}
	if r.TailLines < 0 {
		f.add("tail_lines", fmt.Sprintf("%d does not fit", r.TailLines), "1 or more", "")
	}
	if r.MaxBytes < 0 || r.MaxBytes > MaxReadBytes || r.MaxBytes > 0 && r.MaxBytes < 16 {
		f.add("max_bytes", fmt.Sprintf("%d does not fit", r.MaxBytes), "16 to 1,048,576", "")
	}
	usual := WaitOutput
	if r.TailLines > 0 {
		usual = WaitNone
	}
	what, pattern := parseWait(&f, r.WaitFor, r.Pattern, usual)
	span := parseSpan(&f, "wait_seconds", r.Wait, 5*time.Second)
	if err := f.err(); err != nil {
		return nil, err
	}
	if r.MaxBytes == 0 {
		r.MaxBytes = MaxOutput
	}
	p, err := m.Process(ctx, key, r.Process)
	if err != nil {
		return nil, err
	}
	info, err := p.Info(ctx)
	if err != nil {
		return nil, m.processError(err, key, r.Process)
	}
	if past := cursor.atMost(info.Produced); past != cursor {
		return nil, &FieldError{Field: "cursor", Problem: fmt.Sprintf("%s lies beyond what process %s has produced (%s)", r.Cursor, r.Process, info.Produced),
			Allowed: "one from an answer about this process", Hint: "leave it out to read the newest output"}
	}
	w := waiting{from: cursor.atLeast(info.Kept), what: what, pattern: pattern, onOutput: r.OnOutput,
		deadline: earlier(time.Now().Add(span), callDeadline(ctx))}
	if w.needless(info) {
		w.what = WaitNone
	}
	matched, err := w.wait(ctx, p)
	if err != nil && ctx.Err() == nil {
		return nil, m.processError(err, key, r.Process)
	}
	actx, cancel := context.WithTimeout(context.WithoutCancel(ctx), killWait)
	defer cancel()
	if w.what != WaitNone { // else info is of this moment
		if info, err = p.Info(actx); err != nil {
			return nil, m.processError(err, key, r.Process)
		}
	}
	res := &RunResult{Process: info, Matched: matched, Duration: time.Since(began)}
	if r.Cursor != "" {
		err = page(actx, p, info, cursor, r.MaxBytes, r.Raw, res)
	} else {
		err = newest(actx, p, info, r.MaxBytes, r.TailLines, r.Raw, res)
	}
	if err != nil {
		return nil, m.processError(err, key, r.Process)
	}
	return res, nil
}

// signalNames are those that kill_process sends.
var signalNames = []string{"HUP", "INT", "QUIT", "KILL", "TERM", "USR1", "USR2", "STOP", "CONT", "TSTP", "WINCH", "ALRM", "PIPE", "ABRT"}

// ParseSignal reads a signal's name in any case, with or without SIG, or one of
// the numbers that are the same everywhere, and returns it as "TERM". Its error
// is a *FieldError for the field signal.
func ParseSignal(s string) (string, error) {
	name := strings.TrimPrefix(strings.ToUpper(strings.TrimSpace(s)), "SIG")
	if n, err := strconv.Atoi(name); err == nil {
		name = map[int]string{1: "HUP", 2: "INT", 3: "QUIT", 6: "ABRT", 9: "KILL", 13: "PIPE", 14: "ALRM", 15: "TERM"}[n]
	}
	if !slices.Contains(signalNames, name) {
		return "", &FieldError{Field: "signal", Problem: fmt.Sprintf("%.40q is not known", s), Allowed: strings.Join(signalNames, ", ")}
	}
	return name, nil
}

// KillProcess sends a signal to a process's whole tree. Without a signal it is
// TERM, and KILL to what is left after 2 s. It waits for the exit, unless the
// signal may leave the process running. A process that has ended is no error.
func (m *Manager) KillProcess(ctx context.Context, key Key, r KillRequest) (*RunResult, error) {
	ctx = withDeadline(ctx)
	began := time.Now()
	var f faults
	f.process(r.Process)
	sig, grace := "TERM", 2*time.Second
	if r.Signal != "" {
		var err error
		if sig, err = ParseSignal(r.Signal); err != nil {
			f = append(f, err)
		}
		grace = 0
	}
	if err := f.err(); err != nil {
		return nil, err
	}
	p, err := m.Process(ctx, key, r.Process)
	if err != nil {
		return nil, err
	}
	begin(ctx)
	before, err := p.Info(ctx)
	if err != nil {
		return nil, m.processError(err, key, r.Process)
	}
	ended := before.State != ProcessRunning
	if !before.over() {
		if err := p.Kill(ctx, sig, grace, "kill_process"); err != nil && !(ended && dead(err)) && !errors.Is(err, ErrExited) {
			return nil, m.processError(err, key, r.Process)
		}
	}
	if !ended {
		most := killWait
		switch sig {
		case "KILL", "TERM":
		case "STOP", "CONT", "TSTP", "WINCH":
			most = 0
		default:
			most = time.Second
		}
		wctx, cancel := context.WithTimeout(ctx, most)
		_ = p.Wait(wctx, Cursor{}, true)
		cancel()
	}
	actx, cancel := context.WithTimeout(context.WithoutCancel(ctx), killWait)
	defer cancel()
	info, err := p.Info(actx)
	if err != nil {
		return nil, m.processError(err, key, r.Process)
	}
	res := &RunResult{Process: info, AlreadyEnded: ended, Duration: time.Since(began)}
	if err := newest(actx, p, info, MaxOutput, 0, false, res); err != nil {
		return nil, m.processError(err, key, r.Process)
	}
	switch {
	case ended && len(before.Leftovers) > 0:
		res.Remarks = append(res.Remarks, fmt.Sprintf("%d processes that it had left behind got SIG%s", len(before.Leftovers), sig))
	case info.State == ProcessRunning && r.Signal != "":
		res.Remarks = append(res.Remarks, "it got SIG"+sig+" and still runs")
	case info.State == ProcessRunning:
		res.Remarks = append(res.Remarks, "it got SIGTERM and SIGKILL and has not ended yet; read_output with wait_for exit tells")
	}
	return res, nil
}

// ForgetProcess drops what is kept of an ended process. One that is not kept
// is no error.
func (m *Manager) ForgetProcess(ctx context.Context, key Key, id ProcessID) error {
	inst, err := m.peek(ctx, key)
	if err == nil {
		f, can := inst.(ProcessForgetter)
		if !can {
			return &UserError{Err: ErrUnsupported, Text: fmt.Sprintf("the provider %s drops the records of processes by itself only", m.provider.Name())}
		}
		if err = f.ForgetProcess(ctx, id); errors.Is(err, ErrNoProcess) {
			return nil
		}
	}
	if err != nil {
		return m.processError(err, key, id)
	}
	return nil
}

// ListProcesses lists running and kept processes, oldest first, also of a
// stopped sandbox, which it does not start.
func (m *Manager) ListProcesses(ctx context.Context, key Key) ([]ProcessInfo, error) {
	inst, err := m.peek(ctx, key)
	var infos []ProcessInfo
	if err == nil {
		if infos, err = inst.Processes(ctx); err == nil {
			return infos, nil
		}
	}
	if errors.Is(err, ErrNotFound) {
		return nil, noSession(key)
	}
	return nil, fmt.Errorf("list the processes: %w", err)
}
