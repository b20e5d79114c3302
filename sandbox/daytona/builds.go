package daytona

import (
	"archive/tar"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"berth/internal/dockerfile"
	"berth/sandbox"
	"berth/sandbox/daytona/api"
)

// mark ends the Dockerfile of a build of berth's: it tells which build it was.
const mark = "\n# berth build "

func markOf(text string) string {
	_, digest, ok := strings.Cut(text, mark)
	if !ok {
		return ""
	}
	return strings.TrimSpace(digest)
}

func withoutMark(text string) string {
	text, _, _ = strings.Cut(text, mark)
	return text
}

// BuildSnapshot has the platform build b.
func (p *Provider) BuildSnapshot(ctx context.Context, owner sandbox.Owner, name string, b sandbox.Build, spec sandbox.Spec) (sandbox.SnapshotInfo, error) {
	at, err := p.at()
	if err != nil {
		return sandbox.SnapshotInfo{}, err
	}
	if n := spec.Network; n != nil && n.Limited() && !p.o.BestEffort {
		return sandbox.SnapshotInfo{}, &sandbox.UserError{Err: sandbox.ErrUnsupported, Text: "Daytona builds with a network of its own, which cannot be limited as sandboxes are here; have the operator make the snapshot, or set best_effort"}
	}
	full, digest := p.prefixOf(owner)+name, b.Digest()
	n := api.NewSnapshot{Name: full, Region: p.o.Target}
	if n.Build, err = p.dockerfileOf(ctx, owner, b); err != nil {
		return sandbox.SnapshotInfo{}, err
	}
	n.Build.Dockerfile += mark + digest + "\n"
	n.CPU, n.Memory, n.Disk = int(spec.Resources.CPU), int(gib(spec.Resources.Memory)), int(gib(spec.Resources.Disk))
	s, err := at.Snapshot(ctx, full)
	switch {
	case err == nil && !failed(s) && s.Build != nil && markOf(s.Build.Dockerfile) == digest && s.State != api.SnapshotRemoving:
		// The same build: done, or on its way.
	case err == nil:
		if err := p.vacate(ctx, full); err != nil {
			return sandbox.SnapshotInfo{}, err
		}
		s = nil
	case errors.Is(err, api.ErrNotFound):
		s = nil
	default:
		return sandbox.SnapshotInfo{}, p.fail("look for snapshot "+name, err)
	}
	if s == nil {
		if len(b.Files) > 0 {
			hash, err := p.pushContext(ctx, b.Files)
			if err != nil {
				return sandbox.SnapshotInfo{}, err
			}
			n.Build.Context = append(n.Build.Context, hash)
		}
		s, err = at.CreateSnapshot(ctx, n)
		if errors.Is(err, api.ErrConflict) || errors.Is(err, api.ErrMaybeDone) {
			var lerr error
			if s, lerr = at.Snapshot(context.WithoutCancel(ctx), full); lerr != nil || s.Build == nil || markOf(s.Build.Dockerfile) != digest {
				if lerr == nil {
					return sandbox.SnapshotInfo{}, sandbox.ErrExists
				}
			} else {
				err = nil
			}
		}
		if err != nil {
			return sandbox.SnapshotInfo{}, p.fail("build snapshot "+name, err)
		}
	}
	s, err = p.built(ctx, owner, name, b, s)
	if err != nil {
		return sandbox.SnapshotInfo{}, err
	}
	info := snapshotInfo(owner, name, s)
	if info.Log, err = p.BuildLog(ctx, owner, name, sandbox.MaxBuildLog); err != nil {
		p.log.Debug("no log of a build", slog.String("snapshot", full), slog.Any("err", err)) // it is built all the same
	}
	return info, nil
}

// built follows a build to its end.
func (p *Provider) built(ctx context.Context, owner sandbox.Owner, name string, b sandbox.Build, s *api.Snapshot) (*api.Snapshot, error) {
	var log *follower
	defer func() { log.close() }()
	id, end := s.ID, p.now().Add(p.o.Times.Build)
	for wait := p.o.Times.Look / 8; ; wait = min(2*wait, p.o.Times.Look) {
		if log == nil && s.State != api.SnapshotPending {
			log = p.follow(ctx, func(ctx context.Context) (logReader, error) { return p.have.SnapshotLog(ctx, id, true) }, true)
		}
		switch {
		case s.State == api.SnapshotActive:
			log.drain()
			p.keepLog(owner, name, log.text())
			return s, nil
		case failed(s):
			log.drain()
			p.keepLog(owner, name, log.text())
			return nil, buildError(b, s, log.text())
		case p.now().After(end):
			return nil, &sandbox.UserError{Err: sandbox.ErrUnavailable, Text: fmt.Sprintf("Daytona has not built snapshot %s yet (%s); the same call again waits on", name, s.State)}
		}
		sandbox.Report(ctx, sandbox.Progress{Text: fmt.Sprintf("Daytona: snapshot %s is %s", name, s.State)})
		err := pause(ctx, wait)
		if err == nil {
			var now *api.Snapshot
			if now, err = p.have.Snapshot(ctx, id); err == nil {
				s = now
				continue
			}
		}
		if ctx.Err() != nil {
			// Nobody wants it any more. What cannot be removed now is in the way of
			// nothing: a build of the same name removes it.
			rctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
			defer cancel()
			_ = p.have.DeleteSnapshot(rctx, id)
			return nil, ctx.Err()
		}
		return nil, p.fail("look at snapshot "+name, err)
	}
}

