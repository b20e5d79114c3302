//go:build linux

package monitor

import (
	"bytes"
	"encoding/json"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"berth/sandbox/local/journal"
	"berth/sandbox/local/wire"
)

// maxReport bounds a line that bucketd writes.
const maxReport = 64 << 10

// served is a bucketd that runs.
type served struct {
	process  *os.Process
	conn     *os.File
	errs     *tail
	gone     chan struct{} // closed when it has ended
	expected bool          // bucket.mu: it was told to end
	lost     []string      // set before gone is closed
	failed   bool          // likewise: it ended with an error
}

// start runs bucketd and gives it the job.
func (b *bucket) start(ids *wire.Placed) (*served, error) {
	m := b.m
	var job map[string]any
	d := json.NewDecoder(bytes.NewReader(b.job))
	d.UseNumber()
	if err := d.Decode(&job); err != nil {
		return nil, &wire.Error{Text: "the job cannot be understood"}
	}
	view, _ := job["view"].(map[string]any)
	if view == nil {
		view = map[string]any{}
	}
	view["uid"], view["gid"], view["allow_other"] = ids.UID, ids.GID, true
	job["view"], job["staging"] = view, "/proc/self/fd/4"
	text, err := json.Marshal(job)
	if err != nil {
		return nil, err
	}
	staging, id, err := m.staging()
	if err != nil {
		return nil, err
	}
	defer staging.Close()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	theirs := os.NewFile(uintptr(pair[1]), "bucket")
	defer theirs.Close()
	_ = unix.SetNonblock(pair[0], true)
	ours := os.NewFile(uintptr(pair[0]), "bucket")
	errR, errW, err := os.Pipe()
	if err != nil {
		_ = ours.Close()
		return nil, err
	}
	defer errW.Close()
	null, err := os.OpenFile("/dev/null", os.O_RDWR, 0)
	if err != nil {
		_, _ = ours.Close(), errR.Close()
		return nil, err
	}
	defer null.Close()
	attr := &os.ProcAttr{Dir: "/", Files: []*os.File{null, null, errW, theirs, staging, b.exe}, Sys: &syscall.SysProcAttr{Setsid: true},
		Env: []string{"PATH=/usr/bin:/bin", "HOME=/", "GOMAXPROCS=2", "GODEBUG=containermaxprocs=0,updatemaxprocs=0"}}
	if id > 0 {
		attr.Sys.Credential = &syscall.Credential{Uid: id, Gid: id}
	}
	args := []string{"box", "bucket"}
	if service, _ := job["service"].(map[string]any); service["ambient"] == true {
		args = append(args, "ambient")
	}
	p, err := os.StartProcess("/proc/self/exe", args, attr)
	if err != nil {
		_, _ = ours.Close(), errR.Close()
		return nil, err
	}
	s := &served{process: p, conn: ours, errs: &tail{}, gone: make(chan struct{})}
	go s.collect(errR)
	_ = ours.SetWriteDeadline(time.Now().Add(bucketInit))
	_, err = ours.Write(append(text, '\n'))
	clear(text)
	if err != nil {
		s.end()
		return nil, &wire.Error{Text: "it does not take its job: " + s.errs.String()}
	}
	return s, nil
}

// staging is the directory for what is on its way into a bucket, and the id
// that bucketd runs as; 0: our own.
func (m *monitor) staging() (*os.File, uint32, error) {
	dir := m.dir + "/" + journal.StagingDir
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, 0, err
	}
	var id uint32
	if os.Geteuid() == 0 {
		// As for the gate: nobody inside has it, and it owns nothing outside.
		id = 65534
		if ids := m.launch.IDs; ids.Base > 0 && ids.Count > 0 {
			id = ids.Base + ids.Count - 1
		}
		if err := os.Chown(dir, int(id), int(id)); err != nil {
			return nil, 0, err
		}
	}
	f, err := os.Open(dir)
	return f, id, err
}

