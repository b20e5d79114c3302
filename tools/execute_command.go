package tools

import (
	"time"

	"github.com/mark3labs/mcp-go/mcp"

	"berth/sandbox"
)

// runArguments are what execute_command, run_code and spawn_process share.
type runArguments struct {
	Cwd   string             `json:"cwd" doc:"Default: home." schema:"bytes=4096"`
	Env   map[string]*string `json:"env" doc:"null removes." schema:"items=1000;bytes=131071"`
	User  string             `json:"user" doc:"agent, or root (inside only)." schema:"bytes=64"`
	Stdin *string            `json:"stdin" schema:"bytes=8388608;nul"`
}

func (a runArguments) request(c *call) sandbox.RunRequest {
	return sandbox.RunRequest{Cwd: a.Cwd, Env: a.Env, User: a.User, Stdin: a.Stdin, OnOutput: c.progress.output()}
}

type executeCommandArguments struct {
	Command *string  `json:"command" doc:"Shell text, for bash -c." schema:"bytes=1048576"`
	Argv    []string `json:"argv" doc:"Instead: program and arguments, no shell." schema:"minitems=1;items=4096;bytes=131071"`
	runArguments
	TimeoutSeconds *float64 `json:"timeout_seconds" doc:"Then kill it; 0 = never. Default: the sandbox's, 300." schema:"min=0;max=86400"`
	WaitSeconds    *float64 `json:"wait_seconds" doc:"Then it runs on under its process_id." schema:"min=0;max=50;default=50"`
	SessionID      *string  `json:"session_id" doc:"Whose sandbox; default: this connection's own."`
}

func (a executeCommandArguments) session() *string { return a.SessionID }

func executeCommand() tool {
	t := tool{
		name: "execute_command", toolset: "core",
		description: "Runs a command in the session's own Linux sandbox, made when there is none; returns stdout, [stderr], and last a line such as [exit 0 in 0.2 s]. " +
			"Each call starts fresh in the default directory: cd and export do not carry over. One that outlasts wait_seconds runs on. " +
			"For servers and REPLs use spawn_process. Answers hold 30 KB; read_output shows what was cut.",
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
