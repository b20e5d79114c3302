//go:build linux

package client

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"berth/sandbox"
	"berth/sandbox/local/journal"
	"berth/sandbox/local/logs"
	"berth/sandbox/local/terms"
	"berth/sandbox/local/wire"
)

// Spawn starts a process; see sandbox.Instance.Spawn.
func (c *Conn) Spawn(ctx context.Context, cmd sandbox.Command) (sandbox.Process, error) {
	l, err := c.current(ctx)
	if err != nil {
		return nil, err
	}
	state := &wire.Process{}
	w := terms.Command(&cmd)
	w.AwaitMS, w.AwaitOutput = terms.Milliseconds(min(cmd.Await, awaitAtMost)), cmd.Watched
	ctx, cancel := outlive(ctx, min(cmd.Await, awaitAtMost))
	defer cancel()
	_, err = l.call(ctx, wire.OpSpawn, w, cmd.Stdin, state)
	switch {
	case err == nil:
		p := &process{c: c, dir: c.dir, id: cmd.ID}
		p.learn(state)
		return p, nil
	case errors.Is(err, errBroken):
		return c.afterBreak(ctx, l, cmd.ID)
	case ctx.Err() != nil && errors.Is(err, ctx.Err()):
		return nil, fmt.Errorf("%w: %w", sandbox.ErrMaybeStarted, err)
	}
	return nil, err
}

// awaitAtMost is how long the answer to a start may wait for the command's end:
// longer than most commands take, also on a busy machine, and not so long that
// somebody who cancels one notices.
const awaitAtMost = 200 * time.Millisecond

// outlive ends later than ctx does, by d: who cancels a command that has begun has
// it killed, and needs to know that it has.
func outlive(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	if d <= 0 {
		return ctx, func() {}
	}
	longer, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() {
		time.AfterFunc(2*d, func() { cancel(context.Cause(ctx)) })
	})
	return longer, func() {
		stop()
		cancel(nil)
	}
}

// afterBreak finds out what became of a start whose answer never came.
func (c *Conn) afterBreak(ctx context.Context, l *link, id sandbox.ProcessID) (sandbox.Process, error) {
	if err := settle(ctx, l); err != nil {
		return nil, fmt.Errorf("%w: %w", sandbox.ErrMaybeStarted, err)
	}
	_, err := c.Process(ctx, id)
	switch {
	case err == nil:
		return c.Handle(id), nil
	case errors.Is(err, ErrGone):
		// A monitor writes a start down before it starts anything, and this
		// one writes no more.
		ps, err := journal.Load(c.dir)
		if err != nil {
			return nil, fmt.Errorf("%w: %v", sandbox.ErrMaybeStarted, err)
		}
		for i := range ps {
			if ps[i].ID == string(id) {
				return nil, sandbox.ErrMaybeStarted
			}
		}
		if _, alive, err := Alive(c.dir); err != nil || alive {
			return nil, sandbox.ErrMaybeStarted // it ends, and may not have written yet
		}
		return nil, ErrGone
	}
	// The request may still be on its way through the broken connection.
	return nil, fmt.Errorf("%w: %v", sandbox.ErrMaybeStarted, err)
}

// Process describes one process; sandbox.ErrNoProcess when there is none.
func (c *Conn) Process(ctx context.Context, id sandbox.ProcessID) (sandbox.ProcessInfo, error) {
	var p wire.Process
	if _, err := c.call(ctx, wire.OpProcess, wire.ProcessRef{ID: string(id)}, &p); err != nil {
		return sandbox.ProcessInfo{}, err
	}
	return terms.Process(&p), nil
}

// Open is a handle on one process; sandbox.ErrNoProcess when there is none.
func (c *Conn) Open(ctx context.Context, id sandbox.ProcessID) (sandbox.Process, error) {
	state := &wire.Process{}
	if _, err := c.call(ctx, wire.OpProcess, wire.ProcessRef{ID: string(id)}, state); err != nil {
		return nil, err
	}
	p := &process{c: c, dir: c.dir, id: id}
	p.learn(state)
	return p, nil
}

// Forget drops an ended process and its output.
func (c *Conn) Forget(ctx context.Context, id sandbox.ProcessID) error {
	_, err := c.call(ctx, wire.OpForget, wire.ProcessRef{ID: string(id)}, nil)
	return err
}

// Processes lists running and kept processes, oldest first.
func (c *Conn) Processes(ctx context.Context) ([]sandbox.ProcessInfo, error) {
	var ps wire.Processes
	if _, err := c.call(ctx, wire.OpProcesses, nil, &ps); err != nil {
		return nil, err
	}
	return terms.Processes(ps.Processes), nil
}

