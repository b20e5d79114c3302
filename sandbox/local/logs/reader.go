//go:build linux

package logs

import (
	"errors"

	"golang.org/x/sys/unix"
)

// retries bounds how often a reader starts again because a segment vanished
// under it. Each time the writer has moved on by a segment.
const retries = 100

var errBusy = errors.New("the log moves too fast to be read")

// Chunk is what one Read found.
type Chunk struct {
	Data    []byte
	Next    int64 // continues after Data
	Dropped int64 // bytes between the asked offset and Data's first that are gone
}

// Read returns bytes of process id's stream s below dir, from offset from on,
// at most max, and fewer at a hole or at the present end. It never waits. An
// offset past the end gives nothing and stays as it is.
func Read(dir, id string, s Stream, from, max int64) (Chunk, error) {
	if from < 0 {
		from = 0
	}
	for range retries {
		c, again, err := read(dir+"/"+id, s, from, max)
		if err != nil || !again {
			return c, err
		}
	}
	return Chunk{Next: from}, errBusy
}

func read(dir string, s Stream, from, max int64) (c Chunk, again bool, err error) {
	c.Next = from
	if max <= 0 {
		return c, false, nil
	}
	at, err := starts(dir, s)
	if err != nil || len(at) == 0 {
		return c, false, err
	}
	skip := func(to int64) { c.Dropped, c.Next = c.Dropped+to-c.Next, to }
	if from < at[0] {
		skip(at[0])
	}
	i := 0
	for i+1 < len(at) && at[i+1] <= c.Next {
		i++
	}
	for ; i < len(at); i++ {
		if c.Next < at[i] { // a hole; the segment before it is complete
			if len(c.Data) > 0 {
				return c, false, nil
			}
			skip(at[i])
		}
		err := c.segment(dir+"/"+name(s, at[i]), c.Next-at[i], max)
		if err == unix.ENOENT {
			if len(c.Data) > 0 {
				return c, false, nil
			}
			return Chunk{Next: from}, true, nil
		}
		if err != nil {
			return c, false, err
		}
		if int64(len(c.Data)) >= max {
			break
		}
	}
	return c, false, nil
}

// segment appends what one segment holds from offset off on.
func (c *Chunk) segment(path string, off, max int64) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	want := min(max-int64(len(c.Data)), st.Size-off)
	if want <= 0 {
		return nil
	}
	have := len(c.Data)
	if cap(c.Data)-have < int(want) {
		grown := make([]byte, have, have+int(want))
		copy(grown, c.Data)
		c.Data = grown
	}
	for want > 0 {
		n, err := unix.Pread(fd, c.Data[have:have+int(want)], off)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		if n == 0 {
			break
		}
		have, off, want = have+n, off+int64(n), want-int64(n)
		c.Data = c.Data[:have]
		c.Next += int64(n)
	}
	return nil
}
