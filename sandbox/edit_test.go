//go:build unix

package sandbox_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"berth/sandbox"
	"berth/sandbox/providertest"
)

// Several servers over the same sandboxes edit one file, under two names.
func TestEditsOfTwoServersFollowEachOther(t *testing.T) {
	dir := t.TempDir()
	m, p := newFake(t, sandbox.Options{EventDir: dir})
	servers := []*sandbox.Manager{m, managerOf(t, p, sandbox.Options{EventDir: dir})}
	sh(t, m, "printf 'END\\n' >f; ln -s f link")
	const each = 20
	var wg sync.WaitGroup
	for i, s := range servers {
		for _, name := range []string{"f", "link"} {
			wg.Go(func() {
				for n := range each {
					_, err := s.EditFile(ctxOf(t), key, sandbox.EditFileRequest{Path: name,
						Edits: []sandbox.Edit{{OldText: "END\n", NewText: fmt.Sprintf("%d-%s-%d\nEND\n", i, name, n)}}})
					if err != nil {
						t.Error(err)
					}
				}
			})
		}
	}
	wg.Wait()
	if got := sh(t, m, "sort -u f | wc -l").Stdout.Head; strings.TrimSpace(got) != fmt.Sprint(len(servers)*2*each+1) {
		t.Errorf("%s lines are left of %d", strings.TrimSpace(got), len(servers)*2*each+1)
	}
}

// changing is a file that somebody inside writes while it is edited: each time
// it is opened it holds the next text.
type changing struct {
	sandbox.Files
	texts   []string
	opened  int
	written string
}

func (c *changing) Stat(context.Context, string) (sandbox.FileInfo, error) {
	return sandbox.FileInfo{Path: "/f"}, nil
}

func (c *changing) Open(context.Context, string) (io.ReadCloser, sandbox.FileInfo, error) {
	text := c.texts[min(c.opened, len(c.texts)-1)]
	c.opened++
	return io.NopCloser(strings.NewReader(text)), sandbox.FileInfo{Path: "/f", Size: int64(len(text))}, nil
}

func (c *changing) Write(_ context.Context, p string, r io.Reader, _ sandbox.WriteOptions) (sandbox.WriteResult, error) {
	b, err := io.ReadAll(r)
	c.written = string(b)
	return sandbox.WriteResult{Path: p, Bytes: int64(len(b))}, err
}

func TestEditOfAFileThatChanges(t *testing.T) {
	for _, c := range []struct {
		name, want string
		texts      []string
		err        string
	}{
		{name: "quiet", texts: []string{"a x"}, want: "a y"},
		{name: "once", texts: []string{"a x", "b x"}, want: "b y"},
		{name: "text gone", texts: []string{"a x", "b"}, err: "it is not in /f"},
		{name: "all the time", texts: []string{"1 x", "2 x", "3 x", "4 x", "5 x", "6 x"}, err: "changes all the time; nothing was changed"},
	} {
		t.Run(strings.ReplaceAll(c.name, " ", "_"), func(t *testing.T) {
			f := &changing{texts: c.texts}
			inst := &providertest.StubInstance{
				InfoFunc: func(context.Context) (sandbox.Info, error) {
					return sandbox.Info{Key: key, Status: sandbox.StatusRunning, Home: "/"}, nil
				},
				FilesFunc: func() sandbox.Files { return f },
			}
			m := managerOf(t, &providertest.Stub{LookupFunc: func(context.Context, sandbox.Key) (sandbox.Instance, error) { return inst, nil }}, sandbox.Options{})
			_, err := m.EditFile(t.Context(), key, sandbox.EditFileRequest{Path: "f", Edits: []sandbox.Edit{{OldText: "x", NewText: "y"}}})
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) || f.written != "" {
					t.Errorf("got %v, written %q; want %q", err, f.written, c.err)
				}
			} else if err != nil || f.written != c.want {
				t.Errorf("got %q, %v; want %q", f.written, err, c.want)
			}
		})
	}
}

// An edit that another server's hangs before gives up, and says so.
func TestEditWaitsForAnotherServer(t *testing.T) {
	dir := t.TempDir()
	m, p := newFake(t, sandbox.Options{EventDir: dir})
	other := managerOf(t, p, sandbox.Options{EventDir: dir})
	sh(t, m, "printf 'x\\n' >f")
	edit := func(ctx context.Context, m *sandbox.Manager) error {
		_, err := m.EditFile(ctx, key, sandbox.EditFileRequest{Path: "f", Edits: []sandbox.Edit{{OldText: "x\n", NewText: "xx\n"}}})
		return err
	}
	if err := edit(ctxOf(t), other); err != nil {
		t.Fatal(err)
	}
	locks, err := filepath.Glob(dir + "/.edit-*")
	if err != nil || len(locks) != 1 {
		t.Fatal(locks, err)
	}
	release, err := sandbox.TryLock(locks[0])
	if err != nil || release == nil {
		t.Fatal("the lock is not free", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := edit(ctx, m); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("while it is locked: %v", err)
	}
	release()
	if err := edit(ctxOf(t), m); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}

// Whoever turns the log over, the half that was full is kept.
func TestEventLogIsTurnedOverOnce(t *testing.T) {
	dir := t.TempDir()
	p := &providertest.Stub{}
	text := strings.Repeat("e", 1000)
	args := map[string]any{}
	for i := range 10 {
		args[fmt.Sprint(i)] = text
	}
	var wg sync.WaitGroup
	for range 8 {
		m := managerOf(t, p, sandbox.Options{EventDir: dir})
		wg.Go(func() {
			for range 150 {
				m.Record(key, sandbox.Event{Tool: "x", Args: args})
			}
		})
	}
	wg.Wait() // three times 4 MiB
	old, err := filepath.Glob(dir + "/*.old")
	if err != nil || len(old) != 1 {
		t.Fatal(old, err)
	}
	if st, err := os.Stat(old[0]); err != nil || st.Size() <= 4<<20 {
		t.Errorf("the old half has %d bytes, %v; want more than 4 MiB", st.Size(), err)
	}
}
