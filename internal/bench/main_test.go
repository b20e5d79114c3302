package main

import (
	"os"
	"path/filepath"
	"testing"
)

func TestReplaceBetween(t *testing.T) {
	const table = beginMark + "\ntable\n" + endMark
	for _, c := range []struct{ name, before, want string }{
		{"between", "# Page\n" + beginMark + "old\n" + endMark + "\nafter\n", "# Page\n" + table + "\nafter\n"},
		{"no_file", "", table + "\n"},
		{"no_markers", "# Page\n", ""},
		{"half", "# Page\n" + beginMark, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "page.md")
			if c.before != "" {
				if err := os.WriteFile(file, []byte(c.before), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			err := replaceBetween(file, "table")
			got, _ := os.ReadFile(file)
			if c.want == "" {
				if err == nil || string(got) != c.before {
					t.Errorf("got %q, %v; want an error and the file as it was", got, err)
				}
				return
			}
			if err != nil || string(got) != c.want {
				t.Errorf("got %q, %v; want %q", got, err, c.want)
			}
			// Once more, over what was written.
			if err := replaceBetween(file, "table"); err != nil {
				t.Error(err)
			}
			if again, _ := os.ReadFile(file); string(again) != c.want {
				t.Errorf("the second time: %q", again)
			}
		})
	}
}
