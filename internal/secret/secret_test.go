package secret_test

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"text/template"

	"go.yaml.in/yaml/v3"

	"berth/internal/secret"
)

const value = "hunter2-\x00-longer"

// holder has the secret in every place an encoder may find it.
type holder struct {
	Exported secret.Text
	Pointer  *secret.Text
	hidden   secret.Text
	List     []secret.Text
	Map      map[string]secret.Text
}

func newHolder() holder {
	t := secret.New(value)
	return holder{t, &t, t, []secret.Text{t}, map[string]secret.Text{"k": t}}
}

func TestNothingPrintsTheValue(t *testing.T) {
	text, h := secret.New(value), newHolder()
	outputs := map[string]string{}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%T", "% x", "%10s", "%p", "%!"} {
		outputs["text "+verb] = fmt.Sprintf(verb, text)
		outputs["pointer "+verb] = fmt.Sprintf(verb, &text)
		outputs["holder "+verb] = fmt.Sprintf(verb, h)
		outputs["holder pointer "+verb] = fmt.Sprintf(verb, &h)
	}
	outputs["error"] = fmt.Errorf("refused %w: %v", errors.ErrUnsupported, text).Error()
	encode := map[string]func() ([]byte, error){
		"json":         func() ([]byte, error) { return json.Marshal(h) },
		"json pointer": func() ([]byte, error) { return json.Marshal(&text) },
		"yaml":         func() ([]byte, error) { return yaml.Marshal(h) },
		"xml":          func() ([]byte, error) { return xml.Marshal(text) },
		"text":         text.MarshalText,
		"template": func() ([]byte, error) {
			var b bytes.Buffer
			err := template.Must(template.New("").Parse("{{.}} {{.Exported}}")).Execute(&b, h)
			return b.Bytes(), err
		},
		"slog json": func() ([]byte, error) {
			var b bytes.Buffer
			slog.New(slog.NewJSONHandler(&b, nil)).Info("m", "text", text, "holder", h, "group", slog.GroupValue(slog.Any("t", text)))
			return b.Bytes(), nil
		},
		"slog text": func() ([]byte, error) {
			var b bytes.Buffer
			slog.New(slog.NewTextHandler(&b, nil)).Info("m", "text", text, "holder", h, "pointer", &h)
			return b.Bytes(), nil
		},
	}
	for name, f := range encode {
		b, err := f()
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		outputs[name] = string(b)
	}
	hex := fmt.Sprintf("%x", value)
	for name, out := range outputs {
		if strings.Contains(out, "hunter2") || strings.Contains(strings.ToLower(out), hex) {
			t.Errorf("%s shows the secret: %q", name, out)
		}
	}
	for _, name := range []string{"text %v", "text %q", "text %x", "holder %+v", "json", "yaml", "xml", "slog json", "slog text"} {
		if !strings.Contains(outputs[name], secret.Redacted) {
			t.Errorf("%s = %q, want it to say %s", name, outputs[name], secret.Redacted)
		}
	}
}

func TestValueComesAndGoes(t *testing.T) {
	for name, decode := range map[string]func(*secret.Text) error{
		"json": func(s *secret.Text) error { return json.Unmarshal([]byte(`"hunter2"`), s) },
		"yaml": func(s *secret.Text) error { return yaml.Unmarshal([]byte("hunter2"), s) },
		"text": func(s *secret.Text) error { return s.UnmarshalText([]byte("hunter2")) },
	} {
		var s secret.Text
		if err := decode(&s); err != nil || s.Reveal() != "hunter2" {
			t.Errorf("%s: Reveal() = %q, %v; want hunter2", name, s.Reveal(), err)
		}
	}
	if got := secret.New(value).Reveal(); got != value {
		t.Errorf("Reveal() = %q, want %q", got, value)
	}
}

func TestEmpty(t *testing.T) {
	for name, s := range map[string]secret.Text{"zero": {}, "new": secret.New("")} {
		if !s.IsZero() || s.Reveal() != "" || s.String() != "" {
			t.Errorf("%s: IsZero %v, Reveal %q, String %q; want an empty secret", name, s.IsZero(), s.Reveal(), s.String())
		}
	}
	if secret.New("x").IsZero() {
		t.Error("a set secret says it is zero")
	}
}

func TestEqual(t *testing.T) {
	a := secret.New("one")
	if !a.Equal(secret.New("one")) {
		t.Error("equal secrets differ")
	}
	for _, other := range []string{"", "on", "one ", "two"} {
		if a.Equal(secret.New(other)) {
			t.Errorf("%q equals %q", "one", other)
		}
	}
}
