//go:build unix

package tools_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"testing"

	"berth/internal/mcptest"
)

// rawStdio is a client that costs nothing: it writes requests and reads lines.
type rawStdio struct {
	in  io.Writer
	out *bufio.Reader
	id  int
}

func newRawStdio(b *testing.B, s *mcptest.Server) *rawStdio {
	inR, inW := io.Pipe()
	outR, outW := io.Pipe()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Server.ServeStdio(ctx, inR, outW) }()
	b.Cleanup(func() {
		_ = inW.Close()
		<-done
		cancel()
	})
	c := &rawStdio{in: inW, out: bufio.NewReaderSize(outR, 1<<20)}
	c.call(b, "initialize", map[string]any{"protocolVersion": "2025-06-18", "capabilities": map[string]any{}, "clientInfo": map[string]any{"name": "bench", "version": "1"}})
	return c
}

func (c *rawStdio) call(b *testing.B, method string, params any) []byte {
	c.id++
	req, err := json.Marshal(map[string]any{"jsonrpc": "2.0", "id": c.id, "method": method, "params": params})
	if err != nil {
		b.Fatal(err)
	}
	if _, err := c.in.Write(append(req, '\n')); err != nil {
		b.Fatal(err)
	}
	var line []byte
	for {
		part, more, err := c.out.ReadLine()
		if err != nil {
			b.Fatal(err)
		}
		line = append(line, part...)
		if !more {
			return line
		}
	}
}

func (c *rawStdio) tool(b *testing.B, name string, args map[string]any) []byte {
	return c.call(b, "tools/call", map[string]any{"name": name, "arguments": args})
}

// What reading a mebibyte of a log costs the server.
func BenchmarkReadOutput(b *testing.B) {
	s := mcptest.New(b, mcptest.Options{})
	c := newRawStdio(b, s)
	answer := c.tool(b, "execute_command", map[string]any{"session_id": "bench", "command": "head -c 10485760 /dev/zero | tr '\\0' x"})
	var got struct {
		Result struct {
			Meta map[string]struct {
				ProcessID string `json:"process_id"`
			} `json:"_meta"`
		} `json:"result"`
	}
	if err := json.Unmarshal(answer, &got); err != nil {
		b.Fatal(err)
	}
	id := got.Result.Meta["berth/result"].ProcessID
	if id == "" {
		b.Fatalf("no process id in %.300s", answer)
	}
	b.SetBytes(1 << 20)
	i := 0
	for b.Loop() {
		a := c.tool(b, "read_output", map[string]any{"session_id": "bench", "process_id": id, "wait_for": "none", "max_bytes": 1 << 20, "cursor": fmt.Sprintf("c%d.0", (i%9)<<20)})
		if len(a) < 1<<20 {
			b.Fatalf("got %d bytes: %.300s", len(a), a)
		}
		i++
	}
}

// What a command costs the server beside its own time.
func BenchmarkExecuteCommand(b *testing.B) {
	s := mcptest.New(b, mcptest.Options{})
	c := newRawStdio(b, s)
	for b.Loop() {
		c.tool(b, "execute_command", map[string]any{"session_id": "bench", "command": "true"})
	}
}
