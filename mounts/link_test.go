package mounts_test

import (
	"os/exec"
	"strings"
	"testing"
)

// The server links no cloud library: they would cost it 25 ms and 34 MiB. Only
// bucketd does.
func TestServerLinksNoCloud(t *testing.T) {
	out, err := exec.CommandContext(t.Context(), "go", "list", "-deps", "berth").Output()
	if err != nil {
		t.Skipf("go list: %v (this test runs in a checkout, with go)", err)
	}
	for pkg := range strings.FieldsSeq(string(out)) {
		for _, vendor := range []string{"github.com/aws/", "github.com/Azure/", "cloud.google.com/", "google.golang.org/api", "golang.org/x/oauth2", "github.com/hanwen/go-fuse", "berth/mounts/objects", "berth/mounts/cloud", "berth/mounts/bucketfs"} {
			if strings.HasPrefix(pkg, vendor) {
				t.Errorf("berth links %s", pkg)
			}
		}
	}
}
