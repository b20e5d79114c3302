package main

import (
	"os"

	"berth/sandbox/local/box/entry"
)

// When the helper program is not built in, berth is started again in its place.
// That must win over everything else that main does.
func init() { entry.Main(os.Args) }
