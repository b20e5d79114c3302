package cli

import (
	"strings"
	"testing"
)

func TestTable(t *testing.T) {
	long := "one two three four five six seven eight nine ten eleven twelve"
	for _, c := range []struct {
		name string
		wrap int
		want string
	}{
		{"as_wide_as_it_is", 0, "A   LAST\nab  " + long + "\n    x\n"},
		{"wrapped", 34, "A   LAST\nab  one two three four five six\n    seven eight nine ten eleven\n    twelve\n    x\n"},
		{"too_narrow", 10, "A   LAST\nab  " + long + "\n    x\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			table := newTable("A", "LAST")
			table.wrap = c.wrap
			table.row("\x1b[31mab\x1b[0m", long)
			table.row("", "x")
			var b strings.Builder
			if err := table.write(&b); err != nil {
				t.Fatal(err)
			}
			if got := strings.NewReplacer("\x1b[31m", "", "\x1b[0m", "").Replace(b.String()); got != c.want {
				t.Errorf("got\n%s\nwant\n%s", got, c.want)
			}
		})
	}
}

func TestFold(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"", ""}, {"short", "short"}, {"exactly 10", "exactly 10"}, {"exactly 11x", "exactly|11x"},
		{"abcdefghijklmno", "abcdefghij|klmno"}, {"ä漢 ä漢 ä漢 ä漢", "ä漢 ä漢 ä漢|ä漢"}, {"a          b", "a|b"},
	} {
		if got := strings.Join(fold(c.text, 10), "|"); got != c.want {
			t.Errorf("fold(%q, 10): got %q, want %q", c.text, got, c.want)
		}
	}
}
