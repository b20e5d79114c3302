package cli

import (
	"errors"
	"strings"

	"berth/sandbox"
)

// asCommands are the commands that do for people what tools do for agents.
var asCommands = strings.NewReplacer(
	"list_snapshots", "berth snapshot ls",
	"create_snapshot", "berth snapshot create",
	"delete_snapshot", "berth snapshot rm",
	"list_volumes", "berth volumes ls",
	"list_sandboxes", "berth ls",
	"stop_sandbox", "berth stop",
	"destroy_sandbox", "berth rm",
	"list_processes", "berth logs -l ID",
)

// forPeople is an error's text with commands in place of the tools that its
// advice names. What was typed stays as it is.
func forPeople(err error) string {
	text := err.Error()
	if f, ok := errors.AsType[*sandbox.FieldError](err); ok {
		said := *f
		said.Hint = asCommands.Replace(f.Hint)
		return strings.Replace(text, f.Error(), said.Error(), 1)
	}
	if u, ok := errors.AsType[*sandbox.UserError](err); ok {
		return strings.Replace(text, u.Text, asCommands.Replace(u.Text), 1)
	}
	return text
}

// withoutField is err without the name of the tool's argument at fault, where
// the command has but one thing that it can be about.
func withoutField(err error) error {
	if f, ok := errors.AsType[*sandbox.FieldError](err); ok && err.Error() == f.Error() {
		return errors.New(strings.TrimPrefix(forPeople(f), f.Field+": "))
	}
	return err
}
