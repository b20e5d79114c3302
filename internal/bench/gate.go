package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// gateConfig opens the machine's loopback, where the bench's server is.
const gateConfig = "limits:\n  network_allow_list: [127.0.0.1/32]\n"

// hostInside is the machine's loopback as a sandbox calls it.
const hostInside = "10.0.2.2"

// gate measures the way out of a sandbox: this program runs inside, as a client
// of a server on the machine's loopback, and on the machine beside it.
func (b *bench) gate() ([]row, error) {
	file := filepath.Join(b.dir, "gate.yaml")
	if err := os.WriteFile(file, []byte(gateConfig), 0o600); err != nil {
		return nil, err
	}
	bin := filepath.Join(b.dir, "bin")
	client, err := copySelf(bin)
	if err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	defer l.Close()
	go serveGate(l)
	_, port, _ := net.SplitHostPort(l.Addr().String())

	program := b.program
	program.Args = append(program.Args, "--config", file, "--dir", bin+":/bench:ro")
	s, err := program.Stdio(b.ctx, legacy)
	if err != nil {
		return nil, err
	}
	defer s.Close()
	if _, err := s.Must(b.ctx, "start_sandbox", map[string]any{"session_id": "gate", "network_allow_list": "127.0.0.1/32"}); err != nil {
		return nil, err
	}
	inside := func(mode string) (r clientResult, err error) {
		a, err := s.Must(b.ctx, "execute_command", map[string]any{"session_id": "gate", "argv": []string{"/bench/client", gateClient, hostInside + ":" + port, mode}})
		if err == nil {
			err = json.Unmarshal([]byte(a.Output()), &r)
		}
		if err != nil {
			err = fmt.Errorf("%s inside: %w: %.500s", mode, err, a.Text)
		}
		return r, err
	}
	outside := func(mode string) (r clientResult, err error) {
		out, err := exec.CommandContext(b.ctx, client, gateClient, "127.0.0.1:"+port, mode).Output()
		if err == nil {
			err = json.Unmarshal(out, &r)
		}
		return r, err
	}
	// The first connection starts the gate.
	begin := time.Now()
	if _, err := inside("once"); err != nil {
		return nil, err
	}
	first := time.Since(begin)
	var down, up, plain float64
	var added, through, direct sample
	for range 3 { // in turn
		for _, m := range []struct {
			mode string
			run  func(string) (clientResult, error)
			best *float64
		}{{"down", inside, &down}, {"up", inside, &up}, {"down", outside, &plain}} {
			r, err := m.run(m.mode)
			if err != nil {
				return nil, err
			}
			*m.best = max(*m.best, r.Rate)
		}
		in, err := inside("latency")
		if err != nil {
			return nil, err
		}
		out, err := outside("latency")
		if err != nil {
			return nil, err
		}
		through, direct, added = append(through, in.Took), append(direct, out.Took), append(added, in.Took-out.Took)
	}
	flows, err := inside("flows")
	if err != nil {
		return nil, err
	}
	if err := destroy(b.ctx, s, "gate"); err != nil {
		return nil, err
	}
	rate := func(r float64) string { return fmt.Sprintf("%.1f Gbit/s", r*8/1e9) }
	return []row{
		{"egress gate: one connection, from the host's loopback; to it", "≥ 5 Gbit/s", rate(down) + "; " + rate(up), "without a sandbox " + rate(plain), judge(min(down, up)*8 >= 5e9)},
		{"— what it adds to connect, one byte there and back", "≤ 1 ms", ms(added.p50()) + ", " + ms(through.p50()) + " in all", "without a sandbox " + ms(direct.p50()), judge(added.p50() <= time.Millisecond)},
		{"— 4,096 connections at a time, a byte on each", "all answer", fmt.Sprintf("%d answered in %.1f s", flows.Count, flows.Took.Seconds()), "", judge(flows.Count == gateFlows)},
		{"— the first command with a connection, which starts it", "", ms(first), "", open},
	}, nil
}

