package server

import (
	"bytes"
	"errors"
	"os"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"berth/sandbox"
)

func TestIDsHoldWhatTheyPromise(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir() + "/ended"
		d := newIDs(bytes.Repeat([]byte("k"), 32), 24*time.Hour, dir)
		id, bound := d.make(kindHTTP, "ann")
		if got, err := d.check(kindHTTP, id, "ann"); err != nil || got != bound {
			t.Fatalf("check = %q, %v; want %q", got, err, bound)
		}
		if _, err := sandbox.ParseSessionID(string(bound)); err != nil || len(bound) != len(sandbox.NewSessionID()) {
			t.Errorf("bound session %q: %v", bound, err)
		}
		for name, c := range map[string]struct {
			kind  byte
			id    string
			owner sandbox.Owner
		}{
			"kind": {kindSSE, id, "ann"}, "owner": {kindHTTP, id, "bob"}, "empty": {kindHTTP, "", "ann"}, "cut": {kindHTTP, id[:len(id)-1], "ann"},
			"longer": {kindHTTP, id + "A", "ann"}, "newline": {kindHTTP, id + "\n", "ann"},
		} {
			if _, err := d.check(c.kind, c.id, c.owner); !errors.Is(err, errSession) {
				t.Errorf("%s: check = %v, want errSession", name, err)
			}
		}
		// Every changed bit makes it bad.
		for i := range id {
			b := []byte(id)
			if b[i] ^= 1; b[i] == id[i] {
				continue
			}
			if _, err := d.check(kindHTTP, string(b), "ann"); err == nil {
				t.Errorf("character %d changed: still good", i)
			}
		}
		if err := d.end(id); err != nil {
			t.Fatal(err)
		}
		again := newIDs(d.key, d.maxAge, dir)
		for _, x := range []*ids{d, again} {
			if _, err := x.check(kindHTTP, id, "ann"); !errors.Is(err, errEnded) {
				t.Errorf("ended: check = %v", err)
			}
			if _, err := x.check(kindHTTP, id, "bob"); errors.Is(err, errEnded) {
				t.Error("a stranger learns that the session was ended")
			}
		}
		young, _ := d.make(kindHTTP, "ann")
		time.Sleep(25 * time.Hour)
		if _, err := d.check(kindHTTP, young, "ann"); err == nil {
			t.Error("an old id is still good")
		}
	})
}

func TestEndedIDsAreSweptFromTheDirectory(t *testing.T) {
	d := newIDs(bytes.Repeat([]byte("k"), 32), time.Hour, t.TempDir()+"/ended")
	id, _ := d.make(kindHTTP, "ann")
	if err := d.end(id); err != nil {
		t.Fatal(err)
	}
	d.sweep(time.Now())
	if entries, err := os.ReadDir(d.dir); err != nil || len(entries) != 1 || len(d.ended) != 1 {
		t.Errorf("swept too early: %v %v %v", entries, d.ended, err)
	}
	d.sweep(time.Now().Add(2 * time.Hour))
	if entries, err := os.ReadDir(d.dir); err != nil || len(entries) != 0 || len(d.ended) != 0 {
		t.Errorf("not swept: %v %v %v", entries, d.ended, err)
	}
}

func TestIdleSessionsAreDroppedButStayGood(t *testing.T) {
	s, err := New(NewMCP("t", "1", MCPOptions{}), Options{SessionIdle: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	id, _ := s.ids.make(kindHTTP, "ann")
	var last atomic.Int64
	idle, busy := newPeer(id, &last), newPeer("busy", &last)
	release := busy.use()
	s.mu.Lock()
	s.remember(idle)
	s.remember(busy)
	s.mu.Unlock()
	s.sweep(time.Now().Add(2 * time.Minute))
	if len(s.sessions) != 1 || s.sessions["busy"] == nil {
		t.Errorf("sessions left = %v, want the busy one", s.sessions)
	}
	release()
	s.sweep(time.Now().Add(2 * time.Minute))
	if len(s.sessions) != 0 {
		t.Errorf("sessions left = %v", s.sessions)
	}
	if _, err := s.ids.check(kindHTTP, id, "ann"); err != nil {
		t.Errorf("the idle session's id is refused: %v", err)
	}
}

func TestRequestIDsAreToldApart(t *testing.T) {
	seen := map[string]string{}
	for _, id := range []string{`7`, `"7"`, `70`, `"a"`, `"A"`, `-7`, `7.5`} {
		k := idKey([]byte(id))
		if old, ok := seen[k]; ok {
			t.Errorf("%s and %s are one", id, old)
		}
		seen[k] = id
	}
	if idKey([]byte(`"\u0061"`)) != idKey([]byte(`"a"`)) {
		t.Error("an escaped id is another id")
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{`{"jsonrpc":"2.0","id":1,"method":"ping"}`, `[]`, `{"jsonrpc":"2.0","method":"x","params":{"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28"}}}`, `{"id":null}`, `"`, ``} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m, problem := parse(b)
		if (m == nil) == (problem == nil) {
			t.Fatalf("parse(%q) = %v, %v", b, m, problem)
		}
		if m != nil && m.method == "" && m.id == nil {
			t.Fatalf("parse(%q) is neither a request nor an answer", b)
		}
		if problem != nil {
			if err := encode(problem, func([]byte) error { return nil }); err != nil {
				t.Fatal(err)
			}
		}
	})
}
