//go:build linux

package isolate_test

import (
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"berth/sandbox/local/isolate"
	"berth/sandbox/local/wire"
)

func ownedBy(info os.FileInfo, uid uint32) bool {
	st, ok := info.Sys().(*syscall.Stat_t)
	return ok && st.Uid == uid
}

// start2 is start where failing is fine too.
func start2(t *testing.T, l *wire.Launch) *box {
	s, err := isolate.Start(l)
	if err != nil {
		return nil
	}
	b := &box{Sandbox: s, t: t, pending: map[uint64]chan *wire.Frame{}, exited: map[string]chan wire.Exited{}, gone: map[string]chan struct{}{}}
	go b.receive()
	t.Cleanup(func() { _ = s.Close() })
	return b
}

// sendSudo is a program that sends bytes to init's socket and prints what it
// makes of the answer b, if there is one within a moment.
func sendSudo(send, show string) string {
	return `python3 -c 'import socket, struct
s = socket.socket(socket.AF_UNIX)
s.settimeout(0.3)
s.connect("/run/berth/sudo.sock")
s.sendall(` + strings.ReplaceAll(send, "'", `"`) + `)
try: b = s.recv(4096)
except TimeoutError: b = b""
print(` + strings.ReplaceAll(show, "'", `"`) + `)'`
}

func TestSudo(t *testing.T) {
	for _, mode := range modes(t) {
		t.Run(mode, func(t *testing.T) {
			b := start(t, launch(t, mode))
			for _, c := range []struct {
				text, out string
				code      int
			}{
				{"sudo id -u", "0\n", 0},
				{"sudo -n -E -- id -u", "0\n", 0},
				{"sudo -H sh -c 'echo $HOME'", "/root\n", 0},
				{"sudo -E sh -c 'echo $HOME'", "/home/agent\n", 0},
				{"A=1 sudo B=2 sh -c 'echo $A$B'", "12\n", 0},
				{"sudo -u agent id -un", "agent\n", 0},
				{"sudo --user=agent id -un", "agent\n", 0},
				{"cd /home/agent && sudo pwd", "/home/agent\n", 0},
				{"sudo -i pwd", "/root\n", 0},
				{"sudo -s echo 'a  b'", "a  b\n", 0},
				{"sudo sh -c 'exit 9'", "", 9},
				{"sudo sh -c 'kill -9 $$'", "", 137},
				{"echo in | sudo cat", "in\n", 0},
				{"sudo no-such-program 2>/dev/null", "", 127},
				{"sudo -u nobody-here true 2>/dev/null", "", 1},
				{"sudo -l; sudo -v; sudo -k", "", 0},
				{"sudo 2>/dev/null", "", 1},
				{"sudo --bogus 2>/dev/null", "", 1},
				{"sudo sudo id -u", "0\n", 0},
				{"sudo touch /etc/by-root && test -e /etc/by-root", "", 0},
				{"python3 -c 'import socket; s=socket.socket(socket.AF_UNIX); s.connect(\"/run/berth/sudo.sock\"); s.send(b\"\\xff\"*100)'", "", 0},
				{"sudo id -u </dev/null 2>&-", "0\n", 0},
				{"A=$(head -c 100000 /dev/zero | tr '\\0' x); sudo printf %.3s $A $A $A $A $A", "xxxxxxxxxxxxxxx", 0},
				{"A=$(head -c 120000 /dev/zero | tr '\\0' x); sudo echo $A $A $A $A $A $A $A $A $A 2>&1 | grep -o 'too large: at most 1 MiB together'; sudo echo works", "too large: at most 1 MiB together\nworks\n", 0},
				{sendSudo("struct.pack('>II', 1<<20, 10)+b'{}'", "b.find(b'malformed')"), "-1\n", 0},
				{sendSudo("struct.pack('>II', (1<<20)+1, 10)", "b'too large' in b"), "True\n", 0},
				{sendSudo("struct.pack('>II', 0xffffffff, 10)", "b'too large' in b"), "True\n", 0},
				{sendSudo("struct.pack('>II', 100, 101)", "b'malformed' in b"), "True\n", 0},
			} {
				p, err := b.spawn(wire.StartProcess{Shell: c.text})
				if err != nil {
					t.Fatal(err)
				}
				p.stdin.Close()
				e := p.wait()
				if out := <-p.out; out != c.out || e.Code != c.code {
					t.Errorf("%s: %q, exit %d, want %q, exit %d", c.text, out, e.Code, c.out, c.code)
				}
				p.waitGone()
			}
			// Signals go on to what runs.
			out, _ := b.sh("agent", ": > /tmp/o; sudo sh -c 'trap \"echo caught; exit 3\" TERM; echo on; while :; do sleep 0.01; done' > /tmp/o & p=$!; until grep -q on /tmp/o; do sleep 0.01; done; kill -TERM $p; wait $p; echo $?; cat /tmp/o")
			if out != "3\non\ncaught\n" {
				t.Errorf("TERM to sudo: %q", out)
			}
			// When sudo itself is killed, so is what it runs.
			p, err := b.spawn(wire.StartProcess{Shell: "sudo sleep 1011 & sleep 0.2; kill -9 $!; wait"})
			if err != nil {
				t.Fatal(err)
			}
			p.wait()
			select {
			case <-p.gone:
			case <-time.After(20 * time.Second):
				t.Error("what sudo ran outlives it")
			}
		})
	}
}
