//go:build linux

package local

import (
	"os"
	"sync"
	"testing"
)

// TestStepRememberedAtOnce: several builds may come to the same step at a time.
func TestStepRememberedAtOnce(t *testing.T) {
	_, s := freshStore(t)
	var builds sync.WaitGroup
	for range 8 {
		builds.Go(func() {
			for range 50 {
				if err := s.remember("same", ""); err != nil {
					t.Error(err)
				}
				s.settleCache([]string{"same"})
			}
		})
	}
	builds.Wait()
	if e, ok := s.cached("same"); !ok || !e.Synced {
		t.Errorf("cached: %+v, %t", e, ok)
	}
	if left, err := os.ReadDir(s.path("tmp")); err != nil || len(left) != 0 {
		t.Errorf("left aside: %v, %v", left, err)
	}
}
