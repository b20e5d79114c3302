package sandbox_test

import (
	"strings"
	"testing"

	"berth/sandbox"
)

func TestSubpaths(t *testing.T) {
	name := strings.Repeat("n", 255)
	for s, want := range map[string]bool{
		"": true, "a": true, "a/b": true, "..a/b..": true, "a b/\n": true, name + "/" + name: true,
		".": false, "..": false, "../a": false, "a/..": false, "a/../b": false, "./a": false, "/a": false, "a/": false, "a//b": false,
		"a\x00": false, "\xff": false, name + "n": false, "a/" + name + "n/b": false, strings.Repeat("a/", 2100) + "a": false,
	} {
		err := sandbox.Spec{Volumes: []sandbox.VolumeMount{{Volume: "v", Path: "/v", Subpath: s}}}.Validate()
		if got := err == nil; got != want || err != nil && !strings.Contains(err.Error(), "volumes[0].subpath") {
			t.Errorf("subpath %.40q: accepted %v, want %v (%v)", s, got, want, err)
		}
	}
}
