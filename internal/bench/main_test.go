package main

import (
	"os"
	"path/filepath"
	"strings"
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
			err := replaceBetween(file, func(string) string { return "table" })
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
			if err := replaceBetween(file, func(string) string { return "table" }); err != nil {
				t.Error(err)
			}
			if again, _ := os.ReadFile(file); string(again) != c.want {
				t.Errorf("the second time: %q", again)
			}
		})
	}
}

func TestReportKeepsOtherRows(t *testing.T) {
	order := []string{"create", "buckets"}
	whole := newReport(order)
	whole.machine = "a machine."
	whole.add("create", []row{{"create", "fast", "1 ms", "runc 2 ms", met}}, []string{"docker (no daemon runs)"})
	whole.add("buckets", []row{{"write", "", "1 MB/s", "", open}, {"— read", "", "2 MB/s", "", open}}, []string{"s3fs (not installed)"})
	if got := parseReport("\n"+whole.String()+"\n", order).String(); got != whole.String() {
		t.Fatalf("read and written again:\n%s\nwant\n%s", got, whole)
	}

	part := newReport(order)
	part.add("buckets", []row{{"write", "", "3 MB/s", "", open}}, nil)
	want := strings.NewReplacer(
		"| buckets | write |  | 1 MB/s | — |  |\n| buckets | — read |  | 2 MB/s | — |  |\n", "| buckets | write |  | 3 MB/s | — |  |\n",
		"- Not measured (create)", "- Measured apart (buckets): another.\n- Not measured (create)",
		"- Not measured (buckets): s3fs (not installed).\n", "").Replace(whole.String())
	got := part.over(parseReport(whole.String(), order), []string{"buckets"}, "another.").String()
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	// A second time, and with a group that this program does not know any more.
	old := got + "- Not measured (gone): x (y).\n"
	if got := part.over(parseReport(old, order), []string{"buckets"}, "another.").String(); got != old {
		t.Errorf("the second time: got\n%s\nwant\n%s", got, old)
	}
}
