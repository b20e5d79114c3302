package toolbox

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"berth/sandbox"
)

// git runs inside, as the sandbox's user, and gets everything as arguments. A
// password reaches it in its environment, for the one command, and stands in
// no argument, file or URL.

// gitBody is what the requests' bodies have; each uses some of it.
type gitBody struct {
	Path     string   `json:"path"`
	URL      string   `json:"url"`
	Branch   string   `json:"branch"`
	CommitID string   `json:"commit_id"`
	Name     string   `json:"name"`
	Files    []string `json:"files"`
	Message  string   `json:"message"`
	Author   string   `json:"author"`
	Email    string   `json:"email"`

	Username    string `json:"username"`
	Password    string `json:"password"`
	SkipTLS     bool   `json:"insecure_skip_tls"`
	Depth       int    `json:"depth"`
	AllowEmpty  bool   `json:"allow_empty"`
	Remote      string `json:"remote"`
	SetUpstream bool   `json:"set_upstream"`

	Bare          bool   `json:"bare"`
	InitialBranch string `json:"initial_branch"`
	Mode          string `json:"mode"`
	Target        string `json:"target"`
	Staged        *bool  `json:"staged"`
	Worktree      *bool  `json:"worktree"`
	Source        string `json:"source"`
	Fetch         bool   `json:"fetch"`
	Overwrite     bool   `json:"overwrite"`
	Key           string `json:"key"`
	Value         string `json:"value"`
	Scope         string `json:"scope"`
	Host          string `json:"host"`
	Protocol      string `json:"protocol"`
}

// gitCall is one request, its body read and its path made absolute.
type gitCall struct {
	*call
	t    *Toolbox
	q    gitBody
	info sandbox.Info
	dir  string
}

// git reads a request of which the named fields must be given.
func (t *Toolbox) git(c *call, required ...string) (*gitCall, error) {
	g := &gitCall{call: c, t: t}
	if c.r.Method == http.MethodGet {
		v := c.r.URL.Query()
		g.q = gitBody{Path: v.Get("path"), Key: v.Get("key"), Scope: v.Get("scope")}
	} else if err := c.decode(&g.q); err != nil {
		return nil, err
	}
	for _, f := range required {
		value := map[string]string{"path": g.q.Path, "url": g.q.URL, "branch": g.q.Branch, "name": g.q.Name, "message": g.q.Message, "author": g.q.Author,
			"email": g.q.Email, "key": g.q.Key, "username": g.q.Username, "password": g.q.Password, "files": strings.Join(g.q.Files, "")}[f]
		if strings.TrimSpace(value) == "" {
			return nil, badRequest("%s: it is missing", f)
		}
	}
	_, info, err := t.manager.Files(c.ctx, c.key)
	if err != nil {
		return nil, err
	}
	g.info, g.dir = info, home(info)
	if g.q.Path != "" {
		if g.dir, err = absolute(info, "path", g.q.Path); err != nil {
			return nil, err
		}
	}
	c.args["path"] = g.dir
	return g, nil
}

// credentialHelper has git ask its environment.
const credentialHelper = `!f() { test "$1" = get && printf 'username=%s\npassword=%s\n' "$BERTH_GIT_USERNAME" "$BERTH_GIT_PASSWORD"; }; f`

// run runs git. dir is where; the body's credentials go along if with.
func (g *gitCall) run(dir string, with bool, args ...string) (string, error) {
	argv := []string{"git"}
	env := map[string]string{"GIT_TERMINAL_PROMPT": "0", "GIT_ASKPASS": "/bin/false", "SSH_ASKPASS": "/bin/false"}
	if with && (g.q.Username != "" || g.q.Password != "") {
		argv = append(argv, "-c", "credential.helper=", "-c", "credential.helper="+credentialHelper)
		env["BERTH_GIT_USERNAME"], env["BERTH_GIT_PASSWORD"] = g.q.Username, g.q.Password
	}
	if g.q.SkipTLS {
		argv = append(argv, "-c", "http.sslVerify=false")
	}
	out, err := g.t.toolOutput(g.ctx, g.key, sandbox.RunRequest{Argv: append(argv, args...), Cwd: dir, Env: envOf(env)})
	return out, g.failed(err, dir)
}

// in runs git in the repository.
func (g *gitCall) in(args ...string) (string, error) { return g.run(g.dir, false, args...) }

