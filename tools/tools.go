// Package tools publishes berth's MCP tools. Each tool is one file: its
// arguments, what it answers, and a handler that calls the Manager method of
// its name. What all tools share is done around the handlers, once: checking
// the arguments, choosing the session, progress, errors, the event log.
package tools

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/mark3labs/mcp-go/mcp"
	"github.com/mark3labs/mcp-go/server"

	"berth/internal/session"
	"berth/sandbox"
)

// Options of Register. The zero value works.
type Options struct {
	// Toolsets chooses what is listed: "core", "sandbox", "files", "buckets",
	// "snapshots", "volumes", "network", or "all". Empty means DefaultToolsets.
	Toolsets []string
	// ReadOnly keeps only the tools that change nothing.
	ReadOnly bool
	// DefaultSession is the session of calls that name none; empty means that
	// the server makes one per connection.
	DefaultSession string
	// Book remembers each connection's sessions. Give the transport's own, so
	// that it can forget connections that ended; nil makes one of
	// DefaultSession.
	Book *session.Book
	// ProviderReason tells why this provider was chosen, for get_sandbox.
	ProviderReason string
	// Previews makes exposed ports reachable; without, expose_port is not listed.
	Previews Previews
	// Logger gets one line at debug level per call, and unknown errors with
	// the reference their answer shows; nil discards.
	Logger *slog.Logger
}

// Toolsets lists the toolsets there are, in the order of the documentation.
func Toolsets() []string { return append(DefaultToolsets(), "snapshots", "volumes", "network") }

// DefaultToolsets are those that are listed unless others are asked for.
func DefaultToolsets() []string { return []string{"core", "sandbox", "files", "buckets"} }

// chosen checks Toolsets; its error is a *sandbox.FieldError.
func (o Options) chosen() (map[string]bool, error) {
	known := Toolsets()
	set := map[string]bool{}
	for _, name := range o.Toolsets {
		switch {
		case name == "all":
			for _, k := range known {
				set[k] = true
			}
		case slices.Contains(known, name):
			set[name] = true
		default:
			return nil, &sandbox.FieldError{Field: "toolsets", Problem: fmt.Sprintf("%.40q is not a toolset", name),
				Allowed: "all, " + strings.Join(known, ", ")}
		}
	}
	if len(o.Toolsets) == 0 {
		for _, k := range DefaultToolsets() {
			set[k] = true
		}
	}
	return set, nil
}

// Validate checks the options without registering anything. Its error joins
// one *sandbox.FieldError per fault.
func (o Options) Validate() error {
	if _, err := o.chosen(); err != nil {
		return err
	}
	if o.DefaultSession != "" {
		if _, err := sandbox.ParseSessionID(o.DefaultSession); err != nil {
			return err
		}
	}
	return nil
}

// reach says what a tool needs of the session it is called for.
type reach int

const (
	noSession   reach = iota // takes a session_id only as a filter
	newSession               // without a session_id it makes a new one
	mayCreate                // creates the sandbox when there is none
	mustExist                // without a session_id there must be a connection's own
	anySession               // looks only; a session that never was is an answer too
	namedByCall              // the session_id is required
)

// tool is the definition of one tool.
type tool struct {
	name, description, toolset        string
	readOnly, destructive, idempotent bool
	openWorld                         bool
	previews                          bool // needs Options.Previews
	reach                             reach
	args                              reflect.Type
	bare                              []string // arguments described elsewhere, see schemaOf
	output                            json.RawMessage
	unavailable                       map[string]string
	enums                             map[string][]string // see shape
	handle                            func(*call) (*mcp.CallToolResult, error)
}

// handler makes a tool's handler of a function that takes decoded arguments.
func handler[A any](f func(*call, *A) (*mcp.CallToolResult, error)) (reflect.Type, func(*call) (*mcp.CallToolResult, error)) {
	return reflect.TypeFor[A](), func(c *call) (*mcp.CallToolResult, error) {
		return f(c, c.args.Interface().(*A))
	}
}

// buckets are the connections through which a server's sessions mount buckets.
type buckets struct {
	connections []string
	inline      bool // and calls may bring their own
}

// all is the one list of tools, in the order they are listed and documented.
func all(b buckets) []tool {
	return []tool{
		executeCommand(), runCode(), spawnProcess(), sendStdin(), readOutput(), killProcess(), listProcesses(),
		startSandbox(b), reconnect(), getSandbox(), listSandboxes(), stopSandbox(), destroySandbox(), exposePort(),
		readFile(), writeFile(), editFile(),
		mountBucket(b), unmountBucket(),
		createSnapshot(), listSnapshots(), deleteSnapshot(), forkSandbox(),
		listVolumes(), deleteVolume(), setNetwork(),
	}
}

// published is the tool as clients see it.
func (t tool) published() mcp.Tool {
	return mcp.Tool{
		Name: t.name, Description: t.description,
		RawInputSchema: t.shape().schemaOf(t.args), RawOutputSchema: t.output,
		Annotations: t.hints(),
	}
}

func (t tool) shape() shape { return shape{bare: t.bare, enums: t.enums} }

// hints say what a client may assume. Those are left out that mean nothing for
// a tool that only reads, or say what holds without them: the list is paid for
// on every request.
func (t tool) hints() mcp.ToolAnnotation {
	h := mcp.ToolAnnotation{ReadOnlyHint: &t.readOnly, OpenWorldHint: &t.openWorld}
	if !t.readOnly {
		h.DestructiveHint = &t.destructive
		if t.idempotent {
			h.IdempotentHint = &t.idempotent
		}
	}
	return h
}

// Register adds the tools that o chooses to s. They call m. An error is the
// operator's: a *sandbox.FieldError about o.
func Register(s *server.MCPServer, m *sandbox.Manager, o Options) error {
	if err := o.Validate(); err != nil {
		return err
	}
	set, err := o.chosen()
	if err != nil {
		return err
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Book == nil {
		o.Book = session.NewBook(sandbox.SessionID(o.DefaultSession))
	}
	r := &registry{manager: m, options: o, book: o.Book, log: o.Logger, now: time.Now}
	b := buckets{inline: m.InlineCredentials()}
	for _, c := range m.Connections() {
		b.connections = append(b.connections, c.Name)
	}
	for _, t := range all(b) {
		if !set[t.toolset] || (o.ReadOnly && !t.readOnly) || (t.previews && o.Previews == nil) || (t.toolset == "volumes" && !m.HasVolumes()) || (t.toolset == "buckets" && !m.HasMounts()) {
			continue
		}
		s.AddTool(t.published(), r.wrap(t, newValidator(t.name, t.args, t.shape(), t.unavailable)))
	}
	return nil
}
