package sandbox

import (
	"errors"
	"runtime"
	"strings"
	"testing"
)

// allocated is how many bytes f takes from the heap, freed or not.
func allocated(f func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

// What an edit takes is bounded by the file, not by what it would become.
func TestEditThatGrowsIsRefusedBeforeItIsMade(t *testing.T) {
	text := strings.Repeat("a", MaxEditFile)
	took := allocated(func() {
		_, _, err := applyEdits(text, []Edit{{OldText: "a", NewText: strings.Repeat("b", 64), ReplaceAll: true}}, "f")
		if !errors.Is(err, ErrLimit) {
			t.Errorf("16 MiB that become 1 GiB: got %v, want %v", err, ErrLimit)
		}
	})
	if took > MaxEditFile {
		t.Errorf("16 MiB that become 1 GiB: %d bytes were allocated to refuse it", took)
	}
	got, n, err := applyEdits(strings.Repeat("a", 10), []Edit{{OldText: "a", NewText: strings.Repeat("b", MaxEditFile/10), ReplaceAll: true}}, "f")
	if err != nil || n != 10 || len(got) != MaxEditFile/10*10 {
		t.Errorf("an edit up to the limit: got %d bytes, %d times, %v", len(got), n, err)
	}
}

func TestDiffOfManyLines(t *testing.T) {
	numbers := strings.Repeat("a\nb\n", 4<<20)
	for _, test := range []struct{ name, a, b, begins string }{
		{"all_changed", numbers, strings.ReplaceAll(numbers, "a", "c"), "--- f\n+++ f\n@@ -1,50000 +1,50000 @@\n-a\n-b\n-a\n"},
		{"one_line", strings.Repeat("a", MaxEditFile), strings.Repeat("b", MaxEditFile), "--- f\n+++ f\n@@ -1 +1 @@\n-aaa"},
		{"both_ends", "x\n" + numbers + "x\n", "y\n" + numbers + "y\n", "--- f\n+++ f\n@@ -1,4 +1,4 @@\n-x\n+y\n a\n b\n a\n" + longer},
	} {
		t.Run(test.name, func(t *testing.T) {
			took := allocated(func() {
				got := unifiedDiff("f", test.a, test.b)
				if !strings.HasPrefix(got, test.begins) || !strings.HasSuffix(got, longer) || len(got) > maxDiff+len(longer) {
					t.Errorf("unifiedDiff = %d bytes, %.80q; want what begins with %q", len(got), got, test.begins)
				}
			})
			if took > 64<<20 {
				t.Errorf("unifiedDiff allocated %d bytes", took)
			}
		})
	}
}

// What is the same on both sides of the changes does not change the diff.
func TestDiffWithinEqualText(t *testing.T) {
	for _, test := range []struct{ name, a, b, want string }{
		{"middle", "1\n2\n3\n4\n5\n6\n7\n8\n9\n", "1\n2\n3\n4\nx\n6\n7\n8\n9\n", "@@ -2,7 +2,7 @@\n 2\n 3\n 4\n-5\n+x\n 6\n 7\n 8\n"},
		{"repeated", "x\nx\nx\nx\nx\n", "x\nx\nx\nx\nx\nx\n", "@@ -3,3 +3,4 @@\n x\n x\n x\n+x\n"},
		{"part_of_a_line", "1\n2\n3\n4\nabc\n6\n7\n8\n9\n", "1\n2\n3\n4\naxc\n6\n7\n8\n9\n", "@@ -2,7 +2,7 @@\n 2\n 3\n 4\n-abc\n+axc\n 6\n 7\n 8\n"},
		{"no_end", "a", "ab", "@@ -1 +1 @@\n-a\n\\ No newline at end of file\n+ab\n\\ No newline at end of file\n"},
		{"all_gone", "a\n", "", "@@ -1 +0,0 @@\n-a\n"},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := unifiedDiff("f", test.a, test.b); got != "--- f\n+++ f\n"+test.want {
				t.Errorf("unifiedDiff(%q, %q) = %q, want %q", test.a, test.b, got, test.want)
			}
		})
	}
}
