// Package cli is berth's command line: the server and the commands for people.
// Commands for people work on the state directory itself, with no server
// running, and act as the owner "local".
//
// Exit codes: 0 done; 1 it failed; 2 wrong usage or settings. run and exec end
// with the command's own code, or 125 when berth could not run it or does not
// know how it ended.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"

	"github.com/alecthomas/kong"

	"berth/internal/config"
	"berth/sandbox"
)

// The exit codes that are berth's own.
const (
	exitFailed    = 1
	exitUsage     = 2
	exitNotRun    = 125
	exitDenied    = 126 // as shells tell it
	exitNoProgram = 127
)

// commands is the whole command line. A flag with a key tag sets that key of
// the config.
type commands struct {
	Config    string `help:"The config file." placeholder:"FILE"`
	State     string `help:"The state directory." placeholder:"DIR" key:"state"`
	LogLevel  string `help:"debug, info, warn or error." placeholder:"LEVEL" key:"log.level"`
	LogFormat string `help:"auto, text or json." placeholder:"FORMAT" key:"log.format"`

	Serve  serveCommand  `cmd:"" help:"Serve MCP on stdio, or over HTTP with --http."`
	Doctor doctorCommand `cmd:"" help:"Show what holds on this machine, and fix what can be fixed."`

	Run    runCommand    `cmd:"" group:"people" help:"Run one command in a fresh sandbox."`
	List   listCommand   `cmd:"" name:"ls" group:"people" help:"List sandboxes."`
	Exec   execCommand   `cmd:"" group:"people" help:"Run a command in a sandbox."`
	Enter  enterCommand  `cmd:"" group:"people" help:"Open a terminal in a sandbox."`
	Logs   logsCommand   `cmd:"" group:"people" help:"Show the output of a sandbox's processes."`
	Events eventsCommand `cmd:"" group:"people" help:"Show the event log of a sandbox: one line a tool call."`
	Copy   copyCommand   `cmd:"" name:"cp" group:"people" help:"Copy files into or out of a sandbox."`
	Stop   stopCommand   `cmd:"" group:"people" help:"Stop a sandbox; its files stay."`
	Remove removeCommand `cmd:"" name:"rm" group:"people" help:"Delete a sandbox and its files."`
	Prune  pruneCommand  `cmd:"" group:"people" help:"Delete the sandboxes that are not running."`

	ClientConfig clientConfigCommand `cmd:"" group:"setup" help:"Print ready configuration for an MCP client."`
	Healthcheck  healthcheckCommand  `cmd:"" group:"setup" help:"Say whether this berth works, for a container's HEALTHCHECK."`
	Version      versionCommand      `cmd:"" group:"setup" help:"Print the version."`
}

const description = `berth gives every agent session its own isolated Linux sandbox, over MCP.

"berth" alone prints this on a terminal, and serves MCP when stdin is a pipe.`

// exit carries an exit code out of a command whose message, if any, is printed
// already.
type exit int

func (e exit) Error() string { return fmt.Sprintf("exit %d", int(e)) }

// Run does what args (without the program's name) say, and returns the exit
// code. When ctx ends it stops in order.
func Run(ctx context.Context, app App, args []string) int {
	app.ctx = ctx
	if len(args) == 0 {
		if args = []string{"serve"}; app.terminal(app.Stdin) {
			args = []string{"--help"}
		}
	}
	var c commands
	app.commands = &c
	type helpShown struct{}
	parser, err := kong.New(&c, kong.Name("berth"), kong.Description(description),
		kong.Writers(app.Stdout, app.Stderr),
		kong.Exit(func(int) { panic(helpShown{}) }),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true, NoExpandSubcommands: true, WrapUpperBound: 100}),
		kong.ExplicitGroups([]kong.Group{
			{Key: "people", Title: "For people:"},
			{Key: "setup", Title: "Setting up:"},
		}))
	if err != nil {
		panic(err) // a programmer's mistake
	}
	var parsed *kong.Context
	shown := func() (shown bool) {
		defer func() {
			if r := recover(); r != nil {
				if _, shown = r.(helpShown); !shown {
					panic(r)
				}
			}
		}()
		parsed, err = parser.Parse(args)
		return false
	}()
	if shown {
		return 0
	}
	if err != nil {
		return app.usage(err, args)
	}
	for _, f := range parsed.Flags() {
		if key := f.Tag.Get("key"); key != "" && f.Set {
			app.flags = append(app.flags, settings(f, key)...)
		}
	}
	return app.code(parsed.Run(&app))
}

// settings turns a flag into what the config takes.
func settings(f *kong.Flag, key string) []config.Flag {
	set := config.Flag{Name: "--" + f.Name, Key: key}
	switch v := f.Target.Interface().(type) {
	case []string:
		var list []config.Flag
		for _, s := range v {
			set.Value, set.Add = s, true
			list = append(list, set)
		}
		return list
	default:
		set.Value = fmt.Sprint(v)
	}
	return []config.Flag{set}
}

// usage explains a command line that cannot be understood.
func (a *App) usage(err error, args []string) int {
	command := ""
	if pe, ok := errors.AsType[*kong.ParseError](err); ok && pe.Context != nil && pe.Context.Selected() != nil {
		command = " " + pe.Context.Selected().Name
	}
	fmt.Fprintf(a.Stderr, "berth%s: %v\nTry: berth%s --help\n", command, err, command)
	return exitUsage
}

// code prints err, if it was not printed, and returns the exit code.
func (a *App) code(err error) int {
	if err == nil {
		return 0
	}
	if e, ok := errors.AsType[exit](err); ok {
		return int(e)
	}
	text := err.Error()
	if !strings.HasPrefix(text, "berth") {
		text = "berth: " + text
	}
	fmt.Fprintln(a.Stderr, printable(text))
	if _, ok := errors.AsType[*config.Error](err); ok {
		return exitUsage
	}
	if _, ok := errors.AsType[*usageError](err); ok {
		return exitUsage
	}
	return exitFailed
}

// usageError is a command line that was understood but makes no sense.
type usageError struct{ text string }

func (e *usageError) Error() string { return e.text }

func usagef(format string, args ...any) error { return &usageError{fmt.Sprintf(format, args...)} }

// command strips the "--" that separates a command from berth's own flags.
func command(args []string) []string {
	if len(args) > 0 && args[0] == "--" {
		return args[1:]
	}
	return args
}

// App is what a command works with. Its fields are the process's own, but for
// tests.
type App struct {
	Stdin          *os.File
	Stdout, Stderr io.Writer
	Environ        []string
	Dir            string // the working directory
	Executable     string // absolute path of this program
	Version        string
	// Provider opens the provider; nil: the machine's own.
	Provider func(*config.Config, *slog.Logger) (sandbox.Provider, string, error)

	ctx      context.Context
	commands *commands
	flags    []config.Flag
}
