package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"path"
	"slices"
	"strings"
	"time"
	"unicode/utf8"
)

// Bounds of what a command is given, in bytes.
const (
	MaxCommand = 1 << 20
	MaxStdin   = 8 << 20
	maxArg     = 120 << 10 // one argument; the kernel's own bound is 128 KiB
	maxArgs    = 1 << 20   // all of argv
)

// Command.Await of commands whose caller waits for the exit.
const (
	awaitExit    = time.Second
	awaitWatched = 100 * time.Millisecond
)

// killWait is for how long a kill is waited for.
const killWait = 5 * time.Second

// ExecuteCommand runs a command and waits for its exit, its time-out or the end
// of the wait. When it is still running then, it is handed over: it runs on
// under its id.
func (m *Manager) ExecuteCommand(ctx context.Context, key Key, r RunRequest) (*RunResult, error) {
	var f faults
	r.check(&f, true)
	m.checkUser(ctx, key, r.User, &f)
	wait := parseSpan(&f, "wait_seconds", r.Wait, MaxWait)
	if err := f.err(); err != nil {
		return nil, err
	}
	return m.foreground(ctx, key, r, wait, func(context.Context, *box) (Command, error) {
		return Command{Shell: r.Command, Argv: r.Argv, Display: display(r)}, nil
	})
}

// foreground runs what fill makes of the sandbox it finds, and waits.
func (m *Manager) foreground(ctx context.Context, key Key, r RunRequest, wait time.Duration, fill func(context.Context, *box) (Command, error)) (*RunResult, error) {
	ctx = withDeadline(ctx)
	began := time.Now()
	s, err := m.spawn(ctx, key, "", func(ctx context.Context, b *box) (Command, error) {
		info := b.info
		c, err := fill(ctx, b)
		if err != nil {
			return c, err
		}
		if r.Timeout == nil && info.Spec.Timeout != nil {
			c.Timeout = *info.Spec.Timeout
		}
		// No longer than a cancellation may wait, and than output that is watched.
		c.Await = min(wait, awaitExit)
		if r.OnOutput != nil {
			c.Await, c.Watched = min(wait, awaitWatched), true
		}
		return r.complete(info, c)
	})
	if err != nil {
		return nil, err
	}
	w := waiting{what: WaitExit, deadline: earlier(time.Now().Add(wait), callDeadline(ctx)), onOutput: r.OnOutput}
	return m.await(ctx, s, w, began, true)
}

// SpawnProcess starts a process in the background and waits only as asked.
func (m *Manager) SpawnProcess(ctx context.Context, key Key, r SpawnRequest) (*RunResult, error) {
	ctx = withDeadline(ctx)
	began := time.Now()
	var f faults
	code := r.Code != "" || r.Language != ""
	r.check(&f, !code)
	if code {
		r.checkCode(&f)
	}
	m.checkUser(ctx, key, r.User, &f)
	if t := r.TTY; t != nil {
		f.window(*t)
	}
	if r.ID != "" {
		f.process(r.ID)
	}
	if len(r.Note) > MaxNote {
		f.add("note", fmt.Sprintf("it has %d bytes", len(r.Note)), "at most 65,536", "")
	}
	usual := WaitOutput
	what, pattern := parseWait(&f, r.WaitFor, r.Pattern, usual)
	span := parseSpan(&f, "wait_seconds", r.Wait, 0)
	if r.Wait == nil && (r.WaitFor != "" || r.Pattern != "") {
		span = 5 * time.Second
	}
	if err := f.err(); err != nil {
		return nil, err
	}
	s, err := m.spawn(ctx, key, r.ID, func(ctx context.Context, b *box) (c Command, err error) {
		if code {
			c, err = m.program(ctx, b, &r.RunRequest, r.Language, r.Code, r.Args)
		} else {
			c = Command{Shell: r.Command, Argv: r.Argv, Display: display(r.RunRequest)}
		}
		if err != nil {
			return c, err
		}
		c, err = r.complete(b.info, c)
		c.OpenStdin, c.TTY, c.Merge, c.Note, c.Busy = r.OpenStdin, r.TTY, r.Merge, r.Note, !r.Waiting && !IsAside(ctx)
		if r.Display != "" {
			c.Display = shorten(strings.ToValidUTF8(r.Display, "\uFFFD"), 200)
		}
		return c, err
	})
	if err != nil {
		return nil, err
	}
	w := waiting{what: what, pattern: pattern, deadline: earlier(time.Now().Add(span), callDeadline(ctx)), onOutput: r.OnOutput}
	if span == 0 {
		w.what = WaitNone
	}
	return m.await(ctx, s, w, began, false)
}

