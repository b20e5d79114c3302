//go:build linux

package toolbox_test

import (
	"os"
	"strings"
	"testing"
	"time"
)

// gitServer is a git server over HTTP for the inside of a sandbox: it serves
// what is below its directory, to user u with password p'w only.
const gitServer = `
import base64, os, subprocess, sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        if self.headers.get('Authorization') != 'Basic ' + base64.b64encode(b"u:p'w").decode():
            self.send_response(401)
            self.send_header('WWW-Authenticate', 'Basic realm="git"')
            self.send_header('Content-Length', '0')
            self.end_headers()
            return
        path, _, query = self.path.partition('?')
        length = int(self.headers.get('Content-Length') or 0)
        env = dict(os.environ, GIT_PROJECT_ROOT=sys.argv[1], GIT_HTTP_EXPORT_ALL='1', PATH_INFO=path, QUERY_STRING=query, REQUEST_METHOD=self.command,
                   CONTENT_TYPE=self.headers.get('Content-Type') or '', CONTENT_LENGTH=str(length), REMOTE_USER='u',
                   HTTP_CONTENT_ENCODING=self.headers.get('Content-Encoding') or '', GIT_PROTOCOL=self.headers.get('Git-Protocol') or '')
        out = subprocess.run(['git', 'http-backend'], input=self.rfile.read(length), env=env, stdout=subprocess.PIPE).stdout
        head, _, body = out.partition(b'\r\n\r\n')
        lines = [l.split(': ', 1) for l in head.decode().split('\r\n')]
        status = [v for k, v in lines if k == 'Status']
        self.send_response(int(status[0].split()[0]) if status else 200)
        for k, v in lines:
            if k != 'Status':
                self.send_header(k, v)
        self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    do_POST = do_GET
server = ThreadingHTTPServer(('127.0.0.1', 3456), Handler)
print('ready', flush=True)
server.serve_forever()
`

