package wire

import (
	"bytes"
	"encoding/json"
	"strconv"
)

// A command takes five frames, whose headers hold a number and a word. Package
// json reads and writes these by reflection, and goes through the body twice
// more: a tenth of a monitor's processor time. So the usual header is read and
// written here, and package json has the others.

// appendTo writes h as JSON; its Body has been marshalled.
func (h *Header) appendTo(buf []byte) ([]byte, error) {
	if h.Error != nil || h.Once != "" || h.Aside || !plain(h.Op) || h.ID == 0 && h.Op == "" {
		b, err := json.Marshal(h)
		return append(buf, b...), err
	}
	buf = append(buf, '{')
	op := `"op":"`
	if h.ID != 0 {
		buf = strconv.AppendUint(append(buf, `"id":`...), h.ID, 10)
		op = `,"op":"`
	}
	if h.Op != "" {
		buf = append(append(append(buf, op...), h.Op...), '"')
	}
	if len(h.Body) > 0 {
		buf = append(append(buf, `,"body":`...), h.Body...)
	}
	return append(buf, '}'), nil
}

// parse reads a header into h, which is zero; the bytes stay the caller's.
func (h *Header) parse(b []byte) error {
	if h.parseUsual(b) {
		return nil
	}
	*h = Header{}
	return json.Unmarshal(b, h)
}

// parseUsual reads what appendTo writes by itself, and package json would read
// alike. When it returns false, h may be half read.
func (h *Header) parseUsual(b []byte) bool {
	b, ok := bytes.CutPrefix(b, []byte("{"))
	if !ok {
		return false
	}
	op := `"op":"`
	if rest, ok := bytes.CutPrefix(b, []byte(`"id":`)); ok {
		n := 0
		for n < len(rest) && n < 19 && '0' <= rest[n] && rest[n] <= '9' {
			h.ID = h.ID*10 + uint64(rest[n]-'0')
			n++
		}
		if n == 0 || rest[0] == '0' {
			return false
		}
		b, op = rest[n:], `,"op":"`
	}
	if rest, ok := bytes.CutPrefix(b, []byte(op)); ok {
		end := bytes.IndexByte(rest, '"')
		if end < 0 {
			return false
		}
		if h.Op = string(rest[:end]); !plain(h.Op) {
			return false
		}
		b = rest[end+1:]
	}
	if h.ID == 0 && h.Op == "" {
		return false
	}
	if rest, ok := bytes.CutPrefix(b, []byte(`,"body":`)); ok {
		body, ok := bytes.CutSuffix(rest, []byte("}"))
		if !ok || len(bytes.TrimSpace(body)) != len(body) || !json.Valid(body) {
			return false
		}
		h.Body = append(json.RawMessage(nil), body...)
		return true
	}
	return string(b) == "}"
}

// plain tells whether op needs no escapes.
func plain(op string) bool {
	for i := range len(op) {
		if c := op[i]; (c < 'a' || c > 'z') && c != '_' {
			return false
		}
	}
	return true
}
