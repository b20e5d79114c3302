package resident

import (
	"context"
	"errors"
	"strconv"
	"sync"
	"time"

	"berth/sandbox"
	"berth/sandbox/local/terms"
	"berth/sandbox/local/wire"
)

// Bounds of what answers carry.
const (
	// windowBytes of output come with a state: all there is, or the beginning and
	// the end, which is more of both than an agent is shown.
	windowBytes = 96 << 10
	// readBytes is the most that one call reads.
	readBytes = 1 << 20
	// longPoll bounds one wait inside. Proxies end what takes a minute.
	longPoll = 20 * time.Second
	// settleFor is for how long output must pause before a wait for it answers, so
	// that one answer has what belongs together.
	settleFor = 30 * time.Millisecond
	// fresh is for how long a state that was told is taken for the present one: the
	// journey takes about as long.
	fresh = 100 * time.Millisecond
	// replyWait is how long a write waits for what the program answers to it, and a
	// kill for the end: mostly both are asked for next.
	replyWait = 60 * time.Millisecond
	killReply = 100 * time.Millisecond
)

// process is a handle on a process. It remembers the last answer, which often holds
// what is asked for next.
type process struct {
	b  *Box
	id sandbox.ProcessID

	mu sync.Mutex
	// told is the last state that was told, with some output; nil: none.
	told *told
	// stdin is how many bytes it has taken, as far as is known here.
	stdin      int64
	stdinKnown bool

	writing sync.Mutex // keeps the order of writes
}

type told struct {
	state   wire.Process
	at      time.Time
	settled bool // its output had paused by then
	pieces  []piece
}

type piece struct {
	stderr bool
	at     int64
	b      []byte
}

func (t *told) ended() bool { return t != nil && t.state.State != string(sandbox.ProcessRunning) }

// final tells that nothing about the process will change, but that it is forgotten.
func (t *told) final() bool {
	return t.ended() && len(t.state.Leftovers) == 0 && time.Since(t.at) < 5*time.Second
}

var _ sandbox.Process = (*process)(nil)

func (p *process) ID() sandbox.ProcessID { return p.id }

// learn remembers what an answer tells.
func (p *process) learn(a *wire.Answer, data []byte, settled bool) *told {
	if a.Process == nil {
		return nil
	}
	t := &told{state: *a.Process, at: time.Now(), settled: settled}
	for _, w := range a.Pieces {
		if w.Size < 0 || w.Size > int64(len(data)) {
			break
		}
		t.pieces = append(t.pieces, piece{stderr: w.Stderr, at: w.At, b: data[:w.Size]})
		data = data[w.Size:]
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.told.ended() && !t.ended() { // an answer that came late
		return t
	}
	p.told = t
	if t.state.StdinOpen {
		p.stdin, p.stdinKnown = max(p.stdin, t.state.StdinBytes), true
	}
	return t
}

func (p *process) last() *told {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.told
}

// unlearn forgets a state that an act is about to change.
func (p *process) unlearn() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.told.ended() || len(p.told.state.Leftovers) > 0 {
		p.told = nil
	}
}

// look asks for the state, and for output with it.
func (p *process) look(ctx context.Context) error {
	_, err := p.watch(ctx, &wire.CallWatch{Most: windowBytes, Ends: true}, 0)
	return err
}

// watch asks for the state and remembers it.
func (p *process) watch(ctx context.Context, w *wire.CallWatch, wait time.Duration) (*told, error) {
	w.ID, w.WaitMS = string(p.id), terms.Milliseconds(wait)
	a, data, err := p.b.ask(ctx, &wire.Call{Watch: w}, nil, wait)
	if err != nil {
		return nil, plain(err)
	}
	return p.learn(a, data, w.SettleMS > 0), nil
}

func (p *process) Info(ctx context.Context) (sandbox.ProcessInfo, error) {
	t := p.last()
	if t == nil || time.Since(t.at) > fresh {
		var err error
		if t, err = p.watch(ctx, &wire.CallWatch{}, 0); err != nil {
			return sandbox.ProcessInfo{}, err
		}
	}
	return terms.Process(&t.state), nil
}

func (p *process) Read(ctx context.Context, c sandbox.Cursor, most int64) (sandbox.Output, error) {
	if err := ctx.Err(); err != nil {
		return sandbox.Output{}, err
	}
	if most <= 0 {
		return sandbox.Output{Next: c}, nil
	}
	most = min(most, readBytes)
	c = sandbox.Cursor{Stdout: max(c.Stdout, 0), Stderr: max(c.Stderr, 0)}
	if o, ok := p.last().read(c, most); ok {
		return o, nil
	}
	a, data, err := p.b.ask(ctx, &wire.Call{Watch: &wire.CallWatch{ID: string(p.id), Stdout: c.Stdout, Stderr: c.Stderr, Most: most, Bare: true}}, nil, 0)
	if err != nil {
		return sandbox.Output{Next: c}, plain(err)
	}
	o := sandbox.Output{Next: c}
	for _, w := range a.Pieces {
		if w.Size < 0 || w.Size > int64(len(data)) {
			return sandbox.Output{Next: c}, errTorn
		}
		b := data[:w.Size]
		data = data[w.Size:]
		if w.Stderr {
			o.Dropped += w.At - o.Next.Stderr
			o.Stderr, o.Next.Stderr = b, w.At+w.Size
		} else {
			o.Dropped += w.At - o.Next.Stdout
			o.Stdout, o.Next.Stdout = b, w.At+w.Size
		}
	}
	return o, nil
}

