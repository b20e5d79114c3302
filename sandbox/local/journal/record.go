//go:build linux

// Package journal keeps what a sandbox's monitor leaves on disk in its state
// directory: monitor.json, which says who is alive, and processes.jsonl, which
// says what was started and how it ended. Both are read by berth processes
// when there is no monitor to ask.
package journal

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"strconv"
	"strings"
	"sync"

	"berth/sandbox/local/wire"
)

// The names of a monitor's files and directories in its state directory.
const (
	RecordName = "monitor.json"
	SocketName = "monitor.sock"
	LogName    = "monitor.log" // what the monitor itself printed
	OutputDir  = "logs"        // the processes' output, see package logs
	// StagingDir holds what is on its way into buckets.
	StagingDir = "staging"
	// DeleteName marks a state directory whose sandbox is to be deleted. It
	// is made before anything is removed; whoever finds it goes on removing.
	DeleteName = "delete"
)

// BootID is the kernel's id of this boot of the machine.
var BootID = sync.OnceValues(func() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(b)), err
})

// StartTime is when process pid was started, in clock ticks since the boot.
// With the boot id it tells a process from a later one of the same pid. It
// fails with fs.ErrNotExist when there is no such process, or only a zombie.
func StartTime(pid int) (uint64, error) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0, err
	}
	// The command's name may hold anything, also ") R".
	fields := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:])
	if len(fields) < 20 {
		return 0, errors.New("/proc/PID/stat has another form than known")
	}
	if s := fields[0]; len(s) == 1 && (s[0] == 'Z' || s[0] == 'X') {
		return 0, os.ErrNotExist
	}
	return strconv.ParseUint(string(fields[19]), 10, 64)
}

// ReadRecord reads dir's monitor.json. fs.ErrNotExist: there never was a monitor.
func ReadRecord(dir string) (*wire.Record, error) {
	b, err := os.ReadFile(dir + "/" + RecordName)
	if err != nil {
		return nil, err
	}
	r := &wire.Record{}
	if err := json.Unmarshal(b, r); err != nil {
		return nil, errors.New(dir + "/" + RecordName + ": " + err.Error())
	}
	return r, nil
}

// WriteRecord replaces dir's monitor.json at once.
func WriteRecord(dir string, r *wire.Record) error {
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return replace(dir+"/"+RecordName, append(b, '\n'))
}

// Alive reports whether r's monitor runs: the same boot, and a process of that
// pid and start time. A monitor that has recorded its end may live on for a
// moment; that counts as alive too, since it may still hold files.
func Alive(r *wire.Record) bool {
	if boot, err := BootID(); err != nil || boot != r.Boot || r.MonitorPID <= 0 {
		return false
	}
	start, err := StartTime(r.MonitorPID)
	return err == nil && start == r.MonitorStart
}

func replace(path string, b []byte) error {
	tmp := path + ".tmp"
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		_ = os.Remove(tmp)
		return err
	}
	if err := os.Rename(tmp, path); err != nil {
		_ = os.Remove(tmp)
		return err
	}
	return nil
}
