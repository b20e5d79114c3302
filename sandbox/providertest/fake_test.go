//go:build unix

package providertest

import (
	"context"
	"testing"
	"time"

	"berth/sandbox"
)

func TestFakeRunsHostProcesses(t *testing.T) {
	ctx := context.Background()
	f := NewFake(t.TempDir(), FakeOptions{})
	t.Cleanup(f.Shutdown)
	i, err := f.Create(ctx, sandbox.Key{Owner: "o", Session: "s"}, sandbox.Spec{})
	if err != nil {
		t.Fatal(err)
	}
	info, _ := i.Info(ctx)
	for _, c := range []struct {
		shell   string
		timeout time.Duration
		stdin   string
		code    int
		out     string
	}{
		{shell: "echo hi; exit 3", code: 3, out: "hi\n"},
		{shell: "cat", stdin: "abc", code: 0, out: "abc"},
		{shell: "sleep 60", timeout: 50 * time.Millisecond, code: 124},
		{shell: "kill -9 $$", code: 137},
		{shell: "(setsid sleep 60 >/dev/null 2>&1 &) ; sleep 60", timeout: 100 * time.Millisecond, code: 124},
	} {
		p, err := i.Spawn(ctx, sandbox.Command{ID: sandbox.NewProcessID(), Shell: c.shell, Cwd: info.Home, Timeout: c.timeout, Stdin: []byte(c.stdin)})
		if err != nil {
			t.Fatal(c.shell, err)
		}
		if err := p.Wait(ctx, sandbox.Cursor{}, true); err != nil {
			t.Fatal(err)
		}
		got, _ := p.Info(ctx)
		out, _ := p.Read(ctx, sandbox.Cursor{}, 1<<20)
		if got.ExitCode == nil || *got.ExitCode != c.code || string(out.Stdout) != c.out {
			t.Errorf("%q: got %+v, output %q", c.shell, got, out.Stdout)
		}
	}
}
