//go:build linux

package image_test

import (
	"encoding/base64"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"berth/sandbox/local/image"
)

func TestMirrors(t *testing.T) {
	im := build(t, gz(t, tarOf(t, "a", "1")))
	good, bad := newReg(t), newReg(t)
	good.push(t, "cache/library/debian:12", im)
	bad.spoil(func(w http.ResponseWriter, _ *http.Request, _ http.Handler) { w.WriteHeader(http.StatusNotFound) })
	s := store(t, image.Options{Mirrors: map[string][]string{"docker.io": {bad.URL, good.URL + "/cache"}}, Private: func(image.Name) bool { return false }})
	got, err := pull(t, s, "debian:12")
	must(t, err)
	if got.Name != "docker.io/library/debian:12" || shown(t, s, got, "a") != "1" {
		t.Errorf("image = %+v", got)
	}
}

func TestPrivateAddressesAreRefused(t *testing.T) {
	r := newReg(t)
	ref := r.push(t, "a", build(t, gz(t, tarOf(t, "a", "1"))))
	s := store(t, image.Options{Private: func(image.Name) bool { return false }})
	if _, err := pull(t, s, ref); err == nil || !strings.Contains(err.Error(), "not public") {
		t.Errorf("pull from loopback = %v, want a refusal", err)
	}
	for _, a := range []string{"127.0.0.1", "10.1.2.3", "169.254.169.254", "192.168.0.1", "100.64.0.1", "::1", "fe80::1", "fd00::1", "::ffff:127.0.0.1", "0.0.0.0", "64:ff9b::7f00:1"} {
		if image.Public(netip.MustParseAddr(a)) {
			t.Errorf("%s counts as public", a)
		}
	}
	if !image.Public(netip.MustParseAddr("1.1.1.1")) || !image.Public(netip.MustParseAddr("2606:4700::1111")) {
		t.Error("public addresses do not count as public")
	}
}

func TestCredentials(t *testing.T) {
	r := newReg(t)
	ref := r.push(t, "team/app", build(t, gz(t, tarOf(t, "a", "1"))))
	want := "Basic " + base64.StdEncoding.EncodeToString([]byte("me:s3cret"))
	r.spoil(func(w http.ResponseWriter, req *http.Request, h http.Handler) {
		if req.Header.Get("Authorization") != want {
			w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		h.ServeHTTP(w, req)
	})
	dir := t.TempDir()
	write := func(name, text string, mode os.FileMode) string {
		p := filepath.Join(dir, name)
		must(t, os.WriteFile(p, []byte(text), mode))
		return p
	}
	entry := base64.StdEncoding.EncodeToString([]byte("me:s3cret"))
	docker := write("docker.json", fmt.Sprintf(`{"auths":{%q:{"auth":%q}}}`, r.host, entry), 0o600)
	podman := write("podman.json", fmt.Sprintf(`{"auths":{%q:{"auth":%q}}}`, r.host+"/team", entry), 0o600)
	write("docker-credential-tried", "#!/bin/sh\necho '{\"ServerURL\":\"x\",\"Username\":\"me\",\"Secret\":\"s3cret\"}'\n", 0o755)
	write("docker-credential-broken", "#!/bin/sh\necho s3cret; exit 1\n", 0o755)
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	helper := write("helper.json", fmt.Sprintf(`{"credHelpers":{%q:"tried"}}`, r.host), 0o600)
	broken := write("broken.json", fmt.Sprintf(`{"credHelpers":{%q:"broken"}}`, r.host), 0o600)
	for _, tt := range []struct {
		name, want string
		files      []string
	}{
		{"docker", "", []string{dir + "/none", docker}}, {"podman_namespace", "", []string{podman}}, {"helper", "", []string{helper}},
		{"none", "log in", nil}, {"broken_helper", "does not work", []string{broken}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := pull(t, store(t, image.Options{AuthFiles: tt.files}), ref)
			if (tt.want == "") != (err == nil) || err != nil && (!strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "s3cret")) {
				t.Errorf("pull = %v, want %q", err, tt.want)
			}
		})
	}
}
