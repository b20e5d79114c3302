//go:build ignore

// gen builds bucketd for each architecture and compresses it, the same bytes on
// every machine.
package main

import (
	"bytes"
	"log"
	"os"
	"os/exec"

	"github.com/klauspost/compress/zstd"
)

func main() {
	for _, arch := range []string{"amd64", "arm64"} {
		if err := build(arch); err != nil {
			log.Fatalf("build bucketd for %s: %v", arch, err)
		}
	}
}

func build(arch string) error {
	out := "bucketd-linux-" + arch
	defer os.Remove(out + ".new")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-buildvcs=false", "-o", out+".new", "../bucketd")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+arch, "GOFLAGS=", "GOAMD64=v1", "GOARM64=v8.0")
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	if err := cmd.Run(); err != nil {
		return err
	}
	program, err := os.ReadFile(out + ".new")
	if err != nil {
		return err
	}
	var packed bytes.Buffer
	// One goroutine: what several make depends on their number.
	w, err := zstd.NewWriter(&packed, zstd.WithEncoderLevel(zstd.SpeedBestCompression), zstd.WithEncoderConcurrency(1))
	if err != nil {
		return err
	}
	if _, err := w.Write(program); err != nil {
		return err
	}
	if err := w.Close(); err != nil {
		return err
	}
	if err := os.WriteFile(out+".zst.new", packed.Bytes(), 0o644); err != nil {
		return err
	}
	return os.Rename(out+".zst.new", out+".zst")
}
