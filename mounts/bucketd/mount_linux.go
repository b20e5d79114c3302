package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"berth/mounts"
)

// mount starts a server for the job in a file, and returns when its mount
// answers, or with why there is none.
func mount(name string, out io.Writer) error {
	if err := prepare(); err != nil {
		return err
	}
	text, err := takeFile(name)
	if err != nil {
		return err
	}
	j, err := parseJob(text)
	if err == nil && !filepath.IsAbs(j.Mountpoint) {
		err = fmt.Errorf("mountpoint is %q, but must be an absolute path", j.Mountpoint)
	}
	if err != nil {
		if err := writeReport(out, mounts.Report{Fault: jobFault(err)}); err != nil {
			return err
		}
		return errReported
	}
	_, err = begin(text, j.Log, func(r mounts.Report) error {
		if err := writeReport(out, r); err != nil {
			return err
		}
		if r.Fault != nil {
			return errReported
		}
		return nil
	})
	clear(text)
	return err
}

// begin starts a server for a job's text, and hands each of its reports to told,
// until one says that the mount answers or told fails. The server outlives this
// program; pid is its process.
func begin(text []byte, logFile string, told func(mounts.Report) error) (pid int, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("socketpair: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "ours"), os.NewFile(uintptr(fds[1]), "theirs")
	defer ours.Close()
	conn, err := net.FileConn(ours)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	child := exec.CommandContext(context.Background(), "/proc/self/exe", "serve")
	child.Args[0] = "bucketd"
	child.Dir = "/"
	child.ExtraFiles = []*os.File{theirs}
	// Not the caller's standard error, which a caller may read to its end.
	if logFile != "" {
		f, err := os.OpenFile(logFile, os.O_WRONLY|os.O_CREATE|os.O_APPEND|unix.O_NOFOLLOW, 0o600)
		if err != nil {
			return 0, fmt.Errorf("open the log: %w", err)
		}
		defer f.Close()
		child.Stderr = f
	}
	child.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := child.Start(); err != nil {
		return 0, fmt.Errorf("start the server: %w", err)
	}
	theirs.Close()
	// One line: the text may have had more.
	line := append(bytes.ReplaceAll(bytes.TrimSpace(text), []byte("\n"), []byte(" ")), '\n')
	defer clear(line)
	if _, err := conn.Write(line); err != nil {
		return 0, fmt.Errorf("hand the job over: %w", err)
	}
	return child.Process.Pid, relay(conn, told)
}

// relay hands on reports until the last one.
func relay(in io.Reader, told func(mounts.Report) error) error {
	lines := bufio.NewScanner(in)
	for lines.Scan() {
		var r mounts.Report
		if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
			return fmt.Errorf("the server's report: %w", err)
		}
		if err := told(r); err != nil || r.Ready {
			return err
		}
	}
	return errors.New("the server ended without a report; see its log")
}

// takeFile reads a private file and deletes it, whatever it holds.
func takeFile(name string) ([]byte, error) {
	f, err := os.OpenFile(name, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", name)
	}
	if err := os.Remove(name); err != nil {
		return nil, fmt.Errorf("delete the job's file: %w", err)
	}
	if st.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("%s could be read by others (mode %03o); it was deleted: write it with mode 600, and take its keys for known", name, st.Mode().Perm())
	}
	return io.ReadAll(io.LimitReader(f, jobMax))
}
