//go:build unix

package sandbox_test

import (
	"math"
	"strings"
	"testing"

	"berth/sandbox"
)

// The operator's ceiling refuses what goes beyond it, all at once, and is what
// a sandbox has that asks for nothing.
func TestResourceCeiling(t *testing.T) {
	most := sandbox.Resources{CPU: 2, Memory: 4 << 30, Disk: 1 << 30}
	m, _ := newFake(t, sandbox.Options{Limits: sandbox.Limits{Resources: most}, Defaults: sandbox.Spec{Resources: sandbox.Resources{CPU: 1}}})
	_, err := m.StartSandbox(ctxOf(t), key, sandbox.Spec{Resources: sandbox.Resources{CPU: 2.5, Memory: 5 << 30, Disk: 3 << 29}})
	for _, want := range []string{"resources.cpu: 2.5 cores", "at most 2 cores", "resources.memory_gib: 5 GiB", "at most 4 GiB", "resources.disk_gib: 1.5 GiB", "at most 1 GiB"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("the refusal does not say %q: %v", want, err)
		}
	}
	want := sandbox.Resources{CPU: 1, Memory: 512 << 20, Disk: 1 << 30}
	res, err := m.StartSandbox(ctxOf(t), key, sandbox.Spec{Resources: sandbox.Resources{Memory: 512 << 20}})
	if err != nil || res.Info.Spec.Resources != want {
		t.Fatalf("got %+v, %v; want %+v", res, err, want)
	}
	res, err = m.StartSandbox(ctxOf(t), key, sandbox.Spec{Resources: sandbox.Resources{Memory: 256 << 20}})
	if err != nil || res.Info.Spec.Resources != want || !strings.Contains(strings.Join(res.Notice.Drift, "\n"), "resources.memory_gib: asked 256 MiB, in force 512 MiB") {
		t.Errorf("asked for less later: %+v, %v", res, err)
	}
	if _, err := sandbox.NewManager(nil, sandbox.Options{Limits: sandbox.Limits{Resources: sandbox.Resources{CPU: 1}}, Defaults: sandbox.Spec{Resources: sandbox.Resources{CPU: 2}}}); err == nil {
		t.Error("defaults beyond the ceiling are taken")
	}
}

func TestFromGiB(t *testing.T) {
	for gib, want := range map[float64]int64{0: 0, 0.5: 1 << 29, 1e-15: 1, -1: -1, 1e30: 2 * sandbox.MaxMemory} {
		if got := sandbox.FromGiB(gib); got != want {
			t.Errorf("FromGiB(%v) = %d, want %d", gib, got, want)
		}
	}
	if got := sandbox.FromGiB(math.NaN()); got != -1 {
		t.Errorf("FromGiB(NaN) = %d, want -1", got)
	}
}
