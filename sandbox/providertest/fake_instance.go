//go:build unix

package providertest

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"sync"
	"syscall"
	"time"

	"berth/sandbox"
)

// fakeBox is one sandbox of the store.
type fakeBox struct {
	store      *fakeStore
	key        sandbox.Key
	seq        int
	root, home string
	created    time.Time

	mu      sync.Mutex
	spec    sandbox.Spec
	status  sandbox.Status
	reason  string
	stopped time.Time
	// stopReason is its Info.StopReason.
	stopReason string
	procs      map[sandbox.ProcessID]*fakeProcess
	order      []sandbox.ProcessID
	ports      []sandbox.Port
	mounts     []*fakeMount
}

func (b *fakeBox) info() sandbox.Info {
	b.mu.Lock()
	defer b.mu.Unlock()
	i := sandbox.Info{Key: b.key, Name: b.spec.Name, Provider: b.store.options.Name, Status: b.status, Reason: b.reason,
		Created: b.created, Stopped: b.stopped, StopReason: b.stopReason, Spec: b.spec, Home: b.home, User: accountOf(b.spec),
		Runtimes: fakeRuntimes(), Guarantees: fakeGuarantees(), Ports: slices.Clone(b.ports), Mounts: b.mountInfos()}
	if i.Name == "" {
		i.Name = string(b.key.Session)
	}
	if b.status == sandbox.StatusRunning {
		n := 0
		for _, p := range b.procs {
			if p.running() {
				n++
			}
		}
		i.Usage = &sandbox.Usage{CPU: -1, Memory: -1, Processes: n, Disk: -1}
	}
	return i
}

func (b *fakeBox) processes() []*fakeProcess {
	b.mu.Lock()
	defer b.mu.Unlock()
	ps := make([]*fakeProcess, 0, len(b.order))
	for _, id := range b.order {
		ps = append(ps, b.procs[id])
	}
	return ps
}

// endAll ends all processes, with KILL after grace, and waits for them.
func (b *fakeBox) endAll(grace time.Duration, reason string) {
	for _, p := range b.processes() {
		sig := "TERM"
		if grace == 0 {
			sig = "KILL"
		}
		_ = p.kill(sig, grace, reason)
	}
	for _, p := range b.processes() {
		<-p.done
		_ = killTree(p.id, p.pid, p.born, "KILL")
	}
}

func (b *fakeBox) loseAll(reason string) {
	for _, p := range b.processes() {
		p.lose(reason)
	}
}

// fakeInstance is a handle of one provider on a box.
type fakeInstance struct {
	box      *fakeBox
	provider *Fake
}

var (
	_ sandbox.Instance = (*fakeInstance)(nil)
	_ sandbox.Updater  = (*fakeInstance)(nil)
	_ sandbox.Archiver = (*fakeInstance)(nil)
	_ sandbox.Retirer  = (*fakeInstance)(nil)
	_ sandbox.Forker   = (*fakeInstance)(nil)

	_ sandbox.Networker = (*fakeInstance)(nil)
)

func (i *fakeInstance) Info(ctx context.Context) (sandbox.Info, error) {
	if err := i.provider.usable(ctx); err != nil {
		return sandbox.Info{}, err
	}
	return i.box.info(), nil
}

func (i *fakeInstance) Start(ctx context.Context) error {
	if err := i.provider.usable(ctx); err != nil {
		return err
	}
	b := i.box
	b.mu.Lock()
	defer b.mu.Unlock()
	switch b.status {
	case sandbox.StatusRunning:
		return nil
	case sandbox.StatusDestroyed, sandbox.StatusDestroying:
		return sandbox.ErrNotFound
	case sandbox.StatusError:
		return fmt.Errorf("sandbox is damaged: %s", b.reason)
	}
	b.unmountAll() // what a death has left
	b.status, b.stopped, b.reason, b.stopReason = sandbox.StatusRunning, time.Time{}, "", ""
	return nil
}

