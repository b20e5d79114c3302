package daytona

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"time"

	"berth/mounts"
	"berth/sandbox"
	"berth/sandbox/daytona/resident"
)

// Buckets are shown by the program bucketd, which runs inside: it is brought once,
// found by its sum after that, or where an image has it, and keeps what is mounted
// (see package mounts, inside.go). Keys come in a file of a private directory, which
// bucketd deletes once it has read it.

// bucketdName is where an image can have bucketd, so that it need not be brought.
const bucketdName = "/usr/local/lib/berth/bucketd"

// server is bucketd in a sandbox.
type server struct {
	program string
	base    string
}

// mounts is where it keeps what is mounted, orders where orders come.
func (s *server) mounts() string { return s.base + "/mounts" }
func (s *server) orders() string { return s.base + "/orders" }

// hasMark and noneMark begin the answers of the look for it.
const (
	hasMark  = "berth-has "
	noneMark = "berth-none"
)

// order has bucketd carry an order out.
func (b *box) order(ctx context.Context, o mounts.Order) ([]mounts.Standing, error) {
	s, err := b.server(ctx, true)
	if err != nil {
		return nil, err
	}
	b.mu.Lock()
	o.Dir, o.User = s.mounts(), b.user
	b.mu.Unlock()
	text, err := json.Marshal(o)
	if err != nil {
		return nil, err
	}
	defer clear(text)
	file := s.orders() + "/" + strings.ToLower(rand.Text())
	if err := b.Upload(ctx, file, 0o600, bytes.NewReader(text), int64(len(text))); err != nil {
		b.removeFile(ctx, file)
		return nil, err
	}
	return b.bucketd(ctx, false, s, "order", file)
}

// removeFile deletes what may hold keys, also when the caller has gone.
func (b *box) removeFile(ctx context.Context, file string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
	defer cancel()
	if _, _, err := b.exec(ctx, "rm -f "+resident.Quote(file), 20*time.Second, true); err != nil {
		b.p.log.Warn("an order with keys may be left in the sandbox", slog.String("sandbox", b.id), slog.String("file", file), slog.Any("err", err))
	}
}

// standings asks how all mounts stand. It brings nothing.
func (b *box) standings(ctx context.Context) ([]mounts.Standing, error) {
	s, err := b.server(ctx, false)
	if err != nil || s == nil {
		return nil, err
	}
	return b.bucketd(ctx, true, s, "list", s.mounts())
}

// bucketd runs the program, as root where that can be: only root shows a bucket to
// all users, and may make its directory anywhere.
func (b *box) bucketd(ctx context.Context, quiet bool, s *server, verb, name string) ([]mounts.Standing, error) {
	run := resident.Quote(s.program) + " " + verb + " " + resident.Quote(name)
	text := "if [ \"$(id -u)\" != 0 ] && sudo -n true 2>/dev/null; then sudo -n " + run + "; else " + run + "; fi"
	if verb == "order" {
		text += "; c=$?; rm -f " + resident.Quote(name) + "; exit $c"
	}
	out, code, err := b.exec(ctx, text, mountTime, quiet)
	if err != nil {
		if verb == "order" { // it may not have been run
			b.removeFile(ctx, name)
		}
		return nil, err
	}
	for line := range strings.Lines(out) {
		rest, ok := strings.CutPrefix(line, mounts.AnswerMark)
		var a mounts.Answer
		if !ok || json.Unmarshal([]byte(rest), &a) != nil {
			continue
		}
		switch {
		case a.Error == mounts.AnswerFault && a.Fault != nil:
			return nil, fromInside(a.Fault)
		case a.Error == mounts.AnswerMountpoint:
			return nil, &sandbox.UserError{Err: sandbox.ErrMountpoint, Text: a.Message}
		case a.Error == mounts.AnswerUnsupported:
			return nil, &sandbox.UserError{Err: sandbox.ErrUnsupported, Text: a.Message}
		case a.Error != "":
			return nil, fmt.Errorf("bucketd: %s", a.Message)
		}
		return a.Standings, nil
	}
	return nil, fmt.Errorf("bucketd %s gave no answer (exit %d): %.300s", verb, code, strings.TrimSpace(out))
}