// copySelf puts this program into a directory that a sandbox can see.
func copySelf(dir string) (client string, err error) {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return "", err
	}
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		return "", err
	}
	client = filepath.Join(dir, "client")
	return client, os.WriteFile(client, self, 0o755)
}

// serveGate does what a connection's first byte says: "d" sends, "u" takes,
// anything else comes back.
func serveGate(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			what := make([]byte, 1)
			if _, err := io.ReadFull(c, what); err != nil {
				return
			}
			switch what[0] {
			case 'd':
				buf := make([]byte, 1<<20)
				for {
					if _, err := c.Write(buf); err != nil {
						return
					}
				}
			case 'u':
				drain(c, time.Now().Add(time.Hour))
			default:
				_, _ = c.Write(what)
				_, _ = io.Copy(c, c)
			}
		}()
	}
}

// drain reads until a time, and counts.
func drain(c net.Conn, until time.Time) (n int64) {
	buf := make([]byte, 1<<20)
	_ = c.SetReadDeadline(until)
	for {
		m, err := c.Read(buf)
		n += int64(m)
		if err != nil {
			return n
		}
	}
}

// gateClient is the argument with which this program is a client.
const gateClient = "gate-client"

const (
	gateFlows   = 4096
	gateTime    = 2 * time.Second // of one measurement of throughput
	gateLatency = 300             // connections of one measurement of latency
)

// clientResult is what a client prints.
type clientResult struct {
	Rate  float64 // bytes a second
	Took  time.Duration
	Count int
}

// runClient is this program as a client.
func runClient(addr, mode string) error {
	r, err := gateMeasure(addr, mode)
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(r)
}

func gateMeasure(addr, mode string) (r clientResult, err error) {
	begin := time.Now()
	switch mode {
	case "down", "up":
		c, err := net.Dial("tcp", addr)
		if err != nil {
			return r, err
		}
		defer c.Close()
		if _, err := io.WriteString(c, mode[:1]); err != nil {
			return r, err
		}
		begin, n := time.Now(), int64(0)
		if mode == "down" {
			n = drain(c, begin.Add(gateTime))
		} else {
			buf := make([]byte, 1<<20)
			_ = c.SetWriteDeadline(begin.Add(gateTime))
			for err == nil {
				var m int
				m, err = c.Write(buf)
				n += int64(m)
			}
			if !errors.Is(err, os.ErrDeadlineExceeded) {
				return r, err
			}
		}
		r.Rate = float64(n) / time.Since(begin).Seconds()
		return r, nil
	case "latency":
		var times sample
		for range gateLatency {
			begin := time.Now()
			c, err := echo(addr)
			if err != nil {
				return r, err
			}
			times = append(times, time.Since(begin))
			_ = c.Close()
		}
		r.Took = times.p50()
		return r, nil
	case "once", "flows":
		n := 1
		if mode == "flows" {
			n = gateFlows
		}
		conns := make([]net.Conn, n)
		err := parallel(min(n, 64), func(i int) (err error) {
			for ; i < n && err == nil; i += 64 {
				conns[i], err = echo(addr)
			}
			return err
		})
		if err != nil {
			return r, err
		}
		for _, c := range conns { // all are open
			if _, err := io.WriteString(c, "y"); err != nil {
				return r, err
			}
			if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
				return r, err
			}
			r.Count++
		}
		r.Took = time.Since(begin)
		for _, c := range conns {
			_ = c.Close()
		}
		return r, nil
	}
	return r, fmt.Errorf("unknown mode %s", strings.ToUpper(mode))
}

// echo connects and has one byte sent back.
func echo(addr string) (net.Conn, error) {
	c, err := net.Dial("tcp", addr)
	if err != nil {
		return nil, err
	}
	_ = c.SetDeadline(time.Now().Add(time.Minute))
	if _, err = io.WriteString(c, "x"); err == nil {
		_, err = io.ReadFull(c, make([]byte, 1))
	}
	if err != nil {
		_ = c.Close()
	}
	return c, err
}