// gitFailures are what git complains of. The first that fits counts.
var gitFailures = []struct {
	text   string
	status int
	code   string
}{
	{"could not read Username", http.StatusUnauthorized, "GIT_AUTH_FAILED"},
	{"could not read Password", http.StatusUnauthorized, "GIT_AUTH_FAILED"},
	{"Authentication failed", http.StatusUnauthorized, "GIT_AUTH_FAILED"},
	{"Invalid username or", http.StatusUnauthorized, "GIT_AUTH_FAILED"},
	{"Permission denied (publickey", http.StatusUnauthorized, "GIT_AUTH_FAILED"},
	{"returned error: 403", http.StatusForbidden, codeForbidden},
	{"not a git repository", http.StatusNotFound, "GIT_REPO_NOT_FOUND"},
	{"Repository not found", http.StatusNotFound, "GIT_REPO_NOT_FOUND"},
	{"repository not exported", http.StatusNotFound, "GIT_REPO_NOT_FOUND"},
	{"does not appear to be a git repository", http.StatusNotFound, "GIT_REPO_NOT_FOUND"},
	{"fatal: repository '", http.StatusNotFound, "GIT_REPO_NOT_FOUND"},
	{"Remote branch ", http.StatusNotFound, "GIT_BRANCH_NOT_FOUND"},
	{"did not match any file", http.StatusNotFound, "GIT_BRANCH_NOT_FOUND"},
	{"not found.", http.StatusNotFound, "GIT_BRANCH_NOT_FOUND"},
	{"invalid reference", http.StatusNotFound, "GIT_BRANCH_NOT_FOUND"},
	{"unknown revision", http.StatusNotFound, "GIT_BRANCH_NOT_FOUND"},
	{"couldn't find remote ref", http.StatusNotFound, "GIT_BRANCH_NOT_FOUND"},
	{"Failed to resolve", http.StatusNotFound, "GIT_BRANCH_NOT_FOUND"},
	{"ambiguous argument", http.StatusNotFound, "GIT_BRANCH_NOT_FOUND"},
	{"unable to read tree", http.StatusNotFound, "GIT_BRANCH_NOT_FOUND"},
	{"No such remote", http.StatusNotFound, codeNotFound},
	{"already exists and is not an empty directory", http.StatusConflict, codeConflict},
	{"a branch named '", http.StatusConflict, "GIT_BRANCH_EXISTS"},
	{"error: remote ", http.StatusConflict, codeConflict}, // already exists
	{"used by worktree", http.StatusConflict, codeConflict},
	{"Cannot delete branch", http.StatusConflict, codeConflict},
	{"would be overwritten", http.StatusConflict, "GIT_DIRTY_WORKTREE"},
	{"non-fast-forward", http.StatusConflict, "GIT_PUSH_REJECTED"},
	{"fetch first", http.StatusConflict, "GIT_PUSH_REJECTED"},
	{"remote rejected", http.StatusConflict, "GIT_REMOTE_REJECTED"},
	{"[rejected]", http.StatusConflict, "GIT_PUSH_REJECTED"},
	{"divergent branches", http.StatusConflict, "GIT_MERGE_CONFLICT"},
	{"Not possible to fast-forward", http.StatusConflict, "GIT_MERGE_CONFLICT"},
	{"Merge conflict", http.StatusConflict, "GIT_MERGE_CONFLICT"},
	{"fix conflicts", http.StatusConflict, "GIT_MERGE_CONFLICT"},
	{"unmerged files", http.StatusConflict, "GIT_MERGE_CONFLICT"},
	{"nothing to commit", http.StatusConflict, codeConflict},
	{"nothing added to commit", http.StatusConflict, codeConflict},
	{"no changes added to commit", http.StatusConflict, codeConflict},
	{"Could not resolve host", http.StatusInternalServerError, "GIT_TRANSPORT_FAILED"},
	{"unable to access", http.StatusInternalServerError, "GIT_TRANSPORT_FAILED"},
	{"Connection refused", http.StatusInternalServerError, "GIT_TRANSPORT_FAILED"},
	{"unable to connect", http.StatusInternalServerError, "GIT_TRANSPORT_FAILED"},
	{"is not a valid", http.StatusBadRequest, codeBadRequest},
	{"invalid key", http.StatusBadRequest, codeBadRequest},
	{"could not create", http.StatusForbidden, codeFileDenied},
	{"Permission denied", http.StatusForbidden, codeFileDenied},
}

