package tools

import (
	"github.com/mark3labs/mcp-go/mcp"

	"berth/internal/dockerfile"
	"berth/sandbox"
)

type createSnapshotArguments struct {
	Name       string            `json:"name" schema:"required;bytes=63"`
	Image      string            `json:"image" doc:"What steps begin with: an image as for docker pull, or snapshot:NAME; default: this machine's own system." schema:"bytes=1024"`
	Steps      []buildStep       `json:"steps" doc:"Each exactly one of these." schema:"items=100;minitems=1"`
	Dockerfile string            `json:"dockerfile" doc:"Its text: one FROM (an image, or snapshot:NAME), RUN, COPY, ADD, ENV, ARG, WORKDIR, USER, SHELL, LABEL." schema:"bytes=262144"`
	Files      map[string]string `json:"files" doc:"Content by path, for COPY." schema:"items=1000;bytes=1048576"`
	SessionID  *string           `json:"session_id" doc:"Whose files, when nothing is built."`
}

type buildStep struct {
	Run     string            `json:"run" doc:"Shell text." schema:"bytes=65536"`
	Copy    string            `json:"copy" doc:"SOURCE... DESTINATION, of files." schema:"bytes=32768"`
	Env     map[string]string `json:"env" doc:"$NAME in a value stands for what is set." schema:"items=1000;bytes=32768"`
	WorkDir string            `json:"workdir" schema:"bytes=4096"`
	User    string            `json:"user" schema:"bytes=64"`
}

func (a createSnapshotArguments) session() *string { return a.SessionID }

// needsNoSession: a build has nothing to do with any.
func (a createSnapshotArguments) needsNoSession() bool {
	return a.Image != "" || a.Dockerfile != "" || len(a.Steps) > 0 || len(a.Files) > 0
}

// build is what the arguments say how to make it; nil for the session's files.
func (a createSnapshotArguments) build() (*sandbox.Build, error) {
	if !a.needsNoSession() {
		return nil, nil
	}
	files := map[string]sandbox.BuildFile{}
	for path, text := range a.Files {
		files[path] = sandbox.TextFile(text)
	}
	var b sandbox.Build
	var err error
	switch {
	case a.Dockerfile != "" && (a.Image != "" || len(a.Steps) > 0):
		return nil, &sandbox.FieldError{Field: "dockerfile", Problem: "image or steps are given too", Allowed: "dockerfile, or image and steps", Hint: "FROM names the image, and instructions are the steps"}
	case a.Dockerfile != "":
		b, err = dockerfile.Parse(a.Dockerfile, files)
	case a.Image == "" && len(a.Steps) == 0:
		return nil, &sandbox.FieldError{Field: "files", Problem: "neither dockerfile nor steps are given", Hint: "say with one of them where the files belong"}
	default:
		steps := make([]dockerfile.Step, len(a.Steps))
		for i, s := range a.Steps {
			steps[i] = dockerfile.Step(s)
		}
		b, err = dockerfile.Steps(a.Image, steps, files)
	}
	return &b, err
}

type snapshotAnswer struct {
	Snapshot snapshotRow `json:"snapshot"`
	Log      string      `json:"log,omitempty"`
	Notice   string      `json:"notice,omitempty"`
}

func createSnapshot() tool {
	t := tool{
		name: "create_snapshot", toolset: "snapshots",
		description: "Keeps the files of the session's sandbox as they are now, running or stopped, under a name; the sandbox goes on undisturbed. Or builds a snapshot, from image and steps or from a dockerfile: " +
			"each step runs in a sandbox, finished steps are kept, so that building again is fast, and a failing one answers build_failed with the end of its log. A build goes on by itself; the same call again waits on. " +
			"start_sandbox with snapshot makes sandboxes of it. Snapshots never change.",
		reach: mustExist,
	}
	t.args, t.handle = handler(func(c *call, a *createSnapshotArguments) (*mcp.CallToolResult, error) {
		build, err := a.build()
		if err != nil {
			return nil, err
		}
		s, err := c.manager.CreateSnapshot(c.ctx, c.key, sandbox.SnapshotRequest{Name: a.Name, Build: build})
		if err != nil {
			return nil, err
		}
		c.outcome = "created"
		return recordAnswer(snapshotAnswer{Snapshot: snapshotOf(*s), Log: s.Log, Notice: c.noticeText(sandbox.Notice{})})
	})
	return t
}
