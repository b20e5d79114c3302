//go:build linux

package resident_test

import (
	"context"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"testing"

	"berth/sandbox"
	"berth/sandbox/daytona/resident"
	"berth/sandbox/providertest"
)

// TestConformance holds processes and files to the promises of package sandbox, as
// each kind of user that a platform may run commands as: all of it as one, and as the
// others what hangs on who they are.
func TestConformance(t *testing.T) {
	harness := func(t *testing.T, o *places, groups ...string) {
		providertest.Run(t, providertest.Harness{
			Open:     func(t *testing.T) sandbox.Provider { o.t = t; return o },
			LogLimit: logLimit,
			Only:     groups,
			Cannot:   o.cannot,
		})
	}
	t.Run("own_user", func(t *testing.T) {
		o := &places{}
		if os.Geteuid() == 0 {
			o.cannot = map[providertest.Ability]string{providertest.RootUser: "it runs as root itself"}
		} else {
			o.cannot = map[providertest.Ability]string{providertest.RootUser: "this user has no sudo without a password"}
		}
		harness(t, o, "commands", "stdin", "output", "killing", "processes", "terminals", "files")
	})
	t.Run("user_of_root", func(t *testing.T) {
		if os.Geteuid() != 0 {
			t.Skip("needs root: the helper runs as root, and commands as nobody")
		}
		harness(t, &places{user: "nobody"}, "commands", "killing", "terminals")
	})
	t.Run("nobody", func(t *testing.T) {
		if os.Geteuid() != 0 {
			t.Skip("needs root: the helper runs as nobody")
		}
		harness(t, &places{as: "nobody", cannot: map[providertest.Ability]string{providertest.RootUser: "nobody has no sudo"}}, "commands", "killing", "terminals")
	})
}

const logLimit = 4 << 20

// places is a provider of homes on this machine, each with a helper in it. Of a
// sandbox's life it knows next to nothing.
type places struct {
	as     string // whom the platform runs commands as; empty: us
	user   string // whom the provider runs commands as; empty: the same
	cannot map[providertest.Ability]string
	t      *testing.T

	mu    sync.Mutex
	boxes map[sandbox.Key]*place
}

type place struct {
	sandbox.Instance // what is not asked for here
	key              sandbox.Key
	box              *resident.Box
	shell            *shell
	user, home       string
}

func credential(t *testing.T, name string) *syscall.Credential {
	t.Helper()
	u, err := user.Lookup(name)
	if err != nil {
		t.Fatal(err)
	}
	uid, _ := strconv.ParseUint(u.Uid, 10, 32)
	gid, _ := strconv.ParseUint(u.Gid, 10, 32)
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
}

func (p *places) Name() string { return "places" }
func (p *places) Close() error { return nil }

func (p *places) Create(ctx context.Context, key sandbox.Key, _ sandbox.Spec) (sandbox.Instance, error) {
	var cred *syscall.Credential
	if p.as != "" {
		cred = credential(p.t, p.as)
	}
	s := newShell(p.t, cred)
	pl := &place{key: key, shell: s, home: s.home, user: p.user}
	pl.box = resident.New(s, resident.Options{ID: string(key.Session), User: p.user, LogBytes: logLimit, Program: program})
	if p.user != "" {
		pl.home = filepath.Join(openDir(p.t), "users")
		c := credential(p.t, p.user)
		if err := os.Mkdir(pl.home, 0o755); err != nil {
			return nil, err
		}
		if err := os.Chown(pl.home, int(c.Uid), int(c.Gid)); err != nil {
			return nil, err
		}
	}
	if err := pl.box.Ensure(ctx); err != nil {
		return nil, err
	}
	f, err := pl.box.Facts(ctx)
	if err != nil {
		return nil, err
	}
	if p.user == "" {
		pl.user = f.User
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.boxes == nil {
		p.boxes = map[sandbox.Key]*place{}
	}
	p.boxes[key] = pl
	return pl, nil
}

func (p *places) Lookup(_ context.Context, key sandbox.Key) (sandbox.Instance, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if pl := p.boxes[key]; pl != nil {
		return pl, nil
	}
	return nil, sandbox.ErrNotFound
}

func (p *places) List(context.Context, sandbox.Owner) ([]sandbox.Info, error) { return nil, nil }

func (p *places) Describe(context.Context, sandbox.Spec) (sandbox.Info, error) {
	return sandbox.Info{}, nil
}

func (p *place) Info(ctx context.Context) (sandbox.Info, error) {
	u, err := p.box.Usage(ctx)
	if err != nil {
		return sandbox.Info{}, err
	}
	return sandbox.Info{Key: p.key, Status: sandbox.StatusRunning, Home: p.home, User: p.user, Usage: &sandbox.Usage{Processes: u.Processes, Memory: u.Memory}}, nil
}

func (p *place) Destroy(ctx context.Context) error { return p.box.Stop(ctx, "destroyed") }

func (p *place) Spawn(ctx context.Context, c sandbox.Command) (sandbox.Process, error) {
	if c.Env == nil && c.Unset == nil && p.home != p.shell.home {
		c.Env = map[string]string{"HOME": p.home} // which is not in passwd
	}
	return p.box.Spawn(ctx, c)
}

func (p *place) Process(ctx context.Context, id sandbox.ProcessID) (sandbox.Process, error) {
	return p.box.Process(ctx, id)
}

func (p *place) Processes(ctx context.Context) ([]sandbox.ProcessInfo, error) {
	return p.box.Processes(ctx)
}

func (p *place) Files() sandbox.Files { return p.box.Files() }
