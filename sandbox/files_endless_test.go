//go:build unix

package sandbox_test

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"berth/sandbox"
	"berth/sandbox/providertest"
)

// endless is a text whose last line is a hole of petabytes.
type endless struct {
	sandbox.Files
	text   string
	closed bool
	reads  int
}

func (f *endless) Open(context.Context, string) (io.ReadCloser, sandbox.FileInfo, error) {
	return f, sandbox.FileInfo{Path: "/f", Size: 1 << 50}, nil
}

func (f *endless) Read(b []byte) (int, error) {
	time.Sleep(time.Millisecond)
	f.reads++
	n := copy(b, f.text)
	f.text = f.text[n:]
	clear(b[n:])
	return len(b), nil
}

func (f *endless) Close() error { f.closed = true; return nil }

// Reading ends with its call: nobody would wait for the rest, and the file's
// space would stay in use as long.
func TestReadFileEndsWithItsCall(t *testing.T) {
	for _, c := range []struct {
		name string
		r    sandbox.ReadFileRequest
		want string
		err  error
		most int // reads of 64 KiB
	}{
		{"first_lines", sandbox.ReadFileRequest{Path: "/f", Limit: 2}, "text\ntext\n", nil, 2000},
		{"last_line", sandbox.ReadFileRequest{Path: "/f"}, "", sandbox.ErrLimit, 60_000},
		{"beyond", sandbox.ReadFileRequest{Path: "/f", Offset: 1e6}, "", sandbox.ErrLimit, 60_000},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := &endless{text: strings.Repeat("text\n", 2000)}
				inst := &providertest.StubInstance{
					InfoFunc: func(context.Context) (sandbox.Info, error) {
						return sandbox.Info{Key: key, Status: sandbox.StatusRunning, Home: "/"}, nil
					},
					FilesFunc: func() sandbox.Files { return f },
				}
				m := managerOf(t, &providertest.Stub{LookupFunc: func(context.Context, sandbox.Key) (sandbox.Instance, error) { return inst, nil }}, sandbox.Options{})
				got, err := m.ReadFile(t.Context(), key, c.r)
				if !errors.Is(err, c.err) || err == nil && (string(got.Data) != c.want || got.Lines >= 0 || !got.Truncated) {
					t.Errorf("ReadFile(%+v) = %+v, %v; want %q, %v", c.r, got, err, c.want, c.err)
				}
				if !f.closed || f.reads > c.most {
					t.Errorf("after ReadFile(%+v): closed %v after %d reads; want true, at most %d", c.r, f.closed, f.reads, c.most)
				}
			})
		})
	}
}
