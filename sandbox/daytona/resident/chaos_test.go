//go:build linux

package resident_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"berth/sandbox"
)

func itoa(n int) string { return strconv.Itoa(n) }

// interruptions is how many faults the tests below inject; BERTH_INTERRUPTIONS says
// otherwise.
func interruptions(t *testing.T) int {
	n := 24
	if v := os.Getenv("BERTH_INTERRUPTIONS"); v != "" {
		var err error
		if n, err = strconv.Atoi(v); err != nil {
			t.Fatal(err)
		}
	}
	return n
}

// faulty makes about two of three calls go wrong, each in a way of its own.
func (s *shell) faulty(rng *rand.Rand, count *int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fault = func(int, string) fault {
		var f fault
		switch rng.IntN(12) {
		case 0:
			f.unsent = true
		case 1, 2:
			f.lost = true
		case 3, 4:
			f.cut = 1 + rng.IntN(600)
		case 5:
			f.twice = true
		case 6:
			f.late = time.Duration(rng.IntN(300)) * time.Millisecond
		case 7:
			f.kill = time.Duration(rng.IntN(30)) * time.Millisecond
		case 8:
			f.garbage = "bash: warning: setlocale\n<berth-box 3:"
		default:
			return f
		}
		*count++
		return f
	}
}

func (s *shell) healed() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fault = nil
}

// must repeats what may fail in the end when faults come in a row, as a caller does
// who may ask again.
func must[T any](t *testing.T, what string, f func() (T, error)) T {
	t.Helper()
	for late := time.Now().Add(patience); ; {
		v, err := f()
		if err == nil {
			return v
		}
		if time.Now().After(late) {
			t.Fatalf("%s: %v", what, err)
		}
	}
}

