package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"berth/internal/driver"
	"berth/mounts"
)

// service is a bucket service as the views reach it.
type service struct {
	name     string // of berth's connection
	endpoint string // without the path
	job      mounts.Job
	// has tells how many bytes the bucket has under a key, and how many objects
	// below it; beside all mounts.
	has func(key string) (size int64, objects int, err error)
	// drop removes what has a prefix, beside all mounts.
	drop func(prefix string) error
}

// path is where a job finds what it reads.
func (s *service) path(j job) string {
	if s.name == "far" && j.path == "read/big" {
		return "away/big"
	}
	return j.path
}

// view is a program that shows a bucket as a directory.
type view interface {
	name() string
	// mount begins with nothing in any cache of its own.
	mount(s *service) error
	// work runs the client of this program on a path of the mount.
	work(op, path string, n int) (worked, error)
	// pid is the process that serves the mount.
	pid() (int, error)
	unmount() error
}

// ours is berth's mount in a sandbox, as mount_bucket makes it.
type ours struct {
	ctx     context.Context
	s       *driver.Session
	state   string
	session string
}

func (o *ours) name() string { return "berth" }

const bucketPlace = "/data"

func (o *ours) mount(s *service) error {
	_, err := o.s.Must(o.ctx, "mount_bucket", map[string]any{"session_id": o.session, "path": bucketPlace, "connection": s.name})
	return err
}

func (o *ours) unmount() error {
	_, err := o.s.Must(o.ctx, "unmount_bucket", map[string]any{"session_id": o.session, "path": bucketPlace})
	return err
}

// work polls, since a slow one takes longer than a call.
func (o *ours) work(op, path string, n int) (w worked, err error) {
	argv := []string{"/bench/client", bucketClient, op, filepath.Join(bucketPlace, path), strconv.Itoa(n)}
	a, err := o.s.Must(o.ctx, "execute_command", map[string]any{"session_id": o.session, "argv": argv, "timeout_seconds": 600})
	for err == nil && a.Result.ExitCode == nil && a.Result.State == "running" {
		a, err = o.s.Must(o.ctx, "read_output", map[string]any{"session_id": o.session, "process_id": a.Result.ProcessID, "wait_for": "exit", "wait_seconds": 45, "cursor": a.Result.Cursor})
	}
	if err != nil {
		return w, err
	}
	if err := json.Unmarshal([]byte(a.Output()), &w); err != nil {
		return w, fmt.Errorf("%s inside: %w: %.500s", op, err, a.Text)
	}
	return w, nil
}

// pid finds the program that serves the mount: a child of the sandbox's monitor.
func (o *ours) pid() (int, error) {
	records, err := filepath.Glob(filepath.Join(o.state, "sandboxes", "*", "monitor.json"))
	if err != nil || len(records) != 1 {
		return 0, fmt.Errorf("%d monitors: %w", len(records), err)
	}
	b, err := os.ReadFile(records[0])
	if err != nil {
		return 0, err
	}
	var monitor struct {
		PID int `json:"monitor_pid"`
	}
	if err := json.Unmarshal(b, &monitor); err != nil {
		return 0, err
	}
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return 0, err
	}
	for _, name := range stats {
		stat, err := os.ReadFile(name)
		if err != nil {
			continue // it has ended
		}
		head, rest, _ := strings.Cut(string(stat), ") ")
		if f := strings.Fields(rest); strings.Contains(head, "(bucketd") && len(f) > 1 && f[0] != "Z" && f[1] == strconv.Itoa(monitor.PID) {
			return strconv.Atoi(filepath.Base(filepath.Dir(name)))
		}
	}
	return 0, errors.New("no bucketd runs")
}

// peer is a program of this machine that mounts in the foreground.
type peer struct {
	ctx    context.Context
	title  string
	client string // the path of this program
	dir    string // of its own
	argv   func(s *service, dir, mountpoint string) (argv, env []string, err error)

	at   string
	cmd  *exec.Cmd
	out  bytes.Buffer
	done chan struct{}
	n    int
}

func (p *peer) name() string { return p.title }

func (p *peer) mount(s *service) error {
	p.n++
	own := filepath.Join(p.dir, strconv.Itoa(p.n))
	p.at = filepath.Join(own, "mount")
	if err := os.MkdirAll(p.at, 0o700); err != nil {
		return err
	}
	argv, env, err := p.argv(s, own, p.at)
	if err != nil {
		return err
	}
	p.out.Reset()
	p.cmd = exec.CommandContext(p.ctx, argv[0], argv[1:]...)
	// Nothing of this machine's accounts and proxies.
	p.cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + own, "TMPDIR=" + os.TempDir()}, env...)
	p.cmd.Stdout, p.cmd.Stderr = &p.out, &p.out
	if err := p.cmd.Start(); err != nil {
		return err
	}
	p.done = make(chan struct{})
	go func() { _ = p.cmd.Wait(); close(p.done) }()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); {
		var here, above unix.Stat_t
		if unix.Stat(p.at, &here) == nil && unix.Stat(own, &above) == nil && here.Dev != above.Dev {
			return nil
		}
		select {
		case <-p.done:
			return fmt.Errorf("it ended: %.300s", p.out.String())
		case <-time.After(20 * time.Millisecond):
		}
	}
	_ = p.unmount()
	return fmt.Errorf("it does not mount: %.300s", p.out.String())
}

