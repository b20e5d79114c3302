//go:build linux

package logs

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"
)

// pattern is the byte at an absolute offset.
func pattern(off int64) byte { return byte(off*7 + off>>8) }

func fill(from int64, n int) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = pattern(from + int64(i))
	}
	return p
}

func check(t *testing.T, c Chunk) {
	t.Helper()
	at := c.Next - int64(len(c.Data))
	if !bytes.Equal(c.Data, fill(at, len(c.Data))) {
		t.Fatalf("bytes at %d are not what was written there", at)
	}
}

func TestOffsetsStayValid(t *testing.T) {
	dir := t.TempDir()
	const bound = 8000
	w := NewWriter(dir, "p", Stdout, bound, nil)
	defer w.Close()
	var end int64
	for range 3000 {
		n := rand.IntN(700)
		w.Write(fill(end, n))
		end += int64(n)
		r := w.Range()
		if got := w.Produced(); got != end || r.End != end {
			t.Fatalf("Produced = %d, Range = %+v, want end %d", got, r, end)
		}
		if r.Size > bound || end > bound && r.Size < bound-bound/segments {
			t.Fatalf("%d bytes kept of %d, bound %d", r.Size, end, bound)
		}
		from := rand.Int64N(end + 10)
		c, err := Read(dir, "p", Stdout, from, 1+rand.Int64N(5000))
		if err != nil {
			t.Fatal(err)
		}
		check(t, c)
		if want := max(0, min(r.Oldest, end)-from); c.Dropped != want {
			t.Fatalf("Read(%d).Dropped = %d, want %d with oldest %d", from, c.Dropped, want, r.Oldest)
		}
		if got := c.Next; got != from+c.Dropped+int64(len(c.Data)) {
			t.Fatalf("Read(%d).Next = %d", from, got)
		}
		if s, err := Stat(dir, "p", Stdout); err != nil || s != r {
			t.Fatalf("Stat = %+v, %v, want %+v", s, err, r)
		}
	}
}

func TestEmptyStreamHasNoFiles(t *testing.T) {
	dir := t.TempDir()
	w := NewWriter(dir, "p", Stderr, 0, nil)
	w.Write(nil)
	w.Close()
	if e, _ := os.ReadDir(dir); len(e) != 0 {
		t.Fatalf("files were made: %v", e)
	}
	c, err := Read(dir, "p", Stderr, 5, 10)
	if err != nil || len(c.Data) != 0 || c.Next != 5 || c.Dropped != 0 {
		t.Fatalf("Read of nothing = %+v, %v", c, err)
	}
}

// A reader beside a writer that drops segments under it sees every byte once
// or counts it as dropped.
func TestReadWhileSegmentsVanish(t *testing.T) {
	dir := t.TempDir()
	w := NewWriter(dir, "p", Stdout, 4096, nil)
	var done atomic.Bool
	var total int64
	var wg sync.WaitGroup
	wg.Go(func() {
		for range 20000 {
			n := 1 + rand.IntN(300)
			w.Write(fill(total, n))
			total += int64(n)
		}
		w.Close()
		done.Store(true)
	})
	var at, read, dropped int64
	for {
		last := done.Load()
		c, err := Read(dir, "p", Stdout, at, 1000)
		if err != nil {
			t.Fatal(err)
		}
		check(t, c)
		if c.Next != at+c.Dropped+int64(len(c.Data)) {
			t.Fatalf("Read(%d) = next %d, dropped %d, %d bytes", at, c.Next, c.Dropped, len(c.Data))
		}
		at, read, dropped = c.Next, read+int64(len(c.Data)), dropped+c.Dropped
		if last && len(c.Data) == 0 {
			break
		}
	}
	wg.Wait()
	if read+dropped != total {
		t.Fatalf("read %d + dropped %d, want %d written", read, dropped, total)
	}
	if read == 0 || dropped == 0 {
		t.Fatalf("read %d, dropped %d: the test raced nothing", read, dropped)
	}
}

// smallDisk is a directory on a file system of its own, of 256 KiB.
func smallDisk(t *testing.T) string {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=256k"); err != nil {
		if os.Getenv("BERTH_TEST_ROOT") != "" || os.Geteuid() == 0 {
			t.Fatal(err)
		}
		t.Skip("mounting a small tmpfs needs root")
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	return dir
}

// On a full disk the writer goes on, counts what it loses, and the reader is
// told of the hole.
func TestFullDisk(t *testing.T) {
	dir := smallDisk(t)
	w := NewWriter(dir, "p", Stdout, 1<<20, nil)
	defer w.Close()
	const all = 400 << 10
	for off := int64(0); off < all; off += 1000 {
		w.Write(fill(off, int(min(1000, all-off))))
	}
	r := w.Range()
	if w.Produced() != all || r.Lost == 0 || r.Size+r.Lost != all || r.End != all {
		t.Fatalf("Produced %d, %+v", w.Produced(), r)
	}
	if s, err := Stat(dir, "p", Stdout); err != nil || s != r {
		t.Fatalf("Stat = %+v, %v, want %+v", s, err, r)
	}
	// Room again: writing goes on behind the hole.
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_REMOUNT, "size=1m"); err != nil {
		t.Fatal(err)
	}
	w.Write(fill(all, 5000))
	var at, dropped, read int64
	for {
		c, err := Read(dir, "p", Stdout, at, 64<<10)
		if err != nil {
			t.Fatal(err)
		}
		if len(c.Data) == 0 && c.Dropped == 0 {
			break
		}
		check(t, c)
		at, dropped, read = c.Next, dropped+c.Dropped, read+int64(len(c.Data))
	}
	if at != all+5000 || dropped != r.Lost || read+dropped != at {
		t.Fatalf("read %d, dropped %d up to %d; want %d dropped up to %d", read, dropped, at, r.Lost, all+5000)
	}
}

