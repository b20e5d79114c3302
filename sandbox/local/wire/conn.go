//go:build linux

package wire

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
)

// Frame is one message. Whoever receives one owns Files and must close them.
type Frame struct {
	Header
	Data  []byte
	Files []*os.File
}

// Conn sends and receives frames over a unix stream socket. Send may be called
// concurrently; Recv by one goroutine at a time.
type Conn struct {
	file *os.File
	raw  syscall.RawConn
	max  uint32
	over atomic.Bool // Close was called

	send sync.Mutex
	in   []byte // received and not yet consumed
	fds  []int  // received and not yet handed out
	// Where in in the frame of fds begins.
	fdsAt int
	oob   []byte // room for descriptors
}

// NewConn takes over f, a unix stream socket, and makes it non-blocking and
// close-on-exec. max bounds received frames; 0 = MaxFrame.
func NewConn(f *os.File, max int) (*Conn, error) {
	if max <= 0 || max > MaxFrame {
		max = MaxFrame
	}
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	return &Conn{file: f, raw: raw, max: uint32(max)}, nil
}

// Socket makes a Conn of descriptor fd, which it takes over.
func Socket(fd int, max int) (*Conn, error) {
	unix.CloseOnExec(fd)
	if err := unix.SetNonblock(fd, true); err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	return NewConn(os.NewFile(uintptr(fd), "socket"), max)
}

// Close ends the connection; a pending Recv fails.
func (c *Conn) Close() error {
	c.over.Store(true)
	return c.file.Close()
}

// closed is the error of the raw connection; after Close os.ErrClosed, which
// package os does not make of it.
func (c *Conn) closed(err error) error {
	if c.over.Load() {
		return os.ErrClosed
	}
	return err
}

// File is the socket, for its peer's credentials.
func (c *Conn) File() *os.File { return c.file }

// Send writes one frame. body is marshalled into h.Body when not nil. Files
// stay the caller's.
func (c *Conn) Send(h Header, body any, data []byte, files ...*os.File) error {
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return err
		}
		h.Body = b
	}
	buf, err := h.appendTo(make([]byte, 8, 8+64+len(h.Body)))
	if err != nil {
		return err
	}
	head := len(buf) - 8
	size := 4 + head + len(data)
	if size > MaxFrame || len(files) > MaxFiles {
		return ErrTooLarge
	}
	binary.BigEndian.PutUint32(buf, uint32(size))
	binary.BigEndian.PutUint32(buf[4:], uint32(head))
	var rights []byte
	if len(files) > 0 {
		// Dup'd, since File.Fd would change the blocking mode, which the
		// receiver shares: a command's stdout must stay as its maker set it.
		fds := make([]int, 0, len(files))
		defer func() {
			for _, fd := range fds {
				_ = unix.Close(fd)
			}
		}()
		for _, f := range files {
			fd, err := dup(f)
			if err != nil {
				return err
			}
			fds = append(fds, fd)
		}
		rights = unix.UnixRights(fds...)
	}
	c.send.Lock()
	defer c.send.Unlock()
	if err := c.write(buf, rights); err != nil {
		return err
	}
	if len(data) == 0 {
		return nil
	}
	return c.write(data, nil)
}

func dup(f *os.File) (int, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return 0, err
	}
	fd, derr := 0, error(nil)
	if err := raw.Control(func(n uintptr) { fd, derr = unix.FcntlInt(n, unix.F_DUPFD_CLOEXEC, 0) }); err != nil {
		return 0, err
	}
	return fd, derr
}

func (c *Conn) write(p, rights []byte) error {
	for len(p) > 0 {
		var n int
		var err error
		werr := c.raw.Write(func(fd uintptr) bool {
			n, err = unix.SendmsgN(int(fd), p, rights, nil, unix.MSG_NOSIGNAL)
			return err != unix.EAGAIN
		})
		if werr != nil {
			return c.closed(werr)
		}
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		p, rights = p[n:], nil
	}
	return nil
}

// ErrTooLarge is Recv's answer to a frame beyond the connection's bound, and
// Send's to one beyond MaxFrame.
var ErrTooLarge = errors.New("frame too large")

