//go:build linux

package daytona_test

import (
	"os"
	"testing"
	"time"

	"berth/internal/secret"
	"berth/sandbox/daytona"
	"berth/sandbox/providertest"
)

// TestLive holds the provider against a real account, when DAYTONA_API_KEY is
// set: BERTH_TEST_LIVE=1 DAYTONA_API_KEY=… go test -run Live -timeout 1h. All
// that it makes carries a label of its own, and is removed at the end.
func TestLive(t *testing.T) {
	key := os.Getenv("DAYTONA_API_KEY")
	if key == "" || os.Getenv("BERTH_TEST_LIVE") == "" {
		t.Skip("DAYTONA_API_KEY and BERTH_TEST_LIVE are not set: there is no account to try")
	}
	o := daytona.Options{URL: os.Getenv("DAYTONA_API_URL"), Key: secret.New(key), Target: os.Getenv("DAYTONA_TARGET")}
	h := harness(t, func(*testing.T) daytona.Options { return o })
	h.Timeout = 5 * time.Minute
	providertest.Run(t, h)
}
