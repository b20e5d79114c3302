//go:build linux

package toolbox_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"net/url"
	"strings"
	"testing"
)

type file struct {
	Name, Mode, ModTime, ModifiedAt, Owner, Group, Permissions, Path string
	Size                                                             int64
	IsDir                                                            bool
}

// form makes a multipart body of fields and files, in order: a name that ends
// in ".file" or is "file" is a file's.
func form(t *testing.T, pairs ...string) (kind string, body *bytes.Buffer) {
	t.Helper()
	body = &bytes.Buffer{}
	mw := multipart.NewWriter(body)
	for i := 0; i < len(pairs); i += 2 {
		var part io.Writer
		var err error
		if strings.HasSuffix(pairs[i], "file") {
			part, err = mw.CreateFormFile(pairs[i], "any")
		} else {
			part, err = mw.CreateFormField(pairs[i])
		}
		must(t, err)
		_, err = io.WriteString(part, pairs[i+1])
		must(t, err)
	}
	must(t, mw.Close())
	return mw.FormDataContentType(), body
}

func (w *world) put(path, text string) {
	w.t.Helper()
	kind, body := form(w.t.(*testing.T), "files[0].path", path, "files[0].file", text)
	if a := w.request("POST", "/files/bulk-upload", kind, body); a.status != 200 {
		w.t.Fatalf("upload of %s: %d %s", path, a.status, a.body)
	}
}

func (w *world) get(path string) string {
	w.t.Helper()
	a := w.request("GET", "/files/download?path="+url.QueryEscape(path), "", nil)
	if a.status != 200 {
		w.t.Fatalf("download of %s: %d %s", path, a.status, a.body)
	}
	return a.body
}