func TestGit(t *testing.T) {
	if _, err := os.Stat("/usr/lib/git-core/git-http-backend"); err != nil {
		t.Skip("needs git's http-backend on this machine: ", err)
	}
	w := newWorld(t)
	w.put("/tmp/server.py", gitServer)
	w.run(`git init -q --bare --initial-branch=main /tmp/srv/repo.git && git -C /tmp/srv/repo.git config http.receivepack true &&
git clone -q /tmp/srv/repo.git /tmp/seed 2>/dev/null; cd /tmp/seed && git checkout -q -b main && echo one >a && git add a && git -c user.name=s -c user.email=s@x commit -qm first &&
echo two >a && git -c user.name=s -c user.email=s@x commit -qam second && git push -q origin main && git checkout -q -b side && git push -q origin side`)
	w.session("server")
	id := w.begin("server", "python3 /tmp/server.py /tmp/srv", true)
	w.until("server", id, "ready")
	url := "http://127.0.0.1:3456/repo.git"

	w.problem(w.do("POST", "/git/clone", m{"url": url, "path": "r"}, 401, nil), 401, "GIT_AUTH_FAILED", "")
	a := w.do("POST", "/git/clone", m{"url": url, "path": "r", "username": "u", "password": "wr0ng"}, 401, nil)
	w.problem(a, 401, "GIT_AUTH_FAILED", "")
	w.do("POST", "/git/clone", m{"url": url, "path": "r", "username": "u", "password": "p'w"}, 200, nil)
	if out := w.run("cat r/a; grep -rl \"p'w\" r/.git ~/.git* 2>/dev/null || echo clean"); out != "two\nclean\n" {
		t.Errorf("cloned: %q", out)
	}
	w.problem(w.do("POST", "/git/clone", m{"url": url, "path": "r", "username": "u", "password": "p'w"}, 409, nil), 409, "CONFLICT", "")
	w.problem(w.do("POST", "/git/clone", m{"url": "http://127.0.0.1:3456/none.git", "path": "n", "username": "u", "password": "p'w"}, 404, nil), 404, "GIT_REPO_NOT_FOUND", "")
	w.problem(w.do("POST", "/git/clone", m{"url": url, "path": "n", "branch": "none", "username": "u", "password": "p'w"}, 404, nil), 404, "GIT_BRANCH_NOT_FOUND", "")
	w.problem(w.do("POST", "/git/clone", m{"url": "http://x:s3cret@127.0.0.1:1/x", "path": "n"}, 500, nil), 500, "GIT_TRANSPORT_FAILED", "127.0.0.1")
	w.problem(w.do("POST", "/git/clone", m{"url": "--upload-pack=touch /tmp/pwned", "path": "n"}, 400, nil), 400, "BAD_REQUEST", "url")
	w.problem(w.do("POST", "/git/clone", m{"path": "n"}, 400, nil), 400, "BAD_REQUEST", "url")

	var s struct {
		CurrentBranch, Upstream   string
		FileStatus                []struct{ Name, Extra, Staging, Worktree string }
		Ahead, Behind             int
		BranchPublished, Detached bool
	}
	w.do("GET", "/git/status?path=r", nil, 200, &s)
	if s.CurrentBranch != "main" || s.Upstream != "origin/main" || !s.BranchPublished || s.Detached || len(s.FileStatus) != 0 {
		t.Errorf("status: %+v", s)
	}
	w.put("/home/agent/r/a", "three\n")
	w.put("/home/agent/r/b c", "new\n")
	w.do("GET", "/git/status?path=r", nil, 200, &s)
	if len(s.FileStatus) != 2 || s.FileStatus[0].Worktree != "Modified" || s.FileStatus[0].Staging != "Unmodified" || s.FileStatus[1].Name != "b c" || s.FileStatus[1].Staging != "Untracked" {
		t.Errorf("status: %+v", s)
	}
	w.do("POST", "/git/add", m{"path": "r", "files": []string{"."}}, 200, nil)
	var hash struct{ Hash string }
	w.do("POST", "/git/commit", m{"path": "r", "message": "--third 'x'\n\nbody", "author": "A \"B\" C", "email": "a@b"}, 200, &hash)
	if len(hash.Hash) != 40 {
		t.Errorf("commit: %+v", hash)
	}
	w.problem(w.do("POST", "/git/commit", m{"path": "r", "message": "x", "author": "a", "email": "b"}, 409, nil), 409, "CONFLICT", "nothing")
	var history []struct {
		Hash, Author, Email, Message string
		Timestamp                    time.Time
	}
	w.do("GET", "/git/history?path=r", nil, 200, &history)
	if len(history) != 3 || history[0].Hash != hash.Hash || history[0].Author != `A "B" C` || history[0].Email != "a@b" || history[0].Message != "--third 'x'\n\nbody\n" || history[0].Timestamp.IsZero() {
		t.Errorf("history: %+v", history)
	}
	w.do("GET", "/git/status?path=r", nil, 200, &s)
	if s.Ahead != 1 {
		t.Errorf("status: %+v", s)
	}
	w.problem(w.do("POST", "/git/push", m{"path": "r"}, 401, nil), 401, "GIT_AUTH_FAILED", "")
	w.do("POST", "/git/push", m{"path": "r", "username": "u", "password": "p'w"}, 200, nil)
	if out := w.run("git -C /tmp/srv/repo.git rev-parse main"); strings.TrimSpace(out) != hash.Hash {
		t.Errorf("pushed: %s", out)
	}
	// Somebody else pushes; then ours is rejected, and pulling helps.
	w.run("cd /tmp/seed && git checkout -q main && git pull -q && echo x >other && git add other && git -c user.name=s -c user.email=s@x commit -qm other && git push -q origin main")
	w.put("/home/agent/r/mine", "m")
	w.do("POST", "/git/add", m{"path": "r", "files": []string{"mine"}}, 200, nil)
	w.do("POST", "/git/commit", m{"path": "r", "message": "mine", "author": "a", "email": "b"}, 200, nil)
	w.problem(w.do("POST", "/git/push", m{"path": "r", "username": "u", "password": "p'w"}, 409, nil), 409, "GIT_PUSH_REJECTED", "")
	w.do("POST", "/git/pull", m{"path": "r", "username": "u", "password": "p'w"}, 200, nil)
	w.do("POST", "/git/push", m{"path": "r", "username": "u", "password": "p'w", "branch": "main", "remote": "origin", "set_upstream": true}, 200, nil)
	w.do("POST", "/git/pull", m{"path": "r", "username": "u", "password": "p'w"}, 200, nil)

	var b struct {
		Branches []string
		Current  string
	}
	w.do("POST", "/git/branches", m{"path": "r", "name": "feature"}, 201, nil)
	w.problem(w.do("POST", "/git/branches", m{"path": "r", "name": "feature"}, 409, nil), 409, "GIT_BRANCH_EXISTS", "feature")
	w.do("GET", "/git/branches?path=r", nil, 200, &b)
	if b.Current != "feature" || strings.Join(b.Branches, " ") != "feature main" {
		t.Errorf("branches: %+v", b)
	}
	w.do("POST", "/git/checkout", m{"path": "r", "branch": "main"}, 200, nil)
	w.problem(w.do("POST", "/git/checkout", m{"path": "r", "branch": "none"}, 404, nil), 404, "GIT_BRANCH_NOT_FOUND", "none")
	w.do("DELETE", "/git/branches", m{"path": "r", "name": "feature"}, 204, nil)
	w.problem(w.do("DELETE", "/git/branches", m{"path": "r", "name": "feature"}, 404, nil), 404, "GIT_BRANCH_NOT_FOUND", "feature")

	w.do("POST", "/git/clone", m{"url": url, "path": "/tmp/at", "username": "u", "password": "p'w", "commit_id": history[1].Hash, "branch": "side"}, 200, nil)
	w.do("GET", "/git/status?path=/tmp/at", nil, 200, &s)
	if !s.Detached || s.CurrentBranch != "HEAD" {
		t.Errorf("at a commit: %+v", s)
	}
	w.do("POST", "/git/clone", m{"url": "file:///tmp/srv/repo.git", "path": "/tmp/shallow", "depth": 1}, 200, nil)
	w.do("GET", "/git/history?path=/tmp/shallow", nil, 200, &history)
	if len(history) != 1 {
		t.Errorf("shallow: %+v", history)
	}

	w.do("POST", "/git/init", m{"path": "/tmp/fresh", "initial_branch": "trunk"}, 201, nil)
	w.do("GET", "/git/status?path=/tmp/fresh", nil, 200, &s)
	if s.CurrentBranch != "trunk" {
		t.Errorf("fresh: %+v", s)
	}
	w.do("GET", "/git/history?path=/tmp/fresh", nil, 200, &history)
	if len(history) != 0 {
		t.Errorf("history of nothing: %+v", history)
	}
	w.do("POST", "/git/remotes", m{"path": "/tmp/fresh", "name": "up", "url": "file:///tmp/srv/repo.git", "fetch": true}, 201, nil)
	w.problem(w.do("POST", "/git/remotes", m{"path": "/tmp/fresh", "name": "up", "url": "x"}, 409, nil), 409, "CONFLICT", "up")
	w.do("POST", "/git/remotes", m{"path": "/tmp/fresh", "name": "up", "url": "file:///other", "overwrite": true}, 201, nil)
	var remotes struct{ Remotes []struct{ Name, URL string } }
	w.do("GET", "/git/remotes?path=/tmp/fresh", nil, 200, &remotes)
	if len(remotes.Remotes) != 1 || remotes.Remotes[0].URL != "file:///other" {
		t.Errorf("remotes: %+v", remotes)
	}
	w.put("/home/agent/r/a", "changed")
	w.do("POST", "/git/restore", m{"path": "r", "files": []string{"a"}}, 200, nil)
	if got := w.run("cat r/a"); got != "three\n" {
		t.Errorf("restored: %q", got)
	}
	w.do("POST", "/git/reset", m{"path": "r", "mode": "hard", "target": "HEAD~1"}, 200, nil)
	w.problem(w.do("POST", "/git/reset", m{"path": "r", "mode": "odd"}, 400, nil), 400, "BAD_REQUEST", "mode")
	w.problem(w.do("POST", "/git/reset", m{"path": "r", "target": "none"}, 404, nil), 404, "GIT_BRANCH_NOT_FOUND", "none")
	var v struct{ Value *string }
	w.do("GET", "/git/config?key=user.name", nil, 200, &v)
	if v.Value != nil {
		t.Errorf("config: %v", *v.Value)
	}
	w.do("POST", "/git/config/user", m{"name": "N", "email": "e@x"}, 200, nil)
	w.do("POST", "/git/config", m{"key": "alias.x", "value": "status", "scope": "local", "path": "r"}, 200, nil)
	w.do("GET", "/git/config?key=user.name", nil, 200, &v)
	if v.Value == nil || *v.Value != "N" {
		t.Errorf("config: %v", v.Value)
	}
	w.do("GET", "/git/config?key=alias.x&scope=local&path=r", nil, 200, &v)
	if v.Value == nil || *v.Value != "status" {
		t.Errorf("config: %v", v.Value)
	}
	w.problem(w.do("POST", "/git/config", m{"key": "x.y", "value": "", "scope": "odd"}, 400, nil), 400, "BAD_REQUEST", "scope")
	w.do("POST", "/git/credentials", m{"username": "u", "password": "p'w", "host": "127.0.0.1:3456", "protocol": "http"}, 200, nil)
	w.do("POST", "/git/clone", m{"url": url, "path": "/tmp/kept"}, 200, nil)
	w.problem(w.do("GET", "/git/status?path=/tmp", nil, 404, nil), 404, "GIT_REPO_NOT_FOUND", "")
	w.problem(w.do("GET", "/git/status?path=/nowhere", nil, 404, nil), 404, "GIT_REPO_NOT_FOUND", "/nowhere")

	events, err := w.manager.Events(t.Context(), w.key)
	must(t, err)
	for _, e := range events {
		if strings.Contains(e.Tool, "process/") {
			continue // this test's own commands
		}
		for k, v := range e.Args {
			if s, ok := v.(string); ok && (strings.Contains(s, "s3cret") || strings.Contains(s, "p'w")) {
				t.Errorf("event %s has a secret: %s %s", e.Tool, k, s)
			}
		}
		if strings.Contains(e.Error, "s3cret") || strings.Contains(e.Error, "wr0ng") {
			t.Errorf("event %s has a secret: %s", e.Tool, e.Error)
		}
	}
	if len(events) == 0 {
		t.Error("no events")
	}
}
