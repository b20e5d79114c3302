// Package cli is berth's command line: the server and the commands for people.
// Commands for people work on the state directory itself, with no server
// running, and act as the owner "local".
//
// Exit codes: 0 done; 1 it failed; 2 wrong usage or settings; 128+n it was
// interrupted by signal n. run, exec and enter end with the command's own code,
// see exitCodes.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"regexp"
	"slices"
	"strings"
	"syscall"

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
	Config    string `help:"The config file; else BERTH_CONFIG, ~/.config/berth/config.yaml or /etc/berth/config.yaml." placeholder:"FILE"`
	State     string `help:"The state directory, which has the sandboxes; else BERTH_STATE, ~/.local/state/berth or, as root, /var/lib/berth." placeholder:"DIR" key:"state"`
	LogLevel  string `help:"debug, info, warn or error." placeholder:"LEVEL" key:"log.level"`
	LogFormat string `help:"auto, text or json." placeholder:"FORMAT" key:"log.format"`
	// Its name must not be Version, which is the command.
	VersionFlag kong.VersionFlag `name:"version" help:"Print the version."`

	Serve  serveCommand  `cmd:"" help:"Serve MCP on stdio, or over HTTP with --http; the Daytona API with --daytona-api."`
	Doctor doctorCommand `cmd:"" help:"Show what holds on this machine, and fix what can be fixed."`

	Run      runCommand      `cmd:"" group:"people" help:"Run one command in a fresh sandbox."`
	List     listCommand     `cmd:"" name:"ls" group:"people" help:"List sandboxes."`
	Exec     execCommand     `cmd:"" group:"people" help:"Run a command in a sandbox."`
	Enter    enterCommand    `cmd:"" group:"people" help:"Open a terminal in a sandbox."`
	Logs     logsCommand     `cmd:"" group:"people" help:"Show the output of a sandbox's processes."`
	Events   eventsCommand   `cmd:"" group:"people" help:"Show the event log of a sandbox: one line a tool call."`
	Copy     copyCommand     `cmd:"" name:"cp" group:"people" help:"Copy files into or out of a sandbox."`
	Stop     stopCommand     `cmd:"" group:"people" help:"Stop a sandbox; its files stay."`
	Remove   removeCommand   `cmd:"" name:"rm" group:"people" help:"Delete a sandbox and its files."`
	Images   imagesCommand   `cmd:"" group:"people" help:"List, fetch and remove images."`
	Snapshot snapshotCommand `cmd:"" group:"people" help:"Make, list and delete snapshots of sandboxes."`
	Volumes  volumesCommand  `cmd:"" group:"people" help:"List and delete volumes."`
	Prune    pruneCommand    `cmd:"" group:"people" help:"Delete the sandboxes that are not running, and forget finished steps of builds."`

	ClientConfig clientConfigCommand `cmd:"" group:"setup" help:"Print ready configuration for an MCP client."`
	Helper       helperCommand       `cmd:"" group:"setup" help:"Write the helper programs, box and bucketd, for an image's Dockerfile."`
	Healthcheck  healthcheckCommand  `cmd:"" group:"setup" help:"Say whether this berth works, for a container's HEALTHCHECK."`
	Version      versionCommand      `cmd:"" group:"setup" help:"Print the version."`
	Help         helpCommand         `cmd:"" group:"setup" help:"Show help, of a command when one is named."`
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
	if args[0] == "help" {
		if len(args) > 2 {
			return app.code(usagef("help: name one command, or none"))
		}
		args = append(slices.Clone(args[1:]), "--help")
	}
	var c commands
	app.commands = &c
	parsed, shown, err := app.parse(&c, args)
	if shown {
		return 0
	}
	if err != nil {
		return app.usage(err)
	}
	app.flagsOf(parsed)
	return app.code(parsed.Run(&app))
}

// parse reads a command line into c. shown tells that it asked for help, or for
// the version, and has got it.
func (a *App) parse(c *commands, args []string) (parsed *kong.Context, shown bool, err error) {
	type done struct{}
	parser, err := kong.New(c, kong.Name("berth"), kong.Description(description),
		kong.Writers(a.Stdout, a.Stderr),
		kong.Vars{"version": a.version()},
		kong.Exit(func(int) { panic(done{}) }),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true, NoExpandSubcommands: true, WrapUpperBound: 100}),
		kong.ExplicitGroups([]kong.Group{
			{Key: "people", Title: "For people:"},
			{Key: "setup", Title: "Setting up:"},
		}))
	if err != nil {
		panic(err) // a programmer's mistake
	}
	defer func() {
		if r := recover(); r != nil {
			if _, shown = r.(done); !shown {
				panic(r)
			}
		}
	}()
	parsed, err = parser.Parse(args)
	return parsed, false, err
}

