package compile

import (
	"bufio"
	"encoding/json"
	"errors"
	"io"

	"berth/sandbox"
)

// Bounds of the conversation. Every message is one line of JSON.
const (
	maxAsks   = 25_000   // questions of one child
	maxAsk    = 64 << 10 // bytes of a question; what is longer is no path, and not asked
	maxResult = 32 << 20 // bytes of a compiled program
	maxLine   = maxResult/3*4 + 64<<10
	maxFault  = 8 << 10
)

// toChild is a message of the server's. One field is set.
type toChild struct {
	Job      *job              `json:"job,omitempty"`
	Resolved *sandbox.Resolved `json:"resolved,omitempty"`
	Loaded   *sandbox.Loaded   `json:"loaded,omitempty"`
}

// toServer is a message of the child's. One field is set.
type toServer struct {
	Ready   bool            `json:"ready,omitempty"` // the first: the child's limits are in force
	Resolve *sandbox.Import `json:"resolve,omitempty"`
	Load    *string         `json:"load,omitempty"`
	Result  *result         `json:"result,omitempty"`
}

// job and result hold programs as bytes: those need not be valid UTF-8.
type job struct {
	sandbox.CompileJob
	Code []byte
}

type result struct {
	sandbox.Compiled
	Text []byte
}

// conversation sends and receives lines.
type conversation struct {
	in  *bufio.Scanner
	out *bufio.Writer
}

func newConversation(r io.Reader, w io.Writer) *conversation {
	c := &conversation{in: bufio.NewScanner(r), out: bufio.NewWriterSize(w, 64<<10)}
	c.in.Buffer(make([]byte, 0, 16<<10), maxLine)
	return c
}

func (c *conversation) send(message any) error {
	// The encoder ends what it writes with a newline, and writes no other.
	if err := json.NewEncoder(c.out).Encode(message); err != nil {
		return err
	}
	return c.out.Flush()
}

func (c *conversation) receive(message any) error {
	if !c.in.Scan() {
		return errors.Join(c.in.Err(), io.ErrUnexpectedEOF)
	}
	return json.Unmarshal(c.in.Bytes(), message)
}