// What processes say last is kept on a disk that has no byte left, also the first
// that one says, as long as there is spare room; and that comes back.
func TestSpare(t *testing.T) {
	dir := smallDisk(t)
	spare := NewSpare(dir)
	begun := NewWriter(dir, "begun", Stdout, 0, spare)
	defer begun.Close()
	begun.Write([]byte("begun\n"))
	hog, err := os.Create(dir + "/hog")
	if err != nil {
		t.Fatal(err)
	}
	defer hog.Close()
	for err == nil {
		_, err = hog.Write(make([]byte, 512))
	}
	begun.Write(make([]byte, 4090)) // what is left of its page
	last := func(w *Writer, id string, s Stream, at int64) string {
		w.Write([]byte("no space left\n"))
		c, err := Read(dir, id, s, at, 100)
		if err != nil {
			t.Fatal(err)
		}
		return string(c.Data)
	}
	if got := last(begun, "begun", Stdout, 4096); got != "no space left\n" {
		t.Errorf("of one that had begun: %q", got)
	}
	if r := begun.Range(); r.Lost != 0 || r.Size != 4096+14 {
		t.Errorf("of one that had begun: %+v", r)
	}
	said := 0
	for i := range spares {
		id := fmt.Sprint("new", i)
		w := NewWriter(dir, id, Stderr, 0, spare)
		if last(w, id, Stderr, 0) == "no space left\n" {
			said++
		}
		w.Write(make([]byte, 2*spareSize))
		if r := w.Range(); r.Size+r.Lost != 14+2*spareSize || r.End != r.Size+r.Lost {
			t.Errorf("%s: %+v", id, r)
		}
		w.Close()
	}
	if said != spares-1 {
		t.Errorf("%d of %d new ones have said something; there were %d spares left", said, spares, spares-1)
	}
	if ids, err := IDs(dir); err != nil || len(ids) != spares+1 {
		t.Errorf("IDs = %v, %v; want those of the processes", ids, err)
	}
	if err := hog.Truncate(0); err != nil {
		t.Fatal(err)
	}
	spare.Fill()
	if spare.full != spares || NewSpare(dir).full != spares {
		t.Errorf("%d spares when there is room again, and %d for the next that looks, want %d", spare.full, NewSpare(dir).full, spares)
	}
}

func TestForeignNamesAreIgnored(t *testing.T) {
	dir := t.TempDir()
	w := NewWriter(dir, "p", Stdout, 0, nil)
	w.Write([]byte("hello"))
	w.Close()
	for _, n := range []string{"out.-5", "out.+3", "out.007", "out.x", "out.", "err.99999999999999999999", "x"} {
		if err := os.WriteFile(dir+"/p/"+n, []byte("junk"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	c, err := Read(dir, "p", Stdout, 0, 100)
	if err != nil || string(c.Data) != "hello" {
		t.Fatalf("Read = %q, %v", c.Data, err)
	}
	if r, err := Stat(dir, "p", Stderr); err != nil || r != (Range{}) {
		t.Fatalf("Stat(Stderr) = %+v, %v", r, err)
	}
}

func TestValidID(t *testing.T) {
	for _, id := range []string{"", ".", "..", ".x", "a/b", "a\x00", "p q", string(bytes.Repeat([]byte("a"), 65))} {
		if ValidID(id) {
			t.Errorf("ValidID(%q) = true", id)
		}
	}
	if !ValidID("p-abc234") {
		t.Error("ValidID(p-abc234) = false")
	}
}

// BenchmarkPipe drains a pipe into the log and reads it back.
func BenchmarkPipe(b *testing.B) {
	const total = 256 << 20
	for _, size := range []int{64 << 10, 128 << 10, 256 << 10, 1 << 20} {
		b.Run(strconv.Itoa(size>>10)+"KiB", func(b *testing.B) {
			b.SetBytes(total)
			for range b.N {
				dir := b.TempDir()
				r, w, err := os.Pipe()
				if err != nil {
					b.Fatal(err)
				}
				_, _ = unix.FcntlInt(r.Fd(), unix.F_SETPIPE_SZ, 256<<10)
				go func() {
					chunk := make([]byte, 64<<10)
					for n := 0; n < total; n += len(chunk) {
						_, _ = w.Write(chunk)
					}
					_ = w.Close()
				}()
				log := NewWriter(dir, "p", Stdout, 0, nil)
				buf := make([]byte, size)
				var at, got int64
				for {
					n, err := r.Read(buf)
					if n > 0 {
						log.Write(buf[:n])
					}
					for at < log.Produced() && (err != nil || log.Produced()-at > 8<<20) {
						c, err := Read(dir, "p", Stdout, at, 1<<20)
						if err != nil {
							b.Fatal(err)
						}
						at, got = c.Next, got+int64(len(c.Data))
					}
					if err != nil {
						break
					}
				}
				log.Close()
				_ = r.Close()
				if got != total {
					b.Fatalf("read %d of %d", got, total)
				}
			}
		})
	}
}
