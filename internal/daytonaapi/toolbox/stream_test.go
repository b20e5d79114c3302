//go:build linux

package toolbox_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
)

// demux takes a marked stream apart, as clients do.
func demux(b []byte) (out, errs string) {
	to := io.Discard
	var o, e bytes.Buffer
	for len(b) > 0 {
		i, j := bytes.Index(b, []byte{1, 1, 1}), bytes.Index(b, []byte{2, 2, 2})
		next, mark := -1, io.Writer(nil)
		if i >= 0 && (j < 0 || i < j) {
			next, mark = i, &o
		} else if j >= 0 {
			next, mark = j, &e
		}
		if next < 0 {
			_, _ = to.Write(b)
			break
		}
		_, _ = to.Write(b[:next])
		to, b = mark, b[next+3:]
	}
	return o.String(), e.String()
}

// stream reads a WebSocket of logs to its end, or to its first n bytes.
func (w *world) stream(path string, n int) ([]byte, websocket.CloseError) {
	w.t.Helper()
	ws, ctx := w.dial(path)
	var all []byte
	for {
		kind, b, err := ws.Read(ctx)
		var c websocket.CloseError
		if errors.As(err, &c) {
			return all, c
		}
		must(w.t, err)
		if kind != websocket.MessageBinary {
			w.t.Errorf("a text message: %q", b)
		}
		if all = append(all, b...); n > 0 && len(all) >= n {
			_ = ws.CloseNow()
			return all, c
		}
	}
}

func TestFollow(t *testing.T) {
	w := newWorld(t)
	w.session("s")
	id := w.begin("s", "echo one; echo two >&2; read x; echo \"three $x\"; printf end >&2; exit_with() { return 5; }; exit_with", true)
	path := "/process/session/s/command/" + id + "/logs?follow=true"
	// A reader that leaves in the middle, and one that comes from the beginning.
	part, _ := w.stream(path, 3+4)
	if out, _ := demux(part); out != "one\n" {
		t.Errorf("the beginning: %q", part)
	}
	type end struct {
		all []byte
		c   websocket.CloseError
	}
	got := make(chan end, 1)
	go func() {
		all, c := w.stream(path, 0)
		got <- end{all, c}
	}()
	w.do("POST", "/process/session/s/command/"+id+"/input", m{"data": "x"}, 204, nil)
	e := <-got
	if out, errs := demux(e.all); out != "one\nthree x\n" || errs != "two\nend" || e.c.Code != websocket.StatusNormalClosure {
		t.Errorf("followed: %q %v", e.all, e.c)
	}
	if code := w.finished("s", id); code != 5 {
		t.Errorf("exit %d", code)
	}
	// Without follow: what there is.
	all, c := w.stream("/process/session/s/command/"+id+"/logs", 0)
	if out, errs := demux(all); out != "one\nthree x\n" || errs != "two\nend" || c.Code != websocket.StatusNormalClosure {
		t.Errorf("at once: %q %v", all, c)
	}
	if all, c := w.stream("/process/session/entrypoint/logs?follow=true", 0); len(all) > 0 || c.Code != websocket.StatusNormalClosure {
		t.Errorf("entrypoint: %q %v", all, c)
	}
}

func TestFollowDeleted(t *testing.T) {
	w := newWorld(t)
	w.session("s")
	id := w.begin("s", "echo on; sleep 1000", true)
	got := make(chan websocket.CloseError, 1)
	ws, ctx := w.dial("/process/session/s/command/" + id + "/logs?follow=true")
	_, _, err := ws.Read(ctx)
	must(t, err)
	go func() {
		_, _, err := ws.Read(ctx)
		var c websocket.CloseError
		errors.As(err, &c)
		got <- c
	}()
	w.do("DELETE", "/process/session/s", nil, 204, nil)
	if c := <-got; c.Code != websocket.StatusNormalClosure {
		t.Errorf("deleted: %v", c)
	}
}

