//go:build linux

package image_test

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

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

// A registry that begins to answer and goes on for ever does not hold up those
// who pull from elsewhere, and neither a manifest nor a token for good.
func TestRegistriesThatStall(t *testing.T) {
	var layers []v1.Layer
	for range 5 {
		b := make([]byte, 200<<10) // too much to be sent byte by byte
		_, _ = rand.Read(b)
		layers = append(layers, gz(t, tarOf(t, "a", string(b))))
	}
	im := build(t, layers...)
	for _, tt := range []struct{ part, want string }{{"/v2/", ""}, {"/manifests/", "stopped sending"}, {"token", "stopped sending"}} {
		t.Run(strings.ReplaceAll(tt.part, "/", ""), func(t *testing.T) {
			r := newReg(t)
			ref := r.push(t, "slow", im)
			r.spoil(func(w http.ResponseWriter, req *http.Request, h http.Handler) {
				switch {
				case strings.HasSuffix(req.URL.Path, tt.part) || tt.part == "/manifests/" && strings.Contains(req.URL.Path, tt.part):
					drip(w, req)
				case tt.part == "token" && req.URL.Path == "/v2/":
					w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="http://%s/token"`, r.host))
					w.WriteHeader(http.StatusUnauthorized)
				default:
					h.ServeHTTP(w, req)
				}
			})
			s := store(t, image.Options{}.Stall(200*time.Millisecond))
			if _, err := pull(t, s, ref); (err != nil) != (tt.want != "") || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("pull = %v, want %q", err, tt.want)
			}
		})
	}

	slow, good := newReg(t), newReg(t)
	slowRef, goodRef := slow.push(t, "slow", im), good.push(t, "good", im) // the same layers
	began := make(chan struct{}, 100)
	slow.spoil(func(w http.ResponseWriter, req *http.Request, h http.Handler) {
		if strings.Contains(req.URL.Path, "/blobs/") && req.URL.Path != "/v2/slow/blobs/"+configOf(t, im) {
			began <- struct{}{}
			drip(w, req)
			return
		}
		h.ServeHTTP(w, req)
	})
	s := store(t, image.Options{})
	n, err := s.Parse(slowRef)
	must(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, _, err := s.Pull(ctx, n, form(), false, nil); !errors.Is(err, context.Canceled) {
			t.Errorf("the slow pull = %v, want cancelled", err)
		}
	})
	for range 4 {
		<-began
	}
	_, err = pull(t, s, goodRef)
	cancel()
	wg.Wait()
	must(t, err)
}

// drip sends a byte now and then until the client has gone.
func drip(w http.ResponseWriter, req *http.Request) {
	w.Header().Set("Content-Type", "application/vnd.oci.image.manifest.v1+json")
	for req.Context().Err() == nil {
		_, _ = w.Write([]byte(" "))
		_ = http.NewResponseController(w).Flush()
		select {
		case <-req.Context().Done():
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func configOf(t *testing.T, im v1.Image) string {
	t.Helper()
	h, err := im.ConfigName()
	must(t, err)
	return h.String()
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
