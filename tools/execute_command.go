package tools

import (
	"time"

	"github.com/mark3labs/mcp-go/mcp"

	"berth/sandbox"
)

// runArguments are what execute_command, run_code and spawn_process share.
type runArguments struct {
	Cwd   string             `json:"cwd" doc:"Start here." schema:"bytes=4096"`
	Env   map[string]*string `json:"env" doc:"Added to the sandbox's; null removes." schema:"items=1000;bytes=131071"`
	User  string             `json:"user" doc:"agent or root; root is root inside only." schema:"bytes=64"`
	Stdin *string            `json:"stdin" doc:"Text for stdin." schema:"bytes=8388608;nul"`
}

func (a runArguments) request(c *call) sandbox.RunRequest {
	return sandbox.RunRequest{Cwd: a.Cwd, Env: a.Env, User: a.User, Stdin: a.Stdin, OnOutput: c.progress.output()}
}

type executeCommandArguments struct {
	Command *string  `json:"command" doc:"Shell text for bash -c (sh where there is no bash)." schema:"bytes=1048576"`
	Argv    []string `json:"argv" doc:"Instead of command: program and arguments, no shell." schema:"minitems=1;items=4096;bytes=131071"`
	runArguments
	TimeoutSeconds *float64 `json:"timeout_seconds" doc:"Kill after this long; 0 = never. Default: the sandbox's, 300." schema:"min=0;max=86400"`
	WaitSeconds    *float64 `json:"wait_seconds" doc:"Then hand over to process_id; the command runs on." schema:"min=0;max=50;default=50"`
	sessionArgument
}

func executeCommand() tool {
	t := tool{
		name: "execute_command", title: "Run a command", toolset: "core",
		description: "Runs a command in the session's own Linux sandbox, which is made when there is none, and returns stdout, [stderr], " +
			"and last a line such as [exit 0 in 0.2 s]. Each call starts fresh in the default directory: cd and export do not carry over. " +
			"Stdin is empty unless given. A command that takes longer than wait_seconds runs on under its process_id. For servers and programs to talk to use spawn_process. " +
			"Answers hold 30 KB; what was cut is read with read_output.",
		destructive: true, reach: mayCreate,
	}
	t.args, t.handle = handler(func(c *call, a *executeCommandArguments) (*mcp.CallToolResult, error) {
		r := a.request(c)
		if err := commandOrArgv(&r, a.Command, a.Argv); err != nil {
			return nil, err
		}
		r.Timeout, r.Wait = duration(a.TimeoutSeconds), duration(a.WaitSeconds)
		res, err := c.manager.ExecuteCommand(c.ctx, c.key, r)
		if err != nil {
			return nil, err
		}
		return c.process(res, ran), nil
	})
	return t
}

// commandOrArgv fills in what to run: exactly one of the two.
func commandOrArgv(r *sandbox.RunRequest, command *string, argv []string) error {
	switch {
	case command != nil && argv != nil:
		return &sandbox.FieldError{Field: "argv", Problem: "given together with command", Allowed: "one of them", Hint: "leave out argv for shell text, command for a plain program"}
	case argv != nil && argv[0] == "":
		return &sandbox.FieldError{Field: "argv.0", Problem: "empty", Allowed: "a program's name or path"}
	case argv != nil:
		r.Argv = argv
	case command == nil:
		return &sandbox.FieldError{Field: "command", Problem: "missing", Hint: "give shell text in command, or a program and its arguments in argv"}
	case *command == "":
		return &sandbox.FieldError{Field: "command", Problem: "empty", Allowed: "shell text"}
	default:
		r.Command = *command
	}
	return nil
}

// duration is a number of seconds from an argument; nil stays nil.
func duration(seconds *float64) *time.Duration {
	if seconds == nil {
		return nil
	}
	d := time.Duration(*seconds * float64(time.Second))
	return &d
}
