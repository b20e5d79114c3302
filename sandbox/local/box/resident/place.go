//go:build linux

// Package resident is what box does inside of a foreign sandbox: it stays there,
// as the resident, and keeps the processes that it starts, what they print and how
// they end; and it answers one call, which asks the resident.
//
// A resident lives in a private directory, which is the state directory of its
// monitor. A lock in it is held as long as the resident lives.
package resident

import (
	"encoding/json"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"berth/sandbox/local/journal"
	"berth/sandbox/local/wire"
)

// Names in a resident's directory, beside those of package journal.
const (
	lockName   = "lock"
	recordName = "resident.json"
	tempDir    = "tmp"
)

func failed(text string, err error) *wire.Error {
	return &wire.Error{Code: wire.CodeInternal, Text: text + ": " + err.Error()}
}

// bases are the directories that residents may live below, the best first: what
// lies in the home directory stays when the sandbox is stopped.
func bases(c *wire.Call) []string {
	if c.Base != "" {
		return []string{c.Base}
	}
	var list []string
	if h := home(); h != "" {
		list = append(list, strings.TrimSuffix(h, "/")+"/.berth")
	}
	uid := strconv.Itoa(os.Geteuid())
	return append(list, "/var/tmp/berth-"+uid, "/tmp/berth-"+uid)
}

func home() string {
	if h := os.Getenv("HOME"); strings.HasPrefix(h, "/") {
		return h
	}
	return ""
}

// dirIn is the directory of the sandbox's resident below base.
func dirIn(base, sandbox string) string {
	return base + "/" + sandbox + ".v" + strconv.Itoa(wire.CallVersion)
}

func validSandbox(id string) bool {
	if id == "" || len(id) > 100 || id[0] == '.' {
		return false
	}
	for i := range len(id) {
		c := id[i]
		if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '_' || c == '.') {
			return false
		}
	}
	return true
}

// private makes dir, if it is not there, and sees that nobody else gets in.
func private(dir string) error {
	if err := unix.Mkdir(dir, 0o700); err != nil && err != unix.EEXIST {
		return &os.PathError{Op: "mkdir", Path: dir, Err: err}
	}
	if err := owned(dir); err != nil {
		return err
	}
	return os.Chmod(dir, 0o700)
}

// owned fails unless dir is a directory of our own.
func owned(dir string) error {
	var st unix.Stat_t
	if err := unix.Lstat(dir, &st); err != nil {
		return &os.PathError{Op: "stat", Path: dir, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR || st.Uid != uint32(os.Geteuid()) {
		return &os.PathError{Op: "open", Path: dir, Err: unix.EPERM}
	}
	return nil
}

// connect connects to the sandbox's resident; nil when none runs. It changes the
// working directory.
func connect(c *wire.Call) (*wire.Conn, string) {
	base := settled(c)
	if base == "" {
		return nil, ""
	}
	dir := dirIn(base, c.Sandbox)
	return connectIn(dir), dir
}

// settled is the base that the sandbox's residents live below, since one has lived
// there before: what it has started is known there, and nowhere else. Empty when
// there was none.
func settled(c *wire.Call) string {
	for _, base := range bases(c) {
		if owned(dirIn(base, c.Sandbox)) == nil {
			return base
		}
	}
	return ""
}

func connectIn(dir string) *wire.Conn {
	// A socket's address is short, and a path may be long.
	if unix.Chdir(dir) != nil {
		return nil
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil
	}
	for {
		err = unix.Connect(fd, &unix.SockaddrUnix{Name: journal.SocketName})
		if err != unix.EINTR {
			break
		}
	}
	if err != nil {
		_ = unix.Close(fd)
		return nil
	}
	conn, err := wire.Socket(fd, 0)
	if err != nil {
		return nil
	}
	return conn
}

// serving is the directory of the resident, which may be just starting, once it
// answers; empty when there is none. Its socket is there before it is.
func serving(c *wire.Call, wait time.Duration) string {
	for end := time.Now().Add(wait); ; time.Sleep(2 * time.Millisecond) {
		if conn, dir := connect(c); conn != nil {
			r := &caller{conn: conn}
			err := r.ask(wire.OpHello, wire.Hello{Version: wire.Version}, nil)
			_ = conn.Close()
			if err == nil {
				return dir
			}
		}
		if time.Now().After(end) {
			return ""
		}
	}
}

func readRecord(dir string) *wire.Resident {
	b, err := os.ReadFile(dir + "/" + recordName)
	r := &wire.Resident{}
	if err != nil || json.Unmarshal(b, r) != nil {
		return nil
	}
	return r
}

func writeRecord(dir string, r *wire.Resident) error {
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	if err := os.WriteFile(dir+"/"+recordName+".tmp", b, 0o600); err != nil {
		return err
	}
	return os.Rename(dir+"/"+recordName+".tmp", dir+"/"+recordName)
}

// program is the path of this program.
func program() string {
	if exe, err := os.Executable(); err == nil {
		return exe
	}
	return os.Args[0]
}
