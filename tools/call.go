package tools

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"runtime/debug"
	"time"

	"github.com/mark3labs/mcp-go/mcp"
	"github.com/mark3labs/mcp-go/server"

	"berth/internal/session"
	"berth/sandbox"
)

// answerWithin is the backstop behind sandbox.MaxWait: no call is left
// without an answer longer, whatever hangs beneath. Clients give up at 60 s.
const answerWithin = sandbox.MaxWait + 3*time.Second

// giveUp is when the answer is made without a handler that does not even heed
// its context.
const giveUp = answerWithin + time.Second

// registry is what the tools of one server share.
type registry struct {
	manager *sandbox.Manager
	options Options
	book    *session.Book
	log     *slog.Logger
	now     func() time.Time
}

// call is one call of one tool, its arguments checked.
type call struct {
	*registry
	ctx      context.Context
	tool     tool
	caller   session.Caller
	key      sandbox.Key
	choice   session.Choice
	args     reflect.Value // *A
	progress *progress     // nil when the client wants none

	looked bool // the call reached no sandbox, so its session does not count as used

	// For the event log.
	id      string
	start   time.Time
	outcome string
	bytes   int64
}

// wrap makes the handler that mcp-go calls. Its error is always nil: what went
// wrong is in the result.
func (r *registry) wrap(t tool, v *validator) server.ToolHandlerFunc {
	return func(ctx context.Context, req mcp.CallToolRequest) (*mcp.CallToolResult, error) {
		start := r.now()
		c := &call{registry: r, tool: t, caller: session.From(ctx), start: start}
		res, err := guard(r, c, func() (*mcp.CallToolResult, error) { return r.run(ctx, c, v, req) })
		if err != nil {
			res = mcp.NewToolResultError(r.explain(c, err))
		}
		_, _ = guard(r, c, func() (*mcp.CallToolResult, error) { // has logged what went wrong
			r.record(c, res, err, r.now().Sub(start))
			return nil, nil
		})
		return res, nil
	}
}

// guard turns a panic of f into an error that explain knows nothing of, so
// that the answer has a reference; the log has the stack.
func guard(r *registry, c *call, f func() (*mcp.CallToolResult, error)) (res *mcp.CallToolResult, err error) {
	defer func() {
		if p := recover(); p != nil {
			r.log.Error("tool panicked", slog.String("tool", c.tool.name), slog.String("session", string(c.key.Session)), slog.String("panic", fmt.Sprint(p)), slog.String("stack", string(debug.Stack())))
			res, err = nil, fmt.Errorf("panic: %v", p)
		}
	}()
	return f()
}

// run takes one call from its raw arguments to its result.
func (r *registry) run(ctx context.Context, c *call, v *validator, req mcp.CallToolRequest) (*mcp.CallToolResult, error) {
	raw, err := rawArguments(req)
	if err != nil {
		return nil, err
	}
	if c.args, err = v.decode(raw); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	c.progress = newProgress(ctx, req, c.tool.name)
	defer c.progress.finish()
	// One that hangs is left behind with its own copy of the call, so that
	// what it still does meets nobody.
	type answer struct {
		res *mcp.CallToolResult
		err error
	}
	own := *c
	done := make(chan answer, 1)
	go func() {
		res, err := guard(r, &own, func() (*mcp.CallToolResult, error) { return r.work(ctx, &own) })
		done <- answer{res, err}
	}()
	timer := time.NewTimer(giveUp)
	defer timer.Stop()
	select {
	case a := <-done:
		*c = own
		return a.res, a.err
	case <-timer.C:
		r.log.Error("tool hangs", slog.String("tool", c.tool.name))
		if !c.tool.readOnly && !c.tool.idempotent {
			return nil, errLate // it may do its work yet
		}
		return nil, context.DeadlineExceeded
	}
}

// work does what a call with checked arguments asks for.
func (r *registry) work(ctx context.Context, c *call) (*mcp.CallToolResult, error) {
	if err := r.choose(ctx, c); err != nil {
		return nil, err
	}
	if c.choice.Made {
		ctx = sandbox.WithServerMadeSession(ctx)
	}
	if tell := c.progress.output(); tell != nil {
		ctx = sandbox.WithProgress(ctx, func(p sandbox.Progress) { tell(sandbox.Output{Stdout: []byte(p.Text + "\n")}) })
	}
	if !c.tool.readOnly && c.key.Session != "" {
		c.id = rand.Text()[:12]
		ctx = sandbox.WithBegin(ctx, func() {
			r.manager.Record(c.key, sandbox.Event{Time: c.start, Session: c.key.Session, Tool: c.tool.name, Args: eventArgs(c.args), Outcome: sandbox.Begun, Call: c.id})
		})
	}
	c.ctx = ctx
	res, err := c.tool.handle(c)
	if err == nil && res == nil {
		err = errors.New("no result")
	}
	if err == nil && !res.IsError && c.key.Session != "" && c.tool.reach != noSession && !c.looked {
		r.book.Used(c.caller, c.key.Session)
	}
	return res, err
}

