package tools

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/mark3labs/mcp-go/mcp"

	"berth/sandbox"
)

// resultKey is where an answer's facts for programs are in its metadata.
const resultKey = "berth/result"

// processResult is "berth/result" of the answers about one process.
type processResult struct {
	ExitCode     *int   `json:"exit_code"` // null while running, and when it will never be known
	State        string `json:"state"`
	TimedOut     bool   `json:"timed_out"`
	Killed       bool   `json:"killed"`
	Signal       string `json:"signal"`
	DurationMS   int64  `json:"duration_ms"`
	ProcessID    string `json:"process_id"`
	Cursor       string `json:"cursor"`
	StdoutBytes  int64  `json:"stdout_bytes"` // produced so far
	StderrBytes  int64  `json:"stderr_bytes"`
	DroppedBytes int64  `json:"dropped_bytes"`
	Matched      bool   `json:"matched"`
	Cwd          string `json:"cwd"`
	SessionID    string `json:"session_id"`
}

// style tells which last line a process's answer ends in.
type style int

const (
	ran   style = iota // execute_command, run_code: how it ended, or that it was handed over
	state              // spawn_process, send_stdin, read_output, kill_process: state and cursor
)

// process is the answer of everything that touches one process: its output,
// its stderr, one line of notices, one line of state.
func (c *call) process(r *sandbox.RunResult, st style) *mcp.CallToolResult {
	var b textBuilder
	if r.RawStdout != nil || r.RawStderr != nil {
		raw(&b, "stdout", r.RawStdout)
		raw(&b, "stderr", r.RawStderr)
	} else {
		stream(&b, r, r.Stdout)
		if errs := r.Stderr; errs.Head != "" || errs.Tail != "" || errs.Cut > 0 {
			b.WriteString("[stderr]\n")
			stream(&b, r, errs)
		}
	}
	if line := c.noticeLine(r.Notice, c.remarks(r)...); line != "" {
		b.WriteString(line + "\n")
	}
	b.WriteString("[" + lastLine(r, st) + "]")

	p := r.Process
	c.outcome, c.bytes = outcomeOf(r), p.Produced.Stdout+p.Produced.Stderr
	res := &mcp.CallToolResult{Content: []mcp.Content{b.content()}}
	setResult(res, processResult{
		ExitCode: p.ExitCode, State: string(p.State), TimedOut: p.TimedOut, Killed: p.Killed, Signal: p.Signal,
		DurationMS: r.Duration.Milliseconds(), ProcessID: string(p.ID), Cursor: r.Cursor,
		StdoutBytes: p.Produced.Stdout, StderrBytes: p.Produced.Stderr, DroppedBytes: r.Dropped,
		Matched: r.Matched, Cwd: cwdOf(r), SessionID: string(c.key.Session),
	})
	return res
}

// raw writes one stream's exact bytes: a heading, then base64 on one line.
func raw(b *textBuilder, name string, data []byte) {
	if len(data) > 0 {
		fmt.Fprintf(b, "[%s: %d bytes as base64]\n", name, len(data))
		line(b, base64.StdEncoding.EncodeToString(data))
	}
}

// stream writes one stream's text and, where something was cut, what and how
// to get it.
func stream(b *textBuilder, r *sandbox.RunResult, t sandbox.Text) {
	line(b, t.Head)
	if t.Cut > 0 {
		fmt.Fprintf(b, "[%d bytes cut; read_output with process_id %s and cursor %s shows them]\n", t.Cut, r.Process.ID, r.CutCursor)
	}
	line(b, t.Tail)
}

// line writes s and ends its last line.
func line(b *textBuilder, s string) {
	b.WriteString(s)
	if s != "" && !strings.HasSuffix(s, "\n") {
		b.WriteString("\n")
	}
}

