package server

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"sync"
	"time"

	"berth/sandbox"
)

// maxValues bounds the values of one message. Decoded, an empty object of two
// bytes takes some two hundred, so that a message within its size could take a
// gigabyte. What is large and meant is text: one value.
const maxValues = 100_000

// tooManyValues counts what a JSON text can hold at most, without decoding it.
func tooManyValues(raw []byte) bool {
	n := 0
	for i := 0; i < len(raw); i++ {
		switch raw[i] {
		case '"':
			i = endOfString(raw, i)
		case ',', '[', '{':
			if n++; n > maxValues {
				return true
			}
		}
	}
	return false
}

// endOfString is where the string that opens at i closes; the end of raw when
// it does not.
func endOfString(raw []byte, i int) int {
	for {
		next := bytes.IndexByte(raw[i+1:], '"')
		if next < 0 {
			return len(raw)
		}
		i += 1 + next
		slashes := 0
		for raw[i-1-slashes] == '\\' {
			slashes++
		}
		if slashes%2 == 0 {
			return i
		}
	}
}

// heldShare is how much of what a server holds of requests may be one owner's.
const heldShare = 2

// held counts the bytes of requests that are being read or worked on over HTTP:
// a bound on one body is none while there may be thousands.
type held struct {
	max int64

	mu    sync.Mutex
	all   int64
	owner map[sandbox.Owner]int64
}

func newHeld(max int64) *held { return &held{max: max, owner: map[sandbox.Owner]int64{}} }

func (h *held) take(owner sandbox.Owner, n int64) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.all+n > h.max || h.owner[owner]+n > h.max/heldShare {
		return false
	}
	h.all += n
	h.owner[owner] += n
	return true
}

func (h *held) give(owner sandbox.Owner, n int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.all -= n
	if h.owner[owner] -= n; h.owner[owner] == 0 {
		delete(h.owner, owner)
	}
}

// errHeld says that there is no room for the rest of a body.
var errHeld = errors.New("too many large requests at once")

// A client may take bodyTime to send a body, and stallTime for some of it.
const (
	bodyTime  = 2 * time.Minute
	stallTime = 20 * time.Second
	bodyStep  = 32 << 10 // of room, at first
)

// read reads a body as it comes, and takes room for it as it comes: who says
// that much will follow, and sends nothing, holds nothing. release gives the
// room back, after errors too.
func (h *held) read(w http.ResponseWriter, r *http.Request, owner sandbox.Owner, limit int64) (b []byte, release func(), err error) {
	// Not http.Server.ReadTimeout: that would end the answer's stream, too.
	rc := http.NewResponseController(w)
	late := time.Now().Add(bodyTime)
	defer func() { _ = rc.SetReadDeadline(time.Time{}) }() // not every connection has deadlines
	var taken int64
	release = sync.OnceFunc(func() { h.give(owner, taken) })
	body := http.MaxBytesReader(w, r.Body, limit)
	for {
		if len(b) == cap(b) {
			have := int64(cap(b))
			room := min(max(2*have, bodyStep), limit+1)
			if n := r.ContentLength + 1; n > have { // one more, for the end
				room = min(room, n)
			}
			if !h.take(owner, room-have) {
				return nil, release, errHeld
			}
			taken += room - have
			b = append(make([]byte, 0, room), b...)
		}
		soon := time.Now().Add(stallTime)
		if late.Before(soon) {
			soon = late
		}
		_ = rc.SetReadDeadline(soon)
		n, err := body.Read(b[len(b):cap(b)])
		b = b[:len(b)+n]
		if err == io.EOF {
			return b, release, nil
		}
		if err != nil {
			return nil, release, err
		}
	}
}