func (i *fakeInstance) Stop(ctx context.Context) error {
	if err := i.provider.usable(ctx); err != nil {
		return err
	}
	b := i.box
	b.mu.Lock()
	if b.status != sandbox.StatusRunning {
		b.mu.Unlock()
		return nil
	}
	b.status = sandbox.StatusStopping
	ephemeral := b.spec.Ephemeral != nil && *b.spec.Ephemeral
	b.mu.Unlock()
	b.endAll(2*time.Second, "the sandbox was stopped")
	b.mu.Lock()
	b.unmountAll()
	b.status, b.stopped, b.stopReason = sandbox.StatusStopped, b.store.options.Now(), "asked to"
	b.mu.Unlock()
	if ephemeral {
		return i.Destroy(ctx)
	}
	return nil
}

func (i *fakeInstance) Destroy(ctx context.Context) error {
	if err := i.provider.usable(ctx); err != nil {
		return err
	}
	b := i.box
	b.mu.Lock()
	if b.status == sandbox.StatusDestroyed {
		b.mu.Unlock()
		return nil
	}
	b.status = sandbox.StatusDestroying
	b.unmountAll()
	b.mu.Unlock()
	b.endAll(0, "the sandbox was destroyed")
	if err := os.RemoveAll(b.root); err != nil {
		return err
	}
	b.mu.Lock()
	b.status, b.procs, b.order, b.ports = sandbox.StatusDestroyed, nil, nil, nil
	b.mu.Unlock()
	return nil
}

func (i *fakeInstance) Update(ctx context.Context, spec sandbox.Spec) error {
	if err := i.provider.usable(ctx); err != nil {
		return err
	}
	b := i.box
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.status == sandbox.StatusDestroyed {
		return sandbox.ErrNotFound
	}
	b.spec = spec
	return nil
}

// SetNetwork keeps the policy. The fake's commands run on the host, whatever it
// says.
func (i *fakeInstance) SetNetwork(ctx context.Context, p sandbox.NetworkPolicy) error {
	if err := i.provider.usable(ctx); err != nil {
		return err
	}
	b := i.box
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.status == sandbox.StatusDestroyed {
		return sandbox.ErrNotFound
	}
	b.spec.Network = &p
	return nil
}

func (i *fakeInstance) Archive(ctx context.Context) error {
	if err := i.provider.usable(ctx); err != nil {
		return err
	}
	b := i.box
	b.mu.Lock()
	defer b.mu.Unlock()
	switch b.status {
	case sandbox.StatusStopped, sandbox.StatusArchived:
		b.status = sandbox.StatusArchived
		return nil
	}
	return fmt.Errorf("archive: the sandbox is %s, not stopped", b.status)
}

func (i *fakeInstance) Retire(ctx context.Context, reason string) (string, error) {
	if err := i.provider.usable(ctx); err != nil {
		return "", err
	}
	b, s := i.box, i.box.store
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.boxes[b.key] == b {
		delete(s.boxes, b.key)
		s.retired = append(s.retired, b)
	}
	return b.root + " for 30 days", nil
}

// Fork copies the files; the fake cannot hold processes still.
func (i *fakeInstance) Fork(ctx context.Context, key sandbox.Key, spec sandbox.Spec) (sandbox.Instance, error) {
	if err := i.provider.usable(ctx); err != nil {
		return nil, err
	}
	switch i.box.info().Status {
	case sandbox.StatusDestroyed, sandbox.StatusDestroying:
		return nil, sandbox.ErrNotFound
	}
	made, err := i.provider.Create(ctx, key, spec)
	if err != nil {
		return nil, err
	}
	to := made.(*fakeInstance).box
	if err = copyRoot(ctx, i.box.root, to.root); err == nil {
		i.box.store.mu.Lock()
		err = i.box.store.attach(to)
		to.takeMounts(i.box)
		i.box.store.mu.Unlock()
	}
	if err != nil {
		return nil, errors.Join(err, made.Destroy(ctx))
	}
	return made, nil
}

