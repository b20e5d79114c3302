//go:build unix

package sandbox_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"berth/sandbox"
)

var key = sandbox.Key{Owner: "o", Session: "s1"}

var trueCommand = sandbox.RunRequest{Command: "true"}

// A start finds out that a sandbox which ran a moment ago does not.
func TestStartBelievesNothing(t *testing.T) {
	for _, again := range []func(*sandbox.Manager) (*sandbox.StartResult, error){
		func(m *sandbox.Manager) (*sandbox.StartResult, error) {
			return m.StartSandbox(t.Context(), key, sandbox.Spec{})
		},
		func(m *sandbox.Manager) (*sandbox.StartResult, error) { return m.Reconnect(t.Context(), key) },
	} {
		s := newScript(sandbox.StatusRunning)
		m := managerOf(t, s, sandbox.Options{})
		if _, err := m.StartSandbox(t.Context(), key, sandbox.Spec{}); err != nil {
			t.Fatal(err)
		}
		s.set(sandbox.StatusStopped)
		if res, err := again(m); err != nil || res.Info.Status != sandbox.StatusRunning || !res.Notice.Started {
			t.Errorf("got %+v, %v", res, err)
		}
	}
}

func TestStartByStatus(t *testing.T) {
	for _, c := range []struct {
		status    sandbox.Status
		outcome   sandbox.StartOutcome
		started   bool
		replaced  string
		creates   int
		reconnect bool // what reconnect does: true = the same
		files     bool // file tools get to it
	}{
		{status: "", outcome: sandbox.Created, creates: 1},
		{status: sandbox.StatusRunning, outcome: sandbox.Connected, reconnect: true, files: true},
		{status: sandbox.StatusStopped, outcome: sandbox.Connected, started: true, reconnect: true, files: true},
		{status: sandbox.StatusArchived, outcome: sandbox.Connected, started: true, reconnect: true, files: true},
		{status: sandbox.StatusDestroyed, outcome: sandbox.Replaced, replaced: "destroyed", creates: 1, reconnect: true},
		{status: sandbox.StatusError, outcome: sandbox.Replaced, replaced: "disk torn", creates: 1, reconnect: true},
	} {
		t.Run("start_"+string(c.status), func(t *testing.T) {
			s := newScript(c.status)
			s.reason = "disk torn"
			res, err := managerOf(t, s, sandbox.Options{}).StartSandbox(t.Context(), key, sandbox.Spec{})
			if err != nil {
				t.Fatal(err)
			}
			creates, _, _ := s.counts()
			if res.Outcome != c.outcome || res.Notice.Started != c.started || !strings.Contains(res.Notice.Replaced, c.replaced) ||
				creates != c.creates || res.Info.Status != sandbox.StatusRunning || res.Notice.Created != (c.status == "") {
				t.Errorf("got %+v, %d created", res, creates)
			}
		})
		t.Run("reconnect_"+string(c.status), func(t *testing.T) {
			s := newScript(c.status)
			res, err := managerOf(t, s, sandbox.Options{}).Reconnect(t.Context(), key)
			creates, _, _ := s.counts()
			if !c.reconnect {
				if !errors.Is(err, sandbox.ErrNotFound) || !strings.Contains(err.Error(), "start_sandbox") || creates > 0 {
					t.Errorf("got %v, %v", res, err)
				}
				return
			}
			if err != nil || res.Outcome != c.outcome {
				t.Errorf("got %+v, %v", res, err)
			}
		})
		t.Run("files_"+string(c.status), func(t *testing.T) {
			s := newScript(c.status)
			_, _, err := managerOf(t, s, sandbox.Options{}).Files(t.Context(), key)
			if creates, _, _ := s.counts(); (err == nil) != c.files || creates > 0 {
				t.Errorf("got error %v, %d created", err, creates)
			}
		})
		t.Run("reading_"+string(c.status), func(t *testing.T) {
			s := newScript(c.status)
			m := managerOf(t, s, sandbox.Options{})
			info, err := m.GetSandbox(t.Context(), key)
			want := c.status
			if want == "" {
				want = sandbox.StatusPending
			}
			if err != nil || info.Status != want || *info.Spec.Timeout != sandbox.DefaultTimeout {
				t.Errorf("GetSandbox: got %+v, %v", info, err)
			}
			_, _ = m.ListProcesses(t.Context(), key)
			_, _ = m.ReadOutput(t.Context(), key, sandbox.ReadRequest{Process: "p-x"})
			_, _ = m.KillProcess(t.Context(), key, sandbox.KillRequest{Process: "p-x"})
			_, _ = m.SendStdin(t.Context(), key, sandbox.StdinRequest{Process: "p-x", End: true})
			if creates, starts, _ := s.counts(); creates+starts > 0 {
				t.Errorf("%d created, %d started by reading", creates, starts)
			}
		})
	}
}

