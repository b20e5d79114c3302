// Command registry is a registry of images for the SDKs' scripts, on a loopback
// port that it prints: node:20-slim and daytonaio/sandbox, made of programs of
// this machine, so that no registry of the internet is needed.
package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// programs are what the images have.
var programs = []string{"sh", "bash", "cat", "chmod", "cp", "env", "id", "ls", "mkdir", "mkfifo", "mktemp", "mv", "node", "pwd", "rm", "sleep", "stat", "tee", "true"}

func main() {
	if err := run(os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "registry:", err)
		os.Exit(1)
	}
}

func run(out io.Writer) error {
	system, err := systemLayer()
	if err != nil {
		return err
	}
	l, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	quiet := log.New(io.Discard, "", 0)
	server := &http.Server{Handler: registry.New(registry.Logger(quiet)), ReadHeaderTimeout: time.Minute, ErrorLog: quiet}
	failed := make(chan error, 1)
	go func() { failed <- server.Serve(l) }()
	for repo, conf := range map[string]v1.Config{
		"library/node:20-slim":     {Env: []string{"PATH=/usr/bin:/bin", "NODE_VERSION=20-slim"}},
		"daytonaio/sandbox:latest": {Env: []string{"PATH=/usr/bin:/bin"}, User: "daytona", WorkingDir: "/home/daytona"},
	} {
		if err := push(l.Addr().String()+"/"+repo, conf, system); err != nil {
			return fmt.Errorf("push %s: %w", repo, err)
		}
	}
	if _, err := fmt.Fprintln(out, l.Addr()); err != nil {
		return err
	}
	return <-failed
}

func push(to string, conf v1.Config, layer v1.Layer) error {
	im, err := mutate.AppendLayers(empty.Image, layer)
	if err != nil {
		return err
	}
	file, err := im.ConfigFile()
	if err != nil {
		return err
	}
	file = file.DeepCopy()
	file.OS, file.Architecture, file.Config = "linux", runtime.GOARCH, conf
	if im, err = mutate.ConfigFile(im, file); err != nil {
		return err
	}
	ref, err := name.ParseReference(to, name.Insecure)
	if err != nil {
		return err
	}
	return remote.Write(ref, im)
}

// systemLayer holds the programs and the libraries that they need, each where
// this machine's loader looks for it, and two users.
func systemLayer() (v1.Layer, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, dir := range []tar.Header{{Name: "tmp/", Mode: 0o1777}, {Name: "root/", Mode: 0o700}, {Name: "home/daytona/", Mode: 0o755, Uid: 1000, Gid: 1000}} {
		dir.Typeflag = tar.TypeDir
		if err := w.WriteHeader(&dir); err != nil {
			return nil, err
		}
	}
	put := func(at string, mode int64, content []byte) error {
		if err := w.WriteHeader(&tar.Header{Name: strings.TrimPrefix(at, "/"), Mode: mode, Size: int64(len(content)), Typeflag: tar.TypeReg}); err != nil {
			return err
		}
		_, err := w.Write(content)
		return err
	}
	have := map[string]bool{}
	library := regexp.MustCompile(`(/\S+) \(0x`)
	for _, p := range programs {
		from, err := exec.LookPath(p)
		if err != nil {
			return nil, err
		}
		if from, err = filepath.EvalSymlinks(from); err != nil {
			return nil, err
		}
		files := map[string]string{"/bin/" + p: from}
		out, err := exec.CommandContext(context.Background(), "ldd", from).Output()
		if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) { // it fails on static programs
			return nil, err
		}
		for _, m := range library.FindAllStringSubmatch(string(out), -1) {
			files[m[1]] = m[1]
		}
		for at, file := range files {
			if have[at] {
				continue
			}
			have[at] = true
			content, err := os.ReadFile(file)
			if err == nil {
				err = put(at, 0o755, content)
			}
			if err != nil {
				return nil, err
			}
		}
	}
	err := errors.Join(
		put("etc/passwd", 0o644, []byte("root:x:0:0:root:/root:/bin/bash\ndaytona:x:1000:1000::/home/daytona:/bin/bash\n")),
		put("etc/group", 0o644, []byte("root:x:0:\ndaytona:x:1000:\n")),
		w.Close())
	if err != nil {
		return nil, err
	}
	return tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b.Bytes())), nil },
		tarball.WithCompressionLevel(gzip.NoCompression)) // it only travels over loopback
}
