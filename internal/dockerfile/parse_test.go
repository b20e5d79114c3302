package dockerfile_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"berth/internal/dockerfile"
	"berth/sandbox"
)

func TestParse(t *testing.T) {
	mode := cmpopts.IgnoreFields(sandbox.BuildStep{}, "Text")
	for _, tt := range []struct {
		name, text      string
		image, snapshot string
		steps           []sandbox.BuildStep
	}{
		{"shell_form", "FROM debian:12\n# note\nRUN sudo apt-get update -qq && \\\n  # within\n  echo $HOME\n", "debian:12", "",
			[]sandbox.BuildStep{{Kind: "run", Line: 3, Script: "sudo apt-get update -qq &&   echo $HOME"}}},
		{"exec_form", "from debian AS base\nrun [\"/bin/echo\", \"a b\"]", "debian", "", []sandbox.BuildStep{{Kind: "run", Line: 2, Argv: []string{"/bin/echo", "a b"}}}},
		{"arguments_before_from", "ARG TAG=12\nARG IMAGE=debian:${TAG}\nFROM $IMAGE\nARG TAG\nARG B=$TAG C\n", "debian:12", "",
			[]sandbox.BuildStep{{Kind: "arg", Line: 4, Vars: []sandbox.BuildVar{{Name: "TAG", Value: `"12"`}}},
				{Kind: "arg", Line: 5, Vars: []sandbox.BuildVar{{Name: "B", Value: "$TAG"}, {Name: "C", Unset: true}}}}},
		{"settings", "FROM snapshot:mine\nENV A=1 B=\"two words\"\nENV OLD the old form\nWORKDIR /app\nUSER app:app\nSHELL [\"/bin/bash\", \"-c\"]\nLABEL org.x/y=\"z\" b=c", "", "mine",
			[]sandbox.BuildStep{
				{Kind: "env", Line: 2, Vars: []sandbox.BuildVar{{Name: "A", Value: "1"}, {Name: "B", Value: `"two words"`}}},
				{Kind: "env", Line: 3, Vars: []sandbox.BuildVar{{Name: "OLD", Value: "the old form"}}},
				{Kind: "workdir", Line: 4, Word: "/app"}, {Kind: "user", Line: 5, Word: "app:app"},
				{Kind: "shell", Line: 6, Argv: []string{"/bin/bash", "-c"}},
				{Kind: "label", Line: 7, Vars: []sandbox.BuildVar{{Name: "org.x/y", Value: `"z"`}, {Name: "b", Value: "c"}}},
			}},
		{"copy", "FROM x\nCOPY --chown=app a b/*.txt /to/\nADD [\"with space\", \"/x\"]\n", "x", "", []sandbox.BuildStep{
			{Kind: "copy", Line: 2, Copy: sandbox.BuildCopy{From: []string{"a", "b/*.txt"}, To: "/to/", Owner: "app"}},
			{Kind: "copy", Line: 3, Copy: sandbox.BuildCopy{From: []string{"with space"}, To: "/x", Unpack: true}}}},
		{"documents", "FROM x\nRUN <<EOF\necho a\necho $B\nEOF\nRUN cat <<-A > /a && cat <<'B'\n\tone\n\tA\ntwo\nB\nCOPY <<one /etc/\nhello $X\none\n", "x", "", []sandbox.BuildStep{
			{Kind: "run", Line: 2, Script: "echo a\necho $B\n"},
			{Kind: "run", Line: 6, Script: "cat <<-A > /a && cat <<'B'\n\tone\nA\ntwo\nB"},
			{Kind: "copy", Line: 11, Copy: sandbox.BuildCopy{Inline: []sandbox.BuildInline{{Name: "one", Content: "hello $X\n", Expand: true}}, To: "/etc/"}}}},
		{"windows_line_ends", "FROM x\r\nRUN echo a \\\r\n b\r\n", "x", "", []sandbox.BuildStep{{Kind: "run", Line: 2, Script: "echo a  b"}}},
		{"no_steps", "# syntax=docker/dockerfile:1\nFROM x", "x", "", nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b, err := dockerfile.Parse(tt.text, nil)
			if err != nil {
				t.Fatalf("Parse(%q): %v", tt.text, err)
			}
			if b.Image != tt.image || b.Snapshot != tt.snapshot {
				t.Errorf("base = %q, %q, want %q, %q", b.Image, b.Snapshot, tt.image, tt.snapshot)
			}
			if diff := cmp.Diff(tt.steps, b.Steps, mode); diff != "" {
				t.Errorf("steps (-want +got)\n%s", diff)
			}
			// What it is written as again means the same, but for arguments before FROM.
			if strings.HasPrefix(tt.text, "ARG") {
				return
			}
			again, err := dockerfile.Parse(dockerfile.Text(b), nil)
			if err != nil || again.Digest() != b.Digest() {
				t.Errorf("written as\n%s\nread as %+v, %v", dockerfile.Text(b), again, err)
			}
		})
	}
}