// What form an answer has depends on what the client says of itself.
func TestForms(t *testing.T) {
	w := newWorld(t)
	w.session("s")
	_, _, _ = w.in("s", "true")
	var r sessionResult
	w.do("POST", "/process/session/s/exec", m{"command": "echo out; echo err >&2"}, 200, &r)
	path := "/process/session/s/command/" + r.CmdID + "/logs"
	marked := "\x01\x01\x01out\n\x02\x02\x02err\n"
	for _, c := range []struct {
		version, split string
		plain, live    string
	}{
		{"", "", "out\nerr\n", "out\nerr\n"},
		{"", "true", marked, marked},
		{"0.26.9", "", "out\nerr\n", "out\nerr\n"},
		{"0.27.0", "", marked, marked},
		{"0.143.0", "", marked, marked},
		{"0.166.9", "", marked, marked},
		{"odd", "", marked, marked},
		{"0.167.0", "", "{", marked},
		{"v1.2.3-rc1", "", "{", marked},
		{"0.0.0-dev", "", "{", marked},
	} {
		w.version = c.version
		split := []string{}
		if c.split != "" {
			split = []string{"X-Daytona-Split-Output", c.split}
		}
		if a := w.request("GET", path, "", nil, split...); a.status != 200 || a.body != c.plain && !(c.plain == "{" && strings.HasPrefix(a.body, "{")) {
			t.Errorf("logs for %q %q: %q", c.version, c.split, a.body)
		}
		if a := w.request("GET", path+"?follow=true", "", nil, split...); a.status != 200 || a.body != c.live {
			t.Errorf("chunked logs for %q %q: %q", c.version, c.split, a.body)
		}
		if c.split != "" {
			continue
		}
		if all, _ := w.stream(path+"?follow=true", 0); string(all) != c.live {
			t.Errorf("WebSocket for %q: %q", c.version, all)
		}
		a := w.do("POST", "/process/session/s/exec", m{"command": "echo out; echo err >&2"}, 200, &r)
		if apart := c.plain == "{"; apart != (r.Stdout != nil) || apart && *r.Output != marked || !apart && *r.Output != "out\nerr\n" {
			t.Errorf("exec for %q: %s", c.version, a.body)
		}
	}
}

// Chunked logs come while the command runs.
func TestChunkedLive(t *testing.T) {
	w := newWorld(t)
	w.session("s")
	id := w.begin("s", "echo one; read x; echo two", true)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, "GET", w.server.URL+"/process/session/s/command/"+id+"/logs?follow=true", nil)
	must(t, err)
	res, err := w.server.Client().Do(r)
	must(t, err)
	defer res.Body.Close()
	first := make([]byte, 4)
	_, err = io.ReadFull(res.Body, first)
	must(t, err)
	w.do("POST", "/process/session/s/command/"+id+"/input", m{"data": "go"}, 204, nil)
	rest, err := io.ReadAll(res.Body)
	must(t, err)
	if string(first)+string(rest) != "one\ntwo\n" {
		t.Errorf("%q %q", first, rest)
	}
}

// A server that ends lets go of its streams.
func TestCloseEndsStreams(t *testing.T) {
	w := newWorld(t)
	w.session("s")
	id := w.begin("s", "echo one; sleep 1000", true)
	ws, ctx := w.dial("/process/session/s/command/" + id + "/logs?follow=true")
	_, _, err := ws.Read(ctx)
	must(t, err)
	closed := make(chan struct{})
	go func() { w.box.Close(); close(closed) }()
	_, _, err = ws.Read(ctx)
	if err == nil {
		t.Error("it goes on")
	}
	select {
	case <-closed:
	case <-time.After(patience):
		t.Error("Close does not return")
	}
	w.problem(w.do("POST", "/process/execute", m{"command": "true"}, 503, nil), 503, "SERVICE_UNAVAILABLE", "")
}
