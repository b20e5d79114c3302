//go:build linux

package journal

import (
	"encoding/json"
	"os"
	"strings"
	"testing"

	"berth/sandbox/local/wire"
)

func proc(id, state string) *wire.Process { return &wire.Process{ID: id, State: state} }

func names(ps []wire.Process) string {
	var s []string
	for _, p := range ps {
		s = append(s, p.ID+" "+p.State)
	}
	return strings.Join(s, ", ")
}

func TestJournal(t *testing.T) {
	dir := t.TempDir()
	if ps, err := Load(dir); err != nil || len(ps) != 0 {
		t.Fatalf("Load of nothing = %v, %v", ps, err)
	}
	j, err := Open(dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	j.Put(proc("a", Running))
	j.Put(proc("b", Running))
	j.Put(proc("a", Exited))
	j.Put(proc("c", Running))
	j.Drop("b")
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	j.Put(proc("d", Running)) // after the end nothing is kept
	ps, err := Load(dir)
	if got, want := names(ps), "a exited, c running"; err != nil || got != want {
		t.Fatalf("Load = %q, %v, want %q", got, err, want)
	}
	Lose(ps, "why")
	if got, want := names(ps), "a exited, c lost"; got != want || ps[1].Reason != "why" {
		t.Fatalf("Lose = %q, want %q", got, want)
	}
}

func TestJournalOverGarbage(t *testing.T) {
	dir := t.TempDir()
	text := `{"p":{"id":"a","state":"running"}}` + "\n\x00\xff garbage\n{}\nnull\n[1]\n" +
		`{"p":{"id":"../../etc","state":"exited"}}` + "\n" + `{"p":{"id":"x","state":"dancing"}}` + "\n" +
		`{"p":{"id":"y","state":"exited","stdout":-5}}` + "\n" + `{"p":{"id":"b","state":"exited"}}` + "\n" + `{"p":{"id":"a","sta`
	if err := os.WriteFile(dir+"/"+FileName, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	ps, err := Load(dir)
	if got, want := names(ps), "a running, b exited"; err != nil || got != want {
		t.Fatalf("Load = %q, %v, want %q", got, err, want)
	}
	j, err := Open(dir, ps)
	if err != nil {
		t.Fatal(err)
	}
	j.Put(proc("c", Running))
	_ = j.Close()
	ps, err = Load(dir)
	if got, want := names(ps), "a running, b exited, c running"; err != nil || got != want {
		t.Fatalf("after Open: %q, %v, want %q", got, err, want)
	}
}

func TestJournalStale(t *testing.T) {
	j, err := Open(t.TempDir(), nil)
	if err != nil {
		t.Fatal(err)
	}
	for range 1001 {
		if j.Stale(0) {
			t.Fatal("stale too early")
		}
		j.Put(proc("a", Exited))
	}
	if !j.Stale(0) {
		t.Fatal("never stale")
	}
	if err := j.Compact([]wire.Process{*proc("a", Exited)}); err != nil || j.Stale(0) {
		t.Fatalf("Compact = %v, stale %v", err, j.Stale(0))
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"p":{"id":"a","state":"running"}}` + "\n" + `{"drop":"a"}` + "\n" + `{"p":{"id":"a","state":"exited","exit_code":3}}` + "\n{"))
	f.Fuzz(func(t *testing.T, b []byte) {
		ps := Parse(b)
		seen := map[string]bool{}
		var again []byte
		for i := range ps {
			if !sound(&ps[i]) || seen[ps[i].ID] {
				t.Fatalf("Parse gave %+v", ps[i])
			}
			seen[ps[i].ID] = true
			text, err := json.Marshal(line{Process: &ps[i]})
			if err != nil {
				t.Fatal(err)
			}
			again = append(append(again, text...), '\n')
		}
		if got, want := names(Parse(again)), names(ps); got != want {
			t.Fatalf("after a round trip %q, want %q", got, want)
		}
	})
}

func TestRecordTellsTheLiving(t *testing.T) {
	dir := t.TempDir()
	boot, err := BootID()
	if err != nil {
		t.Fatal(err)
	}
	start, err := StartTime(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	live := wire.Record{Boot: boot, MonitorPID: os.Getpid(), MonitorStart: start}
	if err := WriteRecord(dir, &live); err != nil {
		t.Fatal(err)
	}
	r, err := ReadRecord(dir)
	if err != nil || !Alive(r) {
		t.Fatalf("ReadRecord = %+v, %v", r, err)
	}
	for name, change := range map[string]func(*wire.Record){
		"boot":  func(r *wire.Record) { r.Boot = "another" },
		"start": func(r *wire.Record) { r.MonitorStart++ },
		"pid":   func(r *wire.Record) { r.MonitorPID = 0 },
	} {
		r := live
		change(&r)
		if Alive(&r) {
			t.Errorf("alive with another %s", name)
		}
	}
}