// check validates what the three ways to run share. Nothing has happened yet.
func (r *RunRequest) check(f *faults, needsCommand bool) {
	switch {
	case needsCommand && r.Command == "" && len(r.Argv) == 0:
		f.add("command", "it is missing", "shell text; or argv, a list of the program and its arguments", "")
	case r.Command != "" && len(r.Argv) > 0:
		f.add("argv", "command is given too", "exactly one of command and argv", "")
	case len(r.Command) > MaxCommand:
		f.add("command", fmt.Sprintf("it has %d bytes", len(r.Command)), "at most 1,048,576", "write a script with write_file and run that")
	}
	f.noNUL("command", r.Command)
	total := 0
	for i, a := range r.Argv {
		f.noNUL(fmt.Sprintf("argv.%d", i), a)
		if len(a) > maxArg {
			f.add(fmt.Sprintf("argv.%d", i), fmt.Sprintf("it has %d bytes", len(a)), "at most 122,880 an argument", "put long data in a file with write_file, or send it as stdin")
		}
		total += len(a) + 1
	}
	if total > maxArgs {
		f.add("argv", fmt.Sprintf("it has %d bytes in all", total), "at most 1,048,576", "put long data in a file with write_file, or send it as stdin")
	}
	if len(r.Argv) > 0 && r.Argv[0] == "" {
		f.add("argv.0", "the program is empty", "its name or path", "")
	}
	if !plainPath(r.Cwd) {
		f.add("cwd", "it is too long, or holds a NUL byte or invalid UTF-8", "at most 4,096 bytes of UTF-8", "")
	}
	size := 0
	for _, k := range slices.Sorted(maps.Keys(r.Env)) {
		v := ""
		if p := r.Env[k]; p != nil {
			v = *p
		}
		f.envVar(k, v)
		size += len(k) + len(v) + 2
	}
	f.envSize(size)
	f.userName(r.User)
	if r.Stdin != nil && len(*r.Stdin) > MaxStdin {
		f.add("stdin", fmt.Sprintf("it has %d bytes", len(*r.Stdin)), "at most 8,388,608", "write it with write_file and redirect it")
	}
	if r.Timeout != nil && (*r.Timeout < 0 || *r.Timeout > MaxTimeout) {
		f.add("timeout_seconds", fmt.Sprintf("%v does not fit", *r.Timeout), "0 (none) to 86,400 seconds", "")
	}
}

func (f *faults) noNUL(field, s string) {
	if strings.ContainsRune(s, 0) {
		f.add(field, "it holds a NUL byte", "text without NUL bytes", "")
	}
}

func (f *faults) window(w WindowSize) {
	if w.Cols < 1 || w.Cols > 1000 {
		f.add("cols", fmt.Sprintf("%d does not fit", w.Cols), "1 to 1000", "")
	}
	if w.Rows < 1 || w.Rows > 1000 {
		f.add("rows", fmt.Sprintf("%d does not fit", w.Rows), "1 to 1000", "")
	}
}

// complete fills in what the request and the sandbox say.
func (r *RunRequest) complete(info Info, c Command) (Command, error) {
	c.Cwd = resolve(info, r.Cwd)
	c.Env = maps.Clone(info.Spec.Env)
	if c.Env == nil {
		c.Env = map[string]string{}
	}
	size := 0
	for _, k := range slices.Sorted(maps.Keys(r.Env)) {
		if v := r.Env[k]; v != nil {
			c.Env[k] = *v
		} else {
			delete(c.Env, k)
			c.Unset = append(c.Unset, k)
		}
	}
	for k, v := range c.Env {
		size += len(k) + len(v) + 2
	}
	var f faults
	f.envSize(size)
	if err := f.err(); err != nil {
		return c, err
	}
	c.User = r.User
	if c.User == "" {
		c.User = info.Spec.User
	}
	if c.User == "" {
		c.User = info.User
	}
	if r.Stdin != nil && c.Stdin == nil {
		c.Stdin = []byte(*r.Stdin)
	}
	if r.Timeout != nil {
		c.Timeout = *r.Timeout
	}
	c.Busy = true
	return c, nil
}

// resolve makes a path of the caller's absolute: relative to the default
// working directory, with ~ for home.
func resolve(info Info, p string) string {
	def := DefaultDirectory(info)
	switch {
	case p == "":
		return path.Clean(def)
	case p == "~":
		return info.Home
	case strings.HasPrefix(p, "~/"):
		return path.Join(info.Home, p[2:])
	case path.IsAbs(p):
		return path.Clean(p)
	}
	return path.Join(def, p)
}

// display is what lists show of a command.
func display(r RunRequest) string {
	text := r.Command
	if text == "" {
		words := make([]string, len(r.Argv))
		for i, a := range r.Argv {
			words[i] = quote(a)
		}
		text = strings.Join(words, " ")
	}
	return shorten(strings.ToValidUTF8(text, "\uFFFD"), 200)
}

