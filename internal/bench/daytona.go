package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"berth/internal/driver"
	"berth/internal/secret"
	"berth/sandbox/daytona/api"
)

//go:embed daytonasdk.mjs
var sdkScript []byte

const daytonaKey = "bench"

// daytona: a command in a sandbox at Daytona, which another berth plays. What the
// client adds is held against the same HTTP call made bare, and against the
// official SDK; what provider daytona adds, which runs commands through its
// helper inside, is told.
func (b *bench) daytona() ([]row, error) {
	port, err := driver.FreePort()
	if err != nil {
		return nil, err
	}
	address := fmt.Sprintf("127.0.0.1:%d", port)
	p := b.program
	p.Args = append([]string{"--provider", "local", "--daytona-api", address}, p.Args...)
	server, err := p.ListenAndServe(b.ctx, 0)
	if err != nil {
		return nil, err
	}
	defer server.Stop()
	url := "http://" + address + "/api"
	c, err := api.New(api.Options{URL: url, Key: secret.New(daytonaKey)})
	if err != nil {
		return nil, err
	}
	defer c.Close()
	sb, err := c.Create(b.ctx, api.NewSandbox{Name: "bench"})
	if err != nil {
		return nil, err
	}
	id := sb.ID
	defer func() { // and wait: the server would leave the rest to the next one
		for err := c.Delete(b.ctx, id); err == nil; _, err = c.Sandbox(b.ctx, id) {
			time.Sleep(50 * time.Millisecond)
		}
	}()
	for sb.State != api.Started {
		time.Sleep(50 * time.Millisecond)
		if sb, err = c.Sandbox(b.ctx, id); err != nil {
			return nil, err
		}
	}
	toolbox := c.Toolbox(sb.ToolboxURL, id)
	bare := &bareExec{url: sb.ToolboxURL + "/" + id + "/process/execute", client: &http.Client{Transport: &http.Transport{}}}

	front := b.program
	front.State = filepath.Join(b.dir, "front")
	front.Args = append([]string{"--provider", "daytona"}, front.Args...)
	front.Env = append([]string{"DAYTONA_API_URL=" + url, "DAYTONA_API_KEY=" + daytonaKey, "DAYTONA_JWT_TOKEN=", "DAYTONA_ORGANIZATION_ID=", "DAYTONA_TARGET="}, front.Env...)
	s, err := front.Stdio(b.ctx, legacy)
	if err != nil {
		return nil, err
	}
	defer s.Close()

	const ours, plain, whole, sdk = "client", "the bare HTTP call", "through MCP", "the official TypeScript SDK"
	cs := []contender{
		{ours, func(int) error {
			_, code, err := toolbox.Execute(b.ctx, "true", 0)
			if err == nil && (code == nil || *code != 0) {
				err = errors.New("true did not exit with 0")
			}
			return err
		}},
		{plain, func(int) error { return bare.runTrue(b.ctx) }},
		{whole, func(int) error { return runTrue(b.ctx, s, "bench") }},
	}
	once, end, err := officialSDK(b.ctx, filepath.Join(b.dir, "sdk"), url, id)
	if err != nil {
		b.absent = append(b.absent, sdk+" ("+err.Error()+")")
	} else {
		defer end()
		cs = append(cs, contender{sdk, once})
	}
	got, err := interleave(10*b.n, cs)
	if err != nil {
		return nil, err
	}
	more := added(got[ours], got[plain])
	peers := []contender{{name: plain}}
	if len(got[sdk]) > 0 {
		peers = append(peers, contender{name: sdk})
	}
	return []row{
		{"a command at Daytona by our client, no MCP", "≤ 1 ms over the bare HTTP call", fmt.Sprintf("p50 %s, added %s", ms(got[ours].p50()), ms(more)),
			beside(got, ours, peers), judge(more <= time.Millisecond)},
		{"execute_command `true`, provider daytona", "one round trip", fmt.Sprintf("p50 %s, p95 %s", ms(got[whole].p50()), ms(got[whole].p95())),
			beside(got, whole, peers), open},
	}, destroy(b.ctx, s, "bench")
}

// added is the median of what one of a takes longer than its neighbour in b: whatever
// else the machine does strikes both.
func added(a, b sample) time.Duration {
	more := make(sample, len(a))
	for i := range a {
		more[i] = a[i] - b[i]
	}
	return more.p50()
}

// bareExec makes the HTTP call of one command, and decodes nothing.
type bareExec struct {
	url    string
	client *http.Client
}

func (c *bareExec) runTrue(ctx context.Context) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.url, bytes.NewReader([]byte(`{"command":"true"}`)))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Authorization", "Bearer "+daytonaKey)
	res, err := c.client.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err == nil && (res.StatusCode != http.StatusOK || !bytes.Contains(b, []byte(`"exitCode":0`))) {
		err = fmt.Errorf("%s: %.300s", res.Status, b)
	}
	return err
}

// officialSDK starts a program that has the SDK run commands in the sandbox. Its
// packages are those that make sdk installs.
func officialSDK(ctx context.Context, dir, url, sandbox string) (once func(int) error, end func(), err error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return nil, nil, err
	}
	found, _ := filepath.Glob(filepath.Join(cmp.Or(os.Getenv("SDKTEST_CACHE"), filepath.Join(cache, "berth-sdktest")), "*", "node_modules"))
	if len(found) == 0 {
		return nil, nil, errors.New("make sdk installs it")
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, nil, err
	}
	if err := errors.Join(os.Symlink(found[len(found)-1], filepath.Join(dir, "node_modules")), os.WriteFile(filepath.Join(dir, "sdk.mjs"), sdkScript, 0o600)); err != nil {
		return nil, nil, err
	}
	cmd := exec.CommandContext(ctx, "node", filepath.Join(dir, "sdk.mjs"))
	cmd.Env = append(os.Environ(), "DAYTONA_API_URL="+url, "DAYTONA_API_KEY="+daytonaKey, "SANDBOX="+sandbox)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, nil, err
	}
	end = func() { _ = in.Close(); _ = cmd.Wait() }
	lines := bufio.NewScanner(out)
	expect := func(want string) error {
		if !lines.Scan() || lines.Text() != want {
			return fmt.Errorf("it says %q, want %q: %w", lines.Text(), want, cmp.Or(lines.Err(), io.ErrUnexpectedEOF))
		}
		return nil
	}
	if err := expect("ready"); err != nil {
		end()
		return nil, nil, err
	}
	return func(int) error {
		if _, err := io.WriteString(in, "\n"); err != nil {
			return err
		}
		return expect("ok")
	}, end, nil
}
