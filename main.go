// Berth gives every agent session its own isolated Linux sandbox, through the
// Model Context Protocol. See README.md; berth --help lists the commands.
package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"berth/internal/cli"
	"berth/internal/compile"
	"berth/sandbox"
)

// version is set by the linker in releases.
var version = ""

func main() {
	// A child of a server, which compiles; it needs none of what follows.
	if code, ok := compile.Main(os.Args); ok {
		os.Exit(code)
	}
	os.Exit(run())
}

func run() int {
	// The first signal ends things in order; the second ends them at once.
	ctx, end := context.WithCancelCause(context.Background())
	defer end(nil)
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	if !signal.Ignored(syscall.SIGHUP) { // as under nohup
		signal.Notify(signals, syscall.SIGHUP)
	}
	go func() {
		s := <-signals
		signal.Stop(signals)
		end(cli.Interrupted{Signal: s})
	}()

	dir, err := os.Getwd()
	if err != nil {
		dir = "" // deleted beneath us: there are no .env files to read
	}
	executable, err := os.Executable()
	if err != nil {
		fmt.Fprintln(os.Stderr, "berth: where this program is:", err)
		return 1
	}
	return cli.Run(ctx, cli.App{
		Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr,
		Environ: os.Environ(), Dir: dir, Executable: executable, Version: versionOf(version),
		Compiler: func(log *slog.Logger) sandbox.Compiler { return compile.New(executable, log) },
	}, os.Args[1:])
}

// versionOf returns the linker's version, or the module's, as go install sets it.
func versionOf(linked string) string {
	if linked != "" {
		return linked
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" && info.Main.Version != "(devel)" {
		return info.Main.Version
	}
	return "development"
}