// rawArguments are the call's arguments as JSON, byte for byte as they came
// where the library kept them.
func rawArguments(req mcp.CallToolRequest) (json.RawMessage, error) {
	if len(req.Params.RawArguments) > 0 {
		return req.Params.RawArguments, nil
	}
	if req.Params.Arguments == nil {
		return nil, nil
	}
	raw, err := json.Marshal(req.Params.Arguments)
	if err != nil {
		return nil, &sandbox.FieldError{Field: "arguments", Problem: "not valid JSON", Allowed: "one JSON object"}
	}
	return raw, nil
}

// sessionArgument is embedded by the arguments of tools. What it means is said
// once, by execute_command.
type sessionArgument struct {
	SessionID *string `json:"session_id"`
}

func (s sessionArgument) session() *string { return s.SessionID }

// choose finds out which session the call is for.
func (r *registry) choose(ctx context.Context, c *call) error {
	c.key.Owner = c.caller.Owner
	argument := ""
	var err error
	if given := c.args.Interface().(interface{ session() *string }).session(); given != nil {
		// Checked here too, since an empty id is not the same as none.
		if _, err := sandbox.ParseSessionID(*given); err != nil {
			return err
		}
		argument = *given
	}
	if a, ok := c.args.Interface().(interface{ needsNoSession() bool }); ok && a.needsNoSession() {
		return nil
	}
	switch c.tool.reach {
	case noSession:
		c.key.Session = sandbox.SessionID(argument)
		return nil
	case newSession:
		c.choice, err = r.book.ChooseNew(c.caller, argument, func(id sandbox.SessionID) bool {
			info, err := r.manager.GetSandbox(ctx, sandbox.Key{Owner: c.caller.Owner, Session: id})
			return errors.Is(err, sandbox.ErrNotFound) || (err == nil && info.Status == sandbox.StatusPending)
		})
	default:
		c.choice, err = r.book.Choose(c.caller, argument)
	}
	if err != nil {
		return err
	}
	if c.choice.Fresh && c.tool.reach == mustExist {
		return &sandbox.FieldError{Field: "session_id", Problem: "missing, and this connection has no session of its own",
			Hint: "pass the session_id that start_sandbox or the first command's answer gave; list_sandboxes shows all"}
	}
	c.key.Session = c.choice.ID
	return nil
}

// record writes the log line and the sandbox's event.
func (r *registry) record(c *call, res *mcp.CallToolResult, err error, took time.Duration) {
	outcome, problem := c.outcome, ""
	if outcome == "" {
		outcome = "ok"
	}
	if err != nil || res.IsError {
		outcome = "error"
		problem = textOf(res)
	}
	r.log.Debug("tool called", slog.String("tool", c.tool.name), slog.String("session", string(c.key.Session)), slog.String("outcome", outcome), slog.Duration("duration", took))
	if c.ctx == nil || c.key.Session == "" || c.looked || c.tool.reach == noSession || errors.Is(err, sandbox.ErrNotFound) {
		return // it never came to a sandbox
	}
	r.manager.Record(c.key, sandbox.Event{
		Time: r.now().Add(-took), Session: c.key.Session, Tool: c.tool.name, Args: eventArgs(c.args),
		Outcome: outcome, Error: clip(problem, 1000), Duration: took, Bytes: c.bytes, Call: c.id,
	})
}

// eventArgs are the given arguments for the event log, in the shapes of JSON.
// The log itself keeps only sizes of what may hold secrets; values of the
// environment do not even get there.
func eventArgs(args reflect.Value) map[string]any {
	out := map[string]any{}
	for _, f := range fields(args.Elem().Type()) {
		val := args.Elem().FieldByIndex(f.index)
		if val.IsZero() || f.name == "session_id" {
			continue
		}
		if val.Kind() == reflect.Pointer {
			val = val.Elem()
		}
		switch val.Kind() {
		case reflect.Map:
			m := map[string]any{}
			for _, k := range val.MapKeys() {
				m[k.String()] = nil
				if !private[f.name] {
					m[k.String()] = val.MapIndex(k).Interface()
				}
			}
			out[f.name] = m
		case reflect.Slice:
			list := make([]any, val.Len())
			if !private[f.name] {
				for i := range list {
					list[i] = val.Index(i).Interface()
				}
			}
			out[f.name] = list
		default:
			out[f.name] = val.Interface()
		}
	}
	return out
}

// textOf is a result's first text.
func textOf(res *mcp.CallToolResult) string {
	for _, c := range res.Content {
		if t, ok := c.(mcp.TextContent); ok {
			return t.Text
		}
	}
	return ""
}

// newReference names an error in an answer and in the log alike.
func newReference() string {
	var b [5]byte
	_, _ = rand.Read(b[:]) // never fails, see crypto/rand
	return hex.EncodeToString(b[:])
}