// failed makes an error of the API of one of git's.
func (g *gitCall) failed(err error, dir string) error {
	var field *sandbox.FieldError
	failure := new(toolError)
	switch {
	case errors.As(err, &field) && field.Field == "cwd":
		return &apiError{status: http.StatusNotFound, code: "GIT_REPO_NOT_FOUND", text: fmt.Sprintf("path: %s is no directory in the sandbox", dir)}
	case errors.Is(err, sandbox.ErrNoProgram):
		return badRequest("git is not in the sandbox; install it, such as with sudo apt-get install git")
	case !errors.As(err, &failure):
		return err
	}
	text := g.discreet(failure.stderr)
	if text == "" {
		text = fmt.Sprintf("git failed with exit code %d", failure.code)
	}
	e := &apiError{status: http.StatusInternalServerError, code: codeInternal, text: text}
	for _, f := range gitFailures {
		if strings.Contains(failure.stderr, f.text) {
			e.status, e.code = f.status, f.code
			break
		}
	}
	return e
}

// discreet takes secrets out of a complaint: those of the request, and any that
// stand in a URL.
func (g *gitCall) discreet(s string) string {
	if g.q.Password != "" {
		s = strings.ReplaceAll(s, g.q.Password, "***")
	}
	words := strings.Split(s, "://")
	for i := 1; i < len(words); i++ {
		end := strings.IndexAny(words[i], "/ '\"\n")
		if end < 0 {
			end = len(words[i])
		}
		if at := strings.LastIndexByte(words[i][:end], '@'); at >= 0 {
			words[i] = "***" + words[i][at:]
		}
	}
	return strings.Join(words, "://")
}

// plain refuses what git would take for an option.
func plain(field, value string) error {
	if strings.HasPrefix(value, "-") {
		return badRequest("%s: %.80q must not begin with '-'", field, value)
	}
	return nil
}

// checkoutCommit brings a repository to a commit, which a clone of one branch may not
// have.
func (g *gitCall) checkoutCommit(commit string) error {
	_, err := g.in("checkout", "--detach", commit)
	if statusOf(err) != http.StatusNotFound && statusOf(err) != http.StatusInternalServerError {
		return err
	}
	if _, ferr := g.run(g.dir, true, "fetch", "-q", "origin", commit); ferr != nil {
		return err
	}
	_, err = g.in("checkout", "--detach", commit)
	return err
}

func (t *Toolbox) gitClone(c *call) error {
	g, err := t.git(c, "url", "path")
	if err != nil {
		return err
	}
	c.args["url"], c.args["branch"] = g.discreet(g.q.URL), g.q.Branch
	for field, value := range map[string]string{"url": g.q.URL, "branch": g.q.Branch, "commit_id": g.q.CommitID} {
		if err := plain(field, value); err != nil {
			return err
		}
	}
	if g.q.Depth < 0 {
		return badRequest("depth: %d does not fit; allowed: 1 or more, or 0 for all", g.q.Depth)
	}
	args := []string{"clone", "--single-branch"}
	if g.q.Branch != "" {
		args = append(args, "--branch", g.q.Branch)
	}
	if g.q.Depth > 0 {
		args = append(args, "--depth", strconv.Itoa(g.q.Depth))
	}
	if _, err := g.run("/", true, append(args, "--", g.q.URL, g.dir)...); err != nil {
		return err
	}
	if g.q.CommitID != "" {
		if err := g.checkoutCommit(g.q.CommitID); err != nil {
			return err
		}
	}
	return c.empty(http.StatusOK)
}

type gitStatusBody struct {
	CurrentBranch   string          `json:"currentBranch"`
	FileStatus      []gitFileStatus `json:"fileStatus"`
	Ahead           int             `json:"ahead"`
	Behind          int             `json:"behind"`
	BranchPublished bool            `json:"branchPublished"`
	Detached        bool            `json:"detached"`
	Upstream        string          `json:"upstream,omitempty"`
}

type gitFileStatus struct {
	Name     string `json:"name"`
	Extra    string `json:"extra"`
	Staging  string `json:"staging"`
	Worktree string `json:"worktree"`
}