// quote is for reading only: nothing that it returns reaches a shell.
func quote(a string) string {
	if a != "" && !strings.ContainsFunc(a, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("._-/@:=+,%", r))
	}) {
		return a
	}
	return "'" + strings.ReplaceAll(a, "'", `'\''`) + "'"
}

func shorten(s string, runes int) string {
	if utf8.RuneCountInString(s) <= runes {
		return s
	}
	return string([]rune(s)[:runes-1]) + "…"
}

// spawned is a process just started and how it came about.
type spawned struct {
	key     Key
	box     *box
	process Process
	command Command
	notice  Notice
}

// spawn starts, under id if given, the command that fill makes of the sandbox, which is started or
// created when it must. A sandbox found dead is revived once, and the command,
// which surely had not started, is sent again.
func (m *Manager) spawn(ctx context.Context, key Key, id ProcessID, fill func(context.Context, *box) (Command, error)) (*spawned, error) {
	if id == "" {
		id = NewProcessID()
	}
	var revived string
	for {
		b, err := m.ready(ctx, key, create, Spec{})
		if err != nil {
			return nil, sayNoSession(err, key)
		}
		begin(ctx)
		c, err := fill(ctx, b)
		if dead(err) && revived == "" {
			m.forget(key, b)
			revived = "the sandbox was found " + dying(err) + " and was brought back"
			continue
		}
		if err != nil {
			return nil, err
		}
		c.ID = id
		if err := m.admit(ctx, key, b); err != nil && !dead(err) {
			return nil, err
		}
		// Whether it started must be known even if the caller leaves now.
		sctx, cancel := context.WithDeadline(context.WithoutCancel(ctx), callDeadline(ctx).Add(5*time.Second))
		p, err := b.inst.Spawn(sctx, c)
		if errors.Is(err, ErrMaybeStarted) {
			p, err = m.search(sctx, key, b, id, err)
		}
		cancel()
		if err == nil {
			s := &spawned{key: key, box: b, process: p, command: c, notice: b.notice}
			s.notice.Revived = revived
			return s, nil
		}
		if dead(err) && revived == "" {
			m.forget(key, b)
			revived = "the sandbox was found " + dying(err) + " and was brought back; the command had not started before and was sent again"
			continue
		}
		return nil, spawnError(err, c)
	}
}

// dead tells that a sandbox is not there any more, so that a command surely had
// not started.
func dead(err error) bool { return errors.Is(err, ErrNotRunning) || errors.Is(err, ErrNotFound) }

func dying(err error) string {
	if errors.Is(err, ErrNotFound) {
		return "gone"
	}
	return "stopped"
}

// search looks for a process whose start is in doubt. Finding it is the only
// way on: it is never sent again.
func (m *Manager) search(ctx context.Context, key Key, b *box, id ProcessID, cause error) (Process, error) {
	m.forget(key, b)
	inst, err := m.provider.Lookup(ctx, key)
	if err == nil {
		var p Process
		if p, err = inst.Process(ctx, id); err == nil {
			return p, nil
		}
	}
	return nil, &UserError{Err: ErrMaybeStarted, Text: fmt.Sprintf(
		"the connection to the sandbox broke (%v); the command may have started, was not run again, and its exit code is not known: no process %s can be found; look at what it would have changed before repeating it", cause, id)}
}

func spawnError(err error, c Command) error {
	var user *UserError
	var field *FieldError
	switch {
	case errors.Is(err, ErrNoProgram) && len(c.Argv) > 0:
		return noProgram(c.Argv)
	case errors.Is(err, ErrNoProgram):
		return &UserError{Err: ErrNoProgram, Text: "there is neither bash nor sh in the sandbox's image; pass argv, a program with its arguments, instead of command; nothing was run"}
	case errors.As(err, &user), errors.As(err, &field):
		return err
	case errors.Is(err, fs.ErrNotExist):
		return &FieldError{Field: "cwd", Problem: fmt.Sprintf("%s is no directory in the sandbox", c.Cwd),
			Hint: "create it first (mkdir -p), or leave cwd out; nothing was run"}
	case errors.Is(err, fs.ErrPermission):
		return &UserError{Err: fs.ErrPermission, Text: fmt.Sprintf("permission denied starting the command in %s as %s; nothing was run", c.Cwd, c.User)}
	}
	return fmt.Errorf("start the command: %w", err)
}

