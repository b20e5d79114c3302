// Package boxbin embeds the helper program box for Linux. It builds on every
// system, because a berth on any of them may hand box to a Linux machine.
//
// The programs are built by go generate and never committed. In a checkout
// where that did not run, Bytes knows none.
package boxbin

import (
	"embed"
	"io"
)

//go:generate go run gen.go

// boxes.txt keeps the pattern valid when nothing was generated.
//
//go:embed box*
var files embed.FS

// Bytes returns box, an ELF executable for Linux on goarch ("amd64" or
// "arm64"); nil when it was not generated or there is none for goarch.
func Bytes(goarch string) []byte {
	b, err := files.ReadFile("box-linux-" + goarch)
	if err != nil {
		return nil
	}
	return b
}

// Open is Bytes without a copy: what it returns reads the program where it lies.
// Nil when Bytes is.
func Open(goarch string) (program io.ReaderAt, size int64) {
	f, err := files.Open("box-linux-" + goarch)
	if err != nil {
		return nil, 0
	}
	info, err := f.Stat()
	if err != nil {
		return nil, 0
	}
	r, ok := f.(io.ReaderAt) // as embed promises; it holds nothing open
	if !ok {
		return nil, 0
	}
	return r, info.Size()
}
