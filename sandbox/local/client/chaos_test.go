//go:build linux

package client_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"testing"
	"time"

	"berth/sandbox"
	"berth/sandbox/local/client"
)

// reader is a berth that follows a process's output: it prints each piece with
// the offset that it starts at, until it is killed or the process has ended.
func reader(dir, id string) {
	var at sandbox.Cursor
	if _, err := fmt.Scan(&at.Stdout); err != nil {
		panic(err)
	}
	ctx := context.Background()
	c, err := client.Dial(ctx, dir)
	if err != nil {
		panic(err)
	}
	p := c.Handle(sandbox.ProcessID(id))
	for {
		i, err := p.Info(ctx)
		if err != nil {
			panic(err)
		}
		o, err := p.Read(ctx, at, 32<<10)
		if err != nil {
			panic(err)
		}
		if len(o.Stdout) > 0 {
			fmt.Printf("%d %d\n%s\n", at.Stdout, len(o.Stdout), o.Stdout)
		} else if i.State != sandbox.ProcessRunning {
			return
		}
		at = o.Next
		if err := p.Wait(ctx, at, false); err != nil {
			panic(err)
		}
	}
}

// Clients are killed at any moment while a process prints; each goes on where
// what the last one handed out ends. Not a byte is lost or repeated.
func TestChaosClientsKilled(t *testing.T) {
	c, dir := launch(t, nil)
	const lines = 400000
	p := spawn(t, c, shell("seq 1 "+strconv.Itoa(lines)+" | (while IFS= read -r -n 40000 x || [ -n \"$x\" ]; do echo \"$x\"; done)"))
	var got bytes.Buffer
	kills, ended := 0, false
	for ended = false; !ended && kills < 5000; kills++ {
		cmd := exec.Command("/proc/self/exe", "reader", dir, string(p.ID()))
		cmd.Stdin = bytes.NewBufferString(strconv.Itoa(got.Len()) + "\n")
		var out, errs bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &errs
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		after := time.Duration(rand.IntN(40)) * time.Millisecond
		if kills >= 200 {
			after = time.Minute // enough; let it end
		}
		kill := time.AfterFunc(after, func() { _ = cmd.Process.Kill() })
		err := cmd.Wait()
		if ended = err == nil; !ended && cmd.ProcessState.Exited() {
			t.Fatalf("a reader failed: %v\n%s", err, &errs)
		}
		kill.Stop()
		for {
			var at, n int
			if _, err := fmt.Fscanf(&out, "%d %d\n", &at, &n); err != nil {
				break
			}
			piece := make([]byte, n+1)
			if _, err := io.ReadFull(&out, piece); err != nil {
				break // cut off by the kill; it is read again
			}
			if at != got.Len() {
				t.Fatalf("a piece begins at %d, want %d", at, got.Len())
			}
			got.Write(piece[:n])
		}
	}
	var want bytes.Buffer
	for i := 1; i <= lines; i++ {
		want.WriteString(strconv.Itoa(i))
		want.WriteByte('\n')
	}
	if !ended {
		t.Fatal("the process never ended")
	}
	if !bytes.Equal(got.Bytes(), want.Bytes()) {
		t.Fatalf("got %d bytes, want %d", got.Len(), want.Len())
	}
	t.Logf("%d readers, %d bytes", kills, got.Len())
}

func BenchmarkSpawnWait(b *testing.B) {
	c, _ := launch(b, nil)
	ctx := context.Background()
	for b.Loop() {
		p, err := c.Spawn(ctx, sandbox.Command{ID: sandbox.NewProcessID(), Argv: []string{"true"}, Cwd: "/"})
		if err != nil {
			b.Fatal(err)
		}
		if err := p.Wait(ctx, sandbox.Cursor{}, true); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkOutput10MiB(b *testing.B) {
	const total = 10 << 20
	c, dir := launch(b, nil)
	ctx := context.Background()
	b.SetBytes(total)
	for b.Loop() {
		p, err := c.Spawn(ctx, sandbox.Command{ID: sandbox.NewProcessID(), Argv: []string{"head", "-c", strconv.Itoa(total), "/dev/zero"}, Cwd: "/"})
		if err != nil {
			b.Fatal(err)
		}
		var at sandbox.Cursor
		for at.Stdout < total {
			if err := p.Wait(ctx, at, false); err != nil {
				b.Fatal(err)
			}
			o, err := p.Read(ctx, at, 1<<20)
			if err != nil || o.Dropped > 0 {
				b.Fatal(err, o.Dropped)
			}
			at = o.Next
		}
	}
	b.StopTimer()
	if r, err := os.ReadFile("/proc/" + strconv.Itoa(c.Hello().PID) + "/status"); err == nil {
		_, rss, _ := bytes.Cut(r, []byte("VmRSS:"))
		rss, _, _ = bytes.Cut(rss, []byte("kB"))
		if n, err := strconv.Atoi(string(bytes.TrimSpace(rss))); err == nil {
			b.ReportMetric(float64(n)/1024, "monitor-MiB")
		}
	}
	_ = dir
}
