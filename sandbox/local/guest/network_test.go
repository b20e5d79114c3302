//go:build linux

package guest

import (
	"testing"
	"testing/synctest"
	"time"
)

// A flood of questions gets its time and no more; others later have theirs again.
func TestAllowance(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		a := allowance{used: func() time.Duration { return time.Since(began) }}
		asked := 0
		flood := func() {
			for range 100 {
				a.spend(func() { asked++; time.Sleep(10 * time.Millisecond) })
			}
		}
		flood()
		if asked < 20 || asked > 25 {
			t.Errorf("%d of 100 questions at once were answered, want about 20", asked)
		}
		before := asked
		flood()
		if asked > before+1 {
			t.Errorf("%d more at once", asked-before)
		}
		time.Sleep(10 * time.Second)
		flood()
		if got := asked - before; got < 20 || got > 26 {
			t.Errorf("%d after a rest, want about 20", got)
		}
	})
}