func TestParseRefuses(t *testing.T) {
	for _, tt := range []struct {
		name, text string
		want       []string // in order
	}{
		{"empty", "", []string{"no instructions"}},
		{"no_from", "RUN true", []string{"line 1: RUN comes before FROM"}},
		{"only_arg", "ARG A=1", []string{"there is no FROM"}},
		{"scratch", "FROM scratch\nCOPY a /", []string{"line 1: scratch has no shell"}},
		{"no_image", "FROM $UNSET", []string{"line 1: the image's name is empty"}},
		{"everything_at_once", "FROM --platform=linux/arm64 x\nEXPOSE 80\nCMD run\nFROM y\nENTRYPOINT [\"x\"]\nVOLUME /v\nHEALTHCHECK NONE\nSTOPSIGNAL 9\nONBUILD RUN x\nRUM true",
			[]string{"line 1: FROM has no flag --platform", "line 2: EXPOSE", "expose_port", "line 3: CMD", "spawn_process", "line 4: a second FROM", "line 5: ENTRYPOINT", "line 6: VOLUME", "line 7: HEALTHCHECK", "line 8: STOPSIGNAL", "line 9: ONBUILD", `line 10: there is no instruction "RUM"`, "FROM, RUN, COPY"}},
		{"many", "FROM x\n" + strings.Repeat("EXPOSE 1\n", 100), []string{"and 90 faults more"}},
		{"copy", "FROM x\nCOPY --from=build /a /b\nCOPY a\nCOPY --link a b\nCOPY --chmod=u+x a b\nADD http://x/y /z\nADD git@host:x /z\nCOPY --chown= a b",
			[]string{"line 2: COPY --from", "line 3: COPY names no source", "line 4: COPY has no flag --link", "line 5: --chmod=u+x", "line 6: ADD does not fetch http://x/y", "line 7: ADD does not fetch git@", "line 8: --chown"}},
		{"run", "FROM x\nRUN --mount=type=cache,target=/x true\nRUN []\nRUN [1]", []string{"line 4:"}}, // what cannot be read ends the reading
		{"run_flags", "FROM x\nRUN --mount=type=cache,target=/x true\nRUN []\nRUN", []string{"line 2: RUN has no flag --mount", "line 3: RUN has no command", "line 4: RUN has no command"}},
		{"shebang", "FROM x\nRUN <<EOF\n#!/usr/bin/python3\nEOF", []string{"line 2: a document that names its own interpreter"}},
		{"env", "FROM x\nENV 1A=2\nENV A=$\nENV A=${B\nENV A=${B/x/y}\nARG 1\nLABEL a", []string{"line 7: LABEL must have two arguments"}},
		{"words", "FROM x\nENV 1A=2\nENV A=${B\nENV A=${B/x/y}\nARG 1\nUSER\nWORKDIR \"x\nSHELL x", []string{"line 2: \"1A\" is not", "line 3: the } of a ${", "line 4: ${NAME/PATTERN", "line 5: \"1\" is not", "line 6: USER names nothing", "line 7: ", "line 8: SHELL is no list"}},
		{"unterminated", "FROM x\nRUN <<EOF\nabc", []string{"line 2: unterminated heredoc"}},
		{"escape", "# escape=`\nFROM x", []string{"escape is not the backslash"}},
		{"long", "FROM x\nRUN " + strings.Repeat("a", dockerfile.MaxText), []string{"at most 262144"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := dockerfile.Parse(tt.text, nil)
			if err == nil {
				t.Fatalf("Parse(%.100q) refused nothing", tt.text)
			}
			rest := err.Error()
			for _, w := range tt.want {
				_, after, ok := strings.Cut(rest, w)
				if !ok {
					t.Fatalf("Parse(%.100q) = %q, want %q after what was found", tt.text, err, w)
				}
				rest = after
			}
			if !strings.HasPrefix(err.Error(), "dockerfile: ") {
				t.Errorf("no field: %v", err)
			}
		})
	}
}