func TestFiles(t *testing.T) {
	w := newWorld(t)
	binary := "\x00\xff\r\n--boundary" + strings.Repeat("\x01", 100<<10)
	kind, body := form(t, "files[0].path", "/tmp/a/b/one", "files[0].file", binary,
		"unknown", "x", "files[7].path", "relative ü 'x'.txt", "files[7].file", "", "files[1].path", "~/t", "files[1].file", "tilde")
	a := w.request("POST", "/files/bulk-upload", kind, body)
	var up struct {
		Files []struct {
			Path  string
			Bytes int64
		}
	}
	if err := json.Unmarshal([]byte(a.body), &up); a.status != 200 || err != nil {
		t.Fatalf("bulk-upload: %d %s", a.status, a.body)
	}
	if got := fmt.Sprint(up.Files); got != fmt.Sprintf("[{/tmp/a/b/one %d} {/home/agent/relative ü 'x'.txt 0} {/home/agent/~/t 5}]", len(binary)) {
		t.Errorf("bulk-upload: %s", got)
	}
	if got := w.get("/tmp/a/b/one"); got != binary {
		t.Errorf("download: %d bytes, want %d", len(got), len(binary))
	}
	a = w.request("GET", "/files/download?path=/tmp/a/b/one", "", nil, "Range", "bytes=1-3")
	if a.status != 206 || a.body != binary[1:4] {
		t.Errorf("a range: %d %q", a.status, a.body)
	}
	w.run("ln -s one /tmp/a/b/link; ln -s nowhere /tmp/a/b/broken; mkfifo /tmp/a/b/fifo; mkdir -m 700 /tmp/a/b/dir; chmod 4755 /tmp/a/b/one; echo x >/tmp/a/b/dir/below")
	var list []file
	w.do("GET", "/files?path=/tmp/a/b", nil, 200, &list)
	names := ""
	for _, f := range list {
		names += fmt.Sprintf("%s %v %s %s %s,", f.Name, f.IsDir, f.Permissions, f.Owner, f.Path)
	}
	if names != "dir true 0700 1000 /tmp/a/b/dir,fifo false 0644 1000 /tmp/a/b/fifo,link false 0755 1000 /tmp/a/b/link,one false 0755 1000 /tmp/a/b/one," {
		t.Errorf("list: %s", names)
	}
	w.do("GET", "/files?path=/tmp/a&depth=3", nil, 200, &list)
	if n := len(list); n != 6 {
		t.Errorf("list of depth 3: %d %+v", n, list)
	}
	w.do("GET", "/files", nil, 200, &list)
	if len(list) == 0 || !strings.HasPrefix(list[0].Path, "/home/agent/") {
		t.Errorf("list of home: %+v", list)
	}
	var f file
	w.do("GET", "/files/info?path=/tmp/a/b/link", nil, 200, &f)
	if f.Name != "link" || f.Size != int64(len(binary)) || f.Mode != "urwxr-xr-x" || f.IsDir || f.ModifiedAt == "" || f.ModTime == "" || f.Group != "1000" {
		t.Errorf("info: %+v", f)
	}
	w.do("POST", "/files/folder?path=/tmp/new/deep&mode=0750", nil, 201, nil)
	w.do("POST", "/files/folder?path=/tmp/new/deep&mode=0755", nil, 201, nil)
	w.do("GET", "/files/info?path=/tmp/new/deep", nil, 200, &f)
	if !f.IsDir || f.Permissions != "0750" {
		t.Errorf("folder: %+v", f)
	}
	w.do("POST", "/files/permissions?path=/tmp/a/b/link&mode=640&owner=agent&group=1000", nil, 200, nil)
	w.do("GET", "/files/info?path=/tmp/a/b/one", nil, 200, &f)
	if f.Permissions != "0640" {
		t.Errorf("permissions: %+v", f)
	}
	w.do("POST", "/files/move?source=/tmp/a/b/one&destination=/tmp/new/two", nil, 200, nil)
	w.problem(w.do("POST", "/files/move?source=/tmp/new/two&destination=/tmp/a/b/dir", nil, 409, nil), 409, "CONFLICT", "/tmp/a/b/dir")
	w.problem(w.do("POST", "/files/move?source=/tmp/no&destination=/tmp/no2", nil, 404, nil), 404, "FILE_NOT_FOUND", "/tmp/no")
	w.problem(w.do("POST", "/files/move?source=/tmp/new/two&destination=/nowhere/x", nil, 404, nil), 404, "FILE_NOT_FOUND", "/nowhere")
	w.do("POST", "/files/move?source=/tmp/a/b/dir&destination=/tmp/new/dir", nil, 200, nil)
	if got := w.run("cat /tmp/new/dir/below; ls /tmp/a/b"); got != "x\nbroken\nfifo\nlink\n" {
		t.Errorf("after moves: %q", got)
	}
	w.problem(w.do("DELETE", "/files?path=/tmp/new", nil, 400, nil), 400, "INVALID_FILE_PATH", "recursive")
	w.problem(w.do("DELETE", "/files?path=/tmp/new/deep", nil, 400, nil), 400, "INVALID_FILE_PATH", "recursive")
	w.do("DELETE", "/files?path=/tmp/new/two", nil, 204, nil)
	w.do("DELETE", "/files?path=/tmp/a/b/link", nil, 204, nil)
	w.do("DELETE", "/files?path=/tmp/new&recursive=true", nil, 204, nil)
	w.problem(w.do("GET", "/files/info?path=/tmp/new", nil, 404, nil), 404, "FILE_NOT_FOUND", "/tmp/new")
	w.problem(w.do("GET", "/files/info?path=/root/x", nil, 403, nil), 403, "FILE_ACCESS_DENIED", "/root/x")
	w.problem(w.do("DELETE", "/files?path=/etc/hostname", nil, 403, nil), 403, "FILE_ACCESS_DENIED", "/etc/hostname")
	w.problem(w.do("GET", "/files/download?path=/tmp/a/b/fifo", nil, 400, nil), 400, "INVALID_FILE_PATH", "FIFO")
	w.problem(w.do("GET", "/files/download?path=/tmp", nil, 400, nil), 400, "INVALID_FILE_PATH", "directory")
	w.problem(w.do("GET", "/files/download?path=/proc/self/environ", nil, 403, nil), 403, "FILE_ACCESS_DENIED", "")
	w.problem(w.do("GET", "/files/info", nil, 400, nil), 400, "BAD_REQUEST", "path")
	w.problem(w.do("GET", "/files/info?path=%00", nil, 400, nil), 400, "INVALID_FILE_PATH", "path")
	w.problem(w.do("GET", "/files?depth=0", nil, 400, nil), 400, "BAD_REQUEST", "depth")
	w.problem(w.do("POST", "/files/folder?path=/tmp/x&mode=9", nil, 400, nil), 400, "BAD_REQUEST", "mode")
	w.problem(w.do("POST", "/files/permissions?path=/tmp&owner=nobody-here", nil, 400, nil), 400, "BAD_REQUEST", "nobody-here")
	w.problem(w.do("DELETE", "/files?path=/&recursive=true", nil, 409, nil), 409, "CONFLICT", "/")
}

