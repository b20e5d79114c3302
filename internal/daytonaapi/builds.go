package daytonaapi

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"berth/internal/dockerfile"
	"berth/sandbox"
)

// stamped is what a build's request becomes in its object.
func (b *buildInfo) stamped() *buildInfo {
	now := stamp(time.Now())
	return &buildInfo{Dockerfile: b.Dockerfile, ContextHashes: b.ContextHashes, CreatedAt: now, UpdatedAt: now, SnapshotRef: "daytona-" + b.hash() + ":daytona"}
}

// hash is the platform's of a build.
func (b *buildInfo) hash() string {
	hashes := slices.Sorted(slices.Values(b.ContextHashes))
	sum := sha256.Sum256([]byte(b.Dockerfile + strings.Join(hashes, "")))
	return hex.EncodeToString(sum[:])
}

// hidden is the name of the snapshot behind sandboxes that are built so.
func (b *buildInfo) hidden() string { return hiddenPrefix + b.hash()[:40] }

// buildOf is what the Manager is to build: of b, or of an image alone. skipped
// is told of instructions that have no effect here; it may be nil.
func (s *Server) buildOf(owner sandbox.Owner, b *buildInfo, image string, skipped func(line int, text string)) (sandbox.Build, error) {
	if skipped == nil {
		skipped = func(int, string) {}
	}
	var out sandbox.Build
	if b == nil {
		if err := dockerfile.From(&out, image); err != nil {
			return out, &sandbox.FieldError{Field: "imageName", Problem: err.Error()}
		}
		out.Origin = "FROM " + image
	} else {
		files, err := s.contextFiles(owner, b.ContextHashes)
		if err != nil {
			return out, err
		}
		if out, err = dockerfile.Skipping(b.Dockerfile, files, skipped); err != nil {
			return out, inField("buildInfo.dockerfileContent", err)
		}
	}
	if out.Snapshot != "" && isGeneral(out.Snapshot) {
		out.Snapshot, out.Account = "", account
	} else if out.Snapshot != "" {
		out.Snapshot = plainName(out.Snapshot, plainSnapshot())
	}
	return out, nil
}

// inField makes the field of each fault that err joins the API's.
func inField(field string, err error) error {
	var errs []error
	for _, fe := range fields(err) {
		said := *fe
		said.Field = field
		errs = append(errs, &said)
	}
	if len(errs) == 0 {
		return err
	}
	return errors.Join(errs...)
}

// job is a snapshot being made; its log can be followed, and is kept for a while.
type job struct {
	log    *buildLog
	cancel context.CancelFunc
	done   chan struct{}
}

// jobKept is for how long the log of a finished build is kept in memory.
const jobKept = time.Hour

// startJob begins work of the id of what it makes. It goes on when the work is
// done, for its log.
func (s *Server) startJob(id string, do func(ctx context.Context, log *buildLog) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return errClosing
	}
	ctx, cancel := context.WithCancel(s.ctx)
	j := &job{log: newBuildLog(), cancel: cancel, done: make(chan struct{})}
	s.jobs[id] = j
	s.wg.Go(func() {
		defer cancel()
		if err := do(ctx, j.log); err != nil && s.ctx.Err() == nil {
			s.log.ErrorContext(ctx, "build not recorded")
		}
		j.log.end()
		close(j.done)
	})
	time.AfterFunc(jobKept, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		select {
		case <-j.done:
			if s.jobs[id] == j {
				delete(s.jobs, id)
			}
		default:
		}
	})
	return nil
}

func (s *Server) job(id string) *job {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.jobs[id]
}

// endJob ends work in progress and waits for that.
func (s *Server) endJob(id string) {
	if j := s.job(id); j != nil {
		j.cancel()
		<-j.done
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.jobs[id] == j {
			delete(s.jobs, id)
		}
	}
}