func (p *peer) unmount() error {
	for range 250 { // what it still does may keep it busy
		if unix.Unmount(p.at, 0) == nil {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	_ = unix.Unmount(p.at, unix.MNT_DETACH)
	select {
	case <-p.done:
	case <-time.After(20 * time.Second):
		_ = p.cmd.Process.Kill()
		<-p.done
	}
	return os.RemoveAll(filepath.Dir(p.at))
}

func (p *peer) work(op, path string, n int) (w worked, err error) {
	out, err := exec.CommandContext(p.ctx, p.client, bucketClient, op, filepath.Join(p.at, path), strconv.Itoa(n)).Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			err = fmt.Errorf("%w: %.300s; it says %.300s", err, exit.Stderr, p.out.String())
		}
		return w, fmt.Errorf("%s: %w", op, err)
	}
	return w, json.Unmarshal(out, &w)
}

func (p *peer) pid() (int, error) { return p.cmd.Process.Pid, nil }

// s3fs, as its documentation mounts a service that is not Amazon's.
func s3fs(s *service, dir, at string) (argv, env []string, err error) {
	j := s.job.Service
	keys := filepath.Join(dir, "keys")
	err = os.WriteFile(keys, []byte(string(j.AccessKeyID)+":"+string(j.SecretAccessKey)+"\n"), 0o600)
	return []string{"s3fs", s.job.Bucket, at, "-f", "-o", "passwd_file=" + keys, "-o", "url=" + s.endpoint, "-o", "use_path_request_style", "-o", "endpoint=" + j.Region}, nil, err
}

// rclone, with the cache that its documentation asks for where files are read and
// written as on a disk; what is written is sent at once.
func rclone(s *service, dir, at string) (argv, env []string, err error) {
	j := s.job.Service
	remote := []string{"RCLONE_CONFIG=", "RCLONE_CONFIG_B_TYPE=s3", "RCLONE_CONFIG_B_PROVIDER=Other", "RCLONE_CONFIG_B_ENDPOINT=" + s.endpoint, "RCLONE_CONFIG_B_REGION=" + j.Region,
		"RCLONE_CONFIG_B_ACCESS_KEY_ID=" + string(j.AccessKeyID), "RCLONE_CONFIG_B_SECRET_ACCESS_KEY=" + string(j.SecretAccessKey)}
	if j.Kind == mounts.GCS {
		remote = []string{"RCLONE_CONFIG=", "RCLONE_CONFIG_B_TYPE=google cloud storage", "RCLONE_CONFIG_B_ANONYMOUS=true", "RCLONE_CONFIG_B_ENDPOINT=" + s.endpoint + "/storage/v1/", "RCLONE_CONFIG_B_BUCKET_POLICY_ONLY=true"}
	}
	return []string{"rclone", "mount", "b:" + s.job.Bucket, at, "--vfs-cache-mode", "full", "--vfs-write-back", "0s", "--cache-dir", filepath.Join(dir, "cache")}, remote, nil
}

func gcsfuse(s *service, _, at string) (argv, env []string, err error) {
	return []string{"gcsfuse", "--foreground", "--anonymous-access", "--custom-endpoint", s.endpoint + "/storage/v1/", "--implicit-dirs", "--enable-hns=false", s.job.Bucket, at}, nil, nil
}

// private is the memory that a process has for itself. The pages of its program are
// the machine's, which all of its mounts share. (Private_Dirty has those too, as long
// as the disk has not, which is so of a program that was just unpacked.)
func private(pid int) int64 {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, "Pss_Anon:"); ok {
			n, _ := strconv.ParseInt(strings.Fields(rest)[0], 10, 64) // the kernel writes numbers
			return n << 10
		}
	}
	return 0
}

// watch reads the private memory of a process until it is told to stop, and
// returns the first and the largest size.
func watch(pid int) (stop func() (first, peak int64)) {
	first := private(pid)
	peak := first
	end := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for tick := time.NewTicker(50 * time.Millisecond); ; {
			select {
			case <-end:
				tick.Stop()
				return
			case <-tick.C:
				peak = max(peak, private(pid))
			}
		}
	})
	return func() (int64, int64) {
		close(end)
		wg.Wait()
		return first, max(peak, private(pid))
	}
}