func (i *fakeInstance) Spawn(ctx context.Context, c sandbox.Command) (sandbox.Process, error) {
	if err := i.provider.usable(ctx); err != nil {
		return nil, err
	}
	b := i.box
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.status != sandbox.StatusRunning {
		return nil, sandbox.ErrNotRunning
	}
	if p := b.procs[c.ID]; p != nil {
		return p, nil
	}
	p, err := startFake(b, c)
	if err != nil {
		return nil, err
	}
	b.procs[c.ID] = p
	b.order = append(b.order, c.ID)
	return p, nil
}

func (i *fakeInstance) Process(ctx context.Context, id sandbox.ProcessID) (sandbox.Process, error) {
	if err := i.provider.usable(ctx); err != nil {
		return nil, err
	}
	b := i.box
	b.mu.Lock()
	defer b.mu.Unlock()
	if p := b.procs[id]; p != nil {
		return p, nil
	}
	return nil, sandbox.ErrNoProcess
}

// ForgetProcess drops an ended process.
func (i *fakeInstance) ForgetProcess(ctx context.Context, id sandbox.ProcessID) error {
	if err := i.provider.usable(ctx); err != nil {
		return err
	}
	b := i.box
	b.mu.Lock()
	defer b.mu.Unlock()
	p := b.procs[id]
	switch {
	case b.status != sandbox.StatusRunning:
		return sandbox.ErrNotRunning
	case p == nil:
		return sandbox.ErrNoProcess
	case p.running():
		return syscall.EBUSY
	}
	delete(b.procs, id)
	b.order = slices.DeleteFunc(b.order, func(o sandbox.ProcessID) bool { return o == id })
	return nil
}

func (i *fakeInstance) Processes(ctx context.Context) ([]sandbox.ProcessInfo, error) {
	if err := i.provider.usable(ctx); err != nil {
		return nil, err
	}
	var infos []sandbox.ProcessInfo
	for _, p := range i.box.processes() {
		infos = append(infos, p.info())
	}
	sort.SliceStable(infos, func(a, b int) bool { return infos[a].Started.Before(infos[b].Started) })
	return infos, nil
}

func (i *fakeInstance) Files() sandbox.Files { return fakeFiles{i} }

// host maps a path inside onto the host's.
func (b *fakeBox) host(path string) string {
	path = filepath.Clean(path)
	if path == b.root || strings.HasPrefix(path, b.root+"/") {
		return path
	}
	return filepath.Join(b.root, path)
}

// resolve follows links and refuses what leads outside. The last element need
// not exist.
func (b *fakeBox) resolve(path string) (string, error) {
	if !filepath.IsAbs(path) || strings.ContainsRune(path, 0) {
		return "", &fs.PathError{Op: "resolve", Path: path, Err: fs.ErrInvalid}
	}
	path = b.host(path)
	for range 40 {
		real, err := filepath.EvalSymlinks(path)
		if err == nil {
			if real != b.root && !strings.HasPrefix(real, b.root+"/") && !strings.HasPrefix(real, filepath.Join(b.store.dir, "bucket-")) {
				return "", &fs.PathError{Op: "resolve", Path: path, Err: fs.ErrNotExist}
			}
			return real, nil
		}
		if !os.IsNotExist(err) {
			return "", err
		}
		// What is missing may be a dangling link's target or a parent.
		if to, lerr := os.Readlink(path); lerr == nil {
			if !filepath.IsAbs(to) {
				to = filepath.Join(filepath.Dir(path), to)
			}
			path = b.host(to)
			continue
		}
		if path == b.root {
			return "", err
		}
		parent, err := b.resolve(filepath.Dir(path))
		if err != nil {
			return "", err
		}
		return filepath.Join(parent, filepath.Base(path)), nil
	}
	return "", &fs.PathError{Op: "resolve", Path: path, Err: fs.ErrNotExist}
}

var fakeRuntimes = sync.OnceValue(func() map[sandbox.Language]string {
	m := map[sandbox.Language]string{}
	for lang, names := range map[sandbox.Language][]string{
		sandbox.Bash: {"bash", "sh"}, sandbox.Python: {"python3"}, sandbox.JavaScript: {"node"}, sandbox.TypeScript: {"node"},
	} {
		for _, n := range names {
			if p, err := exec.LookPath(n); err == nil {
				m[lang] = p
				break
			}
		}
	}
	return m
})