// makeSnapshot begins to make the snapshot that rec asks for.
func (s *Server) makeSnapshot(rec snapshotRecord) error {
	return s.startJob(rec.ID, func(ctx context.Context, log *buildLog) error {
		var err error
		if rec.Source != "" {
			err = s.keepFiles(ctx, rec)
		} else {
			err = s.build(ctx, rec.Owner, rec.plain(), rec.Build, rec.ImageName, log)
		}
		if ctx.Err() != nil {
			return nil //nolint:nilerr // deleted, or it goes on when the next server starts
		}
		return s.records.snapshots.change(rec.ID, func(r *snapshotRecord) {
			switch {
			case err == nil:
				r.Phase = phaseDone
			case errors.Is(err, sandbox.ErrBuildFailed) && rec.Build != nil:
				r.Phase, r.Reason = phaseNoBuild, s.say(ctx, err)
			default:
				r.Phase, r.Reason = phaseFailed, s.say(ctx, err)
			}
		})
	})
}

// build has the Manager build a snapshot, and its log written to log.
func (s *Server) build(ctx context.Context, owner sandbox.Owner, plain string, b *buildInfo, image string, log *buildLog) error {
	build, err := s.buildOf(owner, b, image, func(line int, text string) {
		log.line(fmt.Sprintf("line %d has no effect here: %s", line, text))
	})
	if err != nil {
		return err
	}
	ctx = sandbox.WithProgress(ctx, func(p sandbox.Progress) { log.line(p.Text) })
	return patiently(ctx, func(ctx context.Context) error {
		_, err := s.m.CreateSnapshot(ctx, sandbox.Key{Owner: owner}, sandbox.SnapshotRequest{Name: plain, Build: &build})
		return err
	})
}

// buildFor builds what a sandbox is made of; others that are built so wait for
// the same.
func (s *Server) buildFor(ctx context.Context, rec sandboxRecord) error {
	id, failed := string(rec.ID), error(nil)
	err := s.startJob(id, func(ctx context.Context, log *buildLog) error {
		s.advance(rec.key(), "building_snapshot")
		failed = s.build(ctx, rec.Owner, rec.From, rec.Build, "", log)
		return nil
	})
	if err != nil {
		return err
	}
	j := s.job(id)
	select {
	case <-j.done:
		return failed
	case <-ctx.Done():
		j.cancel()
		<-j.done
		return ctx.Err()
	}
}

// keepFiles makes a snapshot of a sandbox's files.
func (s *Server) keepFiles(ctx context.Context, rec snapshotRecord) error {
	_, err := s.m.CreateSnapshot(ctx, sandbox.Key{Owner: rec.Owner, Session: sandbox.SessionID(rec.Source)}, sandbox.SnapshotRequest{Name: rec.plain()})
	for errors.Is(err, sandbox.ErrStarting) { // it goes on by itself
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Second):
		}
		list, lerr := s.m.ListSnapshots(ctx, rec.Owner, sandbox.SnapshotListRequest{Name: rec.plain()})
		if lerr == nil && len(list.Snapshots) > 0 {
			return nil
		}
		if w, _ := s.underWay(sandbox.Key{Owner: rec.Owner, Session: sandbox.SessionID(rec.Source)}); w == nil {
			return err
		}
	}
	return err
}

// maxBuildLog bounds the log of a build in memory, in bytes; beyond it the older
// half is dropped, so that what each line costs does not grow.
const maxBuildLog = 4 << 20

// buildLog is a log that grows and can be followed.
type buildLog struct {
	mu      sync.Mutex
	data    []byte
	dropped int
	ended   bool
	more    chan struct{} // closed when there is more, and replaced
}

func newBuildLog() *buildLog { return &buildLog{more: make(chan struct{})} }

func (l *buildLog) line(text string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.data = append(append(l.data, strings.TrimRight(text, "\n")...), '\n')
	if len(l.data) > maxBuildLog {
		n := len(l.data) - maxBuildLog/2
		l.data = append([]byte(nil), l.data[n:]...)
		l.dropped += n
	}
	l.wake()
}

func (l *buildLog) end() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ended = true
	l.wake()
}