// TestInterruptions breaks the connection again and again while a program is written
// to and read from: no byte is lost or repeated, and nothing is run twice.
func TestInterruptions(t *testing.T) {
	s := newShell(t, nil)
	b := newBox(s, "chaos")
	if err := b.Ensure(limited(t)); err != nil {
		t.Fatal(err)
	}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng, count, want := rand.New(rand.NewPCG(seed, 1)), 0, interruptions(t)
	s.faulty(rng, &count)
	ctx, cancel := context.WithTimeout(context.Background(), 10*patience)
	defer cancel()

	c := s.text("cat; echo end >&2")
	c.OpenStdin = true
	p := must(t, "Spawn", func() (sandbox.Process, error) { return b.Spawn(ctx, c) })
	var sent, got bytes.Buffer
	var at sandbox.Cursor
	ran := 0
	faults := func() int { s.mu.Lock(); defer s.mu.Unlock(); return count }
	for i := 0; faults() < want; i++ {
		line := fmt.Sprintf("line %d \x00\xff %s\n", i, strings.Repeat("x", rng.IntN(3000)))
		if rng.IntN(20) == 0 {
			line += strings.Repeat("long ", 20_000) // by a file
		}
		// A handle of another server now and then.
		if rng.IntN(4) == 0 {
			p = must(t, "Process", func() (sandbox.Process, error) { return newBox(s, "chaos").Process(ctx, c.ID) })
		}
		err := p.Write(ctx, []byte(line), false)
		switch {
		case err == nil:
			sent.WriteString(line)
		case errors.Is(err, sandbox.ErrLimit):
		default:
			// All tries failed. Whether it was taken shows in what the program prints.
			s.healed()
			i, ierr := p.Info(ctx)
			if ierr != nil {
				t.Fatalf("Write: %v; Info: %v", err, ierr)
			}
			until(t, "the program has printed all", func() bool { i, ierr = p.Info(ctx); return ierr == nil && i.Produced.Stdout >= int64(sent.Len()) })
			time.Sleep(50 * time.Millisecond)
			if i, ierr = p.Info(ctx); ierr != nil {
				t.Fatal(ierr)
			}
			switch i.Produced.Stdout {
			case int64(sent.Len()):
			case int64(sent.Len() + len(line)):
				sent.WriteString(line)
			default:
				t.Fatalf("a write that failed was taken in part: %d bytes printed, %d or %d sent", i.Produced.Stdout, sent.Len(), sent.Len()+len(line))
			}
			s.faulty(rng, &count)
		}
		if rng.IntN(3) == 0 {
			o, err := p.Read(ctx, at, 1<<20)
			if err == nil {
				got.Write(o.Stdout)
				at = o.Next
			}
		}
		if rng.IntN(3) == 0 {
			once := s.text(fmt.Sprintf("echo %d >>ran", i))
			once.Await = time.Second
			if _, err := b.Spawn(ctx, once); err == nil || errors.Is(err, sandbox.ErrMaybeStarted) {
				ran++
			}
		}
	}
	s.healed()
	if err := p.Write(ctx, nil, true); err != nil {
		t.Fatal(err)
	}
	if err := p.Wait(ctx, at, true); err != nil {
		t.Fatal(err)
	}
	for {
		o, err := p.Read(ctx, at, 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		if at = o.Next; len(o.Stdout)+len(o.Stderr) == 0 {
			break
		}
		got.Write(o.Stdout)
	}
	if !bytes.Equal(got.Bytes(), sent.Bytes()) {
		t.Errorf("after %d interruptions: got %d bytes, want %d", faults(), got.Len(), sent.Len())
	}
	until(t, "all commands have ended", func() bool {
		l, err := b.Processes(ctx)
		for _, i := range l {
			if i.State == sandbox.ProcessRunning {
				return false
			}
		}
		return err == nil
	})
	text, _ := os.ReadFile(s.home + "/ran")
	seen := map[string]bool{}
	for _, line := range strings.Fields(string(text)) {
		if seen[line] {
			t.Errorf("command %s was run twice", line)
		}
		seen[line] = true
	}
	t.Logf("%d interruptions, %d bytes, %d commands of %d asked for", faults(), got.Len(), len(seen), ran)
}

// TestAppendsOnce interrupts appends: each line that was acknowledged is there, and
// none twice.
func TestAppendsOnce(t *testing.T) {
	s := newShell(t, nil)
	b := newBox(s, "append")
	if err := b.Ensure(limited(t)); err != nil {
		t.Fatal(err)
	}
	count, want := 0, interruptions(t)/4
	s.faulty(rand.New(rand.NewPCG(7, uint64(time.Now().UnixNano()))), &count)
	ctx := limited(t)
	acknowledged := map[string]bool{}
	for i := 0; ; i++ {
		s.mu.Lock()
		enough := count >= want
		s.mu.Unlock()
		if enough {
			break
		}
		line := "line-" + itoa(i)
		if _, err := b.Files().Write(ctx, s.home+"/log", strings.NewReader(line+"\n"), sandbox.WriteOptions{Append: true}); err == nil {
			acknowledged[line] = true
		}
	}
	s.healed()
	time.Sleep(400 * time.Millisecond) // for what is delivered late
	text, err := os.ReadFile(s.home + "/log")
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, line := range strings.Fields(string(text)) {
		if seen[line] {
			t.Errorf("%s is there twice", line)
		}
		seen[line] = true
	}
	for line := range acknowledged {
		if !seen[line] {
			t.Errorf("%s was acknowledged, and is not there", line)
		}
	}
}

// TestHelperKilledAgainAndAgain kills the helper at random moments of calls. What
// was acknowledged is known ever after, nothing is run twice, and no exit code is
// made up.
func TestHelperKilledAgainAndAgain(t *testing.T) {
	s := newShell(t, nil)
	b := newBox(s, "kills")
	ctx, cancel := context.WithTimeout(context.Background(), 10*patience)
	defer cancel()
	if err := b.Ensure(ctx); err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	killed := make(chan int)
	go func() {
		n := 0
		for rng := rand.New(rand.NewPCG(3, uint64(time.Now().UnixNano()))); ; n++ {
			select {
			case <-stop:
				killed <- n
				return
			case <-time.After(time.Duration(200+rng.IntN(1000)) * time.Millisecond):
			}
			killResident(t, s)
		}
	}()
	known := map[sandbox.ProcessID]int{}
	for i := range interruptions(t) / 4 {
		c := s.text(fmt.Sprintf("echo %d >>ran; sleep 0.%d; exit 7", i, i%3))
		c.Await = time.Second
		p, err := b.Spawn(ctx, c)
		if err != nil {
			if !errors.Is(err, sandbox.ErrMaybeStarted) && !errors.Is(err, sandbox.ErrNotRunning) && !errors.Is(err, sandbox.ErrUnavailable) && !errors.Is(err, sandbox.ErrUnsupported) {
				t.Errorf("Spawn: %v", err)
			}
			continue
		}
		known[p.ID()] = i
	}
	close(stop)
	n := <-killed
	all, err := b.Processes(ctx)
	if err != nil {
		t.Fatal(err)
	}
	lost := 0
	for _, i := range all {
		if i.State == sandbox.ProcessRunning {
			if p, err := b.Process(ctx, i.ID); err == nil {
				i, _ = end(t, p)
			}
		}
		delete(known, i.ID)
		switch {
		case i.State == sandbox.ProcessLost && i.ExitCode == nil && i.Reason != "":
			lost++
		case i.State == sandbox.ProcessExited && code(i) == 7:
		default:
			t.Errorf("got %+v", i)
		}
	}
	for id, i := range known {
		t.Errorf("command %d (%s) was started, and is not known", i, id)
	}
	text, _ := os.ReadFile(s.home + "/ran")
	seen := map[string]bool{}
	for _, line := range strings.Fields(string(text)) {
		if seen[line] {
			t.Errorf("command %s was run twice", line)
		}
		seen[line] = true
	}
	t.Logf("%d kills, %d commands, %d of them lost", n, len(all), lost)
}
