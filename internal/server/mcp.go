package server

import (
	"context"
	"crypto/rand"
	"log/slog"
	"runtime/debug"

	"github.com/mark3labs/mcp-go/mcp"
	mcpserver "github.com/mark3labs/mcp-go/server"
)

// MCPOptions of NewMCP.
type MCPOptions struct {
	Logger       *slog.Logger // nil discards
	Title        string       // for people
	Instructions string       // for the model, at most 2 KB: clients cut them there
	Hooks        *mcpserver.Hooks
	Extra        []mcpserver.ServerOption // applied last
}

// NewMCP returns the library's server with the settings that every program on
// this stack shares: a fixed list of tools, strict schemas, and panics that
// become tool errors with a reference.
func NewMCP(name, version string, o MCPOptions) *mcpserver.MCPServer {
	log := o.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	opts := []mcpserver.ServerOption{
		mcpserver.WithToolCapabilities(false),
		mcpserver.WithStrictInputSchemaDefault(),
		mcpserver.WithToolHandlerMiddleware(recovery(log)),
		// The list is the same until the server is replaced, but may differ by
		// credential.
		mcpserver.WithCacheHints(60_000, mcp.CacheScopePrivate),
	}
	if o.Title != "" {
		opts = append(opts, mcpserver.WithTitle(o.Title))
	}
	if o.Instructions != "" {
		opts = append(opts, mcpserver.WithInstructions(o.Instructions))
	}
	if o.Hooks != nil {
		opts = append(opts, mcpserver.WithHooks(o.Hooks))
	}
	return mcpserver.NewMCPServer(name, version, append(opts, o.Extra...)...)
}

// recovery turns a handler's panic into a tool error. The model gets a
// reference, the operator's log the rest.
func recovery(log *slog.Logger) mcpserver.ToolHandlerMiddleware {
	return func(next mcpserver.ToolHandlerFunc) mcpserver.ToolHandlerFunc {
		return func(ctx context.Context, r mcp.CallToolRequest) (result *mcp.CallToolResult, err error) {
			defer func() {
				if p := recover(); p != nil {
					ref := rand.Text()[:10]
					log.Error("tool panicked", slog.String("tool", r.Params.Name), slog.String("reference", ref), slog.Any("panic", p), slog.String("stack", string(debug.Stack())))
					result, err = mcp.NewToolResultError("internal error, reference "+ref+"; it is a fault of the server, and its log has the details under this reference"), nil
				}
			}()
			return next(ctx, r)
		}
	}
}
