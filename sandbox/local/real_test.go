//go:build linux

package local_test

import (
	"strings"
	"testing"
	"time"

	"berth/sandbox"
	"berth/sandbox/local"
)

func run(t *testing.T, in sandbox.Instance, user, shell string) (string, int) {
	t.Helper()
	p, err := in.Spawn(t.Context(), sandbox.Command{ID: sandbox.NewProcessID(), Shell: shell, Display: shell, Cwd: "/", User: user, Timeout: time.Minute})
	if err != nil {
		t.Fatalf("%s: %v", shell, err)
	}
	must(t, p.Wait(t.Context(), sandbox.Cursor{}, true))
	info, err := p.Info(t.Context())
	must(t, err)
	out, err := p.Read(t.Context(), sandbox.Cursor{}, 1<<20)
	must(t, err)
	code := -1
	if info.ExitCode != nil {
		code = *info.ExitCode
	}
	return strings.TrimSpace(string(out.Stdout) + string(out.Stderr)), code
}

func TestDefaultRoot(t *testing.T) {
	p := provider(t, local.Options{Dir: stateDir(t)})
	begin := time.Now()
	in, err := p.Create(t.Context(), testKey, sandbox.Spec{})
	must(t, err)
	t.Logf("created in %v", time.Since(begin))
	for _, c := range []string{"id; pwd; ls -la / /home /home/agent /workspace", "env", "mount", "touch ~/x /workspace/y && ls -l ~/x", "python3 -c 'print(1)'; node -e 'console.log(2)'; git --version", "cat /etc/shadow; ls /etc/ssh; ls /usr/local/etc"} {
		out, code := run(t, in, "agent", c)
		t.Logf("%s -> %d\n%s", c, code, out)
	}
	out, code := run(t, in, "root", "id; touch /usr/bin/new && ls -l /usr/bin/new && rm /usr/bin/git && mv /usr/bin/env /usr/bin/env2; touch /etc/x; dpkg -l | tail -1; touch /var/lib/dpkg/lock; apt-get check; ls -ld /usr /usr/bin /etc; ls -la /usr/local")
	t.Logf("%d\n%s", code, out)
	info, err := in.Info(t.Context())
	must(t, err)
	t.Logf("%+v", info)
}