// Recv reads one frame; io.EOF when the peer closed between frames. After an
// error the connection is of no more use.
func (c *Conn) Recv() (*Frame, error) {
	f, err := c.recv()
	if err != nil {
		for _, fd := range c.fds {
			_ = unix.Close(fd)
		}
		c.fds = nil
	}
	return f, err
}

func (c *Conn) recv() (*Frame, error) {
	if err := c.fill(8); err != nil {
		return nil, err
	}
	size := binary.BigEndian.Uint32(c.in)
	head := binary.BigEndian.Uint32(c.in[4:])
	if size < 4 || head > size-4 {
		return nil, errors.New("malformed frame")
	}
	if size > c.max {
		return nil, ErrTooLarge
	}
	if err := c.fill(int(size) + 4); err != nil {
		return nil, unexpected(err)
	}
	f := &Frame{}
	body := c.in[8 : 4+size]
	if err := f.parse(body[:head]); err != nil {
		return nil, errors.New("malformed header")
	}
	if rest := body[head:]; len(rest) > 0 {
		f.Data = append([]byte(nil), rest...)
	}
	next := int(size) + 4
	if c.fdsAt < next {
		for _, fd := range c.fds {
			f.Files = append(f.Files, os.NewFile(uintptr(fd), "received"))
		}
		c.fds = nil
	}
	c.in = append(c.in[:0], c.in[next:]...)
	c.fdsAt -= next
	if cap(c.in) > 64<<10 && len(c.in) == 0 {
		c.in = nil
	}
	return f, nil
}

// ahead is how many bytes are read of what may be the next frames, so that a
// small frame takes one call.
const ahead = 4 << 10

// fill reads until n bytes are buffered, and perhaps more.
func (c *Conn) fill(n int) error {
	for len(c.in) < n {
		have := len(c.in)
		if room := max(n, have+ahead); cap(c.in) < room && (len(c.fds) == 0 || cap(c.in) < n) {
			grown := make([]byte, have, room)
			copy(grown, c.in)
			c.in = grown
		}
		want := min(cap(c.in), max(n, have+ahead)) - have
		if len(c.fds) > 0 {
			// These are still to be handed out: no further than their frame.
			want = n - have
		}
		if c.oob == nil {
			c.oob = make([]byte, unix.CmsgSpace(4*MaxFiles))
		}
		var got, oobn, flags int
		var err error
		rerr := c.raw.Read(func(fd uintptr) bool {
			got, oobn, flags, _, err = unix.Recvmsg(int(fd), c.in[have:have+want], c.oob, unix.MSG_CMSG_CLOEXEC)
			return err != unix.EAGAIN
		})
		if rerr != nil {
			return c.closed(rerr)
		}
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		if flags&unix.MSG_CTRUNC != 0 {
			return errors.New("too many descriptors")
		}
		c.in = c.in[:have+max(got, 0)]
		if oobn > 0 {
			if err := c.take(c.oob[:oobn]); err != nil {
				return err
			}
			c.fdsAt = c.last()
		}
		if got == 0 {
			if have == 0 {
				return io.EOF
			}
			return io.ErrUnexpectedEOF
		}
	}
	return nil
}

// last is where the last frame begins of which something is buffered.
// Descriptors that a read brings are that one's: they come with a frame's
// first byte, each frame is sent by a call of its own, and the kernel ends a
// read after the bytes that brought some.
func (c *Conn) last() int {
	at := 0
	for {
		rest := c.in[at:]
		if len(rest) < 4 {
			return at
		}
		size := int64(binary.BigEndian.Uint32(rest))
		if size > int64(c.max) || int64(len(rest)) <= size+4 {
			return at
		}
		at += int(size) + 4
	}
}

func (c *Conn) take(oob []byte) error {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return err
	}
	for i := range msgs {
		fds, err := unix.ParseUnixRights(&msgs[i])
		if err != nil {
			continue // other kinds carry nothing for us
		}
		c.fds = append(c.fds, fds...)
	}
	if len(c.fds) > MaxFiles {
		for _, fd := range c.fds {
			_ = unix.Close(fd)
		}
		c.fds = nil
		return errors.New("too many descriptors")
	}
	return nil
}

func unexpected(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}