// statusWords are what git's letters mean.
var statusWords = map[byte]string{'.': "Unmodified", 'M': "Modified", 'T': "Modified", 'A': "Added", 'D': "Deleted",
	'R': "Renamed", 'C': "Copied", 'U': "Updated but unmerged", '?': "Untracked"}

// parseStatus reads git status --porcelain=v2 --branch -z.
func parseStatus(out string) gitStatusBody {
	s := gitStatusBody{FileStatus: []gitFileStatus{}}
	records := strings.Split(out, "\x00")
	for i := 0; i < len(records); i++ {
		r := records[i]
		if len(r) < 2 {
			continue
		}
		// How many fields come before the name.
		before := map[byte]int{'1': 8, '2': 9, 'u': 10, '?': 1}[r[0]]
		if header, ok := strings.CutPrefix(r, "# branch."); ok {
			key, value, _ := strings.Cut(header, " ")
			switch key {
			case "head":
				s.CurrentBranch, s.Detached = value, value == "(detached)"
				if s.Detached {
					s.CurrentBranch = "HEAD"
				}
			case "upstream":
				s.Upstream = value
			case "ab":
				_, _ = fmt.Sscanf(value, "+%d -%d", &s.Ahead, &s.Behind)
				s.BranchPublished = true // the upstream is there
			}
			continue
		}
		f := strings.SplitN(r, " ", before+1)
		if before == 0 || len(f) != before+1 {
			continue
		}
		file := gitFileStatus{Name: f[before], Staging: statusWords['?'], Worktree: statusWords['?']}
		if r[0] != '?' && len(f[1]) == 2 {
			file.Staging, file.Worktree = statusWords[f[1][0]], statusWords[f[1][1]]
		}
		if r[0] == '2' && i+1 < len(records) {
			i++
			file.Extra = records[i] // where it was
		}
		s.FileStatus = append(s.FileStatus, file)
	}
	return s
}

func (t *Toolbox) gitStatus(c *call) error {
	g, err := t.git(c, "path")
	if err != nil {
		return err
	}
	out, err := g.in("status", "--porcelain=v2", "--branch", "-z", "--untracked-files=all")
	if err != nil {
		return err
	}
	return c.answer(http.StatusOK, parseStatus(out))
}

func (t *Toolbox) gitBranches(c *call) error {
	g, err := t.git(c, "path")
	if err != nil {
		return err
	}
	out, err := g.in("for-each-ref", "--format=%(HEAD)%(refname:short)", "refs/heads/")
	if err != nil {
		return err
	}
	body := struct {
		Branches []string `json:"branches"`
		Current  string   `json:"current,omitempty"`
	}{Branches: []string{}}
	for line := range strings.Lines(out) {
		line = strings.TrimSuffix(line, "\n")
		if len(line) < 2 {
			continue
		}
		if line[0] == '*' {
			body.Current = line[1:]
		}
		body.Branches = append(body.Branches, line[1:])
	}
	return c.answer(http.StatusOK, body)
}

// change runs git in the repository of a request, and answers nothing.
func (t *Toolbox) change(c *call, status int, required []string, args func(g *gitCall) ([]string, error)) error {
	g, err := t.git(c, required...)
	if err != nil {
		return err
	}
	argv, err := args(g)
	if err == nil {
		_, err = g.in(argv...)
	}
	if err != nil {
		return err
	}
	return c.empty(status)
}

// gitCreateBranch makes a branch of what is checked out, and checks it out.
func (t *Toolbox) gitCreateBranch(c *call) error {
	return t.change(c, http.StatusCreated, []string{"path", "name"}, func(g *gitCall) ([]string, error) {
		return []string{"checkout", "-q", "-b", g.q.Name}, plain("name", g.q.Name)
	})
}

func (t *Toolbox) gitDeleteBranch(c *call) error {
	return t.change(c, http.StatusNoContent, []string{"path", "name"}, func(g *gitCall) ([]string, error) {
		return []string{"branch", "-D", "--", g.q.Name}, nil
	})
}

func (t *Toolbox) gitCheckout(c *call) error {
	return t.change(c, http.StatusOK, []string{"path", "branch"}, func(g *gitCall) ([]string, error) {
		return []string{"checkout", g.q.Branch, "--"}, plain("branch", g.q.Branch)
	})
}