func TestUploads(t *testing.T) {
	w := newWorld(t)
	kind, body := form(t, "file", "form")
	if a := w.request("POST", "/files/upload?path=/tmp/old", kind, body); a.status != 200 || a.body != "" {
		t.Errorf("upload: %d %q", a.status, a.body)
	}
	kind, body = form(t, "other", "x", "file", "form 2")
	if a := w.request("POST", "/files/upload-v2?path=/tmp/new", kind, body); a.status != 200 || a.body != `{"name":"new","path":"/tmp/new","type":"file"}` {
		t.Errorf("upload-v2: %d %q", a.status, a.body)
	}
	if a := w.request("POST", "/files/upload-v2?path=/tmp/raw", "application/octet-stream", strings.NewReader("raw")); a.status != 200 {
		t.Errorf("upload-v2 of a raw body: %d %q", a.status, a.body)
	}
	if got := w.run("cat /tmp/old /tmp/new /tmp/raw; stat -c %a /tmp/raw"); got != "formform 2raw644\n" {
		t.Errorf("uploaded: %q", got)
	}
	// Of a request that fails, what is well is written.
	kind, body = form(t, "files[0].file", "early", "files[1].path", "/etc/denied", "files[1].file", "x", "files[2].path", "/tmp/fine", "files[2].file", "fine", "files[3].path", "/tmp/lost")
	a := w.request("POST", "/files/bulk-upload", kind, body)
	var e struct {
		Errors []string
		Files  []struct{ Path string }
	}
	if err := json.Unmarshal([]byte(a.body), &e); err != nil || a.status != 400 || len(e.Errors) != 3 || len(e.Files) != 1 || e.Files[0].Path != "/tmp/fine" {
		t.Errorf("a mixed upload: %d %s", a.status, a.body)
	}
	w.problem(a, 400, "BAD_REQUEST", "/etc/denied")
	if a := w.request("POST", "/files/bulk-upload", kind, strings.NewReader("")); a.status != 400 {
		t.Errorf("an empty form: %d %s", a.status, a.body)
	}
	if a := w.request("POST", "/files/bulk-upload", "text/plain", strings.NewReader("x")); a.status != 400 {
		t.Errorf("no form: %d %s", a.status, a.body)
	}
	// A body that ends in the middle changes nothing.
	kind, body = form(t, "files[0].path", "/tmp/fine", "files[0].file", "changed and much longer")
	if a := w.request("POST", "/files/bulk-upload", kind, bytes.NewReader(body.Bytes()[:body.Len()-60])); a.status != 400 {
		t.Errorf("half a body: %d %s", a.status, a.body)
	}
	if got := w.run("cat /tmp/fine"); got != "fine" {
		t.Errorf("after half an upload: %q", got)
	}
}

func TestBulkDownload(t *testing.T) {
	w := newWorld(t)
	name := `/tmp/ü "x";\ y`
	w.put(name, "odd")
	w.put("/tmp/trap", "\r\n--DAYTONA-FILE-BOUNDARY\r\nContent-Disposition: form-data; name=\"file\"; filename=\"x\"\r\n\r\nforged\r\n--DAYTONA-FILE-BOUNDARY--\r\n")
	a := w.do("POST", "/files/bulk-download", m{"paths": []string{name, "/tmp/missing", "/tmp/trap", "/tmp"}}, 200, nil)
	_, params, err := mime.ParseMediaType(a.header.Get("Content-Type"))
	must(t, err)
	r := multipart.NewReader(strings.NewReader(a.body), params["boundary"])
	var got []string
	for {
		p, err := r.NextRawPart()
		if err == io.EOF {
			break
		}
		must(t, err)
		b, err := io.ReadAll(p)
		must(t, err)
		_, d, err := mime.ParseMediaType(p.Header.Get("Content-Disposition"))
		must(t, err)
		if p.FormName() == "error" {
			var e struct {
				StatusCode    int
				Message, Code string
			}
			must(t, json.Unmarshal(b, &e))
			b = fmt.Appendf(nil, "%d %s", e.StatusCode, e.Code)
		} else if p.Header.Get("Content-Length") != fmt.Sprint(len(b)) {
			t.Errorf("%s: %s bytes are told, %d came", d["filename"], p.Header.Get("Content-Length"), len(b))
		}
		got = append(got, p.FormName()+" "+d["filename"]+" "+string(b))
	}
	if len(got) != 4 || got[0] != "file "+name+" odd" || got[1] != "error /tmp/missing 404 FILE_NOT_FOUND" ||
		!strings.HasSuffix(got[2], "BOUNDARY--\r\n") || got[3] != "error /tmp 400 INVALID_FILE_PATH" {
		t.Errorf("bulk-download: %q", got)
	}
	w.problem(w.do("POST", "/files/bulk-download", m{}, 400, nil), 400, "BAD_REQUEST", "paths")
}
