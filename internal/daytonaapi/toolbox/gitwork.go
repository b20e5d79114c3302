package toolbox

import (
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// Cloning, and the daily work in a repository.

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
