package main

import (
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"time"
)

// bucketClient is what this program is called with to work on a directory, inside
// of a sandbox or beside.
const bucketClient = "bucket-client"

// worked is what the client measured, in nanoseconds.
type worked struct {
	Took time.Duration `json:"took"`
	// Then is the time of the second half of what was done: a file that is
	// read once more, names that are looked at after they were listed. Of
	// random reads it is the median.
	Then  time.Duration `json:"then"`
	P95   time.Duration `json:"p95"`
	Count int           `json:"count"`
}

const (
	smallBytes  = 4 << 10
	randomReads = 200
)

// runBucketClient does one thing at a path, of a size that n tells, and prints
// what it measured.
func runBucketClient(op, path, n string) error {
	size, err := strconv.Atoi(n)
	if err != nil {
		return err
	}
	do := map[string]func(string, int) (worked, error){
		"write": writeOne, "read": readOne, "random": readAt, "writes": writeMany, "reads": readMany, "list": listMany}[op]
	if do == nil {
		return fmt.Errorf("unknown work %q", op)
	}
	w, err := do(path, size)
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(w)
}

// writeOne writes a file of n MiB, from front to back.
func writeOne(path string, n int) (w worked, err error) {
	piece := make([]byte, 1<<20)
	random := rand.NewChaCha8([32]byte{1})
	_, _ = random.Read(piece) // never fails
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return w, err
	}
	begin := time.Now()
	f, err := os.Create(path)
	if err != nil {
		return w, err
	}
	defer f.Close()
	for i := range n {
		piece[i%len(piece)]++
		if _, err := f.Write(piece); err != nil {
			return w, err
		}
	}
	if err := f.Close(); err != nil {
		return w, err
	}
	w.Took, w.Count = time.Since(begin), n
	return w, nil
}

// readOne reads a file of n MiB, twice.
func readOne(path string, n int) (w worked, err error) {
	piece := make([]byte, 1<<20)
	once := func() (time.Duration, error) {
		begin := time.Now()
		f, err := os.Open(path)
		if err != nil {
			return 0, err
		}
		defer f.Close()
		got := 0
		for {
			k, err := f.Read(piece)
			got += k
			if err == io.EOF {
				break
			}
			if err != nil {
				return 0, err
			}
		}
		if got != n<<20 {
			return 0, fmt.Errorf("%s has %d bytes, want %d MiB", path, got, n)
		}
		return time.Since(begin), nil
	}
	if w.Took, err = once(); err != nil {
		return w, err
	}
	w.Then, err = once()
	return w, err
}

// readAt reads pages at random places of a file of n MiB.
func readAt(path string, n int) (w worked, err error) {
	f, err := os.Open(path)
	if err != nil {
		return w, err
	}
	defer f.Close()
	random := rand.New(rand.NewPCG(1, 2)) //nolint:gosec // the same places for all
	var times sample
	page := make([]byte, smallBytes)
	for range randomReads {
		begin := time.Now()
		if _, err := f.ReadAt(page, random.Int64N(int64(n)<<20/smallBytes)*smallBytes); err != nil {
			return w, err
		}
		times = append(times, time.Since(begin))
	}
	for _, t := range times {
		w.Took += t
	}
	w.Then, w.P95, w.Count = times.p50(), times.p95(), randomReads
	return w, nil
}

// writeMany writes n small files.
func writeMany(dir string, n int) (w worked, err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return w, err
	}
	data := make([]byte, smallBytes)
	begin := time.Now()
	for i := range n {
		data[0]++
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("f%04d", i)), data, 0o644); err != nil {
			return w, err
		}
	}
	w.Took, w.Count = time.Since(begin), n
	return w, nil
}

// readMany lists a directory and reads the first n files of it.
func readMany(dir string, n int) (w worked, err error) {
	begin := time.Now()
	list, err := os.ReadDir(dir)
	if err != nil {
		return w, err
	}
	for _, e := range list[:min(n, len(list))] {
		data, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			return w, err
		}
		if len(data) != smallBytes {
			return w, fmt.Errorf("%s has %d bytes", e.Name(), len(data))
		}
		w.Count++
	}
	if w.Count != n {
		return w, fmt.Errorf("%s has %d files, want %d", dir, w.Count, n)
	}
	w.Took = time.Since(begin)
	return w, nil
}

// listMany lists a directory of n names, and then asks about each.
func listMany(dir string, n int) (w worked, err error) {
	begin := time.Now()
	d, err := os.Open(dir)
	if err != nil {
		return w, err
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	if err != nil {
		return w, err
	}
	if len(names) != n {
		return w, fmt.Errorf("%s has %d names, want %d", dir, len(names), n)
	}
	w.Took, w.Count = time.Since(begin), n
	begin = time.Now()
	for _, name := range names {
		if _, err := os.Lstat(filepath.Join(dir, name)); err != nil {
			return w, err
		}
	}
	w.Then = time.Since(begin)
	return w, nil
}
