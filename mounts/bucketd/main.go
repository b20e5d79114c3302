// Command bucketd serves one bucket as a file system, apart from the server:
// all cloud libraries are linked here.
//
//	bucketd serve       the job arrives on descriptor 3, a unix stream socket, as a
//	                    line of JSON; reports go back on it. Then one byte arrives
//	                    with a descriptor of /dev/fuse that is mounted already, unless
//	                    the job names a mount point, where bucketd mounts itself.
//	bucketd mount FILE  reads the job from FILE and deletes FILE, mounts at the job's
//	                    mount point, prints the reports, and leaves a daemon behind
//	                    once the mount answers
//	bucketd order FILE  reads a mounts.Order from FILE, deletes FILE and carries it out,
//	                    where bucketd itself keeps what is mounted in a sandbox
//	bucketd list DIR    tells how the mounts stand that are kept in DIR
//	bucketd leave DIR   unmounts them, before the sandbox stops
//	bucketd check       reads a job from standard input and reports whether the bucket
//	                    can be used so
//	bucketd version     prints the version
//
// Jobs and reports are mounts.Job and mounts.Report. Logs go to standard error,
// as JSON. No key is ever in an argument, the environment or a log.
package main

import (
	"errors"
	"fmt"
	"os"
)

// version is set when a release is built.
var version = "devel"

// errReported is an error that a report has told already.
var errReported = errors.New("reported")

func main() {
	err := run(os.Args[1:])
	if err == nil {
		return
	}
	if !errors.Is(err, errReported) {
		fmt.Fprintln(os.Stderr, "bucketd:", err)
	}
	os.Exit(1)
}

func run(args []string) error {
	const usage = "usage: bucketd serve | mount FILE | order FILE | list DIR | leave DIR | check | version"
	switch {
	case len(args) == 1 && args[0] == "version":
		_, err := fmt.Fprintln(os.Stdout, version)
		return err
	case len(args) == 1 && args[0] == "serve":
		return serve()
	case len(args) == 1 && args[0] == "check":
		return check(os.Stdin, os.Stdout)
	case len(args) == 2 && args[0] == "mount":
		return mount(args[1], os.Stdout)
	case len(args) == 2 && args[0] == "order":
		return order(args[1], os.Stdout)
	case len(args) == 2 && args[0] == "list":
		return list(args[1], os.Stdout)
	case len(args) == 2 && args[0] == "leave":
		return leave(args[1], os.Stdout)
	}
	return errors.New(usage)
}