func TestRetireAndRecover(t *testing.T) {
	s := newScript(sandbox.StatusError)
	s.reason, s.spec = "torn", sandbox.Spec{Env: map[string]string{"A": "1"}}
	inst, _ := s.LookupFunc(t.Context(), key)
	r := &able{Instance: inst, s: s}
	s.LookupFunc = func(context.Context, sandbox.Key) (sandbox.Instance, error) { return r, nil }
	res, err := managerOf(t, s, sandbox.Options{}).StartSandbox(t.Context(), key, sandbox.Spec{})
	if err != nil || res.Outcome != sandbox.Connected || len(res.Notice.Warnings) == 0 {
		t.Errorf("recoverable: got %+v, %v", res, err)
	}
	s = newScript(sandbox.StatusError)
	s.reason, s.spec = "torn", sandbox.Spec{Env: map[string]string{"A": "1"}}
	inst, _ = s.LookupFunc(t.Context(), key)
	r = &able{Instance: inst, s: s, lost: true}
	s.LookupFunc = func(context.Context, sandbox.Key) (sandbox.Instance, error) { return r, nil }
	res, err = managerOf(t, s, sandbox.Options{}).StartSandbox(t.Context(), key, sandbox.Spec{})
	if err != nil || res.Outcome != sandbox.Replaced || !strings.Contains(res.Notice.Replaced, "torn") || !strings.Contains(res.Notice.Replaced, "/kept/here") {
		t.Fatalf("retired: got %+v, %v", res, err)
	}
	if res.Info.Spec.Env["A"] != "1" {
		t.Errorf("the successor lacks what the session had asked for: %+v", res.Info.Spec)
	}
}

type able struct {
	sandbox.Instance
	s    *script
	lost bool
}

func (a *able) Recover(context.Context) error {
	if a.lost {
		return errors.New("beyond repair")
	}
	a.s.set(sandbox.StatusRunning)
	return nil
}

func (a *able) Retire(context.Context, string) (string, error) {
	a.s.set("")
	return "/kept/here", nil
}

func TestConcurrentFirstCallsMakeOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScript("")
		m := managerOf(t, s, sandbox.Options{})
		m2 := managerOf(t, s, sandbox.Options{}) // another server process
		var created atomic.Int32
		var wg sync.WaitGroup
		for i := range 40 {
			wg.Go(func() {
				m := m
				if i%2 == 1 {
					m = m2
				}
				res, err := m.ExecuteCommand(t.Context(), key, trueCommand)
				if err != nil {
					t.Errorf("call %d: %v", i, err)
				} else if res.Notice.Created {
					created.Add(1)
				}
			})
		}
		wg.Wait()
		if creates, _, spawns := s.counts(); creates != 1 || spawns != 40 || created.Load() == 0 {
			t.Errorf("got %d sandboxes, %d commands, %d told", creates, spawns, created.Load())
		}
	})
}

func TestNetworkErrorNeverCreates(t *testing.T) {
	broken := errors.New("connection reset")
	s := newScript("")
	s.look = func() error { return broken }
	m := managerOf(t, s, sandbox.Options{})
	for range 3 {
		if _, err := m.ExecuteCommand(t.Context(), key, trueCommand); !errors.Is(err, broken) {
			t.Errorf("got %v", err)
		}
	}
	s.look = nil
	if _, err := m.ExecuteCommand(t.Context(), key, trueCommand); err != nil {
		t.Errorf("after the fault: %v", err)
	}
	if creates, _, _ := s.counts(); creates != 1 {
		t.Errorf("%d created", creates)
	}
}

func TestTransitionalIsPolled(t *testing.T) {
	for _, status := range []sandbox.Status{sandbox.StatusStarting, sandbox.StatusStopping, sandbox.StatusArchiving, sandbox.StatusDestroying} {
		for then, want := range map[sandbox.Status]sandbox.StartOutcome{sandbox.StatusRunning: sandbox.Connected, sandbox.StatusStopped: sandbox.Connected,
			sandbox.StatusDestroyed: sandbox.Replaced, sandbox.StatusError: sandbox.Replaced, "": sandbox.Replaced} {
			t.Run(string(status)+"_"+string(then), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					s := newScript(status)
					m := managerOf(t, s, sandbox.Options{})
					time.AfterFunc(5*time.Second, func() { s.set(then) })
					began := time.Now()
					res, err := m.StartSandbox(t.Context(), key, sandbox.Spec{})
					if err != nil || res.Outcome != want {
						t.Fatalf("got %+v, %v", res, err)
					}
					if d := time.Since(began); d < 5*time.Second || d > 7*time.Second {
						t.Errorf("it took %v", d)
					}
				})
			})
		}
	}
}

func TestSlowStartAnswersAndGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScript(sandbox.StatusStarting)
		m := managerOf(t, s, sandbox.Options{})
		time.AfterFunc(70*time.Second, func() { s.set(sandbox.StatusRunning) })
		began := time.Now()
		_, err := m.ExecuteCommand(t.Context(), key, trueCommand)
		if d := time.Since(began); !errors.Is(err, sandbox.ErrStarting) || d > sandbox.MaxWait+time.Second {
			t.Fatalf("got %v after %v", err, d)
		}
		if _, err = m.ExecuteCommand(t.Context(), key, trueCommand); err != nil {
			t.Errorf("the same call again: %v", err)
		}
		s.set(sandbox.StatusStopping)
		time.Sleep(2 * time.Second)
		for range 3 { // 120 s in all, then it is told
			if _, err = m.ExecuteCommand(t.Context(), key, trueCommand); !errors.Is(err, sandbox.ErrStarting) {
				break
			}
		}
		if !errors.Is(err, sandbox.ErrUnavailable) {
			t.Errorf("stuck for ever: got %v", err)
		}
	})
}

func TestCancelledCallerLeavesTheStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScript("")
		create := s.CreateFunc
		s.CreateFunc = func(ctx context.Context, k sandbox.Key, spec sandbox.Spec) (sandbox.Instance, error) {
			select {
			case <-time.After(10 * time.Second):
				return create(ctx, k, spec)
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}
		m := managerOf(t, s, sandbox.Options{})
		ctx, cancel := context.WithCancelCause(t.Context())
		time.AfterFunc(time.Second, func() { cancel(sandbox.ErrCancelled) })
		var wg sync.WaitGroup
		wg.Go(func() {
			time.Sleep(500 * time.Millisecond)
			if res, err := m.StartSandbox(t.Context(), key, sandbox.Spec{}); err != nil || res.Outcome != sandbox.Created {
				t.Errorf("the other caller: got %+v, %v", res, err)
			}
		})
		if _, err := m.ExecuteCommand(ctx, key, trueCommand); !errors.Is(err, context.Canceled) {
			t.Errorf("the cancelled caller: got %v", err)
		}
		wg.Wait()
		if creates, _, spawns := s.counts(); creates != 1 || spawns != 0 {
			t.Errorf("%d created, %d spawned", creates, spawns)
		}
	})
}

func TestFailedStartCanBeRetried(t *testing.T) {
	s := newScript("")
	create := s.CreateFunc
	s.CreateFunc = func(context.Context, sandbox.Key, sandbox.Spec) (sandbox.Instance, error) {
		return nil, errors.New("no space")
	}
	m := managerOf(t, s, sandbox.Options{})
	if _, err := m.StartSandbox(t.Context(), key, sandbox.Spec{}); err == nil {
		t.Fatal("no error")
	}
	s.CreateFunc = create
	if _, err := m.StartSandbox(t.Context(), key, sandbox.Spec{}); err != nil {
		t.Error(err)
	}
}

func TestRevivalIsCoalesced(t *testing.T) {
	for _, death := range []error{sandbox.ErrNotRunning, sandbox.ErrNotFound} {
		t.Run(strings.ReplaceAll(death.Error(), " ", "_"), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newScript(sandbox.StatusRunning)
				s.spawn = func(int) error {
					s.mu.Lock()
					defer s.mu.Unlock()
					if s.status != sandbox.StatusRunning {
						return death
					}
					return nil
				}
				m := managerOf(t, s, sandbox.Options{})
				if _, err := m.ExecuteCommand(t.Context(), key, trueCommand); err != nil {
					t.Fatal(err)
				}
				s.set(sandbox.StatusStopped)
				var wg sync.WaitGroup
				for range 20 {
					wg.Go(func() {
						res, err := m.ExecuteCommand(t.Context(), key, trueCommand)
						if err != nil {
							t.Errorf("got %v", err)
						} else if res.Notice.Revived == "" && !res.Notice.Started {
							// It came after the revival: nothing to tell.
							return
						}
					})
				}
				wg.Wait()
				if creates, starts, _ := s.counts(); creates != 0 || starts != 1 {
					t.Errorf("%d created, %d started; want one revival", creates, starts)
				}
			})
		})
	}
}

func TestDeadAgainIsAnError(t *testing.T) {
	s := newScript(sandbox.StatusRunning)
	s.spawn = func(int) error { return sandbox.ErrNotRunning }
	_, err := managerOf(t, s, sandbox.Options{}).ExecuteCommand(t.Context(), key, trueCommand)
	if _, _, spawns := s.counts(); !errors.Is(err, sandbox.ErrNotRunning) || spawns != 2 {
		t.Errorf("got %v after %d attempts, want ErrNotRunning after 2", err, spawns)
	}
}