// flagsOf takes the settings that a command line gives.
func (a *App) flagsOf(parsed *kong.Context) {
	for _, f := range parsed.Flags() {
		if key := f.Tag.Get("key"); key != "" && f.Set {
			a.flags = append(a.flags, settings(f, key)...)
		}
	}
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
func (a *App) usage(err error) int {
	command := ""
	if pe, ok := errors.AsType[*kong.ParseError](err); ok && pe.Context != nil && pe.Context.Selected() != nil {
		for n := pe.Context.Selected(); n.Parent != nil; n = n.Parent {
			command = " " + n.Name + command
		}
	}
	text := plainUsage(err.Error())
	if word, ok := strings.CutPrefix(text, "unexpected argument "); ok && command == "" {
		word, near, _ := strings.Cut(word, ", ")
		if near != "" {
			near = "; " + near
		}
		fmt.Fprintf(a.Stderr, "berth: there is no command %s%s\nTry: berth help\n", printable(word), near)
		return exitUsage
	}
	fmt.Fprintf(a.Stderr, "berth%s: %s\nTry: berth%s --help\n", command, printable(text), command)
	return exitUsage
}

var (
	noValue = regexp.MustCompile(`^(-[-\w]+): (?:expected .* but got "EOL".*|missing value, expecting .*)$`)
	noFloat = regexp.MustCompile(`^--([-\w]+): expected a float but got (".*?") \(\w+\)$`)
	notOne  = regexp.MustCompile(`^<?([-\w]+)>?(.*) must be one of (".*") but got (".*")$`)
)

// amounts are what the flags take that are numbers.
var amounts = map[string]string{"cpu": "processors, such as 0.5", "memory": "GiB without a unit, such as 0.5", "disk": "GiB without a unit, such as 0.5"}

// plainUsage says in plain words what the parser finds wrong.
func plainUsage(text string) string {
	if m := noValue.FindStringSubmatch(text); m != nil {
		return m[1] + " needs a value"
	}
	if m := noFloat.FindStringSubmatch(text); m != nil {
		allowed := amounts[m[1]]
		if allowed == "" {
			allowed = "a number, such as 0.5"
		}
		return fmt.Sprintf("--%s: %s is not a number; allowed: %s", m[1], m[2], allowed)
	}
	if m := notOne.FindStringSubmatch(text); m != nil {
		name := m[1] + m[2]
		if !strings.HasPrefix(name, "-") {
			name = strings.ToUpper(name)
		}
		return fmt.Sprintf("%s: %s is not known; allowed: %s", name, m[4], strings.ReplaceAll(strings.ReplaceAll(m[3], `"`, ""), ",", ", "))
	}
	return text
}

// code prints err, if it was not printed, and returns the exit code.
func (a *App) code(err error) int {
	if err == nil {
		return 0
	}
	if e, ok := errors.AsType[exit](err); ok {
		return int(e)
	}
	if code, ok := a.interrupted(err); ok {
		fmt.Fprintln(a.Stderr, "berth: interrupted")
		return code
	}
	text := forPeople(err)
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

// Interrupted is the cause of the end of Run's context when a signal ended it.
type Interrupted struct{ Signal os.Signal }

func (i Interrupted) Error() string { return "interrupted: " + i.Signal.String() }

// interrupted tells whether err comes of a signal that told us to end, and the
// exit code that says so.
func (a *App) interrupted(err error) (code int, yes bool) {
	i, ok := errors.AsType[Interrupted](context.Cause(a.ctx))
	if !ok || !errors.Is(err, context.Canceled) && !errors.Is(err, i) {
		return 0, false
	}
	return codeOf(i.Signal), true
}

// codeOf is the exit code of who ends by a signal, as shells tell it.
func codeOf(s os.Signal) int {
	if n, ok := s.(syscall.Signal); ok {
		return 128 + int(n)
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
	// Compiler makes run_code's compiler, since only a main can be one; nil: none.
	Compiler func(*slog.Logger) sandbox.Compiler

	ctx      context.Context
	commands *commands
	serving  bool // for agents, not for the operator
	flags    []config.Flag
}