// dockerfileOf says a build as a Dockerfile. One that stands on a snapshot goes
// on where that snapshot's Dockerfile ended.
func (p *Provider) dockerfileOf(ctx context.Context, owner sandbox.Owner, b sandbox.Build) (*api.Build, error) {
	out := &api.Build{}
	steps := b
	steps.Image, steps.Snapshot = "", ""
	switch {
	case b.Image != "":
		image, err := imageName(b.Image)
		if err != nil {
			return nil, err
		}
		out.Dockerfile = "FROM " + image + "\n"
	case b.Snapshot != "":
		s, err := p.usableSnapshot(ctx, owner, b.Snapshot)
		if err != nil {
			return nil, err
		}
		switch {
		case s.Build != nil:
			out.Dockerfile, out.Context = strings.TrimRight(withoutMark(s.Build.Dockerfile), "\n")+"\n", slices.Clone(s.Build.Context)
		case s.Image != "":
			out.Dockerfile = "FROM " + s.Image + "\n"
		default:
			return nil, &sandbox.FieldError{Field: "image", Problem: fmt.Sprintf("snapshot %s was made of a sandbox, and Daytona's builder cannot stand on it", b.Snapshot), Allowed: "an image, or a snapshot that was built",
				Hint: "start a sandbox of it, make the changes with execute_command, and create_snapshot of that"}
		}
	default:
		return nil, &sandbox.FieldError{Field: "image", Problem: "a build at Daytona must say what it stands on", Allowed: "an image such as debian:12, or snapshot:NAME"}
	}
	out.Dockerfile += dockerfile.Text(steps)
	return out, nil
}

// pushContext puts the files of a build where the platform's builder finds them,
// and returns the name that it knows them by.
func (p *Provider) pushContext(ctx context.Context, files map[string]sandbox.BuildFile) (string, error) {
	at, err := p.at()
	if err != nil {
		return "", err
	}
	f, err := os.CreateTemp("", "berth-context-*.tar")
	if err != nil {
		return "", fmt.Errorf("pack the build's files: %w", err)
	}
	defer os.Remove(f.Name())
	defer f.Close()
	sum := sha256.New()
	if err := packContext(io.MultiWriter(f, sum), files); err != nil {
		return "", err
	}
	size, err := f.Seek(0, io.SeekCurrent)
	if err != nil {
		return "", fmt.Errorf("pack the build's files: %w", err)
	}
	hash := hex.EncodeToString(sum.Sum(nil))
	access, err := at.PushAccess(ctx)
	if err != nil {
		return "", p.fail("ask where build contexts go", err)
	}
	switch there, err := at.HasContext(ctx, access, hash); {
	case err != nil:
		return "", p.fail("look for the build's files", err)
	case there:
		return hash, nil
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return "", fmt.Errorf("pack the build's files: %w", err)
	}
	sandbox.Report(ctx, sandbox.Progress{Text: "Daytona: sending the build's files", Total: size})
	if err := at.PutContext(ctx, access, hash, f, size); err != nil {
		return "", p.fail("send the build's files", err)
	}
	return hash, nil
}

// packContext writes a tar of regular files. The platform's builder knows no
// others: it leaves directories out, and links become empty files.
func packContext(w io.Writer, files map[string]sandbox.BuildFile) error {
	t := tar.NewWriter(w)
	for _, name := range slices.Sorted(maps.Keys(files)) {
		f := files[name]
		switch {
		case f.Mode&fs.ModeSymlink != 0:
			return &sandbox.FieldError{Field: "files", Problem: fmt.Sprintf("%s is a symbolic link, which Daytona's builder does not keep", name), Hint: "make it in a run step: RUN ln -s TARGET PATH"}
		case f.Mode.IsDir():
			continue
		}
		if err := t.WriteHeader(&tar.Header{Name: name, Mode: int64(f.Mode.Perm()), Size: f.Size, Typeflag: tar.TypeReg, Format: tar.FormatPAX}); err != nil {
			return fmt.Errorf("pack %s: %w", name, err)
		}
		r, err := f.Open()
		if err != nil {
			return fmt.Errorf("pack %s: %w", name, err)
		}
		_, err = io.Copy(t, r)
		if err = errors.Join(err, r.Close()); err != nil {
			return fmt.Errorf("pack %s: %w", name, err)
		}
	}
	return t.Close()
}

