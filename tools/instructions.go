package tools

import (
	"fmt"
	"slices"
	"strings"

	"berth/sandbox"
)

// Instructions are the server's instructions to the model (at most 2 KB): what
// a sandbox of this server is, and which session a call means. info describes
// a sandbox with the operator's defaults, as Provider.Describe does. They hold no
// ids or times, so that clients can cache them.
func Instructions(info sandbox.Info, o Options) string {
	var b strings.Builder
	b.WriteString("berth gives you a Linux sandbox of your own: commands, files and processes in it touch nothing else. ")
	b.WriteString(forAgent(info))
	if o.DefaultSession == "" {
		b.WriteString(" Sessions: one session_id is one sandbox. Without session_id a call uses this connection's own sandbox, made by the first command; " +
			"the answer tells its session_id: pass it in later calls, and after a lost connection to come back to the same files and processes. " +
			"start_sandbox without session_id makes one more. After two session_ids were used, every call needs one.")
	} else {
		b.WriteString(" Sessions: one session_id is one sandbox. Without session_id every call uses the same sandbox, now and in later connections; " +
			"pass a session_id of your choice for another one.")
	}
	b.WriteString(" Short commands: execute_command (no state between calls but files). Programs as text: run_code. Servers, REPLs and long jobs: spawn_process, then read_output, send_stdin and kill_process. " +
		"A command that outlasts its wait runs on; read_output with its process_id and cursor continues.")
	return clip(b.String(), 2000)
}

// forAgent is what an agent should know of its sandbox, in a few sentences.
func forAgent(i sandbox.Info) string {
	var s []string
	home := i.Home
	if home == "" {
		home = "/home/agent"
	}
	cwd := sandbox.DefaultDirectory(i)
	if cwd == "" {
		cwd = home
	}
	user := i.User
	if user == "" {
		user = "agent"
	}
	if i.Spec.Image != "" && i.Image == nil {
		s = append(s, "User, home and default directory are the image's.")
	} else if cwd == home {
		s = append(s, fmt.Sprintf("Home and default directory: %s; user: %s.", home, user))
	} else {
		s = append(s, fmt.Sprintf("Home: %s; default directory: %s; user: %s.", home, cwd, user))
	}
	if len(i.Runtimes) > 0 {
		var have []string
		for l := range i.Runtimes {
			have = append(have, string(l))
		}
		slices.Sort(have)
		s = append(s, "run_code has "+strings.Join(have, ", ")+".")
	}
	s = append(s, "Network: "+networkOf(i)+".")
	if t := i.Spec.Timeout; t != nil && *t > 0 {
		s = append(s, fmt.Sprintf("Commands are killed after %s unless timeout_seconds says otherwise.", seconds(*t)))
	}
	if a := i.Spec.AutoStop; a != nil && *a > 0 {
		s = append(s, fmt.Sprintf("It stops after %d idle minutes and starts again by itself, files intact.", *minutesOf(a)))
	}
	for _, d := range i.HostDirs {
		how := "read and write"
		if d.ReadOnly {
			how = "read-only"
		}
		s = append(s, fmt.Sprintf("%s is a folder of the host, %s.", d.Path, how))
	}
	for _, m := range i.Mounts {
		what := m.Bucket
		if m.Prefix != "" {
			what += "/" + m.Prefix
		}
		switch {
		case m.State == sandbox.MountError:
			s = append(s, fmt.Sprintf("%s, the bucket %s, is not mounted: %s.", m.Path, what, m.Reason))
		case m.ReadOnly:
			s = append(s, fmt.Sprintf("%s is the bucket %s, read-only.", m.Path, what))
		default:
			s = append(s, fmt.Sprintf("%s is the bucket %s, read and write.", m.Path, what))
		}
	}
	return strings.Join(s, " ")
}
