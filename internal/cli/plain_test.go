package cli

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"berth/internal/config"
	"berth/sandbox"
)

func TestPlainUsage(t *testing.T) {
	for in, want := range map[string]string{
		`--http: expected string value but got "EOL" (<EOL>)`:       "--http needs a value",
		`--dir: missing value, expecting "<arg>"`:                   "--dir needs a value",
		`--memory: expected a float but got "512m" (string)`:        `--memory: "512m" is not a number; allowed: GiB without a unit, such as 0.5`,
		`--cpu: expected a float but got "two" (string)`:            `--cpu: "two" is not a number; allowed: processors, such as 0.5`,
		`<name> must be one of "cursor","sse","http" but got "foo"`: `NAME: "foo" is not known; allowed: cursor, sse, http`,
		`--mode=STRING must be one of "a","b" but got "c"`:          `--mode=STRING: "c" is not known; allowed: a, b`,
		"unknown flag --htp, did you mean one of \"--http\"?":       "unknown flag --htp, did you mean one of \"--http\"?",
		"expected \"<id>\"": "expected \"<id>\"",
	} {
		if got := plainUsage(in); got != want {
			t.Errorf("plainUsage(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestRoundUp(t *testing.T) {
	for _, c := range []struct {
		in   time.Duration
		want string
	}{
		{15*time.Minute - time.Millisecond, "15 min"}, {time.Hour - time.Second, "1 h"}, {300 * time.Millisecond, "1 s"},
		{59*time.Second + 1, "1 min"}, {7*24*time.Hour - 1, "7 days"}, {47*time.Hour + 1, "2 days"}, {time.Minute, "1 min"},
	} {
		if got := span(roundUp(c.in)); got != c.want {
			t.Errorf("%v ahead is %q, want %q", c.in, got, c.want)
		}
	}
}

func TestBeyond(t *testing.T) {
	c := config.Default()
	if got := beyond(c, 8<<30, 2); got != nil {
		t.Errorf("the defaults: %q", got)
	}
	c.Defaults.Resources.MemoryGiB, c.Limits.MaxMemoryGiB, c.Limits.MaxCPU = 999999, 8, 3
	got := strings.Join(beyond(c, 8<<30, 2), "\n")
	if want := "defaults.resources.memory_gib: 999999 is more than the 8 GiB of this machine, so that it holds nothing back\n" +
		"limits.max_cpu: 3 is more than the 2 cores of this machine, so that it holds nothing back"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if got := beyond(c, 0, 4); got != nil {
		t.Errorf("where memory is not known: %q", got)
	}
}

func TestShellText(t *testing.T) {
	none := fmt.Errorf("there is none: %w", sandbox.ErrNoProgram)
	got := shellText([]string{"echo hi there"}, none)
	if !errors.Is(got, sandbox.ErrNoProgram) || !strings.Contains(got.Error(), "use: sh -c 'echo hi there'") {
		t.Errorf("got %v", got)
	}
	if got := shellText([]string{"echoo", "a b"}, none); got != none {
		t.Errorf("a plain word: %v", got)
	}
}