// hand gives the mount to bucketd.
func (s *served) hand(fd *os.File) error {
	raw, err := s.conn.SyscallConn()
	if err != nil {
		return err
	}
	from, err := fd.SyscallConn()
	if err != nil {
		return err
	}
	var serr error
	if err := from.Control(func(mount uintptr) {
		_ = raw.Control(func(conn uintptr) {
			serr = unix.Sendmsg(int(conn), []byte{0}, unix.UnixRights(int(mount)), nil, unix.MSG_NOSIGNAL)
		})
	}); err != nil {
		return err
	}
	return serr
}

// report is a line that bucketd writes.
type bucketReport struct {
	Checked bool        `json:"checked"`
	Ready   bool        `json:"ready"`
	Entries int         `json:"entries"`
	More    bool        `json:"more"`
	Fault   *wire.Fault `json:"fault"`
	Lost    []string    `json:"lost"`
}

func (s *served) report(limit time.Duration) (bucketReport, *wire.Error) {
	var r bucketReport
	_ = s.conn.SetReadDeadline(time.Now().Add(limit))
	line, err := s.line()
	if err == nil {
		err = json.Unmarshal(line, &r)
	}
	if err == nil && r.Fault != nil {
		r.Fault.Kind, r.Fault.Message = cut(r.Fault.Kind, 40), cut(r.Fault.Message, 1000)
	}
	if err == nil {
		return r, nil
	}
	select { // what it said on its way out tells more
	case <-s.gone:
	case <-time.After(time.Second):
	}
	text := "the program that serves the bucket "
	if os.IsTimeout(err) {
		return r, &wire.Error{Code: wire.CodeInternal, Text: text + "does not answer within " + span(limit)}
	}
	return r, &wire.Error{Code: wire.CodeInternal, Text: text + "ended before it was ready: " + s.errs.String()}
}

// line reads to the next line's end, byte by byte: there are few.
func (s *served) line() ([]byte, error) {
	var line []byte
	var c [1]byte
	for len(line) < maxReport {
		if _, err := s.conn.Read(c[:]); err != nil {
			return nil, err
		}
		if c[0] == '\n' {
			return line, nil
		}
		line = append(line, c[0])
	}
	return nil, &wire.Error{Text: "its report is too long"}
}

// end ends bucketd at once.
func (s *served) end() {
	_ = s.process.Kill()
	<-s.gone
}

// collect keeps the end of what bucketd says, and waits for it.
func (s *served) collect(errs *os.File) {
	buf := make([]byte, 4096)
	for {
		n, err := errs.Read(buf)
		s.errs.add(buf[:n])
		if err != nil {
			break
		}
	}
	_ = errs.Close()
	state, err := s.process.Wait()
	s.failed = err != nil || !state.Success()
	// What it could not bring in is its last word.
	_ = s.conn.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
	for {
		line, err := s.line()
		if err != nil {
			break
		}
		var r bucketReport
		if json.Unmarshal(line, &r) == nil {
			s.lost = append(s.lost, r.Lost...)
		}
	}
	_ = s.conn.Close()
	close(s.gone)
}

// loss says what could not be brought in; "" when all was.
func (s *served) loss() string {
	select {
	case <-s.gone:
	default:
		return ""
	}
	switch n := len(s.lost); {
	case n > 0:
		text := "what was written to " + cut(strings.Join(s.lost[:min(n, 3)], ", "), 300)
		if n > 3 {
			text += " and " + strconv.Itoa(n-3) + " more"
		}
		return text + " and not acknowledged by close or fsync could not be brought into the bucket, and is lost"
	case s.failed:
		return "the program that served it ended with an error, so that what no close or fsync had acknowledged may be lost: " + s.errs.String()
	}
	return ""
}

// tail keeps the last bytes of a stream.
type tail struct {
	mu   sync.Mutex
	text []byte
}

func (t *tail) add(p []byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.text = append(t.text, p...)
	if n := len(t.text) - 2048; n > 0 {
		t.text = append(t.text[:0], t.text[n:]...)
	}
}

// String is the last line.
func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	text := strings.TrimSpace(string(t.text))
	if i := strings.LastIndexByte(text, '\n'); i >= 0 {
		text = text[i+1:]
	}
	if text == "" {
		return "it said nothing"
	}
	return cut(text, 500)
}
