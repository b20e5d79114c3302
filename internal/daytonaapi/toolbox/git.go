package toolbox

import (
	"errors"
	"fmt"
	"net/http"
	"strings"

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
