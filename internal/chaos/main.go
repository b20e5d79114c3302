// Command chaos shows that no byte of a process's output is lost or repeated.
// In a sandbox a writer emits numbered lines at full speed, while the berth
// that serves its reader is killed, its connection dropped, or its shutdown
// asked for, at random moments, over stdio and HTTP. The reader keeps the
// cursor of the last answer that reached it, and nothing else.
//
// It ends with 0 when the concatenation of all answers is the writer's output,
// every byte once.
package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"time"

	"berth/internal/driver"
)

func main() {
	var (
		berth = flag.String("berth", "bin/berth", "the berth program")
		kills = flag.Int("kills", 1000, "how often to kill")
		seed  = flag.Uint64("seed", uint64(time.Now().UnixNano()), "of the random moments")
		quiet = flag.Bool("quiet", false, "print the last line only")
	)
	flag.Parse()
	if err := run(*berth, *kills, *seed, *quiet); err != nil {
		fmt.Fprintf(os.Stderr, "chaos: %v (seed %d)\n", err, *seed)
		os.Exit(1)
	}
}

// writer emits "N\n" with N from 0 on stdout, one write a line, and every
// hundredth on stderr too. On TERM it says how many lines it wrote, and ends.
const writer = `i=0; stop=; trap 'stop=1' TERM
while [ -z "$stop" ]; do echo $i; [ $((i % 100)) = 0 ] && echo $i >&2; i=$((i+1)); done
echo "end $i"`