// Handle is a handle on process id, which need not exist. It goes on to work
// when the sandbox stops: what is kept can still be read.
func (c *Conn) Handle(id sandbox.ProcessID) sandbox.Process {
	return &process{c: c, dir: c.dir, id: id}
}

// process is a handle on a process of a sandbox that runs, or ran.
type process struct {
	c   *Conn // nil: the sandbox does not run
	dir string
	id  sandbox.ProcessID

	mu   sync.Mutex
	last *wire.Process // its end, as an answer just told it; for one Info
}

// learn keeps what a request answered, when that is the end: the Info that
// follows need not ask again. With leftovers it must, for their sake.
func (p *process) learn(state *wire.Process) {
	if state.State == "" || state.State == journal.Running || len(state.Leftovers) > 0 {
		return
	}
	p.mu.Lock()
	p.last = state
	p.mu.Unlock()
}

var _ sandbox.Process = (*process)(nil)

func (p *process) ID() sandbox.ProcessID { return p.id }

func (p *process) Info(ctx context.Context) (sandbox.ProcessInfo, error) {
	p.mu.Lock()
	last := p.last
	p.last = nil // the next one sees what is kept by then
	p.mu.Unlock()
	if last != nil {
		return terms.Process(last), nil
	}
	if p.c != nil {
		i, err := p.c.Process(ctx, p.id)
		if !p.history(ctx, err) {
			return i, err
		}
	}
	if err := ctx.Err(); err != nil {
		return sandbox.ProcessInfo{}, err
	}
	return recall(p.dir, p.id)
}

// history reports whether err means that the records on disk are to be asked.
func (p *process) history(ctx context.Context, err error) bool {
	return errors.Is(err, ErrGone) && waitDead(ctx, p.dir) == nil
}

func (p *process) Read(ctx context.Context, c sandbox.Cursor, max int64) (sandbox.Output, error) {
	if err := ctx.Err(); err != nil {
		return sandbox.Output{}, err
	}
	o := sandbox.Output{Next: c}
	if !logs.ValidID(string(p.id)) {
		return o, sandbox.ErrNoProcess
	}
	dir := p.dir + "/" + journal.OutputDir
	out, err := logs.Read(dir, string(p.id), logs.Stdout, c.Stdout, max)
	if err != nil {
		return o, fmt.Errorf("read output: %w", err)
	}
	errs, err := logs.Read(dir, string(p.id), logs.Stderr, c.Stderr, max-int64(len(out.Data)))
	if err != nil {
		return o, fmt.Errorf("read output: %w", err)
	}
	o.Stdout, o.Stderr, o.Dropped = out.Data, errs.Data, out.Dropped+errs.Dropped
	o.Next = sandbox.Cursor{Stdout: out.Next, Stderr: errs.Next}
	return o, nil
}

func (p *process) Wait(ctx context.Context, c sandbox.Cursor, exitOnly bool) error {
	p.mu.Lock()
	ended := p.last != nil
	p.mu.Unlock()
	if ended {
		return ctx.Err()
	}
	if p.c != nil {
		state := &wire.Process{}
		_, err := p.c.call(ctx, wire.OpWait, wire.Wait{ID: string(p.id), Stdout: c.Stdout, Stderr: c.Stderr, ExitOnly: exitOnly}, state)
		if err == nil {
			p.learn(state)
		}
		if !p.history(ctx, err) {
			return err
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	_, err := recall(p.dir, p.id)
	return err // nothing runs there any more
}

// late is the answer to a request for a process of a sandbox that does not
// run; err is nil then.
func (p *process) late(ctx context.Context, err error) error {
	if p.c != nil && !p.history(ctx, err) {
		return err
	}
	if _, err := recall(p.dir, p.id); err != nil {
		return err
	}
	return sandbox.ErrExited
}

func (p *process) Write(ctx context.Context, b []byte, end bool) error {
	if p.c == nil {
		return p.late(ctx, nil)
	}
	_, err := p.c.once(ctx, wire.OpStdin, wire.Stdin{ID: string(p.id), End: end}, b, nil)
	return p.late(ctx, err)
}

func (p *process) Resize(ctx context.Context, w sandbox.WindowSize) error {
	if p.c == nil {
		return p.late(ctx, nil)
	}
	_, err := p.c.call(ctx, wire.OpResize, wire.Resize{ID: string(p.id), Cols: w.Cols, Rows: w.Rows}, nil)
	return p.late(ctx, err)
}

func (p *process) Kill(ctx context.Context, sig string, grace time.Duration, reason string) error {
	var err error
	if p.c != nil {
		k := wire.Kill{ID: string(p.id), Signal: sig, GraceMS: terms.Milliseconds(grace), Reason: reason}
		_, err = p.c.call(ctx, wire.OpKill, k, nil)
	}
	if err = p.late(ctx, err); errors.Is(err, sandbox.ErrExited) {
		return nil
	}
	return err
}
