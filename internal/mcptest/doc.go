// Package mcptest runs berth's MCP server for tests, over a real Manager, and
// connects real MCP clients to it, in process, over pipes, SSE and Streamable
// HTTP. Tests import it; programs never do.
package mcptest
