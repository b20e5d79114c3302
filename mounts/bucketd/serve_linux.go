package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"berth/mounts"
	"berth/mounts/bucketfs"
	"berth/mounts/objects"
)

// peerFD is the socket that the job arrives on.
const peerFD = 3

// prepare keeps the job's keys from others of the same user, and memory small.
func prepare() error {
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("prctl: %w", err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return fmt.Errorf("setrlimit: %w", err)
	}
	debug.SetGCPercent(50)
	debug.SetMemoryLimit(24 << 20)
	return nil
}

// serve serves one mount until the kernel says that it is gone.
func serve() error {
	if err := prepare(); err != nil {
		return err
	}
	logger := slog.New(slog.NewJSONHandler(os.Stderr, nil))
	file := os.NewFile(peerFD, "job")
	conn, err := net.FileConn(file)
	if err != nil {
		return errors.New("descriptor 3 is no socket: bucketd serve is started by another program")
	}
	file.Close()
	peer, ok := conn.(*net.UnixConn)
	if !ok {
		return errors.New("descriptor 3 is no unix socket")
	}
	defer peer.Close()
	text, err := readLine(peer)
	if err != nil {
		return fmt.Errorf("read the job: %w", err)
	}
	j, b, fault := checked(text)
	clear(text)
	if fault != nil {
		return report(peer, logger, mounts.Report{Fault: fault})
	}
	if err := report(peer, logger, mounts.Report{Checked: true}); err != nil {
		return err
	}
	fs := bucketfs.New(b, bucketfs.Options{Prefix: j.Prefix, ReadOnly: j.ReadOnly, View: j.View, Staging: j.Staging, Log: logger})
	server, err := attach(fs, j, peer)
	if err != nil {
		return report(peer, logger, mounts.Report{Fault: &mounts.Fault{Kind: mounts.FaultMount, Message: err.Error()}})
	}
	done := make(chan struct{})
	go func() {
		server.Serve()
		close(done)
	}()
	r, fault := answers(fs, j)
	if fault != nil {
		unmount(server, j)
		return report(peer, logger, mounts.Report{Fault: fault})
	}
	if err := report(peer, logger, r); err != nil {
		unmount(server, j)
		return err
	}
	wait(server, j, done, logger)
	lost := fs.Close()
	if len(lost) == 0 {
		return nil
	}
	logger.Error("lost: content that no close or fsync had acknowledged", slog.Any("keys", lost))
	// Who started us may be gone; the log has it too.
	_ = writeReport(peer, mounts.Report{Lost: lost[:min(len(lost), 100)]})
	return errReported
}

// report writes a report; one with a fault is the last, and an error.
func report(peer io.Writer, logger *slog.Logger, r mounts.Report) error {
	if err := writeReport(peer, r); err != nil {
		return fmt.Errorf("report: %w", err)
	}
	if r.Fault != nil {
		logger.Error("no mount", slog.String("kind", string(r.Fault.Kind)), slog.String("message", r.Fault.Message))
		return errReported
	}
	return nil
}

// readLine reads a line byte by byte: what follows comes with a descriptor.
func readLine(r io.Reader) ([]byte, error) {
	text := make([]byte, 0, 4096)
	b := make([]byte, 1)
	for len(text) < jobMax {
		if _, err := io.ReadFull(r, b); err != nil {
			return nil, err
		}
		if b[0] == '\n' {
			return text, nil
		}
		text = append(text, b[0])
	}
	return nil, fmt.Errorf("it is longer than %d bytes", jobMax)
}

