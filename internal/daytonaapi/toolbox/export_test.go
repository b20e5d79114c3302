package toolbox

import (
	"io"
	"net/http"
	"net/http/httptest"
)

// NewReplacer, ParseStatus and the like are for the fuzz tests.
func NewReplacer(r io.Reader, old, replacement []byte) io.Reader {
	return newReplacer(r, old, replacement)
}

// JSONText is a text as jsonWriter writes it, in pieces of that size.
func JSONText(b []byte, piece int) string {
	rec := httptest.NewRecorder()
	w := newJSONWriter(rec, http.StatusOK)
	w.open()
	for len(b) > 0 {
		n := min(piece, len(b))
		_ = w.text(b[:n])
		b = b[n:]
	}
	w.shut()
	return rec.Body.String()
}

// GitStatus reads git's status, History its log, Ports a table of the kernel's,
// System what a sandbox says of itself.
func GitStatus(out string) int { return len(parseStatus(out).FileStatus) }
func History(out string) int   { return len(parseHistory(out)) }
func Ports(out string) []int   { return listeningPorts(out) }
func System(out string)        { parseSystem(out) }

// Form is the number of the form that output takes for r.
func Form(r *http.Request) int { return int(formOf(r)) }

// UploadField reads the name of a part.
func UploadField(name string) (string, string, bool) { return uploadField(name) }
