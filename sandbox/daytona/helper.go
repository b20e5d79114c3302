package daytona

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"net/netip"
	"time"

	"berth/sandbox"
	"berth/sandbox/daytona/resident"
)

// helper runs processes in a sandbox and reaches its files.
type helper interface {
	Spawn(ctx context.Context, c sandbox.Command) (sandbox.Process, error)
	Process(ctx context.Context, id sandbox.ProcessID) (sandbox.Process, error)
	Processes(ctx context.Context) ([]sandbox.ProcessInfo, error)
	ForgetProcess(ctx context.Context, id sandbox.ProcessID) error
	Files() sandbox.Files
	Busy(ctx context.Context) (bool, error)
	Stop(ctx context.Context, reason string) error
	Facts(ctx context.Context, programs ...string) (resident.Facts, error)
	Reaches(ctx context.Context, to netip.AddrPort, wait time.Duration) (bool, error)
}

var _ helper = (*resident.Box)(nil)

// helper is berth's own program inside, which the first use brings there.
func (b *box) helper() helper {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.help == nil {
		b.help = resident.New(b, resident.Options{ID: b.id, User: b.user, Log: b.p.log})
	}
	return b.help
}

// aside is the same for questions that are no use of the sandbox.
func (b *box) aside() helper {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.quiet == nil {
		b.quiet = resident.New(quiet{b}, resident.Options{ID: b.id, User: b.user, Log: b.p.log})
	}
	return b.quiet
}

// quiet is a way into a sandbox that does not keep it awake.
type quiet struct{ b *box }

func (q quiet) Exec(ctx context.Context, command string, timeout time.Duration) (string, int, error) {
	return q.b.exec(ctx, command, timeout, true)
}

func (q quiet) Upload(ctx context.Context, path string, mode fs.FileMode, r io.Reader, size int64) error {
	return q.b.Upload(ctx, path, mode, r, size)
}

func (q quiet) Session(ctx context.Context, command string) error { return q.b.Session(ctx, command) }

// busy tells whether a process runs that somebody started.
func (b *box) busy(ctx context.Context) (bool, error) { return b.aside().Busy(ctx) }

// probeTime is for one connection; a firewall that drops packets lets it pass.
const probeTime = 2 * time.Second

// reaches tells whether a connection to the address can be made inside.
func (b *box) reaches(ctx context.Context, to netip.AddrPort) (bool, error) {
	return b.helper().Reaches(ctx, to, probeTime)
}

// farewell has the helper end what it runs, and record how it ended, before the
// sandbox is stopped. Without it the platform ends all at once.
func (p *Provider) farewell(ctx context.Context, id, reason string) {
	p.mu.Lock()
	b := p.boxes[id]
	p.mu.Unlock()
	if b == nil {
		return
	}
	b.mu.Lock()
	h := b.help
	b.mu.Unlock()
	if h == nil {
		return // nobody here has used it
	}
	ctx, cancel := context.WithTimeout(ctx, farewellTime)
	defer cancel()
	if err := h.Stop(ctx, reason); err != nil && !errors.Is(err, sandbox.ErrNotRunning) && !errors.Is(err, sandbox.ErrNotFound) {
		p.log.Debug("helper not stopped", slog.String("sandbox", id), slog.Any("err", err))
	}
}

// farewellTime is more than the 2 s that processes are given.
const farewellTime = 15 * time.Second
