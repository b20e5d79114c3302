package server

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/mark3labs/mcp-go/mcp"
	mcpserver "github.com/mark3labs/mcp-go/server"
)

// message is what a transport must know of a JSON-RPC message.
type message struct {
	raw         json.RawMessage
	id          json.RawMessage // nil: a notification
	method      string          // "": an answer to a request of ours
	metaVersion string          // of _meta, on modern requests
	envelope    envelope
}

type envelope struct {
	JSONRPC string          `json:"jsonrpc"`
	ID      json.RawMessage `json:"id"`
	Method  string          `json:"method"`
	Params  json.RawMessage `json:"params"`
	Result  json.RawMessage `json:"result"`
	Error   json.RawMessage `json:"error"`
}

// modern reports whether the message itself names a protocol version without
// sessions.
func (m *message) modern() bool { return mcp.IsModernProtocol(m.metaVersion) }

func (m *message) isAnswer() bool       { return m.method == "" && m.id != nil }
func (m *message) isRequest() bool      { return m.method != "" && m.id != nil }
func (m *message) isNotification() bool { return m.method != "" && m.id == nil }

// parse reads one message. On failure it returns the JSON-RPC error to answer.
func parse(raw []byte) (*message, *mcp.JSONRPCError) {
	raw = bytes.TrimSpace(raw)
	if len(raw) > 0 && raw[0] == '[' {
		return nil, rpcError(nil, mcp.INVALID_REQUEST, "batches are not supported; send one message at a time")
	}
	if tooManyValues(raw) {
		return nil, rpcError(nil, mcp.INVALID_REQUEST, fmt.Sprintf("the message has more than %d values; send large content as text, or in parts", maxValues))
	}
	m := &message{raw: raw}
	if err := json.Unmarshal(raw, &m.envelope); err != nil {
		if syntax := (*json.SyntaxError)(nil); errors.As(err, &syntax) {
			return nil, rpcError(nil, mcp.PARSE_ERROR, "the message is not valid JSON")
		}
		return nil, rpcError(nil, mcp.INVALID_REQUEST, `the message is not a JSON-RPC 2.0 object: "jsonrpc", "id", "method" and "params"`)
	}
	if id := m.envelope.ID; len(id) > 0 && string(id) != "null" {
		if c := id[0]; c != '"' && c != '-' && (c < '0' || c > '9') {
			return nil, rpcError(nil, mcp.INVALID_REQUEST, `"id" must be a string or a number`)
		}
		m.id = id
	}
	m.method = m.envelope.Method
	if m.envelope.JSONRPC != mcp.JSONRPC_VERSION {
		return nil, rpcError(m.id, mcp.INVALID_REQUEST, `"jsonrpc" must be "2.0"`)
	}
	if m.method == "" && m.id == nil {
		return nil, rpcError(nil, mcp.INVALID_REQUEST, `the message has neither "method" nor "id"`)
	}
	var params struct {
		Meta *mcp.Meta `json:"_meta"`
	}
	if json.Unmarshal(m.envelope.Params, &params) == nil {
		m.metaVersion = params.Meta.ProtocolVersion()
	}
	return m, nil
}

// cancelled returns the id of the request that a notifications/cancelled means.
func (m *message) cancelled() json.RawMessage {
	var p struct {
		RequestID json.RawMessage `json:"requestId"`
	}
	_ = json.Unmarshal(m.envelope.Params, &p) // nothing found cancels nothing
	return p.RequestID
}

// idKey makes ids comparable: 7 and "7" differ, spaces and escapes do not.
func idKey(id json.RawMessage) string {
	var s string
	if json.Unmarshal(id, &s) == nil {
		return "s" + s
	}
	return "n" + string(bytes.TrimSpace(id))
}

func requestID(id json.RawMessage) mcp.RequestId {
	var v any
	_ = json.Unmarshal(id, &v) // nil stays nil
	return mcp.NewRequestId(v)
}

func rpcError(id json.RawMessage, code int, text string) *mcp.JSONRPCError {
	return &mcp.JSONRPCError{JSONRPC: mcp.JSONRPC_VERSION, ID: requestID(id), Error: mcp.NewJSONRPCErrorDetails(code, text, nil)}
}

// busy answers a request that is refused because too many run: a tool error
// for a tool call, so that the model can wait, else a JSON-RPC error.
func busy(m *message) any {
	const text = "the server is busy: too many calls are running. Wait for some of them to end, then send this one again; it has not started."
	if m.method != string(mcp.MethodToolsCall) {
		return rpcError(m.id, mcp.INTERNAL_ERROR, text)
	}
	result := mcp.NewToolResultError(text)
	if m.modern() {
		result.SetResultType(mcp.ResultTypeComplete)
	}
	return mcp.NewJSONRPCResultResponse(requestID(m.id), result)
}

// checkHeaders compares the headers that a modern request repeats its content
// in. The library does so only in its own transport.
func checkHeaders(s *mcpserver.MCPServer, get func(string) string, lookup func(string) (string, bool), m *message) error {
	if err := mcp.ValidateStandardHeaders(get, m.metaVersion, mcp.MCPMethod(m.method), m.envelope.Params); err != nil {
		return err
	}
	if m.method != string(mcp.MethodToolsCall) {
		return nil
	}
	var call struct {
		Name string `json:"name"`
	}
	if json.Unmarshal(m.envelope.Params, &call) != nil {
		return nil //nolint:nilerr // reported with the parameters
	}
	tool := s.GetTool(call.Name)
	if tool == nil {
		return nil // reported as an unknown tool
	}
	return mcp.ValidateParamHeadersLookup(lookup, &tool.Tool, m.envelope.Params)
}