// remarks are the facts about a process's answer that go into the line of
// notices.
func (c *call) remarks(r *sandbox.RunResult) []string {
	out := append([]string(nil), r.Remarks...)
	p := r.Process
	if r.Dropped > 0 {
		out = append(out, fmt.Sprintf("%d bytes are gone: the process wrote %d, kept is what came after the first %d",
			r.Dropped, p.Produced.Stdout+p.Produced.Stderr, p.Kept.Stdout+p.Kept.Stderr))
	}
	if r.Oldest != "" {
		out = append(out, fmt.Sprintf("the newest output; the oldest kept is at cursor %s", r.Oldest))
	}
	// After a kill of the whole tree what is still seen is just going.
	if len(p.Leftovers) > 0 && p.State != sandbox.ProcessRunning && !p.Killed {
		out = append(out, fmt.Sprintf("left running under process_id %s: %s", p.ID, strings.Join(p.Leftovers, ", ")))
	}
	if p.State != sandbox.ProcessRunning {
		out = append(out, p.Struck...)
	}
	out = append(out, p.Refusals()...)
	if len(p.Refused) == 0 && unresolved(r) {
		out = append(out, "the network policy refused nothing: this machine may itself have no network")
	}
	return out
}

// noNames are what programs say when a host's name cannot be found.
var noNames = []string{"could not resolve", "failure in name resolution", "failure resolving", "name or service not known", "unable to resolve",
	"getaddrinfo e", "getaddrinfo failed", "no such host", "failed to lookup address", "network is unreachable", "no address associated with hostname", "dns error"}

// complaint is how much of a text's end is searched for what a program that
// fails says last.
const complaint = 8 << 10

// unresolved tells that a command's output complains of a name or a network
// that is not there.
func unresolved(r *sandbox.RunResult) bool {
	for _, t := range []string{r.Stderr.Tail, r.Stderr.Head, r.Stdout.Tail, r.Stdout.Head} {
		t = strings.ToLower(t[max(0, len(t)-complaint):])
		for _, s := range noNames {
			if strings.Contains(t, s) {
				return true
			}
		}
	}
	return false
}

// noticeLine is what happened to the sandbox on the way, as one bracketed
// line; "" when there is nothing to say.
func (c *call) noticeLine(n sandbox.Notice, more ...string) string {
	parts := append(c.notices(n), more...)
	for i, p := range parts {
		parts[i] = oneLine(p)
	}
	if len(parts) == 0 {
		return ""
	}
	return "[" + strings.Join(parts, "; ") + "]"
}

// notices are the parts of a notice, and of the choice of the session.
func (c *call) notices(n sandbox.Notice) []string {
	var out []string
	if n.Created {
		out = append(out, "created a new sandbox")
	}
	if n.Replaced != "" {
		out = append(out, "replaced the former sandbox: "+n.Replaced)
	}
	if n.Started && !n.Created && n.Replaced == "" {
		out = append(out, "the sandbox was stopped and was started again")
	}
	if n.Revived != "" {
		out = append(out, "revived: "+n.Revived)
	}
	for _, d := range n.Drift {
		out = append(out, "differs from what was asked: "+d)
	}
	for _, w := range n.Warnings {
		out = append(out, "warning: "+w)
	}
	if c.choice.Made && (c.book.Tell(c.caller, c.key.Session) || n.Created || n.Replaced != "") {
		s := fmt.Sprintf("session_id %s was made by the server: pass it in later calls", c.key.Session)
		if n.Created || n.Replaced != "" {
			s += ", the sandbox is archived when stopped for 7 days and deleted after 30, unless start_sandbox says otherwise"
		}
		out = append(out, s)
	}
	return out
}

// oneLine keeps text from breaking out of its bracketed line.
func oneLine(s string) string {
	return strings.Join(strings.Fields(s), " ")
}