func TestMaybeStartedIsNeverSentAgain(t *testing.T) {
	s := newScript(sandbox.StatusRunning)
	s.spawn = func(int) error { return sandbox.ErrMaybeStarted }
	_, err := managerOf(t, s, sandbox.Options{}).ExecuteCommand(t.Context(), key, trueCommand)
	if _, _, spawns := s.counts(); !errors.Is(err, sandbox.ErrMaybeStarted) || spawns != 1 {
		t.Errorf("got %v after %d attempts, want ErrMaybeStarted after 1", err, spawns)
	}
}

func TestLimits(t *testing.T) {
	s := newScript("")
	s.ListFunc = func(context.Context, sandbox.Owner) ([]sandbox.Info, error) { return make([]sandbox.Info, 2), nil }
	m := managerOf(t, s, sandbox.Options{Limits: sandbox.Limits{MaxSandboxes: 1}})
	if _, err := m.ExecuteCommand(t.Context(), key, trueCommand); !errors.Is(err, sandbox.ErrLimit) {
		t.Errorf("beyond the sandboxes: got %v", err)
	}
	f, _ := newFake(t, sandbox.Options{Limits: sandbox.Limits{MaxProcesses: 2}})
	var last *sandbox.RunResult
	for i := range 3 {
		res, err := f.SpawnProcess(ctxOf(t), key, sandbox.SpawnRequest{RunRequest: sandbox.RunRequest{Command: "exec sleep 600"}})
		if (err == nil) != (i < 2) || i == 2 && !errors.Is(err, sandbox.ErrLimit) {
			t.Fatalf("process %d: got %v", i, err)
		}
		if err == nil {
			last = res
		}
	}
	if _, err := f.KillProcess(ctxOf(t), key, sandbox.KillRequest{Process: last.Process.ID}); err != nil {
		t.Fatal(err)
	}
	if res := sh(t, f, "true"); exit(res) != 0 {
		t.Errorf("after one has ended: got %+v", res)
	}
}

func TestServerMadeSession(t *testing.T) {
	s := newScript("")
	m := managerOf(t, s, sandbox.Options{})
	ctx := sandbox.WithServerMadeSession(t.Context())
	if info, err := m.GetSandbox(ctx, key); err != nil || *info.Spec.AutoDelete != sandbox.ServerMadeAutoDelete {
		t.Errorf("pending: got %+v, %v", info, err)
	}
	if res, err := m.StartSandbox(ctx, key, sandbox.Spec{}); err != nil || *res.Info.Spec.AutoDelete != sandbox.ServerMadeAutoDelete {
		t.Errorf("got %+v, %v", res, err)
	}
	s.set("")
	m = managerOf(t, s, sandbox.Options{})
	if res, err := m.StartSandbox(ctx, key, sandbox.Spec{AutoDelete: ptr(sandbox.Never)}); err != nil || *res.Info.Spec.AutoDelete != sandbox.Never {
		t.Errorf("told otherwise: got %+v, %v", res, err)
	}
}

func TestDestroyIsTruthful(t *testing.T) {
	s := newScript(sandbox.StatusRunning)
	inst, _ := s.LookupFunc(t.Context(), key)
	stub := inst.(*instance)
	works := stub.DestroyFunc
	stub.DestroyFunc = func(context.Context) error { return errors.New("busy mount") }
	m := managerOf(t, s, sandbox.Options{})
	if _, err := m.DestroySandbox(t.Context(), key); err == nil || !strings.Contains(err.Error(), "busy mount") {
		t.Errorf("a failure: got %v", err)
	}
	stub.DestroyFunc = works
	if res, err := m.DestroySandbox(t.Context(), key); err != nil || !res.Existed || res.Status != sandbox.StatusRunning {
		t.Errorf("repeated: got %+v, %v", res, err)
	}
	if res, err := m.DestroySandbox(t.Context(), key); err != nil || res.Existed {
		t.Errorf("nothing there: got %+v, %v", res, err)
	}
}

func TestClosedManager(t *testing.T) {
	s := newScript("")
	m := managerOf(t, s, sandbox.Options{})
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := m.ExecuteCommand(t.Context(), key, trueCommand); !errors.Is(err, sandbox.ErrClosed) {
		t.Errorf("got %v", err)
	}
	if _, err := m.GetSandbox(t.Context(), key); !errors.Is(err, sandbox.ErrClosed) {
		t.Errorf("got %v", err)
	}
}
