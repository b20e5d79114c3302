//go:build ignore

// gen builds box for each architecture, the same bytes on every machine.
package main

import (
	"encoding/json"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

func main() {
	dir, err := os.MkdirTemp("", "berth-box-")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	args := []string{"build", "-trimpath", "-ldflags", "-s -w", "-buildvcs=false"}
	if overlay := smallHeap(dir); overlay != "" {
		args = append(args, "-overlay", overlay)
	}
	for _, arch := range []string{"amd64", "arm64"} {
		out := "box-linux-" + arch
		cmd := exec.Command("go", append(args, "-o", out+".new", "../box")...)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+arch, "GOFLAGS=", "GOAMD64=v1", "GOARM64=v8.0")
		cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
		if err := cmd.Run(); err != nil {
			log.Fatalf("build box for %s: %v", arch, err)
		}
		if err := os.Rename(out+".new", out); err != nil {
			log.Fatal(err)
		}
	}
}

// sizes are constants of Go's runtime that say how much it takes at a time for
// its own lists. They suit heaps of gigabytes; ours has one megabyte, and with
// them the lists take another. None is a limit: where one is too small for a
// heap, the lists grow.
var sizes = []struct{ file, from, to string }{
	{"mspanset.go", "spanSetBlockEntries = 512", "spanSetBlockEntries = 32"},
	{"mspanset.go", "spanSetInitSpineCap = 256", "spanSetInitSpineCap = 8"},
	{"mheap.go", "const gcBitsChunkBytes = uintptr(64 << 10)", "const gcBitsChunkBytes = uintptr(16 << 10)"},
}

// smallHeap writes the runtime's files with those sizes into dir, and returns
// what go build -overlay takes. It is empty when this Go has other files: then
// box is the same program, and an idle sandbox takes half as much again.
func smallHeap(dir string) string {
	root, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		log.Fatalf("go env GOROOT: %v", err)
	}
	texts, replace := map[string]string{}, map[string]string{}
	for _, s := range sizes {
		path := filepath.Join(strings.TrimSpace(string(root)), "src", "runtime", s.file)
		if texts[path] == "" {
			b, err := os.ReadFile(path)
			if err != nil {
				log.Printf("box is built with Go's own runtime: %v", err)
				return ""
			}
			texts[path] = string(b)
		}
		if strings.Count(texts[path], s.from) != 1 {
			log.Printf("box is built with Go's own runtime: %s has no %q", path, s.from)
			return ""
		}
		texts[path] = strings.Replace(texts[path], s.from, s.to, 1)
	}
	for path, text := range texts {
		replace[path] = filepath.Join(dir, filepath.Base(path))
		if err := os.WriteFile(replace[path], []byte(text), 0o600); err != nil {
			log.Fatal(err)
		}
	}
	b, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		log.Fatal(err)
	}
	overlay := filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(overlay, b, 0o600); err != nil {
		log.Fatal(err)
	}
	return overlay
}