// lastLine is the state of the process, without its brackets.
func lastLine(r *sandbox.RunResult, st style) string {
	p := r.Process
	var s string
	switch {
	case p.State == sandbox.ProcessRunning && st == ran:
		return fmt.Sprintf("still running: process_id %s, cursor %s; read_output continues%s", p.ID, r.Cursor, where(r))
	case p.State == sandbox.ProcessRunning:
		s = "running"
		if r.Matched {
			s = "running, the pattern was found"
		}
	case p.State == sandbox.ProcessLost:
		s = "lost, exit code unknown"
		if p.Reason != "" {
			s += ": " + oneLine(p.Reason)
		}
		if st == ran {
			s += "; it was not run again"
		}
	case p.TimedOut:
		s = fmt.Sprintf("timed out after %s, killed, exit %s", seconds(life(r)), exit(p))
	case p.Killed:
		s = "killed by " + orUnknown(p.Signal)
		if p.Reason != "" {
			s += ": " + oneLine(p.Reason)
		}
		s += ", exit " + exit(p)
	case p.Signal != "":
		s = fmt.Sprintf("ended by %s, exit %s", p.Signal, exit(p))
	default:
		s = fmt.Sprintf("exit %s in %s", exit(p), seconds(life(r)))
	}
	if r.AlreadyEnded {
		s = "had already ended: " + s
	}
	if st == state {
		return fmt.Sprintf("%s; process_id %s, cursor %s%s", s, p.ID, r.Cursor, where(r))
	}
	return s + where(r)
}

// where names the directory when it is not home.
func where(r *sandbox.RunResult) string {
	if r.Cwd == "" || r.HomeCwd {
		return ""
	}
	return ", in " + oneLine(r.Cwd)
}

// life is how long the process has lived.
func life(r *sandbox.RunResult) time.Duration {
	if p := r.Process; !p.Started.IsZero() && p.Ended.After(p.Started) {
		return p.Ended.Sub(p.Started)
	}
	return r.Duration
}

// exit is the exit code in words; never an invented one.
func exit(p sandbox.ProcessInfo) string {
	if p.ExitCode == nil {
		return "code unknown"
	}
	return strconv.Itoa(*p.ExitCode)
}

func orUnknown(s string) string {
	if s == "" {
		return "a signal"
	}
	return s
}

// seconds is a time with as many digits as a reader wants.
func seconds(d time.Duration) string {
	s := d.Seconds()
	switch {
	case s >= 100:
		return strconv.FormatFloat(s, 'f', 0, 64) + " s"
	case s >= 0.1:
		return strconv.FormatFloat(round(s, 10), 'f', -1, 64) + " s"
	}
	return strconv.FormatFloat(round(s, 1000), 'f', -1, 64) + " s"
}

func round(x, steps float64) float64 {
	n := int64(x*steps + 0.5)
	return float64(n) / steps
}

func cwdOf(r *sandbox.RunResult) string {
	if r.Cwd != "" {
		return r.Cwd
	}
	return r.Process.Cwd
}

// outcomeOf is the event log's word for a process's answer.
func outcomeOf(r *sandbox.RunResult) string {
	switch p := r.Process; {
	case r.HandedOver:
		return "handed over"
	case p.State == sandbox.ProcessRunning:
		return "running"
	case p.State == sandbox.ProcessLost:
		return "lost"
	default:
		return "exit " + exit(p)
	}
}

// setResult puts facts for programs into the answer's metadata.
func setResult(res *mcp.CallToolResult, facts any) {
	res.Meta = &mcp.Meta{AdditionalFields: map[string]any{resultKey: facts}}
}

// recordAnswer is the answer of a record tool: the record as structured content
// and the same JSON as text, since some clients show only one of them.
func recordAnswer(v any) (*mcp.CallToolResult, error) {
	text, err := marshal(v)
	if err != nil {
		return nil, fmt.Errorf("answer: %w", err)
	}
	return mcp.NewToolResultStructured(json.RawMessage(text), string(text)), nil
}

// marshal is json.Marshal without HTML escapes, which only cost tokens.
func marshal(v any) ([]byte, error) {
	var b strings.Builder
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return nil, err
	}
	return []byte(strings.TrimSuffix(b.String(), "\n")), nil
}
