package tools

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/mark3labs/mcp-go/mcp"
	"github.com/mark3labs/mcp-go/server"

	"berth/sandbox"
)

const (
	progressEvery  = 100 * time.Millisecond // at most ten messages a second
	heartbeatEvery = 10 * time.Second
	progressText   = 4 << 10 // bytes of one message
	progressHeld   = 64 << 10
	partialAfter   = 5 // ticks until a line without an end is sent
)

// progress sends a call's output, as it comes, to a client that gave a
// progress token. Progress is a courtesy: it is coalesced, shortened when
// there is too much, and lost when the client does not read; the result is
// complete without it. A nil *progress does nothing.
type progress struct {
	token  any
	send   func(params map[string]any) error
	drain  func() // waits until what was sent is written
	tool   string
	start  time.Time
	done   chan struct{}
	closed sync.WaitGroup

	mu      sync.Mutex
	held    [2]cleaner // stdout, stderr
	skipped int
	ticks   int // since the oldest held byte came

	value float64 // the goroutine's alone
	last  time.Time
}

// newProgress returns nil when the request has no token or nobody to send to.
func newProgress(ctx context.Context, req mcp.CallToolRequest, tool string) *progress {
	if req.Params.Meta == nil || req.Params.Meta.ProgressToken == nil {
		return nil
	}
	s, cs := server.ServerFromContext(ctx), server.ClientSessionFromContext(ctx)
	if s == nil || cs == nil {
		return nil
	}
	p := &progress{token: req.Params.Meta.ProgressToken, tool: tool, start: time.Now(), last: time.Now(), done: make(chan struct{})}
	p.send = func(params map[string]any) error {
		return s.SendNotificationToClient(ctx, string(mcp.MethodNotificationProgress), params)
	}
	p.drain = func() { drain(ctx, cs) }
	p.closed.Go(p.loop)
	return p
}

// output takes new output of the command; it never blocks. It is nil when
// nobody wants it, as the Manager's requests expect.
func (p *progress) output() func(sandbox.Output) {
	if p == nil {
		return nil
	}
	return func(o sandbox.Output) {
		p.mu.Lock()
		defer p.mu.Unlock()
		for i, b := range [][]byte{o.Stdout, o.Stderr} {
			p.held[i].add(b)
			p.skipped += p.held[i].trim(progressHeld)
		}
	}
}

// finish sends what is left, stops, and waits until all is written, so that
// no progress comes after the result: mcp-go writes notifications and results
// from different goroutines.
func (p *progress) finish() {
	if p == nil {
		return
	}
	close(p.done)
	p.closed.Wait()
	if p.value > 0 {
		p.drain()
	}
}

func (p *progress) loop() {
	tick := time.NewTicker(progressEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			p.flush(false)
		case <-p.done:
			p.flush(true)
			return
		}
	}
}

// flush sends complete lines, a held partial line when it has waited, and a
// heartbeat when nothing was sent for long.
func (p *progress) flush(all bool) {
	p.mu.Lock()
	text := p.held[0].take(all || p.ticks >= partialAfter)
	if errs := p.held[1].take(all || p.ticks >= partialAfter); errs != "" {
		if text != "" && !strings.HasSuffix(text, "\n") {
			text += "\n"
		}
		text += errs
	}
	if p.held[0].len()+p.held[1].len() > 0 && text == "" {
		p.ticks++
	} else {
		p.ticks = 0
	}
	skipped := p.skipped
	p.skipped = 0
	p.mu.Unlock()
	if len(text) > progressText {
		cut := len(text) - progressText
		if i := strings.IndexByte(text[cut:], '\n'); i >= 0 && i < progressText/2 {
			cut += i + 1
		}
		skipped += cut
		text = strings.ToValidUTF8(text[cut:], "")
	}
	if skipped > 0 {
		text = fmt.Sprintf("[%d bytes not shown]\n%s", skipped, text)
	}
	now := time.Now()
	if text == "" {
		if all || now.Sub(p.last) < heartbeatEvery {
			return
		}
		text = fmt.Sprintf("%s: %d s", p.tool, int(now.Sub(p.start).Seconds()))
	}
	p.last = now
	p.value++
	_ = p.send(map[string]any{"progressToken": p.token, "progress": p.value, "message": strings.TrimSuffix(text, "\n")})
}

// DrainNotifications is a tool middleware for other tools that send
// notifications while they run: it holds their results back until the
// notifications are written, at least 2 ms. The tools of Register do so
// themselves, and only when they sent any.
func DrainNotifications(next server.ToolHandlerFunc) server.ToolHandlerFunc {
	return func(ctx context.Context, req mcp.CallToolRequest) (*mcp.CallToolResult, error) {
		res, err := next(ctx, req)
		if cs := server.ClientSessionFromContext(ctx); cs != nil {
			drain(ctx, cs)
		}
		return res, err
	}
}

// drain waits until the channel is empty, then 2 ms for the message that was
// taken from it to be written. A client that does not read is waited for 1 s.
// Sessions of internal/server keep the order themselves.
func drain(ctx context.Context, cs server.ClientSession) {
	if _, ok := cs.(interface{ NotificationsInOrder() }); ok {
		return
	}
	ch := cs.NotificationChannel()
	deadline := time.Now().Add(time.Second)
	for len(ch) > 0 && ctx.Err() == nil && time.Now().Before(deadline) {
		time.Sleep(time.Millisecond)
	}
	time.Sleep(2 * time.Millisecond)
}