// attach mounts where the job says, or takes the descriptor of a mount.
func attach(fs *bucketfs.FS, j mounts.Job, peer *net.UnixConn) (*fuse.Server, error) {
	opts := fs.MountOptions()
	opts.Logger = log.New(io.Discard, "", 0)
	if j.Mountpoint == "" {
		fd, err := receive(peer)
		if err != nil {
			return nil, fmt.Errorf("receive the descriptor of the mount: %w", err)
		}
		server, err := fuse.NewServer(fs, fmt.Sprintf("/dev/fd/%d", fd), opts)
		if err != nil {
			return nil, fmt.Errorf("the descriptor is no fresh mount: %w", err)
		}
		return server, nil
	}
	if j.ReadOnly {
		opts.DirectMountFlags = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_RDONLY
	}
	// Where root may not mount, as in a sandbox, its fusermount3 may.
	opts.DirectMount = os.Geteuid() == 0
	if j.ReadOnly {
		opts.Options = append(opts.Options, "ro")
	}
	server, err := fuse.NewServer(fs, j.Mountpoint, opts)
	if err != nil {
		return nil, fmt.Errorf("mount at %s: %w%s", j.Mountpoint, err, remedy(err))
	}
	return server, nil
}

func remedy(err error) string {
	switch {
	case errors.Is(err, os.ErrPermission), errors.Is(err, syscall.EPERM):
		return "; mounting needs root, or fusermount3 (package fuse3)"
	case strings.Contains(err.Error(), "executable file not found"):
		return "; install fuse3, or run as root"
	case errors.Is(err, os.ErrNotExist):
		return "; is /dev/fuse there, and the mount point?"
	}
	return ""
}

// widen lets the kernel read ahead as much as one request can hold. Where it
// may not be changed, reads are just shorter.
func widen(mountpoint string) {
	var st unix.Stat_t
	if unix.Stat(mountpoint, &st) != nil {
		return
	}
	name := fmt.Sprintf("/sys/class/bdi/%d:%d/read_ahead_kb", unix.Major(st.Dev), unix.Minor(st.Dev))
	_ = os.WriteFile(name, []byte("1024"), 0) // best effort
}

// receive takes one byte and the descriptor that comes with it.
func receive(peer *net.UnixConn) (int, error) {
	b, oob := make([]byte, 1), make([]byte, unix.CmsgSpace(4))
	n, oobn, _, _, err := peer.ReadMsgUnix(b, oob)
	if err != nil {
		return -1, err
	}
	if n == 0 {
		return -1, io.ErrUnexpectedEOF
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil || len(msgs) != 1 {
		return -1, errors.New("no descriptor came with the byte")
	}
	fds, err := unix.ParseUnixRights(&msgs[0])
	if err != nil || len(fds) != 1 {
		return -1, errors.New("one descriptor is expected")
	}
	unix.CloseOnExec(fds[0])
	return fds[0], nil
}

// answers looks through the mount, or, where it is elsewhere, as it would.
func answers(fs *bucketfs.FS, j mounts.Job) (mounts.Report, *mounts.Fault) {
	if j.Mountpoint != "" {
		widen(j.Mountpoint)
		if _, err := os.Stat(j.Mountpoint); err != nil {
			return mounts.Report{}, &mounts.Fault{Kind: mounts.FaultMount, Message: fmt.Sprintf("the mount does not answer: %v", err)}
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), objects.Patience)
	defer cancel()
	n, more, err := fs.Count(ctx)
	if err != nil {
		return mounts.Report{}, &mounts.Fault{Kind: mounts.FaultOther, Message: fmt.Sprintf("the bucket cannot be listed any more: %v", err)}
	}
	return mounts.Report{Checked: true, Ready: true, Entries: n, More: more}, nil
}

func unmount(server *fuse.Server, j mounts.Job) {
	if j.Mountpoint != "" {
		_ = server.Unmount() // the fault that led here is what is told
	}
}

// wait returns when the mount is gone. A signal to end takes it away when it is
// ours, after those who use it; a second one does not wait.
func wait(server *fuse.Server, j mounts.Job, done <-chan struct{}, logger *slog.Logger) {
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	signal.Ignore(syscall.SIGHUP)
	for {
		select {
		case <-done:
			return
		case <-signals:
		}
		if j.Mountpoint == "" {
			return
		}
		if err := server.Unmount(); err != nil {
			logger.Warn("still in use; unmounting when it no longer is", slog.Any("err", err))
			_ = unix.Unmount(j.Mountpoint, unix.MNT_DETACH) // best effort, as root
			select {
			case <-done:
			case <-signals:
			case <-time.After(objects.Patience):
			}
			return
		}
	}
}