// What builders' logs say: of which step the lines that follow are, and how the
// last one ended.
var (
	stepLine  = regexp.MustCompile(`(?:^Step (\d+)/(\d+) : |^(?:#\d+ )?\[(?:\S+ )?\s*(\d+)/(\d+)\] )`)
	codeLine  = regexp.MustCompile(`(?:returned a non-zero code: |exit code: |exited with )(\d+)`)
	kitPrefix = regexp.MustCompile(`^#\d+ (?:\d+\.\d+ )?`)
)

// buildError says why a build failed, as far as its log tells.
func buildError(b sandbox.Build, s *api.Snapshot, log string) error {
	e := &sandbox.BuildError{Steps: len(b.Steps), Problem: cmp.Or(s.Reason, "Daytona gives no reason"), Log: tail(log, sandbox.MaxBuildLog)}
	for line := range strings.Lines(log + "\n" + s.Reason) {
		if m := stepLine.FindStringSubmatch(line); m != nil {
			n, _ := strconv.Atoi(cmp.Or(m[1], m[3]))
			of, _ := strconv.Atoi(cmp.Or(m[2], m[4]))
			switch of {
			case e.Steps: // FROM does not count
				e.Step = n
			case e.Steps + 1: // it does
				e.Step = n - 1
			}
		}
		if m := codeLine.FindStringSubmatch(line); m != nil {
			code, _ := strconv.Atoi(m[1])
			e.ExitCode = &code
		}
	}
	if e.Step < 1 || e.Step > e.Steps {
		e.Step = 0
		return e
	}
	if e.ExitCode != nil {
		e.Problem = fmt.Sprintf("exited with %d", *e.ExitCode) // the platform's own reason says where, in its words
	}
	step := b.Steps[e.Step-1]
	e.Line = step.Line
	e.Text, _, _ = strings.Cut(step.Text, "\n")
	return e
}

// BuildLog is the end of the log of the last build of a snapshot.
func (p *Provider) BuildLog(ctx context.Context, owner sandbox.Owner, name string, most int64) (string, error) {
	at, err := p.at()
	if err != nil {
		return "", err
	}
	p.mu.Lock()
	text := p.logs[p.prefixOf(owner)+name]
	p.mu.Unlock()
	if text != "" {
		return tail(text, int(most)), nil
	}
	s, err := at.Snapshot(ctx, p.prefixOf(owner)+name)
	if errors.Is(err, api.ErrNotFound) || err == nil && s.Build == nil {
		return "", sandbox.ErrNotFound
	}
	if err != nil {
		return "", p.fail("look for snapshot "+name, err)
	}
	r, err := at.SnapshotLog(ctx, s.ID, false)
	if errors.Is(err, api.ErrNotFound) {
		return "", sandbox.ErrNotFound
	}
	if err != nil {
		return "", p.fail("read the build's log", err)
	}
	defer r.Close()
	b, err := io.ReadAll(io.LimitReader(r, 16<<20))
	if err != nil {
		return "", p.fail("read the build's log", err)
	}
	if len(b) == 0 {
		return "", sandbox.ErrNotFound
	}
	return tail(plainLog(string(b)), int(most)), nil
}

// keptLogs bounds how many builds' logs are remembered.
const keptLogs = 64

// keepLog remembers the log of a build: the platform forgets that of one that
// failed when it is removed.
func (p *Provider) keepLog(owner sandbox.Owner, name, text string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.logs) >= keptLogs {
		clear(p.logs)
	}
	p.logs[p.prefixOf(owner)+name] = text
}

// tail is the end of a text, at most so many bytes, from a line's beginning on.
func tail(text string, most int) string {
	if most <= 0 || len(text) <= most {
		return text
	}
	text = text[len(text)-most:]
	if i := strings.IndexByte(text, '\n'); i >= 0 {
		return text[i+1:]
	}
	return strings.ToValidUTF8(text, "")
}

// plainLog is a log without the numbers that builders put before each line.
func plainLog(text string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		b.WriteString(plainLine(line))
	}
	return b.String()
}

func plainLine(line string) string {
	if m := kitPrefix.FindString(line); m != "" && strings.Contains(m, ".") {
		return line[len(m):]
	}
	return line
}
