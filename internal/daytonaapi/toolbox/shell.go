package toolbox

// How a session works
//
// A session is one shell that runs its commands one after the other, so that
// directory, variables, functions, jobs and open files go from each to the
// next. It is built of processes of the Manager alone; there is no table beside
// theirs, and nothing that a server could take with it when it is killed:
//
//   - The shell is a process (shellScript: a guard, and the shell beneath it).
//     Its id is made of the session's id, so that of racing creations one
//     starts it and the others find it. It only waits: it does not keep the
//     sandbox from idling out.
//   - Each command is a process, too (commandScript), and the command's id is
//     its. That process runs nothing: it has the descriptors that the Manager
//     gave it, sends the shell one line that says where they are
//     (/proc/PID/fd), waits to be told the exit code, and exits with it. The
//     shell sources the text with its stdin, stdout and stderr opened from
//     there. So what a command writes goes to the Manager's log without a hand
//     in between, byte for byte, the two streams apart, with offsets; its
//     stdin is the Manager's; it shows in lists with its code, and can be read
//     after the session's end.
//   - Session, text and options of a command are the process's Note, which is
//     kept outside of the sandbox.
//
// Spawning the command's process is all that there is to begin a command, so a
// server killed at any moment leaves a command begun, or none. Commands run in
// the order of their requests: each is told of the one before it, and sends its
// line after that one has (ID.sent). The lines go
// through a FIFO that the shell reads as its script; each is shorter than
// PIPE_BUF and written at once. Lines of commands that have to wait stay there.
//
// Nothing in a command's output tells its end, so no output can forge one: the
// code is what the shell says in a FIFO of the command's own. A shell that ends
// (exit, set -e, exec, a signal) is seen by its guard, which knows the code
// from the kernel: it is the code of the command that ended it. Commands that
// were still waiting were not run; they are ended by SIGKILL and say why. When
// the guard is killed too, whoever looks next ends them.
//
// Commands run with the user's rights, as the shell does. One that means to can
// write another's code, as it can signal or trace it; sessions are no walls.

// shellScript is the process of a session. $1 is its directory, which must not
// be there yet. Once it says "ready" the FIFO is there, and open: what is written
// to one that nobody has open is gone with its writer.
const shellScript = `mkdir -m 700 "$1" && mkfifo -m 600 "$1/commands" && exec 9<>"$1/commands" || exit 1
trap 'rm -rf "$1" "$1.ended"' EXIT
trap 'exit 143' TERM HUP INT
s=$(command -v bash) || s=sh
echo ready
"$s" <&9 9>&-
code=$?
mv "$1" "$1.ended"
for end in "$1.ended"/*.end; do
	[ -p "$end" ] || continue
	if [ -e "${end%end}begun" ]; then echo "$code" 1<>"$end"; else echo ended 1<>"$end"; fi
done
exit "$code"
`

// commandScript is the process of a command. $1 is the session's directory, $2
// the command's id, $3 its text; when that is empty, it is in $1/$2.text; $4 the
// id of the command before it, whose line must go first, or empty. The shell is
// shown the descriptors 3 to 7, since this one's own redirections change 0 and 1
// for a moment.
const commandScript = `c=$1/$2
fail() {
	echo 'the session has ended; the command was not run' >&2
	kill -KILL $$
}
mkfifo -m 600 "$c.end" 2>/dev/null || fail
if [ -n "$3" ]; then printf '%s\n' "$3" >"$c.text" || fail; fi
exec 5<&0 6>&1 7>&2
{ exec 3<>"$c.end" 4<"$c.text"; } 2>/dev/null || fail
echo $$ >"$c.pid"
p=/proc/$$/fd
n=0
while [ -n "$4" ] && [ -d "$1" ] && ! [ -e "$1/$4.sent" ] && [ $n -lt 500 ]; do
	# One that was killed sends nothing; one that has no pid yet should soon.
	if { read -r pid <"$1/$4.pid"; } 2>/dev/null; then kill -0 "$pid" 2>/dev/null || break; else n=$((n+1)); fi
	sleep 0.02
done
printf '>%s.begun; . %s/4 <%s/5 >>%s/6 2>>%s/7; command printf "%%s\\n" "$?" >%s/3\n' "$c" $p $p $p $p $p 1<>"$1/commands" || fail
: >"$c.sent"
for f in "$1"/*.sent; do [ "$f" = "$c.sent" ] || rm -f "$f"; done
read -r code <&3
rm -f "$c.end" "$c.begun" "$c.text" "$c.pid"
[ "$code" = ended ] && fail
exit "$code"
`

// echoScript writes input of a command into its output, as a terminal would. $1
// is the session's directory, $2 the command's id, $3 the input. The command may
// have begun only just now, and not have said where its output is.
const echoScript = `n=0
until [ -s "$1/$2.pid" ] || ! [ -d "$1" ] || [ $n = 250 ]; do sleep 0.02; n=$((n+1)); done
read -r pid <"$1/$2.pid" && printf '%s' "$3" >>"/proc/$pid/fd/6"`