// read reads from what was told, if all that a read would find by then is in it.
// That there is nothing is only told of a process that will print no more.
func (t *told) read(c sandbox.Cursor, most int64) (sandbox.Output, bool) {
	o := sandbox.Output{Next: c}
	if t == nil || !t.final() && time.Since(t.at) > time.Second {
		return o, false
	}
	var ok bool
	if o.Stdout, ok = t.find(false, c.Stdout, t.state.Stdout, most); !ok {
		return o, false
	}
	if o.Stderr, ok = t.find(true, c.Stderr, t.state.Stderr, most-int64(len(o.Stdout))); !ok {
		return o, false
	}
	o.Next.Stdout += int64(len(o.Stdout))
	o.Next.Stderr += int64(len(o.Stderr))
	return o, t.final() || len(o.Stdout)+len(o.Stderr) > 0
}

// find finds all of a stream's bytes in [from, produced), at most most.
func (t *told) find(stderr bool, from, produced, most int64) ([]byte, bool) {
	want := min(most, produced-from)
	if want <= 0 {
		return nil, true
	}
	for _, p := range t.pieces {
		if p.stderr == stderr && from >= p.at && from+want <= p.at+int64(len(p.b)) {
			return p.b[from-p.at:][:want:want], true
		}
	}
	return nil, false
}

func (p *process) Wait(ctx context.Context, c sandbox.Cursor, exitOnly bool) error {
	grown := func(t *told) bool {
		return !exitOnly && (t.state.Stdout > c.Stdout || t.state.Stderr > c.Stderr)
	}
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		t := p.last()
		if t.ended() || t != nil && grown(t) {
			return nil
		}
		wait := longPoll
		if late, ok := ctx.Deadline(); ok {
			wait = min(wait, max(time.Until(late), time.Millisecond))
		}
		if !exitOnly && wait <= 2*settleFor && t != nil && t.settled && time.Since(t.at) < fresh {
			// The answer that told of c has waited for a pause already. To ask once
			// more costs a journey, which ctx would break off, and the connection.
			<-ctx.Done()
			return ctx.Err()
		}
		w := &wire.CallWatch{ExitOnly: exitOnly, Stdout: max(c.Stdout, 0), Stderr: max(c.Stderr, 0), Most: windowBytes, Ends: true}
		if !exitOnly {
			w.SettleMS = settleFor.Milliseconds()
		}
		if _, err := p.watch(ctx, w, wait); err != nil {
			return err
		}
	}
}

func (p *process) Write(ctx context.Context, b []byte, end bool) error {
	p.writing.Lock()
	defer p.writing.Unlock()
	p.mu.Lock()
	at, last := p.stdin, p.told
	if !p.stdinKnown {
		at = -1 // which is told where stdin is
	}
	p.mu.Unlock()
	call := &wire.Call{ID: newID(), Stdin: &wire.Stdin{ID: string(p.id), End: end, At: &at}}
	wait := time.Duration(0)
	if last != nil && !last.state.TTY && time.Since(last.at) < fresh {
		// Somebody has just looked, and will look for the answer.
		wait = replyWait
		call.Watch = &wire.CallWatch{ID: string(p.id), WaitMS: wait.Milliseconds(), SettleMS: settleFor.Milliseconds(),
			Stdout: last.state.Stdout, Stderr: last.state.Stderr, Most: windowBytes, Ends: true}
	}
	p.unlearn()
	for {
		a, data, err := p.b.ask(ctx, call, b, wait)
		var moved *wire.Error
		if errors.As(err, &moved) && moved.Code == wire.CodeStdinMoved {
			// Another one wrote. This was not carried out, and is asked for anew.
			if at, err = strconv.ParseInt(moved.Path, 10, 64); err == nil && ctx.Err() == nil {
				continue
			}
			return ctx.Err()
		}
		if err != nil {
			return plain(err)
		}
		p.mu.Lock()
		p.stdin, p.stdinKnown = max(p.stdin, at+int64(len(b))), true
		p.mu.Unlock()
		if t := p.learn(a, data, true); t != nil && !t.ended() && t.state.Stdout == call.Watch.Stdout && t.state.Stderr == call.Watch.Stderr {
			p.unlearn() // it has not answered yet
		}
		return nil
	}
}

func (p *process) Resize(ctx context.Context, w sandbox.WindowSize) error {
	p.unlearn()
	_, _, err := p.b.ask(ctx, &wire.Call{Resize: &wire.Resize{ID: string(p.id), Cols: w.Cols, Rows: w.Rows}}, nil, 0)
	return plain(err)
}

func (p *process) Kill(ctx context.Context, sig string, grace time.Duration, reason string) error {
	call := &wire.Call{Kill: &wire.Kill{ID: string(p.id), Signal: sig, GraceMS: terms.Milliseconds(grace), Reason: reason}}
	call.Watch = &wire.CallWatch{ID: string(p.id), ExitOnly: true, WaitMS: killReply.Milliseconds(), Most: windowBytes, Ends: true}
	p.unlearn()
	a, data, err := p.b.ask(ctx, call, nil, killReply)
	if err != nil {
		return plain(err)
	}
	p.learn(a, data, false)
	return nil
}
