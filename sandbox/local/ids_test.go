//go:build linux

package local

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"berth/sandbox/local/wire"
)

// TestMapToolsWithoutRights finds that newuidmap is there and of no use, and
// goes on with one id.
func TestMapToolsWithoutRights(t *testing.T) {
	if os.Getenv("BERTH_TEST_ID_MODE") != "" {
		ids, why := idMode()
		if ids.Mode != wire.IDsSingle || !strings.Contains(why, "no_new_privs") {
			t.Fatalf("mode %v, since %q", ids, why)
		}
		return
	}
	if os.Geteuid() == 0 {
		t.Skip("root maps ids itself; run as an ordinary user with a line in /etc/subuid")
	}
	if ids, why := idMode(); ids.Mode != wire.IDsSub {
		t.Skipf("this user has one id anyway: %s", why)
	}
	cmd := exec.CommandContext(t.Context(), "setpriv", "--no-new-privs", os.Args[0], "-test.run=^TestMapToolsWithoutRights$")
	cmd.Env = append(os.Environ(), "BERTH_TEST_ID_MODE=1")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}
