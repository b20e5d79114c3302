package wire

import (
	"bytes"
	"encoding/base64"
	"os"
	"strings"
	"testing"
)

func answerText(t testing.TB, a *Answer, data []byte) string {
	t.Helper()
	b, err := EncodeAnswer(a, data)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// An answer is found in whatever surrounds it, and one that is not whole never is.
func TestAnswerWholeOrNot(t *testing.T) {
	data := append([]byte("NUL \x00, no UTF-8 \xff\xfe, markers "+answerMark+"9:AAAA:00000000"+answerEnd), bytes.Repeat([]byte{1, 2, 3}, 100)...)
	text := answerText(t, &Answer{ID: "mine", Bytes: 7}, data)
	for i, whole := range []string{text, strings.TrimSpace(text), "bash: warning\n" + text + text, strings.ReplaceAll(text, ":", ":\r\n"), answerText(t, &Answer{ID: "other"}, nil) + text, answerMark + text} {
		a, got, err := DecodeAnswer(whole, "mine")
		if err != nil || a.Bytes != 7 || !bytes.Equal(got, data) {
			t.Errorf("form %d: got %+v, %d bytes, %v", i, a, len(got), err)
		}
	}
	for n := range len(strings.TrimSpace(text)) {
		if _, _, err := DecodeAnswer(text[:n], "mine"); err == nil {
			t.Errorf("cut after %d bytes, it is taken", n)
		}
	}
	body := strings.Index(text, ":") + 10
	for _, bad := range []string{text[:body] + "A" + text[body+1:], text[:body] + text[body+1:], text[:body] + "AAAA" + text[body:]} {
		if _, _, err := DecodeAnswer(bad, "mine"); err == nil && bad != text {
			t.Error("an answer that was changed on the way is taken")
		}
	}
	if _, _, err := DecodeAnswer(text, "another"); err == nil {
		t.Error("the answer to another call is taken")
	}
}

func TestCallByVariableAndByFile(t *testing.T) {
	c := &Call{ID: "i", Sandbox: "s", Stdin: &Stdin{ID: "p"}}
	data := []byte("a\x00b'\"\n$`")
	value, err := EncodeCall(c, data)
	if err != nil {
		t.Fatal(err)
	}
	if strings.ContainsAny(value, "'\"\\$` \n") {
		t.Errorf("got %q: a shell would read it otherwise", value)
	}
	file, err := EncodeCallFile(c, data)
	if err != nil {
		t.Fatal(err)
	}
	read := func(name string) ([]byte, error) {
		if name != "/some where/x.y" {
			return nil, os.ErrNotExist
		}
		return file, nil
	}
	for _, v := range []string{value, CallFileValue("/some where/x.y", file)} {
		got, d, err := DecodeCall(v, read)
		if err != nil || got.ID != "i" || got.Stdin == nil || got.Stdin.ID != "p" || !bytes.Equal(d, data) {
			t.Errorf("%s: got %+v, %q, %v", v, got, d, err)
		}
		for n := range len(v) {
			if _, _, err := DecodeCall(v[:n], read); err == nil {
				t.Errorf("cut after %d bytes, it is taken", n)
			}
		}
	}
	file = file[:len(file)-1]
	if _, _, err := DecodeCall(CallFileValue("/some where/x.y", append(file, 'x')), func(string) ([]byte, error) { return file, nil }); err == nil {
		t.Error("a file that did not come whole is taken")
	}
}

func FuzzDecodeAnswer(f *testing.F) {
	f.Add(answerText(f, &Answer{ID: "x", Pieces: []CallPiece{{At: 1, Size: 2}}}, []byte("ab")), "x")
	f.Add(answerMark+"4:AAAAAA==:00000000>", "")
	f.Fuzz(func(t *testing.T, text, id string) {
		a, data, err := DecodeAnswer(text, id)
		if err != nil {
			return
		}
		b, derr, err := DecodeAnswer(answerText(t, a, data), id)
		if err != nil || !bytes.Equal(derr, data) || b.ID != id {
			t.Errorf("what was read cannot be written and read again: %v", err)
		}
	})
}

func FuzzDecodeCall(f *testing.F) {
	v, _ := EncodeCall(&Call{ID: "x", Sandbox: "s", Watch: &CallWatch{ID: "p"}}, []byte("data"))
	f.Add(v, []byte(nil))
	f.Add("@x.00000000", []byte{0, 0, 0, 2, '{', '}'})
	f.Add(base64.RawURLEncoding.EncodeToString([]byte{255, 255, 255, 255})+".0", []byte{})
	f.Fuzz(func(t *testing.T, value string, file []byte) {
		c, data, err := DecodeCall(value, func(string) ([]byte, error) { return file, nil })
		if err != nil {
			return
		}
		again, err := EncodeCall(c, data)
		if err != nil {
			t.Fatal(err)
		}
		if d, got, err := DecodeCall(again, nil); err != nil || d.ID != c.ID || !bytes.Equal(got, data) {
			t.Errorf("what was read cannot be written and read again: %v", err)
		}
	})
}