// fromInside says of a fault of the way to the service that the way began in the
// sandbox, whose loopback and whose network are not the reader's.
func fromInside(f *mounts.Fault) *mounts.Fault {
	if f.Kind != mounts.FaultUnreachable && f.Kind != mounts.FaultResolve {
		return f
	}
	return &mounts.Fault{Kind: f.Kind, Message: "asked from inside the sandbox at Daytona: " + f.Message +
		"; 127.0.0.1 and localhost are the sandbox itself there, and its network must let it reach the service (network_allow_list)"}
}

// server finds bucketd; with bring it comes into the sandbox where it is not, and
// else there may be none.
func (b *box) server(ctx context.Context, bring bool) (*server, error) {
	b.mu.Lock()
	s := b.buckets
	b.mu.Unlock()
	if s != nil {
		return s, nil
	}
	h := b.helper()
	if !bring {
		h = b.aside()
	}
	facts, err := h.Facts(ctx)
	if err != nil {
		return nil, err
	}
	program, err := b.p.o.program(facts.Arch)
	if err != nil {
		return nil, &sandbox.UserError{Err: sandbox.ErrUnsupported, Text: "buckets cannot be mounted: " + err.Error()}
	}
	sum := sha256.Sum256(program)
	s = &server{program: facts.Base + "/bucketd-" + hex.EncodeToString(sum[:8]), base: facts.Base}
	orders := resident.Quote(s.base + "/orders")
	out, _, err := b.exec(ctx, "umask 077; mkdir -p "+orders+" && [ -O "+orders+" ] && chmod 700 "+orders+" || exit 1\n"+
		"for d in "+resident.Quote(s.program)+" "+bucketdName+"; do if [ -x \"$d\" ] && \"$d\" list /nonexistent 2>/dev/null | grep -q '^"+strings.TrimSpace(mounts.AnswerMark)+"'; then echo \""+hasMark+"$d\"; exit 0; fi; done; echo "+noneMark,
		time.Minute, !bring)
	switch {
	case err != nil:
		return nil, err
	case strings.Contains(out, hasMark):
		_, rest, _ := strings.Cut(out, hasMark)
		s.program, _, _ = strings.Cut(rest, "\n")
	case !strings.Contains(out, noneMark):
		return nil, fmt.Errorf("the sandbox has no private directory for orders to bucketd: %.300s", strings.TrimSpace(out))
	case !bring:
		return nil, nil //nolint:nilnil // there is none, and nothing is mounted
	default:
		if err := b.bring(ctx, s.program, program); err != nil {
			return nil, err
		}
	}
	b.mu.Lock()
	b.buckets = s
	b.mu.Unlock()
	return s, nil
}

// bring uploads bucketd beside its name, and renames it: others may do the same.
func (b *box) bring(ctx context.Context, name string, program []byte) error {
	temp := name + "." + strings.ToLower(rand.Text())[:8]
	r := &telling{ctx: ctx, r: bytes.NewReader(program), size: len(program)}
	if err := b.Upload(ctx, temp, 0o755, r, int64(len(program))); err != nil {
		return err
	}
	t := resident.Quote(temp)
	out, code, err := b.exec(ctx, fmt.Sprintf("if [ \"$(wc -c <%s | tr -d ' ')\" != %d ]; then rm -f %s; echo it did not come whole; exit 3; fi; chmod 755 %s && mv -f %s %s",
		t, len(program), t, t, t, resident.Quote(name)), time.Minute, false)
	if err == nil && code != 0 {
		err = fmt.Errorf("bring bucketd into the sandbox: %.300s", strings.TrimSpace(out))
	}
	return err
}

// telling reports how much was read.
type telling struct {
	ctx        context.Context
	r          io.Reader
	size, done int
	told       time.Time
}

func (t *telling) Read(p []byte) (int, error) {
	n, err := t.r.Read(p)
	t.done += n
	if now := time.Now(); now.Sub(t.told) > time.Second {
		t.told = now
		sandbox.Report(t.ctx, sandbox.Progress{Text: fmt.Sprintf("bringing bucketd into the sandbox: %d of %d MiB", t.done>>20, t.size>>20)})
	}
	return n, err
}

// program is bucketd for an architecture.
func (o *Options) program(goarch string) ([]byte, error) {
	if o.Bucketd == nil {
		return nil, errors.New("this berth was built without the program that serves them")
	}
	return o.Bucketd(goarch)
}