func (t *Toolbox) gitAdd(c *call) error {
	return t.change(c, http.StatusOK, []string{"path", "files"}, func(g *gitCall) ([]string, error) {
		return append([]string{"add", "--"}, g.q.Files...), nil
	})
}

func (t *Toolbox) gitCommit(c *call) error {
	g, err := t.git(c, "path", "message", "author", "email")
	if err != nil {
		return err
	}
	args := []string{"-c", "user.name=" + g.q.Author, "-c", "user.email=" + g.q.Email, "commit", "-q", "-m", g.q.Message}
	if g.q.AllowEmpty {
		args = append(args, "--allow-empty")
	}
	if out, err := g.in(args...); err != nil {
		// That there is nothing to commit it says on stdout.
		if e := new(apiError); errors.As(err, &e) && e.code == codeInternal && strings.Contains(out, "commit") {
			return &apiError{status: http.StatusConflict, code: codeConflict, text: "nothing to commit; add files first, or set allow_empty"}
		}
		return err
	}
	hash, err := g.in("rev-parse", "HEAD")
	if err != nil {
		return err
	}
	return c.answer(http.StatusOK, map[string]string{"hash": strings.TrimSpace(hash)})
}

func (t *Toolbox) gitPush(c *call) error {
	g, err := t.git(c, "path")
	if err != nil {
		return err
	}
	remote := g.q.Remote
	if remote == "" {
		remote = "origin"
	}
	branch := g.q.Branch
	if branch == "" {
		current, err := g.in("symbolic-ref", "--short", "-q", "HEAD")
		if err != nil {
			return badRequest("branch: no branch is checked out; say which is to be pushed")
		}
		branch = strings.TrimSpace(current)
	}
	for field, value := range map[string]string{"remote": remote, "branch": branch} {
		if err := plain(field, value); err != nil {
			return err
		}
	}
	args := []string{"push", "-q"}
	if g.q.SetUpstream {
		args = append(args, "--set-upstream")
	}
	if _, err := g.run(g.dir, true, append(args, "--", remote, branch)...); err != nil {
		return err
	}
	return c.empty(http.StatusOK)
}

func (t *Toolbox) gitPull(c *call) error {
	g, err := t.git(c, "path")
	if err != nil {
		return err
	}
	args := []string{"pull", "-q", "--no-rebase", "--no-edit"}
	if g.q.Remote != "" || g.q.Branch != "" {
		remote := g.q.Remote
		if remote == "" {
			remote = "origin"
		}
		args = append(args, "--", remote)
		if g.q.Branch != "" {
			args = append(args, g.q.Branch)
		}
	}
	// A merge has an author, too; who set one up is not overridden.
	if _, err := g.in("config", "user.email"); err != nil {
		args = append([]string{"-c", "user.name=berth", "-c", "user.email=berth@localhost"}, args...)
	}
	if _, err := g.run(g.dir, true, args...); err != nil {
		return err
	}
	return c.empty(http.StatusOK)
}

type gitCommitBody struct {
	Hash      string    `json:"hash"`
	Author    string    `json:"author"`
	Email     string    `json:"email"`
	Message   string    `json:"message"`
	Timestamp time.Time `json:"timestamp"`
}

// maxHistory bounds a history, in commits.
const maxHistory = 10_000

func (t *Toolbox) gitHistory(c *call) error {
	g, err := t.git(c, "path")
	if err != nil {
		return err
	}
	out, err := g.in("log", "-z", "-n", strconv.Itoa(maxHistory), "--format=%H%x00%an%x00%ae%x00%at%x00%B")
	if err != nil {
		if _, empty := g.in("rev-parse", "--verify", "-q", "HEAD"); empty != nil && statusOf(err) != http.StatusNotFound {
			return c.answer(http.StatusOK, []gitCommitBody{}) // there is no commit yet
		}
		return err
	}
	return c.answer(http.StatusOK, parseHistory(out))
}

// parseHistory reads five fields a commit, each ended by a NUL.
func parseHistory(out string) []gitCommitBody {
	list := []gitCommitBody{}
	f := strings.Split(out, "\x00")
	for ; len(f) >= 5; f = f[5:] {
		at, err := strconv.ParseInt(f[3], 10, 64)
		if err != nil {
			break
		}
		list = append(list, gitCommitBody{Hash: f[0], Author: f[1], Email: f[2], Message: f[4], Timestamp: time.Unix(at, 0).UTC()})
	}
	return list
}

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