// wake tells who waits; l.mu is held.
func (l *buildLog) wake() {
	close(l.more)
	l.more = make(chan struct{})
}

// after returns what comes after the first from bytes, and where that ends. more
// is closed when there is more; ended: there will be none.
func (l *buildLog) after(from int) (data []byte, next int, more <-chan struct{}, ended bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	at := max(0, from-l.dropped)
	return append([]byte(nil), l.data[at:]...), l.dropped + len(l.data), l.more, l.ended
}

// streamLog answers with the log of a job, and follows it when asked to. Its
// end is the end of the build. kept is what is left of one that is long done.
func (s *Server) streamLog(c *call, id string, kept func() (string, error)) (any, error) {
	h := c.w.Header()
	j := s.job(id)
	if j == nil {
		text, err := kept()
		if err != nil {
			return nil, err
		}
		h.Set("Content-Type", "text/plain; charset=utf-8")
		_, _ = c.w.Write([]byte(text)) // a client that is gone needs no log
		return written{}, nil
	}
	h.Set("Content-Type", "text/plain; charset=utf-8")
	h.Set("Cache-Control", "no-store")
	c.w.WriteHeader(http.StatusOK)
	rc := http.NewResponseController(c.w)
	follow := c.r.URL.Query().Get("follow") == "true"
	for from := 0; ; {
		data, next, more, ended := j.log.after(from)
		from = next
		_ = rc.SetWriteDeadline(time.Now().Add(time.Minute))
		if _, err := c.w.Write(data); err != nil {
			return written{}, nil //nolint:nilerr // the client has gone
		}
		if ended || !follow {
			return written{}, nil
		}
		if err := rc.Flush(); err != nil {
			return written{}, nil //nolint:nilerr // likewise
		}
		select {
		case <-more:
		case <-c.ctx().Done():
			return written{}, nil
		case <-s.ctx.Done():
			return written{}, nil
		}
	}
}

func (s *Server) snapshotLog(c *call) (any, error) {
	x, err := s.snapshot(c.ctx(), c.owner, c.r.PathValue("snapshot"))
	if err != nil {
		return nil, err
	}
	return s.streamLog(c, x.ID, func() (string, error) { return s.keptLog(c.ctx(), c.owner, x.plain) })
}

// keptLog is the end of a build's log that the Manager keeps.
func (s *Server) keptLog(ctx context.Context, owner sandbox.Owner, plain string) (string, error) {
	if plain == "" {
		return "", nil
	}
	list, err := s.m.ListSnapshots(ctx, owner, sandbox.SnapshotListRequest{Name: plain})
	if fe := fields(err); len(fe) == 1 { // of a failed build, the error holds it
		return fe[0].Problem + "\n", nil
	}
	if err != nil || len(list.Snapshots) == 0 {
		return "", err
	}
	return list.Snapshots[0].Log, nil
}

func (s *Server) snapshotLogURL(c *call) (any, error) {
	x, err := s.snapshot(c.ctx(), c.owner, c.r.PathValue("snapshot"))
	if err != nil {
		return nil, err
	}
	return urlBody{c.base + "/api/snapshots/" + x.ID + "/build-logs"}, nil
}

func (s *Server) sandboxLog(c *call, key sandbox.Key) (any, error) {
	v, err := s.see(c.ctx(), key)
	if err != nil {
		return nil, err
	}
	if v.rec.Build == nil {
		return nil, refuse(http.StatusNotFound, "the sandbox was not built, and has no log")
	}
	return s.streamLog(c, string(key.Session), func() (string, error) { return s.keptLog(c.ctx(), c.owner, v.rec.Build.hidden()) })
}

func (s *Server) sandboxLogURL(c *call, key sandbox.Key) (any, error) {
	v, err := s.see(c.ctx(), key)
	if err != nil {
		return nil, err
	}
	if v.rec.Build == nil {
		return nil, refuse(http.StatusNotFound, "the sandbox was not built, and has no log")
	}
	return urlBody{c.base + "/api/sandbox/" + string(key.Session) + "/build-logs"}, nil
}