// noProgram says what a caller who named a program may have meant.
func noProgram(argv []string) error {
	name := argv[0]
	text := fmt.Sprintf("there is no program %.200q on the PATH in the sandbox; install it, or give its whole path", name)
	switch {
	case len(argv) == 1 && strings.ContainsAny(name, " \t\n;|&<>$"):
		text = fmt.Sprintf("there is no program %.200q in the sandbox: a list has the program and each argument by itself; shell text goes to the shell, as command of execute_command does", name)
	case strings.Contains(name, "/"):
		text = fmt.Sprintf("there is no program %.200q in the sandbox, or the interpreter that its first line names is not there; look with a command such as ls -l and head -1", name)
	}
	return &UserError{Err: ErrNoProgram, Text: text + "; nothing was run"}
}

// admit holds the operator's limit of running processes. Listing is dear, so
// the manager counts upwards and lists only when the count says that the
// limit may be reached.
func (m *Manager) admit(ctx context.Context, key Key, b *box) error {
	most := m.options.Limits.MaxProcesses
	m.mu.Lock()
	n, known := m.running[key]
	if known && n < most {
		m.running[key] = n + 1
		m.mu.Unlock()
		return nil
	}
	m.mu.Unlock()
	infos, err := b.inst.Processes(ctx)
	if err != nil {
		if dead(err) {
			return err
		}
		return fmt.Errorf("count the processes: %w", err)
	}
	n = 0
	for _, i := range infos {
		if i.State == ProcessRunning {
			n++
		}
	}
	if n >= most {
		return &UserError{Err: ErrLimit, Text: fmt.Sprintf(
			"%d processes run in the sandbox, the operator's limit is %d; kill_process one that list_processes shows and nobody needs", n, most)}
	}
	m.mu.Lock()
	m.running[key] = n + 1
	m.mu.Unlock()
	return nil
}

// await waits on a process just started and makes the answer of it.
func (m *Manager) await(ctx context.Context, s *spawned, w waiting, began time.Time, foreground bool) (*RunResult, error) {
	matched, werr := w.wait(ctx, s.process)
	left := ctx.Err() != nil
	// The answer is made also for a caller who has left: it goes to the log.
	actx, cancel := context.WithTimeout(context.WithoutCancel(ctx), killWait+5*time.Second)
	defer cancel()
	if left && foreground && errors.Is(context.Cause(ctx), ErrCancelled) {
		if err := s.process.Kill(actx, "TERM", 2*time.Second, "the call was cancelled"); err != nil {
			m.log.Warn("cancelled command not killed", slog.String("session", string(s.key.Session)), slog.String("process", string(s.process.ID())), slog.Any("err", err))
		}
		kctx, kcancel := context.WithTimeout(actx, killWait)
		_ = s.process.Wait(kctx, Cursor{}, true)
		kcancel()
	}
	if werr != nil && !left {
		return m.lostSight(actx, s, began, werr)
	}
	res, err := m.result(actx, s.process, Cursor{}, began)
	if err != nil {
		return m.lostSight(actx, s, began, err)
	}
	res.Matched, res.Notice = matched, s.notice
	res.Cwd, res.HomeCwd = s.command.Cwd, s.command.Cwd == s.box.info.Home
	res.HandedOver = foreground && res.Process.State == ProcessRunning
	return res, nil
}

// result reads a process's state and its output from a place on.
func (m *Manager) result(ctx context.Context, p Process, from Cursor, began time.Time) (*RunResult, error) {
	info, err := p.Info(ctx)
	if err != nil {
		return nil, err
	}
	res := &RunResult{Process: info, Duration: time.Since(began)}
	if !info.Ended.IsZero() && !info.Started.IsZero() {
		res.Duration = info.Ended.Sub(info.Started)
	}
	return res, collect(ctx, p, info, from, MaxOutput, res)
}

// lostSight answers when the sandbox went away beneath a running command. It
// may have begun its work, so it is not run again.
func (m *Manager) lostSight(ctx context.Context, s *spawned, began time.Time, cause error) (*RunResult, error) {
	m.forget(s.key, s.box)
	id := s.process.ID()
	if inst, err := m.provider.Lookup(ctx, s.key); err == nil {
		if p, err := inst.Process(ctx, id); err == nil {
			if res, err := m.result(ctx, p, Cursor{}, began); err == nil {
				res.Notice, res.Cwd, res.HomeCwd = s.notice, s.command.Cwd, s.command.Cwd == s.box.info.Home
				res.HandedOver = res.Process.State == ProcessRunning
				res.Remarks = append(res.Remarks, "the connection to the sandbox broke while the command ran; it was not run twice")
				return res, nil
			}
		}
	}
	return nil, &UserError{Err: ErrMaybeStarted, Text: fmt.Sprintf(
		"the sandbox went away while process %s ran (%v); the command had started, was not run again, and its exit code is not known", id, cause)}
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}
