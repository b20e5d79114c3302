//go:build linux

package gate

import (
	"bytes"
	"errors"
	"strconv"
)

// requests watches what a client sends on one HTTP/1 connection, so that no
// later request on it is meant for another host than the first.
type requests struct {
	name  string // of all requests
	wrong string // the other name, once there was one

	head  []byte // of the request being read
	body  int64  // bytes of the body, or of the chunk, that are still to come
	chunk chunk
	open  bool // not HTTP any more, since the connection was upgraded

	count int
	wait  bool   // the first request asks for a web socket: nothing passes until the server has answered
	held  []byte // what came meanwhile
}

type chunk int

const (
	noChunk   chunk = iota
	chunkSize       // a chunk's size follows
	chunkEnd        // the line end after a chunk
	trailer         // after the last chunk
)

// feed takes the next bytes and returns how many of them may be sent on. The
// head of a request is held back until it is whole.
func (r *requests) feed(b []byte) (pass []byte, err error) {
	for len(b) > 0 {
		switch {
		case r.open:
			return append(pass, b...), nil
		case r.wait:
			r.held = append(r.held, b...)
			return pass, nil
		case r.body > 0:
			n := min(int64(len(b)), r.body)
			pass, b, r.body = append(pass, b[:n]...), b[n:], r.body-n
			if r.body == 0 && r.chunk == chunkSize {
				r.chunk = chunkEnd
			}
		case r.chunk != noChunk:
			i := bytes.IndexByte(b, '\n')
			if i < 0 {
				if r.head = append(r.head, b...); len(r.head) > 4096 {
					return pass, errForm
				}
				return pass, nil
			}
			line := append(r.head, b[:i+1]...)
			b, r.head = b[i+1:], nil
			if len(line) > 4096 || !bytes.HasSuffix(line, []byte("\r\n")) {
				return pass, errForm
			}
			pass = append(pass, line...)
			if err := r.chunkLine(line[:len(line)-2]); err != nil {
				return pass, err
			}
		default:
			r.head = append(r.head, b...)
			name, n, err := httpName(r.head)
			if errors.Is(err, errMore) {
				if len(r.head) > maxSniff {
					return pass, errForm
				}
				return pass, nil
			}
			if err != nil {
				return pass, err
			}
			if name != r.name {
				r.wrong = name
				return pass, errForm
			}
			if err := r.begin(r.head[:n]); err != nil {
				return pass, err
			}
			pass = append(pass, r.head[:n]...)
			b, r.head = r.head[n:], nil
		}
	}
	return pass, nil
}

func (r *requests) chunkLine(line []byte) error {
	if !printable(line) {
		return errForm
	}
	switch r.chunk {
	case chunkSize:
		size, _, _ := bytes.Cut(line, []byte(";"))
		n, err := strconv.ParseUint(string(bytes.TrimRight(size, " \t")), 16, 62)
		if err != nil {
			return errForm
		}
		if r.body = int64(n); n == 0 {
			r.chunk = trailer
		}
	case chunkEnd:
		if len(line) > 0 {
			return errForm
		}
		r.chunk = chunkSize
	case trailer:
		if len(line) == 0 {
			r.chunk = noChunk
		}
	}
	return nil
}

// begin notes what follows a request's head.
func (r *requests) begin(head []byte) error {
	line, rest, _ := bytes.Cut(head, []byte("\r\n"))
	if bytes.HasPrefix(line, []byte("CONNECT ")) {
		return errForm // a proxy would go elsewhere
	}
	length, lengths, chunked, upgrades := int64(0), 0, false, 0
	for field := range bytes.SplitSeq(rest, []byte("\r\n")) {
		key, value, _ := bytes.Cut(field, []byte(":"))
		value = bytes.Trim(value, " \t")
		switch {
		case bytes.EqualFold(key, []byte("content-length")):
			n, err := strconv.ParseUint(string(value), 10, 62)
			if err != nil {
				return errForm
			}
			length, lengths = int64(n), lengths+1
		case bytes.EqualFold(key, []byte("transfer-encoding")):
			// HTTP/1.0 has no chunks: to some servers there is no body.
			if chunked || !bytes.EqualFold(value, []byte("chunked")) || bytes.HasSuffix(line, []byte("1.0")) {
				return errForm
			}
			chunked = true
		case bytes.EqualFold(key, []byte("upgrade")):
			// What follows a web socket's head is not HTTP, if the server takes the
			// offer; else it is the next request. Only the first answer can be told apart,
			// and not which of several offers it takes.
			upgrades++
			r.wait = r.count == 0 && upgrades == 1 && bytes.EqualFold(value, []byte("websocket"))
		}
	}
	if lengths > 1 || lengths > 0 && chunked {
		return errForm // two servers would see two ends
	}
	r.count++
	r.body = length
	if chunked {
		r.chunk = chunkSize
	}
	return nil
}
