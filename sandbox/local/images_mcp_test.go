//go:build linux

package local_test

import (
	"archive/tar"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"berth/internal/mcptest"
	"berth/sandbox"
)

// What an agent sees of images, through an MCP client.
func TestStartFromAnImage(t *testing.T) {
	im := imageOf(t, v1.Config{User: "app", WorkingDir: "/srv"}, layerOf(t, append(systemFiles(t), file{name: "srv/", kind: tar.TypeDir, uid: 7})...))
	// Slow enough for progress to be told.
	h := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/") {
			time.Sleep(300 * time.Millisecond)
		}
		h.ServeHTTP(w, r)
	}))
	t.Cleanup(s.Close)
	host := strings.TrimPrefix(s.URL, "http://")
	ref, err := name.ParseReference(host + "/team/app:1")
	must(t, err)
	must(t, remote.Write(ref, im))
	dir := t.TempDir()
	p, err := layout.Write(dir, empty.Index)
	must(t, err)
	must(t, p.AppendImage(im))

	server := mcptest.New(t, mcptest.Options{Provider: withImages(t), Manager: sandbox.Options{Limits: sandbox.Limits{AllowedImages: []string{host + "/team/*"}}}})
	c := server.Client(t, mcptest.InProcess)
	for image, want := range map[string]string{
		"debian:12": "not among the images", "oci:" + dir: "operator's alone", "docker-archive:/etc/passwd": "operator's alone", host + "/team/none": "there is no image", "a b": "image:",
	} {
		if text := c.Refused("start_sandbox", mcptest.Args{"session_id": "no", "image": image}); !strings.Contains(text, want) {
			t.Errorf("start_sandbox of %s = %q, want %q", image, text, want)
		}
	}
	if list := c.Must("list_sandboxes", nil).Structured["sandboxes"].([]any); len(list) != 0 {
		t.Errorf("sandboxes were made: %v", list)
	}
	res, err := c.Try(t.Context(), "start_sandbox", mcptest.Args{"session_id": "one", "image": ref.String()}, "token")
	must(t, err)
	if res.IsError {
		t.Fatal(res.Text)
	}
	told := false
	for _, p := range c.Progress("token") {
		told = told || strings.Contains(p.Message, "pulling the image "+ref.String()) && strings.Contains(p.Message, "MiB")
	}
	if !told {
		t.Errorf("progress = %+v, want how far the pull is", c.Progress("token"))
	}
	info := res.Structured["sandbox"].(map[string]any)
	digest, err := im.Digest()
	must(t, err)
	if info["image_digest"] != digest.String() || info["user"] != "app" || info["home"] != "/home/app" {
		t.Errorf("answer = %s", res.Text)
	}
	if out := c.Must("execute_command", mcptest.Args{"session_id": "one", "command": "pwd; id -u"}); !strings.HasPrefix(out.Text, "/srv\n7\n") {
		t.Errorf("pwd, id = %s", out.Text)
	}
	if out := c.Must("execute_command", mcptest.Args{"session_id": "one", "argv": []string{"id", "-u"}, "user": "other"}); !strings.HasPrefix(out.Text, "9\n") {
		t.Errorf("id of another user = %s", out.Text)
	}
	if text := c.Refused("execute_command", mcptest.Args{"session_id": "one", "command": "id", "user": "nobody-there"}); !strings.Contains(text, "no user") {
		t.Errorf("unknown user = %s", text)
	}
	c.Must("write_file", mcptest.Args{"session_id": "one", "path": "f", "content": "x"})
	// Another image is drift, and changes nothing.
	res = c.Must("start_sandbox", mcptest.Args{"session_id": "one", "image": host + "/team/other"})
	if res.Structured["outcome"] != "connected" || !strings.Contains(res.Text, "image: asked "+host+"/team/other, in force "+ref.String()) {
		t.Errorf("another image = %s", res.Text)
	}
	res = c.Must("start_sandbox", mcptest.Args{"session_id": "one", "image": ref.String()})
	if strings.Contains(res.Text, "asked") {
		t.Errorf("the same image = %s", res.Text)
	}
	c.Must("stop_sandbox", mcptest.Args{"session_id": "one"})
	if out := c.Must("execute_command", mcptest.Args{"session_id": "one", "command": "ls " + filepath.Join("/srv", "f")}); !strings.HasPrefix(out.Text, "/srv/f\n") {
		t.Errorf("after a stop: %s", out.Text)
	}
}
