// Package escape attacks sandboxes from the inside. Its tests build a program
// (attacker), put it into a sandbox and run it there, as the sandbox's user, as
// its root, and as its user through sudo. Each probe of that program tries one
// way out or one way to do harm, and prints one line; the tests check that
// every probe ran, that none got through, and, from the outside, that nothing
// of the host changed.
//
// The package itself holds what both programs must agree on.
package escape

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
)

// Canary stands in the environment of the berth process under test and in every
// marker file. Whoever reads it inside a sandbox has read something of the host.
const Canary = "canary-of-the-host"

// Outside tells the attacker what there is to find outside. It reaches the
// sandbox as a file, since arguments would look like a find in /proc.
type Outside struct {
	// IDs is how user ids are mapped: "range", "sub", "single"; "" on a bare host.
	IDs string `json:"ids"`
	// Files exist outside and hold Canary; absolute paths that no sandbox has.
	Files []string `json:"files"`
	// Dirs exist outside, and no sandbox may have anything at their place.
	Dirs []string `json:"dirs"`
	// Shadow is the SHA-256 of the host's /etc/shadow in hex; "" when the
	// test cannot read it.
	Shadow string `json:"shadow"`
	// Users are login names of the host that are nobody's business inside.
	Users []string `json:"users"`
	// PIDs of processes outside, as their own namespace counts them.
	PIDs []int `json:"pids"`
	// Argument stands in the command line of a process outside.
	Argument string `json:"argument"`
	// Abstract and Sockets are listening unix sockets: names without the
	// leading NUL, and paths.
	Abstract []string `json:"abstract"`
	Sockets  []string `json:"sockets"`
	// TCP and UDP are addresses, as "host:port", that answer outside.
	TCP []string `json:"tcp"`
	UDP []string `json:"udp"`
	// Shm is a System V shared memory key, Queue a POSIX message queue's
	// name without the slash; 0 and "" when there are none.
	Shm   int    `json:"shm"`
	Queue string `json:"queue"`
	// Namespaces maps names such as "net" to the target of the test's own
	// /proc/self/ns link.
	Namespaces map[string]string `json:"namespaces"`
	// ReadOnly are host folders and volumes shown inside read-only, with the
	// files "marker" and "victim" in each; Writable those that can be written.
	ReadOnly []string `json:"read_only"`
	Writable []string `json:"writable"`
	// Part is a directory of a volume that is attached once more, by itself:
	// its path in the volume, and its own; both empty when none is.
	Whole string `json:"whole"`
	Part  string `json:"part"`
	// Planted are the attacker's program with set-user-id bits or
	// capabilities, as an image or another sandbox may bring it.
	Planted []string `json:"planted"`
	// Hostname of the host.
	Hostname string `json:"hostname"`
}

// ReadOutside reads the file that WriteOutside's bytes were put in.
func ReadOutside(path string) (*Outside, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	o := &Outside{}
	if err := json.Unmarshal(b, o); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return o, nil
}

// The states of a Finding.
const (
	// Held: what was tried was refused, or harmed nothing.
	Held = "ok"
	// Escaped: a wall is missing.
	Escaped = "ESCAPED"
	// Impossible: this machine cannot be asked; the detail says why. The
	// tests allow it to named probes only.
	Impossible = "impossible"
	// Broken: the probe itself did not work, which proves nothing.
	Broken = "BROKEN"
)

// Finding is what one probe found out.
type Finding struct {
	Probe, State, Detail string
}

// String is the finding's line: "PROBE state name: detail".
func (f Finding) String() string {
	return "PROBE " + f.State + " " + f.Probe + ": " + strings.ReplaceAll(f.Detail, "\n", " / ")
}

// Parse picks the findings out of an attacker's output.
func Parse(output string) []Finding {
	var all []Finding
	for line := range strings.Lines(output) {
		rest, ok := strings.CutPrefix(strings.TrimRight(line, "\r\n"), "PROBE ")
		if !ok {
			continue
		}
		state, rest, _ := strings.Cut(rest, " ")
		name, detail, _ := strings.Cut(rest, ": ")
		all = append(all, Finding{Probe: name, State: state, Detail: detail})
	}
	return all
}
