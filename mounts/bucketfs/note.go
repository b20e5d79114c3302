//go:build linux

package bucketfs

import (
	"crypto/rand"
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// note is what is kept with an object besides its bytes, in one entry of its
// metadata, as a URL's query is written: "id=4f1c…&mode=100755&mtime=1700000000.5".
type note struct {
	// id is made anew for every write, so that an answer that was lost can
	// be told from somebody else's write.
	id string
	// mode is st_mode; 0: the mount's default for a file or directory.
	mode uint32
	// mtime was set explicitly; zero: it is when the object was stored.
	mtime time.Time
}

func newID() string { return rand.Text()[:16] }

// special notes are those that a list must not leave out.
func (n note) special() bool { return n.mode != 0 || !n.mtime.IsZero() }

func (n note) String() string {
	var b strings.Builder
	b.WriteString("id=" + n.id)
	if n.mode != 0 {
		fmt.Fprintf(&b, "&mode=%o", n.mode)
	}
	if !n.mtime.IsZero() {
		fmt.Fprintf(&b, "&mtime=%d.%09d", n.mtime.Unix(), n.mtime.Nanosecond())
	}
	return b.String()
}

// parseNote reads what String wrote. What makes no sense counts as not there:
// anybody may write metadata.
func parseNote(s string) note {
	var n note
	if s == "" {
		return n
	}
	q, err := url.ParseQuery(s)
	if err != nil {
		return n
	}
	n.id = q.Get("id")
	if mode, err := strconv.ParseUint(q.Get("mode"), 8, 32); err == nil {
		switch mode & syscall.S_IFMT {
		case syscall.S_IFREG, syscall.S_IFDIR, syscall.S_IFLNK:
			n.mode = uint32(mode) & (syscall.S_IFMT | 0o7777)
		}
	}
	sec, nano, _ := strings.Cut(q.Get("mtime"), ".")
	if t, err := strconv.ParseInt(sec, 10, 64); err == nil {
		frac, err := strconv.ParseInt((nano + "000000000")[:9], 10, 64)
		if err == nil && frac >= 0 {
			n.mtime = time.Unix(t, frac)
		}
	}
	return n
}
