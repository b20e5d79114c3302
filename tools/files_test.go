//go:build unix

package tools_test

import (
	"bytes"
	"encoding/base64"
	"image"
	"image/png"
	"strings"
	"testing"

	"berth/internal/mcptest"
)

func filesClient(t *testing.T) *mcptest.Client {
	c := mcptest.New(t, mcptest.Options{}).Client(t, mcptest.InProcess)
	c.Must("start_sandbox", args{"session_id": "s"})
	return c
}

func TestWriteAndReadFile(t *testing.T) {
	c := filesClient(t)
	file := args{"session_id": "s", "path": "~/deep/er/f.txt"}
	r := c.Must("write_file", with(file, "content", "one\ntwo\nthree\n"))
	matches(t, "write", r.Text, `\[created \S+/deep/er/f.txt, 14 bytes written\]`)
	if r.Facts["created"] != true || r.Facts["bytes"] != 14.0 {
		t.Errorf("facts %v", r.Facts)
	}
	r = c.Must("read_file", file)
	matches(t, "read", r.Text, `one\ntwo\nthree\n\[\S+/f.txt, 14 bytes, 3 lines\]`)
	r = c.Must("read_file", with(with(file, "offset", 2), "limit", 1))
	matches(t, "one line", r.Text, `two\n\[\S+, 14 bytes, lines 2 to 2 of 3; offset 3 continues\]`)
	r = c.Must("read_file", with(file, "offset", 3))
	matches(t, "the last line", r.Text, `three\n\[\S+, 14 bytes, lines 3 to 3 of 3\]`)
	r = c.Must("write_file", with(with(file, "content", "four\n"), "append", true))
	matches(t, "append", r.Text, `\[appended to \S+, 5 bytes written\]`)
	r = c.Must("write_file", with(with(file, "content", "#!/bin/sh\necho ran\n"), "mode", "755"))
	matches(t, "replace", r.Text, `\[replaced \S+, 19 bytes written\]`)
	if out := c.Must("execute_command", args{"session_id": "s", "command": "~/deep/er/f.txt"}).Output(); out != "ran" {
		t.Errorf("the mode was not set: %q", out)
	}
	c.Must("write_file", args{"session_id": "s", "path": "empty", "content": ""})
	r = c.Must("read_file", args{"session_id": "s", "path": "empty"})
	matches(t, "an empty file", r.Text, `\[\S+/empty, 0 bytes, 0 lines\]`)
}

func TestBytesAreKept(t *testing.T) {
	c := filesClient(t)
	data := []byte("a\x00b\xff\r\n\xc3")
	c.Must("write_file", args{"session_id": "s", "path": "b", "base64": base64.StdEncoding.EncodeToString(data)})
	r := c.Must("read_file", args{"session_id": "s", "path": "b", "base64": true})
	if got, _, _ := strings.Cut(r.Text, "\n"); got != base64.StdEncoding.EncodeToString(data) {
		t.Errorf("read %q", r.Text)
	}
	c.Must("write_file", args{"session_id": "s", "path": "nul", "content": "a\x00b"})
	if out := c.Must("execute_command", args{"session_id": "s", "command": "wc -c < nul"}).Output(); out != "3" {
		t.Errorf("a NUL in content: %q bytes", out)
	}
}

func TestImagesAreImages(t *testing.T) {
	c := filesClient(t)
	var b bytes.Buffer
	if err := png.Encode(&b, image.NewGray(image.Rect(0, 0, 3, 2))); err != nil {
		t.Fatal(err)
	}
	c.Must("write_file", args{"session_id": "s", "path": "i.png", "base64": base64.StdEncoding.EncodeToString(b.Bytes())})
	r := c.Must("read_file", args{"session_id": "s", "path": "i.png"})
	if len(r.Images) != 1 || r.Images[0].MIMEType != "image/png" || r.Images[0].Data != base64.StdEncoding.EncodeToString(b.Bytes()) {
		t.Errorf("images %v, text %s", r.Images, r.Text)
	}
	matches(t, "the text", r.Text, `\[\S+/i.png, \d+ bytes, image/png\]`)
}

func TestLongFileIsCut(t *testing.T) {
	c := filesClient(t)
	c.Must("execute_command", args{"session_id": "s", "command": "seq 1 20000 > long"})
	r := c.Must("read_file", args{"session_id": "s", "path": "long"})
	if len(r.Text) > 31_000 || !strings.Contains(r.LastLine(), "continues") {
		t.Errorf("%d bytes, last line %s", len(r.Text), r.LastLine())
	}
}

func TestEditFile(t *testing.T) {
	c := filesClient(t)
	c.Must("write_file", args{"session_id": "s", "path": "f", "content": "alpha\nbeta\ngamma\nbeta\n"})
	r := c.Must("edit_file", args{"session_id": "s", "path": "f", "edits": []any{
		args{"old_text": "alpha", "new_text": "ALPHA"}, args{"old_text": "beta", "new_text": "", "replace_all": true}}})
	for _, want := range []string{"-alpha\n", "+ALPHA\n", "-beta\n"} {
		if !strings.Contains(r.Text, want) {
			t.Errorf("the diff lacks %q: %s", want, r.Text)
		}
	}
	matches(t, "the last line", r.LastLine(), `\[3 replacements in \S+/f\]`)
	if r.Facts["replacements"] != 3.0 {
		t.Errorf("facts %v", r.Facts)
	}
	if out := c.Must("read_file", args{"session_id": "s", "path": "f"}).Output(); out != "ALPHA\n\ngamma\n" && out != "ALPHA\n\ngamma\n\n" && out != "ALPHA\n\ngamma" {
		t.Errorf("the file is %q", out)
	}
}

func TestFileToolsStartButNeverMake(t *testing.T) {
	c := filesClient(t)
	c.Must("write_file", args{"session_id": "s", "path": "f", "content": "x\n"})
	c.Must("stop_sandbox", args{"session_id": "s"})
	r := c.Must("read_file", args{"session_id": "s", "path": "f"})
	matches(t, "read of a stopped one", r.Text, `x\n\[the sandbox was stopped and was started again\]\n\[\S+, 2 bytes, 1 lines?\]`)
	for _, tool := range []string{"read_file", "write_file", "edit_file", "list_processes", "read_output", "kill_process", "send_stdin", "stop_sandbox"} {
		if text := c.Refused(tool, with(valid("p-x")[tool], "session_id", "never")); !strings.Contains(text, "never") || !strings.Contains(text, "start_sandbox") {
			t.Errorf("%s without a sandbox: %s", tool, text)
		}
	}
	if list := c.Must("list_sandboxes", nil).Structured["sandboxes"].([]any); len(list) != 1 {
		t.Errorf("%d sandboxes", len(list))
	}
}
