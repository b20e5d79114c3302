package sandbox_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"berth/sandbox"
)

// slow is a provider whose image takes its time.
type slow struct {
	sandbox.Provider
	pulls int
}

func (*slow) Name() string                      { return "slow" }
func (*slow) CheckImage(string, []string) error { return nil }
func (*slow) Lookup(context.Context, sandbox.Key) (sandbox.Instance, error) {
	return nil, sandbox.ErrNotFound
}

func (*slow) List(context.Context, sandbox.Owner) ([]sandbox.Info, error) { return nil, nil }

func (s *slow) Create(ctx context.Context, _ sandbox.Key, _ sandbox.Spec) (sandbox.Instance, error) {
	s.pulls++
	for i := range int64(12) {
		sandbox.Report(ctx, sandbox.Progress{Text: "pulling it", Done: i, Total: 12})
		select {
		case <-time.After(10 * time.Second):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return nil, errors.New("pulled")
}

// A pull that outlasts its call goes on by itself; the same call waits on, and
// each call that waits is told how far it is.
func TestPullOutlastsItsCall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &slow{}
		m, err := sandbox.NewManager(p, sandbox.Options{})
		if err != nil {
			t.Fatal(err)
		}
		key := sandbox.Key{Owner: sandbox.LocalOwner, Session: "x"}
		var calls int
		for {
			told := 0
			ctx, cancel := context.WithCancel(sandbox.WithProgress(t.Context(), func(sandbox.Progress) { told++ }))
			_, err = m.StartSandbox(ctx, key, sandbox.Spec{Image: "debian"})
			cancel()
			calls++
			if told < 1 {
				t.Errorf("call %d was told %d times how far it is", calls, told)
			}
			if !errors.Is(err, sandbox.ErrStarting) {
				break
			}
			if !strings.Contains(err.Error(), "pulling it") || !strings.Contains(err.Error(), "goes on by itself") {
				t.Errorf("answer = %v", err)
			}
		}
		if calls != 3 || p.pulls != 1 || err == nil || !strings.Contains(err.Error(), "pulled") {
			t.Errorf("%d calls, %d pulls, %v; want 3, 1, pulled", calls, p.pulls, err)
		}
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
}