func TestSteps(t *testing.T) {
	b, err := dockerfile.Steps("debian:12", []dockerfile.Step{
		{Run: "echo \"a\"\nUSER root"}, {Copy: "a b /c/"}, {Env: map[string]string{"B": `a "b" \ $A`, "A": "1"}}, {WorkDir: "/w x"}, {User: "app"},
	}, map[string]sandbox.BuildFile{"a": sandbox.TextFile("x")})
	if err != nil {
		t.Fatal(err)
	}
	if len(b.Steps) != 5 || b.Image != "debian:12" || b.Steps[0].Script != "echo \"a\"\nUSER root" || len(b.Steps[1].Copy.From) != 2 {
		t.Errorf("Steps = %+v", b)
	}
	for _, w := range []struct{ word, want string }{{b.Steps[2].Vars[1].Value, `a "b" \ one`}, {b.Steps[3].Word, "/w x"}, {b.Steps[1].Copy.To, "/c/"}} {
		if got, err := dockerfile.Expand(w.word, map[string]string{"A": "one"}); got != w.want || err != nil {
			t.Errorf("Expand(%s) = %q, %v, want %q", w.word, got, err, w.want)
		}
	}
	again, err := dockerfile.Parse(dockerfile.Text(b), nil)
	if err != nil || len(again.Steps) != 5 {
		t.Errorf("as a Dockerfile:\n%s\n%v", dockerfile.Text(b), err)
	}
	_, err = dockerfile.Steps("scratch", []dockerfile.Step{{}, {Run: "x", User: "y"}, {Copy: "x"}, {Env: map[string]string{"1": ""}}, {Run: "a\x00"}}, nil)
	for _, want := range []string{"image: scratch", "steps.0: 0 of its kinds", "steps.1: 2 of its kinds", "steps.2.copy:", "steps.3.env:", "steps.4.run: it holds a NUL"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Steps of nonsense = %v, want %q", err, want)
		}
	}
}

func TestExpand(t *testing.T) {
	vars := map[string]string{"A": "one", "E": "", "LONG": strings.Repeat("x", 100_000)}
	for _, tt := range []struct{ word, want string }{
		{`$A/${A}s`, "one/ones"}, {`'$A'`, "$A"}, {`"$A"`, "one"}, {`\$A`, "$A"}, {`${X:-d}`, "d"}, {`${E:-d}`, "d"}, {`${E-d}`, ""}, {`${A:+y}`, "y"}, {`$X`, ""},
	} {
		if got, err := dockerfile.Expand(tt.word, vars); got != tt.want || err != nil {
			t.Errorf("Expand(%s) = %q, %v, want %q", tt.word, got, err, tt.want)
		}
	}
	for _, bad := range []string{`${X:?must be set}`, `${`, `"`, strings.Repeat("$LONG", 100), `${A/o/u}`, "a\x00", "${LONG#" + strings.Repeat("*", 1000) + "}", "${LONG##$LONG}", `${A%"${LONG}"}`} {
		if got, err := dockerfile.Expand(bad, vars); err == nil {
			t.Errorf("Expand(%.40s) = %.40q, want an error", bad, got)
		}
	}
	if got := dockerfile.Quote(`a "b" $C \`); got == "" {
		t.Error("nothing")
	} else if back, err := dockerfile.Expand(got, vars); back != `a "b" $C \` || err != nil {
		t.Errorf("Quote reads back as %q, %v", back, err)
	}
}

// Whatever is read can be written and read again, and its words can be expanded
// or say why not.
func FuzzParse(f *testing.F) {
	for _, s := range []string{"FROM a\nRUN b", "ARG A=1\nFROM x$A\nENV B=${A:-c} D='e'\nCOPY --chown=a b c\nRUN <<E\nf\nE\nLABEL a=b", "FROM a\nSHELL [\"a\"]\nRUN [\"a\"]\nADD <<-'X' /y\n\tz\n\tX", "# escape=\\\nFROM a\nWORKDIR a\\\n b", "\ufeff#syntax=x\nFROM a\nUSER ${A%b}"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		b, err := dockerfile.Parse(text, nil)
		if err != nil {
			if err.Error() == "" {
				t.Error("an error without text")
			}
			return
		}
		if b.Image == "" && b.Snapshot == "" {
			t.Errorf("no base in %q", text)
		}
		for _, s := range b.Steps {
			if s.Line < 1 || s.Kind == "" || s.Kind == sandbox.StepRun && s.Script == "" && len(s.Argv) == 0 {
				t.Errorf("step %+v of %q", s, text)
			}
			vars := map[string]string{"A": "1"}
			for _, v := range s.Vars {
				_, _ = dockerfile.Expand(v.Value, vars)
			}
			_, _ = dockerfile.Expand(s.Word, vars)
			_, _ = dockerfile.Expand(s.Copy.To, vars)
			for _, in := range s.Copy.Inline {
				_, _ = dockerfile.ExpandText(in.Content, vars)
			}
		}
	})
}

// However often a word names a value, what it comes to is bounded.
func FuzzExpand(f *testing.F) {
	f.Add("$A${A}", "value")
	f.Add("${A:-${B:+'x'}}\"$A\"", "")
	f.Add("${A%%v*}${A#?}", "vv*")
	f.Fuzz(func(t *testing.T, word, value string) {
		out, err := dockerfile.Expand(word, map[string]string{"A": value, "LONG": strings.Repeat("y", 100_000)})
		if err == nil && len(out) > 4<<20 {
			t.Errorf("Expand(%q) has %d bytes", word, len(out))
		}
		if back, err := dockerfile.Expand(dockerfile.Quote(out), nil); err == nil && back != out {
			t.Errorf("Quote(%q) reads back as %q", out, back)
		}
	})
}