func run(berth string, kills int, seed uint64, quiet bool) (err error) {
	state, err := os.MkdirTemp("", "berth-chaos-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(state)
	ctx := context.Background()
	r := &reader{
		program: driver.Program{Path: berth, State: state},
		random:  rand.New(rand.NewPCG(seed, 1)),
		session: "chaos",
	}
	defer r.hangUp()

	begin := time.Now()
	if err := r.connect(ctx); err != nil {
		return err
	}
	// Before its state goes: the writer would go on for ever.
	defer func() { err = errors.Join(err, r.destroy(ctx)) }()
	spawned, err := r.link.Must(ctx, "spawn_process", map[string]any{"session_id": r.session, "command": writer, "open_stdin": false})
	if err != nil {
		return err
	}
	r.process = spawned.Result.ProcessID
	if r.process == "" {
		return errors.New("spawn_process told no process_id")
	}
	// Without a cursor an answer holds the newest of too much, and it may be long
	// until one arrives.
	if err := r.read(ctx, "none"); err != nil {
		return err
	}
	done := map[string]int{}
	for n := 0; n < kills; {
		kind, err := r.round(ctx)
		if err != nil {
			return fmt.Errorf("after %d interruptions: %w", n, err)
		}
		done[kind]++
		n++
		if !quiet && n%50 == 0 {
			fmt.Printf("%5d interruptions  %9d lines  %6.1f s\n", n, r.stdout.next, time.Since(begin).Seconds())
		}
	}
	if err := r.finish(ctx); err != nil {
		return err
	}
	fmt.Printf("ok: %d interruptions (%s), %d lines in %d bytes, none lost, none repeated, %.1f s\n",
		kills, counts(done), r.stdout.next, r.stdout.bytes, time.Since(begin).Seconds())
	return nil
}

func counts(m map[string]int) string {
	var parts []string
	for _, k := range []string{"stdio killed", "http killed", "http dropped", "http stopped"} {
		parts = append(parts, fmt.Sprintf("%s %d", k, m[k]))
	}
	return strings.Join(parts, ", ")
}

// reader is the client that must get every byte once.
type reader struct {
	program driver.Program
	random  *rand.Rand
	session string
	process string
	cursor  string

	transport driver.Transport
	server    *driver.Server // over HTTP
	link      *driver.Session

	stdout, stderr checker
	ended          bool
}

func (r *reader) connect(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	var err error
	r.transport = []driver.Transport{driver.Stdio, driver.HTTP, driver.HTTP}[r.random.IntN(3)]
	if r.transport == driver.Stdio {
		r.link, err = r.program.Stdio(ctx)
		return err
	}
	if r.server == nil {
		if r.server, err = r.program.ListenAndServe(context.WithoutCancel(ctx), 0); err != nil {
			return err
		}
	}
	r.link, err = r.server.Dial(ctx, driver.HTTP, "")
	return err
}

// round reads on until a strike at a random moment has ended the connection.
func (r *reader) round(ctx context.Context) (kind string, err error) {
	if r.link == nil {
		if err := r.connect(ctx); err != nil {
			return "", err
		}
	}
	call, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	after := time.Duration(r.random.IntN(30_000)) * time.Microsecond
	how := r.random.IntN(10)
	struck := make(chan string, 1)
	go func() {
		time.Sleep(after)
		struck <- r.strike(how, cancel)
	}()
	for {
		err := r.read(call, "output")
		var broken *brokenError
		if errors.As(err, &broken) {
			<-struck
			return "", err // not the connection: the output is wrong
		}
		select {
		case kind = <-struck:
		default:
			if err == nil {
				continue
			}
			select {
			case kind = <-struck:
			case <-time.After(2 * time.Second):
				return "", fmt.Errorf("over %s, with nothing struck: %w", r.transport, err)
			}
		}
		_ = r.link.Client.Close()
		r.link = nil
		return kind, nil
	}
}

// strike ends what carries the reader's call, in one of the ways it can end.
func (r *reader) strike(how int, drop context.CancelFunc) string {
	switch {
	case r.transport == driver.Stdio:
		r.link.Kill()
		return "stdio killed"
	case how < 5:
		r.server.Kill()
		r.server = nil
		return "http killed"
	case how < 7:
		r.server.Stop()
		r.server = nil
		return "http stopped"
	default:
		drop()
		return "http dropped"
	}
}

// brokenError tells that the output itself is wrong.
type brokenError struct{ text string }

func (e *brokenError) Error() string { return e.text }

// read fetches what is new. The cursor moves only with an answer that arrived.
func (r *reader) read(ctx context.Context, waitFor string) error {
	args := map[string]any{
		"session_id": r.session, "process_id": r.process, "wait_for": waitFor,
		"wait_seconds": 5, "max_bytes": 1 << 20, "base64": true,
	}
	if r.cursor != "" {
		args["cursor"] = r.cursor
	}
	a, err := r.link.Call(ctx, "read_output", args)
	if err != nil {
		return err
	}
	if a.IsError { // such as of a server that is just ending: an answer without bytes
		return errors.New("read_output: " + a.Text)
	}
	if a.Result.DroppedBytes != 0 {
		return &brokenError{fmt.Sprintf("%d bytes dropped: the reader was too slow for the log's bound", a.Result.DroppedBytes)}
	}
	stdout, stderr, err := decode(a.Text)
	if err != nil {
		return &brokenError{err.Error()}
	}
	if err := r.stdout.take(stdout, 1); err != nil {
		return &brokenError{"stdout: " + err.Error()}
	}
	if err := r.stderr.take(stderr, 100); err != nil {
		return &brokenError{"stderr: " + err.Error()}
	}
	r.cursor = a.Result.Cursor
	r.ended = a.Result.ExitCode != nil
	return nil
}

// finish ends the writer and compares with what it says it wrote.
func (r *reader) finish(ctx context.Context) error {
	if r.link == nil {
		if err := r.connect(ctx); err != nil {
			return err
		}
	}
	if _, err := r.link.Must(ctx, "kill_process", map[string]any{"session_id": r.session, "process_id": r.process, "signal": "TERM"}); err != nil {
		return err
	}
	for deadline := time.Now().Add(time.Minute); ; {
		before := r.cursor
		if err := r.read(ctx, "output"); err != nil {
			return err
		}
		if r.ended && r.cursor == before {
			break
		}
		if time.Now().After(deadline) {
			return errors.New("the writer did not end")
		}
	}
	if !r.stdout.ended {
		return errors.New("the writer's last line is missing")
	}
	if r.stdout.total != r.stdout.next {
		return fmt.Errorf("the writer wrote %d lines, the reader got %d", r.stdout.total, r.stdout.next)
	}
	if want := (r.stdout.next + 99) / 100; r.stderr.next != want*100 {
		return fmt.Errorf("stderr: the reader got lines up to %d, want %d", r.stderr.next, want*100)
	}
	return nil
}

// destroy ends the sandbox, however the run ended.
func (r *reader) destroy(ctx context.Context) error {
	if r.link != nil {
		_ = r.link.Close() // what failed may be the connection
	}
	if err := r.connect(ctx); err != nil {
		return err
	}
	_, err := r.link.Must(ctx, "destroy_sandbox", map[string]any{"session_id": r.session})
	return err
}

func (r *reader) hangUp() {
	if r.link != nil {
		_ = r.link.Close()
	}
	if r.server != nil {
		r.server.Stop()
	}
}

// checker holds a stream against the numbers it must consist of.
type checker struct {
	next  int64 // the number that must come next
	bytes int64
	part  []byte // of a line whose end has not come
	ended bool
	total int64 // said by the last line
}

func (c *checker) take(p []byte, step int64) error {
	c.bytes += int64(len(p))
	c.part = append(c.part, p...)
	for {
		i := bytes.IndexByte(c.part, '\n')
		if i < 0 {
			return nil
		}
		line := string(c.part[:i])
		c.part = c.part[i+1:]
		if rest, ok := strings.CutPrefix(line, "end "); ok {
			n, err := strconv.ParseInt(rest, 10, 64)
			if err != nil {
				return err
			}
			c.ended, c.total = true, n
			continue
		}
		if line != strconv.FormatInt(c.next, 10) {
			return fmt.Errorf("got line %.40q, want %d", line, c.next)
		}
		c.next += step
	}
}

// decode reads the exact bytes of both streams out of a read_output answer.
func decode(text string) (stdout, stderr []byte, err error) {
	lines := strings.Split(text, "\n")
	for i, line := range lines {
		name, ok := strings.CutSuffix(line, " bytes as base64]")
		if !ok || i+1 == len(lines) {
			continue
		}
		data, err := base64.StdEncoding.DecodeString(lines[i+1])
		if err != nil {
			return nil, nil, err
		}
		var n int
		switch {
		case strings.HasPrefix(name, "[stdout: "):
			n, err = strconv.Atoi(name[len("[stdout: "):])
			stdout = data
		case strings.HasPrefix(name, "[stderr: "):
			n, err = strconv.Atoi(name[len("[stderr: "):])
			stderr = data
		}
		if err != nil || n != len(data) {
			return nil, nil, fmt.Errorf("%q announces other than the %d bytes that follow", line, len(data))
		}
	}
	return stdout, stderr, nil
}
