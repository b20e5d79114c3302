package sandbox

import (
	"fmt"
	"strconv"
	"strings"
)

// String is the form in which cursors leave and enter: c<stdout>.<stderr>.
func (c Cursor) String() string {
	return "c" + strconv.FormatInt(c.Stdout, 10) + "." + strconv.FormatInt(c.Stderr, 10)
}

// ParseCursor reads what String wrote. Its error is a *FieldError for the field
// cursor.
func ParseCursor(s string) (Cursor, error) {
	fault := &FieldError{Field: "cursor", Problem: fmt.Sprintf("%.40q is not a cursor", s),
		Allowed: "one from an earlier answer, such as c120.0", Hint: "leave it out to read the newest output"}
	rest, ok := strings.CutPrefix(s, "c")
	out, err, two := strings.Cut(rest, ".")
	if !ok || !two {
		return Cursor{}, fault
	}
	var c Cursor
	for _, p := range []struct {
		text string
		to   *int64
	}{{out, &c.Stdout}, {err, &c.Stderr}} {
		n, perr := strconv.ParseUint(p.text, 10, 63)
		if perr != nil || strconv.FormatUint(n, 10) != p.text {
			return Cursor{}, fault
		}
		*p.to = int64(n)
	}
	return c, nil
}

func (c Cursor) minus(d Cursor) Cursor {
	return Cursor{Stdout: c.Stdout - d.Stdout, Stderr: c.Stderr - d.Stderr}
}

func (c Cursor) sum() int64 { return c.Stdout + c.Stderr }

// atLeast is c, moved up to d where it lies before it.
func (c Cursor) atLeast(d Cursor) Cursor {
	return Cursor{Stdout: max(c.Stdout, d.Stdout), Stderr: max(c.Stderr, d.Stderr)}
}

// atMost is c, moved down to d where it lies after it.
func (c Cursor) atMost(d Cursor) Cursor {
	return Cursor{Stdout: min(c.Stdout, d.Stdout), Stderr: min(c.Stderr, d.Stderr)}
}
