// Package boxbin embeds the helper program box for Linux. It builds on every
// system, because a berth on any of them may hand box to a Linux machine.
//
// The programs are built by go generate and never committed. In a checkout
// where that did not run, Open knows none.
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

// Open reads box, an ELF executable for Linux on goarch ("amd64" or "arm64"),
// where it lies: it is megabytes, which nobody needs in memory twice. Nil when it
// was not generated or there is none for goarch.
func Open(goarch string) *io.SectionReader {
	f, err := files.Open("box-linux-" + goarch)
	if err != nil {
		return nil
	}
	info, err := f.Stat()
	if err != nil {
		return nil
	}
	r, ok := f.(io.ReaderAt) // as embed promises; it holds nothing open
	if !ok {
		return nil
	}
	return io.NewSectionReader(r, 0, info.Size())
}
