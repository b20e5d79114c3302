package mounts

import (
	"errors"
	"fmt"
)

// Problem is one thing that is wrong with what was given. It shows no secret.
type Problem struct {
	Field   string // "bucket", "endpoint"
	Text    string // what was wrong with which value
	Allowed string // may be empty
	Hint    string // what to do next; may be empty
}

func (p *Problem) Error() string {
	s := p.Field + ": " + p.Text
	if p.Allowed != "" {
		s += "; allowed: " + p.Allowed
	}
	if p.Hint != "" {
		s += "; " + p.Hint
	}
	return s
}

// ProblemsOf lists the problems that err joins, in order.
func ProblemsOf(err error) []*Problem {
	if j, ok := err.(interface{ Unwrap() []error }); ok {
		var list []*Problem
		for _, e := range j.Unwrap() {
			list = append(list, ProblemsOf(e)...)
		}
		return list
	}
	var p *Problem
	if errors.As(err, &p) {
		return []*Problem{p}
	}
	return nil
}

// problems collects what is wrong with an input.
type problems []error

func (l *problems) add(field, text, allowed, hint string) {
	*l = append(*l, &Problem{Field: field, Text: text, Allowed: allowed, Hint: hint})
}

func (l problems) err() error { return errors.Join(l...) }

// shown is a value for a message: bounded, quoted.
func shown(s string) string { return fmt.Sprintf("%.80q", s) }
