package toolbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"net/textproto"
	"net/url"
	"path"
	"strconv"
	"strings"

	"berth/sandbox"
)

// Bounds of transfers. Files themselves are not bounded: they stream.
const (
	maxTransfers = 1000 // files of one bulk request
	maxPathPart  = sandbox.MaxPath + 1
)

// download answers a file's bytes, or a range of them.
func (t *Toolbox) download(c *call) error {
	files, p, err := t.files(c, "path")
	if err != nil {
		return err
	}
	body, info, err := files.Open(c.ctx, p[0])
	if err != nil {
		return fileError(err, p[0])
	}
	defer body.Close()
	h := c.w.Header()
	h.Set("Content-Type", "application/octet-stream")
	h.Set("Content-Disposition", disposition("attachment", "", path.Base(p[0])))
	if seeker, ok := body.(io.ReadSeeker); ok {
		http.ServeContent(c.w, c.r, "", info.ModTime, seeker)
		return nil
	}
	h.Set("Content-Length", strconv.FormatInt(info.Size, 10))
	c.w.WriteHeader(http.StatusOK)
	if n, err := io.Copy(c.w, io.LimitReader(body, info.Size)); err != nil || n < info.Size {
		return errAborted
	}
	return nil
}

// disposition writes a Content-Disposition whose file name may hold anything.
func disposition(kind, field, name string) string {
	s := kind
	if field != "" {
		s += `; name="` + field + `"`
	}
	return s + "; filename*=UTF-8''" + strings.ReplaceAll(url.QueryEscape(name), "+", "%20")
}

// bulkDownload answers several files as parts of one multipart body, in the
// order asked for. A file that cannot be read has a part "error" instead.
func (t *Toolbox) bulkDownload(c *call) error {
	var q struct {
		Paths []string `json:"paths"`
	}
	if err := c.decode(&q); err != nil {
		return err
	}
	switch {
	case len(q.Paths) == 0:
		return badRequest("paths: it is missing; give the paths of files")
	case len(q.Paths) > maxTransfers:
		return badRequest("paths: there are %d; at most 1,000 fit", len(q.Paths))
	}
	c.args["paths"] = q.Paths
	files, info, err := t.manager.Files(c.ctx, c.key)
	if err != nil {
		return err
	}
	w := multipart.NewWriter(c.w)
	// A boundary that nobody knows before cannot stand in a file.
	if err := w.SetBoundary("DAYTONA-FILE-BOUNDARY-" + newUUID()); err != nil {
		return err
	}
	c.w.Header().Set("Content-Type", w.FormDataContentType())
	c.w.WriteHeader(http.StatusOK)
	for _, name := range q.Paths {
		if err := t.sendFile(c, w, files, info, name); err != nil {
			return fmt.Errorf("%w: %w", errAborted, err)
		}
	}
	if err := w.Close(); err != nil {
		return errAborted
	}
	return nil
}

// sendFile writes one part. An error means that the answer cannot go on.
func (t *Toolbox) sendFile(c *call, w *multipart.Writer, files sandbox.Files, info sandbox.Info, name string) error {
	var body io.ReadCloser
	var file sandbox.FileInfo
	p, err := absolute(info, "path", name)
	if err == nil {
		body, file, err = files.Open(c.ctx, p)
		err = fileError(err, p)
	}
	if err != nil {
		if c.ctx.Err() != nil {
			return err
		}
		text, merr := json.Marshal(newEnvelope(c.r, err, ""))
		if merr != nil {
			return merr
		}
		part, err := w.CreatePart(partHeader("error", name, "application/json", int64(len(text))))
		if err == nil {
			_, err = part.Write(text)
		}
		return err
	}
	defer body.Close()
	part, err := w.CreatePart(partHeader("file", name, "application/octet-stream", file.Size))
	if err != nil {
		return err
	}
	n, err := io.Copy(part, io.LimitReader(body, file.Size))
	if err == nil && n < file.Size {
		err = io.ErrUnexpectedEOF
	}
	return err
}

func partHeader(field, name, kind string, size int64) textproto.MIMEHeader {
	return textproto.MIMEHeader{
		"Content-Disposition": {disposition("form-data", field, name)},
		"Content-Type":        {kind},
		"Content-Length":      {strconv.FormatInt(size, 10)},
	}
}

// uploaded is one file of an answer.
type uploaded struct {
	Path  string `json:"path"`
	Bytes int64  `json:"bytes"`
}

