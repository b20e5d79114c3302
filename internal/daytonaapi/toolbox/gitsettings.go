package toolbox

import (
	"errors"
	"net/http"
	"net/url"
	"strings"

	"berth/sandbox"
)

// What a repository is, where it is shared, and what git is told of its user.

func (t *Toolbox) gitInit(c *call) error {
	g, err := t.git(c, "path")
	if err != nil {
		return err
	}
	args := []string{"init", "-q"}
	if g.q.Bare {
		args = append(args, "--bare")
	}
	if g.q.InitialBranch != "" {
		args = append(args, "--initial-branch="+g.q.InitialBranch)
	}
	if _, err := g.run("/", false, append(args, "--", g.dir)...); err != nil {
		return err
	}
	return c.empty(http.StatusCreated)
}

func (t *Toolbox) gitReset(c *call) error {
	return t.change(c, http.StatusOK, []string{"path"}, func(g *gitCall) ([]string, error) {
		mode, target := g.q.Mode, g.q.Target
		if mode == "" {
			mode = "mixed"
		}
		if target == "" {
			target = "HEAD"
		}
		switch mode {
		case "soft", "mixed", "hard", "merge", "keep":
		default:
			return nil, badRequest("mode: %.40q is not known; allowed: soft, mixed, hard, merge, keep", mode)
		}
		if len(g.q.Files) > 0 {
			if mode != "mixed" {
				return nil, badRequest("files: they can be reset with the mode mixed only")
			}
			return append([]string{"reset", "-q", target, "--"}, g.q.Files...), plain("target", target)
		}
		return []string{"reset", "-q", "--" + mode, target, "--"}, plain("target", target)
	})
}

func (t *Toolbox) gitRestore(c *call) error {
	return t.change(c, http.StatusOK, []string{"path", "files"}, func(g *gitCall) ([]string, error) {
		args := []string{"restore"}
		if s := g.q.Staged; s != nil && *s {
			args = append(args, "--staged")
		}
		if w := g.q.Worktree; w != nil && *w {
			args = append(args, "--worktree")
		}
		if g.q.Source != "" {
			args = append(args, "--source="+g.q.Source)
		}
		return append(append(args, "--"), g.q.Files...), nil
	})
}

func (t *Toolbox) gitRemotes(c *call) error {
	g, err := t.git(c, "path")
	if err != nil {
		return err
	}
	type remote struct {
		Name string `json:"name"`
		URL  string `json:"url"`
	}
	list := []remote{}
	names, err := g.in("remote")
	if err != nil {
		return err
	}
	for name := range strings.Lines(names) {
		name = strings.TrimSpace(name)
		u, err := g.in("remote", "get-url", "--", name)
		if err != nil {
			return err
		}
		list = append(list, remote{name, strings.TrimSpace(u)})
	}
	return c.answer(http.StatusOK, map[string]any{"remotes": list})
}

func (t *Toolbox) gitAddRemote(c *call) error {
	g, err := t.git(c, "path", "name", "url")
	if err != nil {
		return err
	}
	if err := errors.Join(plain("name", g.q.Name), plain("url", g.q.URL)); err != nil {
		return err
	}
	_, err = g.in("remote", "add", "--", g.q.Name, g.q.URL)
	if g.q.Overwrite && statusOf(err) == http.StatusConflict {
		_, err = g.in("remote", "set-url", "--", g.q.Name, g.q.URL)
	}
	if err == nil && g.q.Fetch {
		_, err = g.run(g.dir, true, "fetch", "-q", "--", g.q.Name)
	}
	if err != nil {
		return err
	}
	return c.empty(http.StatusCreated)
}

// scope makes git config's option, and where to run it.
func (g *gitCall) scope() (option, dir string, err error) {
	switch g.q.Scope {
	case "", "global":
		return "--global", "/", nil
	case "system":
		return "--system", "/", nil
	case "local":
		if g.q.Path == "" {
			return "", "", badRequest("path: it is missing; the scope local needs a repository")
		}
		return "--local", g.dir, nil
	}
	return "", "", badRequest("scope: %.40q is not known; allowed: global, local, system", g.q.Scope)
}

func (t *Toolbox) gitConfig(c *call) error {
	g, err := t.git(c, "key")
	if err != nil {
		return err
	}
	option, dir, err := g.scope()
	if err == nil {
		err = plain("key", g.q.Key)
	}
	if err != nil {
		return err
	}
	out, err := g.run(dir, false, "config", option, "--null", "--get", g.q.Key)
	if e := new(apiError); errors.As(err, &e) && e.code == codeInternal { // it is not set
		return c.answer(http.StatusOK, map[string]any{"value": nil})
	}
	if err != nil {
		return err
	}
	return c.answer(http.StatusOK, map[string]any{"value": strings.TrimSuffix(out, "\x00")})
}

// setConfig sets keys, each the scope's.
func (g *gitCall) setConfig(pairs ...string) error {
	option, dir, err := g.scope()
	for i := 0; i < len(pairs) && err == nil; i += 2 {
		if err = plain("key", pairs[i]); err == nil {
			_, err = g.run(dir, false, "config", option, pairs[i], pairs[i+1])
		}
	}
	return err
}

func (t *Toolbox) gitSetConfig(c *call) error {
	g, err := t.git(c, "key")
	if err == nil {
		err = g.setConfig(g.q.Key, g.q.Value)
	}
	if err != nil {
		return err
	}
	return c.empty(http.StatusOK)
}

func (t *Toolbox) gitConfigureUser(c *call) error {
	g, err := t.git(c, "name", "email")
	if err == nil {
		err = g.setConfig("user.name", g.q.Name, "user.email", g.q.Email)
	}
	if err != nil {
		return err
	}
	return c.empty(http.StatusOK)
}

// gitCredentials keeps a password inside, in plain text, for all later commands
// of the user: that is what is asked for.
func (t *Toolbox) gitCredentials(c *call) error {
	g, err := t.git(c, "username", "password")
	if err != nil {
		return err
	}
	host, protocol := g.q.Host, g.q.Protocol
	if host == "" {
		host = "github.com"
	}
	if protocol == "" {
		protocol = "https"
	}
	for field, v := range map[string]string{"username": g.q.Username, "password": g.q.Password, "host": host, "protocol": protocol} {
		if strings.ContainsAny(v, "\n\x00\r") {
			return badRequest("%s: it must be one line", field)
		}
	}
	if _, err := url.Parse(protocol + "://" + host); err != nil || strings.ContainsAny(host, "/@ ") {
		return badRequest("host: %.80q is no host", host)
	}
	if _, err := g.run("/", false, "config", "--global", "credential.helper", "store"); err != nil {
		return err
	}
	input := "protocol=" + protocol + "\nhost=" + host + "\nusername=" + g.q.Username + "\npassword=" + g.q.Password + "\n\n"
	_, err = t.toolOutput(c.ctx, c.key, sandbox.RunRequest{Argv: []string{"git", "credential", "approve"}, Cwd: "/", Stdin: &input})
	if err != nil {
		return g.failed(err, "/")
	}
	return c.empty(http.StatusOK)
}
