package daytonaapi

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"berth/sandbox"
)

func testStorage(t *testing.T) *storage {
	t.Helper()
	s, err := openStorage(t.TempDir(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// Uploads that come at once do not pass together what none may pass alone.
func TestUploadsAtOnceAreCounted(t *testing.T) {
	s := testStorage(t)
	var ends []func()
	for range maxContexts / maxContext {
		done, err := s.reserve("a", maxContext)
		if err != nil {
			t.Fatal(err)
		}
		ends = append(ends, done)
	}
	var f *s3Fault
	if _, err := s.reserve("a", 1); !errors.As(err, &f) || f.code != tooLarge {
		t.Errorf("one byte more: %v, want %s", err, tooLarge)
	}
	if err := s.save("a", s.path("a", "hash"), strings.NewReader("x"), 1); !errors.As(err, &f) {
		t.Errorf("save: %v, want %s", err, tooLarge)
	}
	if done, err := s.reserve("b", maxContext); err != nil {
		t.Errorf("another owner: %v", err)
	} else {
		done()
	}
	for _, done := range ends {
		done()
	}
	if err := s.save("a", s.path("a", "hash"), strings.NewReader("x"), 1); err != nil {
		t.Errorf("when they are done: %v", err)
	}
	if len(s.coming) > 0 {
		t.Errorf("still coming: %v", s.coming)
	}
}

// What nobody finished goes, also when it never had a part, and nothing else.
func TestSweepOfUploads(t *testing.T) {
	s := testStorage(t)
	org := organization("a")
	oldID, emptyID, newID := strings.Repeat("A", 26), strings.Repeat("B", 26), strings.Repeat("C", 26)
	for name, text := range map[string]string{
		"uploads/" + org + "/" + oldID + "/1": "x", "uploads/" + org + "/" + emptyID + "/": "", "uploads/" + org + "/" + newID + "/": "", "uploads/put-1": "x",
		org + "/old/" + objectName: "x", org + "/new/" + objectName: "x",
	} {
		path := filepath.Join(s.dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if text == "" {
			if err := os.MkdirAll(path, 0o700); err != nil {
				t.Fatal(err)
			}
		} else if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	now := time.Now().Add(8 * 24 * time.Hour)
	for _, fresh := range []string{"uploads/" + org + "/" + newID, org + "/new/" + objectName} {
		if err := os.Chtimes(filepath.Join(s.dir, fresh), now, now); err != nil {
			t.Fatal(err)
		}
	}
	s.sweep(now)
	for name, there := range map[string]bool{
		"uploads/" + org + "/" + oldID: false, "uploads/" + org + "/" + emptyID: false, "uploads/put-1": false, org + "/old": false,
		"uploads/" + org + "/" + newID: true, org + "/new/" + objectName: true, "uploads": true, "signing.key": true,
	} {
		if _, err := os.Stat(filepath.Join(s.dir, name)); (err == nil) != there {
			t.Errorf("%s is there = %v, want %v", name, err == nil, there)
		}
	}
}

func TestRecordsAreBounded(t *testing.T) {
	rows, err := openTable[volumeRecord](filepath.Join(t.TempDir(), "volumes"))
	if err != nil {
		t.Fatal(err)
	}
	for i := range maxRows {
		rows.rows[strconv.Itoa(i)] = volumeRecord{Owner: "a"} // on the disk they would take long
	}
	if err := rows.put("more", volumeRecord{Owner: "a"}); err == nil || !strings.Contains(err.Error(), "delete some") {
		t.Errorf("one more: %v", err)
	}
	if err := rows.put("0", volumeRecord{Owner: "a"}); err != nil {
		t.Errorf("a change: %v", err)
	}
	if err := rows.put("other", volumeRecord{Owner: sandbox.Owner("b")}); err != nil {
		t.Errorf("another owner's: %v", err)
	}
}
