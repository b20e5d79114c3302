package dockerfile

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"berth/sandbox"
)

// Step is one of a list of steps: exactly one of the fields is given.
type Step struct {
	Run     string            // shell text
	Copy    string            // "SOURCE... DESTINATION", of the files that are given
	Env     map[string]string // $NAME in a value stands for what was set before
	WorkDir string
	User    string
}

// Steps makes a Build of a list. base is an image, snapshot:NAME, or empty. Its
// error joins a *sandbox.FieldError for each fault ("steps.2.env").
func Steps(base string, steps []Step, files map[string]sandbox.BuildFile) (sandbox.Build, error) {
	r := &reader{field: "image"}
	if base != "" {
		r.b.Origin = "FROM " + base
		if err := From(&r.b, base); err != nil {
			r.add(0, err.Error(), "", "")
		}
	}
	for i, s := range steps {
		r.step(fmt.Sprintf("steps.%d", i), s)
	}
	r.b.Files = files
	return r.b, r.err()
}

func (r *reader) step(field string, s Step) {
	var step sandbox.BuildStep
	given := 0
	r.field = field
	one := func(name string, kind sandbox.StepKind) {
		given++
		r.field = field + "." + name
		step.Kind = kind
	}
	if s.Run != "" {
		one("run", sandbox.StepRun)
		step.Script, step.Text = s.Run, "RUN "+s.Run
		if strings.ContainsRune(s.Run, 0) {
			r.add(0, "it holds a NUL byte", "text without NUL bytes", "")
		}
	}
	if s.Copy != "" {
		one("copy", sandbox.StepCopy)
		step.Text = "COPY " + s.Copy
		if list := strings.Fields(s.Copy); len(list) < 2 {
			r.add(0, fmt.Sprintf("%.80q names no source or no destination", s.Copy), "SOURCE... DESTINATION", "")
		} else {
			for i, w := range list {
				list[i] = quoteOpen(w)
				r.checkWord(0, list[i])
			}
			step.Copy.From, step.Copy.To = list[:len(list)-1], list[len(list)-1]
		}
	}
	if len(s.Env) > 0 {
		one("env", sandbox.StepEnv)
		step.Text = "ENV"
		for _, k := range slices.Sorted(maps.Keys(s.Env)) {
			if !variable.MatchString(k) {
				r.add(0, fmt.Sprintf("%.80q is not a variable name", k), "letters, digits and '_', not beginning with a digit", "")
			}
			v := sandbox.BuildVar{Name: k, Value: quoteOpen(s.Env[k])}
			r.checkWord(0, v.Value)
			step.Vars = append(step.Vars, v)
			step.Text += " " + k + "=" + v.Value
		}
	}
	for _, w := range []struct {
		name, value string
		kind        sandbox.StepKind
	}{{"workdir", s.WorkDir, sandbox.StepWorkDir}, {"user", s.User, sandbox.StepUser}} {
		if w.value != "" {
			one(w.name, w.kind)
			step.Word = quoteOpen(w.value)
			step.Text = strings.ToUpper(w.name) + " " + w.value
			r.checkWord(0, step.Word)
		}
	}
	if given != 1 {
		r.field = field
		r.add(0, fmt.Sprintf("%d of its kinds are given", given), "exactly one of run, copy, env, workdir, user", "make each a step of its own")
		return
	}
	r.b.Steps = append(r.b.Steps, step)
}

// Text writes b as a Dockerfile, for builders that take one.
func Text(b sandbox.Build) string {
	var out strings.Builder
	switch {
	case b.Snapshot != "":
		out.WriteString("FROM " + SnapshotPrefix + b.Snapshot + "\n")
	case b.Image != "":
		out.WriteString("FROM " + b.Image + "\n")
	}
	for _, s := range b.Steps {
		text := s.Text
		if s.Line == 0 && s.Kind == sandbox.StepRun && strings.Contains(s.Script, "\n") {
			// Several lines of a list's step would be several instructions.
			list, _ := json.Marshal([]string{"/bin/sh", "-c", s.Script}) // texts always encode
			text = "RUN " + string(list)
		}
		out.WriteString(text + "\n")
	}
	return out.String()
}
