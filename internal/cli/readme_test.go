package cli

import (
	"io"
	"os"
	"strings"
	"testing"

	"github.com/alecthomas/kong"
)

// The README's table of commands names every command.
func TestReadmeNamesEveryCommand(t *testing.T) {
	page, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, ok := strings.Cut(string(page), "\n## Commands\n")
	section, _, ok2 := strings.Cut(section, "\n## ")
	if !ok || !ok2 {
		t.Fatal("no section of commands")
	}
	var c commands
	parser, err := kong.New(&c, kong.Writers(io.Discard, io.Discard), kong.Vars{"version": ""})
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range parser.Model.Children {
		name := n.Name
		if !strings.Contains(section, "`berth "+name) && !strings.Contains(section, "`"+name+" ID`") && !strings.Contains(section, "`"+name+"`") {
			t.Errorf("README.md, Commands: %s is missing", name)
		}
	}
}