// bulkUpload writes files that come as pairs of parts: files[N].path, then
// files[N].file. Each is written at once or not at all; of a request that fails
// some may be.
func (t *Toolbox) bulkUpload(c *call) error {
	files, info, err := t.manager.Files(c.ctx, c.key)
	if err != nil {
		return err
	}
	parts, err := c.r.MultipartReader()
	if err != nil {
		return badRequest("the body is no multipart/form-data: %v", err)
	}
	done := []uploaded{}
	var failures []string
	paths := map[string]string{}
	fail := func(format string, a ...any) { failures = append(failures, fmt.Sprintf(format, a...)) }
	for count := 0; ; count++ {
		part, err := parts.NextPart()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			fail("the body ends in the middle: %v", err)
			break
		}
		if count >= 2*maxTransfers {
			fail("there are more than 1,000 files; send the rest in another request")
			break
		}
		index, kind, ok := uploadField(part.FormName())
		switch {
		case !ok: // what nobody knows is passed over
		case kind == "path":
			text, err := io.ReadAll(io.LimitReader(part, maxPathPart+1))
			if err != nil {
				fail("files[%s].path: %v", index, err)
				break
			}
			paths[index] = string(text)
		default:
			name, known := paths[index]
			delete(paths, index)
			if !known {
				fail("files[%s].file: files[%s].path must come before it", index, index)
				break
			}
			p, err := absolute(info, "files["+index+"].path", name)
			var res sandbox.WriteResult
			if err == nil {
				res, err = t.write(c.ctx, files, p, part)
			}
			if err != nil {
				fail("%.200s: %v", name, err)
				break
			}
			done = append(done, uploaded{Path: p, Bytes: res.Bytes})
		}
	}
	for index := range paths {
		fail("files[%s].file: it is missing", index)
	}
	c.args["files"] = len(done)
	if len(failures) == 0 && len(done) == 0 {
		fail("there are no files; send files[0].path and files[0].file")
	}
	if len(failures) > 0 {
		err := badRequest("%s", strings.Join(failures, "; "))
		body := struct {
			envelope
			Errors []string   `json:"errors"`
			Files  []uploaded `json:"files"`
		}{newEnvelope(c.r, err, ""), failures, done}
		writeJSON(c.w, http.StatusBadRequest, body)
		return err
	}
	return c.answer(http.StatusOK, map[string]any{"files": done})
}

// uploadField reads files[N].path and files[N].file.
func uploadField(name string) (index, kind string, ok bool) {
	rest, ok := strings.CutPrefix(name, "files[")
	if !ok {
		return "", "", false
	}
	index, kind, ok = strings.Cut(rest, "].")
	if _, err := strconv.ParseUint(index, 10, 31); err != nil || !ok || kind != "path" && kind != "file" {
		return "", "", false
	}
	return index, kind, true
}

// write streams a file in.
func (t *Toolbox) write(ctx context.Context, files sandbox.Files, p string, r io.Reader) (sandbox.WriteResult, error) {
	res, err := files.Write(ctx, p, r, sandbox.WriteOptions{})
	return res, fileError(err, p)
}

// single finds the one file of an upload: the part "file" of a form, or the
// body itself.
func single(c *call, raw bool) (io.Reader, error) {
	kind, _, _ := mime.ParseMediaType(c.r.Header.Get("Content-Type")) // one that is none is no form
	if raw && !strings.HasPrefix(kind, "multipart/") {
		return c.r.Body, nil
	}
	parts, err := c.r.MultipartReader()
	if err != nil {
		return nil, badRequest("the body is no multipart/form-data: %v", err)
	}
	for range maxTransfers {
		part, err := parts.NextPart()
		if err != nil {
			break
		}
		if part.FormName() == "file" {
			return part, nil
		}
	}
	return nil, badRequest("file: there is no such part in the form")
}

// upload writes one file, as old clients send it.
func (t *Toolbox) upload(c *call) error {
	if _, err := t.uploadOne(c, false); err != nil {
		return err
	}
	return c.empty(http.StatusOK)
}

// uploadV2 writes one file, from a form or from the body itself.
func (t *Toolbox) uploadV2(c *call) error {
	p, err := t.uploadOne(c, true)
	if err != nil {
		return err
	}
	return c.answer(http.StatusOK, map[string]string{"name": path.Base(p), "path": p, "type": "file"})
}

func (t *Toolbox) uploadOne(c *call, raw bool) (string, error) {
	files, p, err := t.files(c, "path")
	if err != nil {
		return "", err
	}
	r, err := single(c, raw)
	if err != nil {
		return "", err
	}
	_, err = t.write(c.ctx, files, p[0], r)
	return p[0], err
}
