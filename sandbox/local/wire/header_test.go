package wire

import (
	"encoding/json"
	"math"
	"reflect"
	"testing"
)

// What is written here by hand is what package json would write.
func TestHeaderIsJSON(t *testing.T) {
	body := json.RawMessage(`{"text":"a \u003c \"b\"","n":[1,2]}`)
	for _, h := range []Header{
		{}, {ID: 1}, {Op: OpExited}, {ID: 7, Op: OpSpawn}, {ID: math.MaxUint64, Op: OpWait, Body: body}, {ID: 3, Body: body},
		{Op: OpExited, Body: body}, {ID: 3, Error: &Error{Code: CodeNotExist, Text: "no"}}, {ID: 4, Op: OpStdin, Once: "x", Body: body},
		{ID: 4, Op: OpUsage, Aside: true}, {ID: 4, Op: `a"b`, Body: body}, {ID: 4, Op: "é"}, {ID: 5, Body: json.RawMessage(`null`)},
	} {
		want, err := json.Marshal(h)
		if err != nil {
			t.Fatal(err)
		}
		got, err := h.appendTo(nil)
		if err != nil || string(got) != string(want) {
			t.Errorf("%s, %v; want %s", got, err, want)
		}
		var back Header
		if err := back.parse(got); err != nil || !reflect.DeepEqual(back, h) {
			t.Errorf("%s comes back as %+v, %v", got, back, err)
		}
	}
}

// A header is read as package json would read it, whoever wrote it.
func FuzzHeader(f *testing.F) {
	for _, s := range []string{
		`{}`, `{"id":1}`, `{"id":01}`, `{"id":18446744073709551616}`, `{"id":9999999999999999999}`, `{"id":1,"op":"start","body":{"a":1}}`, `{"id":1,"body":1,"id":2}`,
		`{"id":1,"body": {} }`, `{"id":1,"body":{}} `, `{"op":"exited","body":null}`, `{"id":1,"op":"a\u0062"}`, `{"id":1,"error":{"code":"x"}}`,
		`{"id":1"op":"a"}`, `{"id":1,}`, `{,"op":"a"}`, `{"id":1,"body":}`, `{"op":"","body":1}`, `{"body":1}`, `{"id":-1}`, `{"id":1e2}`, `{"ID":1,"oP":"a"}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var want, got Header
		werr, gerr := json.Unmarshal(b, &want), got.parse(b)
		if (werr == nil) != (gerr == nil) {
			t.Fatalf("%q: %v; want %v", b, gerr, werr)
		}
		if werr == nil && !reflect.DeepEqual(got, want) {
			t.Fatalf("%q: %+v; want %+v", b, got, want)
		}
	})
}
