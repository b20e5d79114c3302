package daytonaapi

import (
	"archive/tar"
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"

	"berth/sandbox"
)

func deframe(r io.Reader) ([]byte, error) {
	return io.ReadAll(&chunked{r: bufio.NewReader(r), crc: crc32.NewIEEE()})
}

// frame is what SDKs send, in chunks of a size.
func frame(content []byte, size int) []byte {
	var b bytes.Buffer
	for rest := content; len(rest) > 0; {
		n := min(size, len(rest))
		fmt.Fprintf(&b, "%x\r\n%s\r\n", n, rest[:n])
		rest = rest[n:]
	}
	sum := crc32.ChecksumIEEE(content)
	fmt.Fprintf(&b, "0\r\nx-amz-checksum-crc32:%s\r\n\r\n", base64.StdEncoding.EncodeToString([]byte{byte(sum >> 24), byte(sum >> 16), byte(sum >> 8), byte(sum)}))
	return b.Bytes()
}

// What is framed comes out as it went in, and how it arrives makes no difference.
func FuzzFraming(f *testing.F) {
	f.Add([]byte("some content"), 5)
	f.Add(frame([]byte("content"), 3), 1)
	f.Add([]byte("5;chunk-signature=x\r\nhello\r\n0\r\n\r\n"), 1)
	f.Add([]byte("-1\r\nx"), 7)
	f.Add([]byte("7fffffffffffffff\r\nx\r\n0\r\n"), 7)
	f.Fuzz(func(t *testing.T, data []byte, size int) {
		if got, err := deframe(bytes.NewReader(frame(data, max(1, size)))); err != nil || !bytes.Equal(got, data) {
			t.Errorf("in chunks of %d: %q, %v", size, got, err)
		}
		got, err := deframe(bytes.NewReader(data))
		slow, slowErr := deframe(iotest.OneByteReader(bytes.NewReader(data)))
		if (err == nil) != (slowErr == nil) || err == nil && !bytes.Equal(got, slow) {
			t.Errorf("at once: %q, %v; byte by byte: %q, %v", got, err, slow, slowErr)
		}
		if len(got) > len(data) {
			t.Errorf("%d bytes of %d", len(got), len(data))
		}
	})
}

// A body whose checksum is wrong or did not arrive is refused, as is one cut off.
func TestFramingIsChecked(t *testing.T) {
	whole := string(frame([]byte("content"), 3))
	for name, body := range map[string]string{
		"another_checksum": strings.Replace(whole, "crc32:", "crc32:A", 1),
		"another_content":  strings.Replace(whole, "con", "can", 1),
		"no_checksum":      whole[:strings.Index(whole, "x-amz")],
		"cut_off":          whole[:10],
		"empty":            "",
	} {
		t.Run(name, func(t *testing.T) {
			if got, err := deframe(strings.NewReader(body)); err == nil {
				t.Errorf("taken as %q", got)
			}
		})
	}
}

// sparse is an archive of one file that is all hole, as GNU tar stores it
// (https://www.gnu.org/software/tar/manual/html_node/PAX-1.html).
func sparse(t testing.TB, size int64) []byte {
	t.Helper()
	var records strings.Builder
	for _, r := range []string{"GNU.sparse.major=1", "GNU.sparse.minor=0", "GNU.sparse.name=f", fmt.Sprintf("GNU.sparse.realsize=%d", size)} {
		fmt.Fprintf(&records, "%d %s\n", len(r)+4, r) // two digits, a space and the line's end
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, content := range []string{records.String(), "0\n" + strings.Repeat("\x00", 510)} {
		if err := w.WriteHeader(&tar.Header{Name: "f", Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(content))}); err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(w, content)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	text := b.Bytes()
	// The first is the header of the second: its type, and the sum for that.
	text[156] = tar.TypeXHeader
	copy(text[148:156], "        ")
	sum := 0
	for _, c := range text[:512] {
		sum += int(c)
	}
	copy(text[148:156], fmt.Sprintf("%06o\x00 ", sum))
	return text
}

// A hole is refused, however large: nothing reads through it.
func TestContextWithHoles(t *testing.T) {
	for _, size := range []int64{100, 1 << 50} {
		file := filepath.Join(t.TempDir(), objectName)
		if err := os.WriteFile(file, sparse(t, size), 0o600); err != nil {
			t.Fatal(err)
		}
		err := readContext(file, map[string]sandbox.BuildFile{})
		if err == nil || !strings.Contains(err.Error(), `"f" is stored with holes`) {
			t.Errorf("a hole of %d bytes: %v", size, err)
		}
	}
}

// What an archive is said to hold is there, under names that stay inside, byte for byte.
func FuzzContext(f *testing.F) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range []tar.Header{
		{Name: "dir/", Typeflag: tar.TypeDir, Mode: 0o755},
		{Name: "dir/file", Typeflag: tar.TypeReg, Mode: 0o644, Size: 7},
		{Name: "../../up", Typeflag: tar.TypeReg, Mode: 0o4755, Size: 7},
		{Name: "link", Typeflag: tar.TypeSymlink, Linkname: "/etc/passwd"},
		{Name: "hard", Typeflag: tar.TypeLink, Linkname: "dir/file"},
	} {
		if err := w.WriteHeader(&h); err != nil {
			f.Fatal(err)
		}
		if h.Size > 0 {
			_, _ = io.WriteString(w, "content")
		}
	}
	if err := w.Close(); err != nil {
		f.Fatal(err)
	}
	f.Add(b.Bytes())
	f.Add(b.Bytes()[:700])
	f.Add(sparse(f, 1<<50))
	f.Add(sparse(f, 100))
	f.Fuzz(func(t *testing.T, data []byte) {
		file := filepath.Join(t.TempDir(), objectName)
		if err := os.WriteFile(file, data, 0o600); err != nil {
			t.Fatal(err)
		}
		files := map[string]sandbox.BuildFile{}
		if readContext(file, files) != nil {
			return
		}
		for name, b := range files {
			if name != path.Clean(name) || !fs.ValidPath(name) && strings.Contains("/"+name+"/", "/../") {
				t.Errorf("the name %q", name)
			}
			if b.Mode&^(fs.ModePerm|fs.ModeDir|fs.ModeSymlink) != 0 {
				t.Errorf("%q has the mode %v", name, b.Mode)
			}
			if !b.Mode.IsRegular() {
				continue
			}
			r, err := b.Open()
			if err != nil {
				t.Fatal(err)
			}
			text, err := io.ReadAll(r)
			_ = r.Close()
			sum := sha256.Sum256(text)
			if err != nil || int64(len(text)) != b.Size || hex.EncodeToString(sum[:]) != b.Digest {
				t.Errorf("%q: %d bytes of %d, %v", name, len(text), b.Size, err)
			}
		}
	})
}
