package tools

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"

	"berth/sandbox"
)

// checkTexts applies the rules that are not published: byte lengths, numbers
// of entries, NUL bytes.
func (v *validator) checkTexts(s reflect.Value) error {
	var list []error
	for _, f := range v.fields {
		list = append(list, f.check(f.name, s.FieldByIndex(f.index))...)
	}
	return errors.Join(list...)
}

func (f field) check(name string, val reflect.Value) []error {
	if val.Kind() == reflect.Pointer {
		if val.IsNil() {
			return nil
		}
		val = val.Elem()
	}
	switch val.Kind() {
	case reflect.String:
		return f.checkText(name, val.String())
	case reflect.Slice:
		if n := f.limit("items", maxItems); val.Len() > n {
			return []error{&sandbox.FieldError{Field: name, Problem: fmt.Sprintf("%d entries", val.Len()), Allowed: fmt.Sprintf("at most %d", n)}}
		}
		var list []error
		for i := range val.Len() {
			place := fmt.Sprintf("%s.%d", name, i)
			if m, ok := val.Index(i).Interface().(namedMount); ok {
				place = join(name, clip(m.path, 80))
			}
			if val.Index(i).Kind() != reflect.Struct {
				list = append(list, f.check(place, val.Index(i))...)
				continue
			}
			for _, inner := range fields(val.Type().Elem()) {
				list = append(list, inner.check(place+"."+inner.name, val.Index(i).FieldByIndex(inner.index))...)
			}
		}
		return list
	case reflect.Map:
		if n := f.limit("items", maxItems); val.Len() > n {
			return []error{&sandbox.FieldError{Field: name, Problem: fmt.Sprintf("%d entries", val.Len()), Allowed: fmt.Sprintf("at most %d", n)}}
		}
		var list []error
		keys := val.MapKeys()
		slices.SortFunc(keys, func(a, b reflect.Value) int { return strings.Compare(a.String(), b.String()) })
		for _, k := range keys {
			list = append(list, field{}.checkText("a name in "+name, k.String())...)
			list = append(list, f.check(join(name, clip(k.String(), 80)), val.MapIndex(k))...)
		}
		return list
	}
	return nil
}

func (f field) checkText(name, s string) []error {
	if n := f.limit("bytes", maxText); len(s) > n {
		fe := &sandbox.FieldError{Field: name, Problem: fmt.Sprintf("%d bytes long", len(s)), Allowed: fmt.Sprintf("at most %d bytes", n)}
		switch f.name {
		case "command", "code":
			fe.Hint = "write long text to a file with write_file and run that"
		case "content", "base64", "text", "stdin":
			fe.Hint = "send it in parts"
		}
		return []error{fe}
	}
	if _, ok := f.rules["nul"]; !ok {
		if i := strings.IndexByte(s, 0); i >= 0 {
			return []error{&sandbox.FieldError{Field: name, Problem: fmt.Sprintf("a NUL byte at position %d", i), Allowed: "text without NUL bytes"}}
		}
	}
	if _, ok := f.rules["notempty"]; ok && s == "" {
		return []error{&sandbox.FieldError{Field: name, Problem: "empty", Allowed: "one character or more"}}
	}
	return nil
}
