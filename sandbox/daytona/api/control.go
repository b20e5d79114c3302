package api

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"iter"
	"net/http"
	"net/url"
	"strconv"
	"time"
)

// Config reads what the server tells of itself; it needs no credential.
func (c *Client) Config(ctx context.Context) (Config, error) {
	return get[Config](ctx, c, request{method: "GET", path: "/config", again: true})
}

// Key reads what the server knows of the key in use.
func (c *Client) Key(ctx context.Context) (CurrentKey, error) {
	return get[CurrentKey](ctx, c, request{method: "GET", path: "/api-keys/current", again: true})
}

// Create asks for a sandbox. The server may hold the connection for 30 s and
// then tells a state that is old already. After ErrMaybeDone, and ErrConflict,
// look for the name.
func (c *Client) Create(ctx context.Context, n NewSandbox) (*Sandbox, error) {
	out := &Sandbox{}
	if err := c.do(ctx, request{method: "POST", path: "/sandbox", body: n}, out); err != nil {
		return nil, err
	}
	return out, nil
}

// Sandbox finds one by id or exact name.
func (c *Client) Sandbox(ctx context.Context, idOrName string) (*Sandbox, error) {
	out := &Sandbox{}
	h, err := c.ask(ctx, request{method: "GET", path: sandboxPath(idOrName), again: true}, out)
	if err != nil {
		return nil, err
	}
	if at, err := http.ParseTime(h.Get("Date")); err == nil {
		out.Seen = at
	}
	if out.ID == "" {
		return nil, &Error{Method: "GET", Path: sandboxPath(idOrName), Status: http.StatusOK, Message: "the answer is no sandbox", kind: ErrUnavailable}
	}
	return out, nil
}

// Filter of Sandboxes; zero fields do not filter.
type Filter struct {
	Labels    map[string]string // all of them
	States    []State
	Snapshots []string
}

// Sandboxes lists sandboxes, oldest first. The list lags behind by seconds, and
// what it tells of a sandbox may be less than Sandbox does.
func (c *Client) Sandboxes(ctx context.Context, f Filter) iter.Seq2[*Sandbox, error] {
	return func(yield func(*Sandbox, error) bool) {
		q := url.Values{"limit": {"200"}, "sort": {"createdAt"}, "order": {"asc"}}
		if len(f.Labels) > 0 {
			b, err := json.Marshal(f.Labels)
			if err != nil {
				yield(nil, err)
				return
			}
			q.Set("labels", string(b))
		}
		for _, s := range f.States {
			q.Add("states", string(s))
		}
		for _, s := range f.Snapshots {
			q.Add("snapshots", s)
		}
		seen := map[string]bool{}
		for {
			var list struct {
				Items []*Sandbox `json:"items"`
				Next  *string    `json:"nextCursor"`
			}
			if err := c.do(ctx, request{method: "GET", path: "/sandbox", query: q, again: true}, &list); err != nil {
				yield(nil, err)
				return
			}
			for _, s := range list.Items {
				if s == nil || s.ID == "" || seen[s.ID] { // it moved between two pages
					continue
				}
				seen[s.ID] = true
				if !yield(s, nil) {
					return
				}
			}
			if list.Next == nil || *list.Next == "" {
				return
			}
			if *list.Next == q.Get("cursor") {
				yield(nil, errors.New("GET /sandbox: the list does not get on: the same cursor came twice"))
				return
			}
			q.Set("cursor", *list.Next)
		}
	}
}

// Start starts a stopped, archived or paused sandbox; ErrConflict while it
// changes.
func (c *Client) Start(ctx context.Context, id string) error { return c.change(ctx, id, "/start") }

// Stop stops a started sandbox. Of one that is stopped the platform says 400.
func (c *Client) Stop(ctx context.Context, id string) error { return c.change(ctx, id, "/stop") }

// Archive archives a stopped one, in its own time.
func (c *Client) Archive(ctx context.Context, id string) error { return c.change(ctx, id, "/archive") }

// Recover tries to bring one out of an error.
func (c *Client) Recover(ctx context.Context, id string) error { return c.change(ctx, id, "/recover") }

// Delete deletes one; ErrConflict while it changes, ErrNotFound when it is gone.
func (c *Client) Delete(ctx context.Context, id string) error {
	return c.do(ctx, request{method: "DELETE", path: sandboxPath(id), again: true}, nil)
}

// Touch notes that a sandbox is in use.
func (c *Client) Touch(ctx context.Context, id string) error {
	return c.do(ctx, request{method: "POST", path: sandboxPath(id) + "/last-activity", body: struct{}{}, again: true}, nil)
}

// SetLabels replaces all labels.
func (c *Client) SetLabels(ctx context.Context, id string, labels map[string]string) error {
	body := struct {
		Labels map[string]string `json:"labels"`
	}{labels}
	return c.do(ctx, request{method: "PUT", path: sandboxPath(id) + "/labels", body: body, again: true}, nil)
}

// SetPublic opens or closes all ports.
func (c *Client) SetPublic(ctx context.Context, id string, public bool) error {
	return c.change(ctx, id, "/public/"+strconv.FormatBool(public))
}

// SetAutoStop sets the idle time before it stops, in minutes; 0 is never.
func (c *Client) SetAutoStop(ctx context.Context, id string, minutes int) error {
	return c.change(ctx, id, "/autostop/"+strconv.Itoa(minutes))
}

// SetAutoArchive is SetAutoStop for archiving; 0 is the maximum.
func (c *Client) SetAutoArchive(ctx context.Context, id string, minutes int) error {
	return c.change(ctx, id, "/autoarchive/"+strconv.Itoa(minutes))
}

// SetAutoDelete is SetAutoStop for deleting; 0 is at the stop, negative never.
func (c *Client) SetAutoDelete(ctx context.Context, id string, minutes int) error {
	return c.change(ctx, id, "/autodelete/"+strconv.Itoa(minutes))
}

// SetNetwork changes what a sandbox reaches, at once. It needs a running one.
func (c *Client) SetNetwork(ctx context.Context, id string, n NetworkSettings) error {
	return c.do(ctx, request{method: "POST", path: sandboxPath(id) + "/network-settings", body: n, again: true}, nil)
}

// change is a POST without a body that may be repeated: it leads where it led.
func (c *Client) change(ctx context.Context, id, what string) error {
	return c.do(ctx, request{method: "POST", path: sandboxPath(id) + what, again: true}, nil)
}

// Preview tells where a port of a sandbox is reached, and the token that opens
// it until the sandbox stops.
func (c *Client) Preview(ctx context.Context, id string, port uint16) (Preview, error) {
	return get[Preview](ctx, c, request{method: "GET", path: sandboxPath(id) + "/ports/" + strconv.Itoa(int(port)) + "/preview-url", again: true})
}

// SignedPreview makes an address that opens one port to whoever knows it, for at
// most a day.
func (c *Client) SignedPreview(ctx context.Context, id string, port uint16, last time.Duration) (Preview, error) {
	q := url.Values{"expiresInSeconds": {strconv.Itoa(int(last.Seconds()))}}
	return get[Preview](ctx, c, request{method: "GET", path: sandboxPath(id) + "/ports/" + strconv.Itoa(int(port)) + "/signed-preview-url", query: q, again: true})
}

// Fork copies a sandbox where its class can do that; else 422 or 404.
func (c *Client) Fork(ctx context.Context, id, name string) (*Sandbox, error) {
	body := struct {
		Name string `json:"name,omitempty"`
	}{name}
	out := &Sandbox{}
	if err := c.do(ctx, request{method: "POST", path: sandboxPath(id) + "/fork", body: body}, out); err != nil {
		return nil, err
	}
	return out, nil
}

// SnapshotOf begins to make a snapshot of a sandbox's files. Whether it came
// about is told by Snapshot alone, once the sandbox has left Snapshotting.
func (c *Client) SnapshotOf(ctx context.Context, id, name string) error {
	body := struct {
		Name string `json:"name"`
	}{name}
	return c.do(ctx, request{method: "POST", path: sandboxPath(id) + "/snapshot", body: body}, nil)
}

// ToolboxURL asks where a sandbox's toolbox is, of servers that do not tell it
// with the sandbox.
func (c *Client) ToolboxURL(ctx context.Context, id string) (string, error) {
	var out struct {
		URL string `json:"url"`
	}
	err := c.do(ctx, request{method: "GET", path: sandboxPath(id) + "/toolbox-proxy-url", again: true}, &out)
	return out.URL, err
}

// Snapshots lists the organization's snapshots and everybody's.
func (c *Client) Snapshots(ctx context.Context) ([]Snapshot, error) {
	var all []Snapshot
	for page := 1; ; page++ {
		var list struct {
			Items      []Snapshot `json:"items"`
			TotalPages int        `json:"totalPages"`
		}
		q := url.Values{"limit": {"200"}, "page": {strconv.Itoa(page)}, "sort": {"name"}, "order": {"asc"}}
		if err := c.do(ctx, request{method: "GET", path: "/snapshots", query: q, again: true}, &list); err != nil {
			return nil, err
		}
		all = append(all, list.Items...)
		if page >= list.TotalPages || len(list.Items) == 0 {
			return all, nil
		}
	}
}

// Snapshot finds one by id or name.
func (c *Client) Snapshot(ctx context.Context, idOrName string) (*Snapshot, error) {
	out := &Snapshot{}
	if err := c.do(ctx, request{method: "GET", path: "/snapshots/" + url.PathEscape(idOrName), again: true}, out); err != nil {
		return nil, err
	}
	return out, nil
}

// CreateSnapshot begins to make one; ErrConflict when the name is in use.
func (c *Client) CreateSnapshot(ctx context.Context, n NewSnapshot) (*Snapshot, error) {
	out := &Snapshot{}
	if err := c.do(ctx, request{method: "POST", path: "/snapshots", body: n}, out); err != nil {
		return nil, err
	}
	return out, nil
}

// ActivateSnapshot brings back one that was put aside since nobody used it.
func (c *Client) ActivateSnapshot(ctx context.Context, id string) error {
	return c.do(ctx, request{method: "POST", path: "/snapshots/" + url.PathEscape(id) + "/activate", again: true}, nil)
}

// DeleteSnapshot begins to remove one, by its id.
func (c *Client) DeleteSnapshot(ctx context.Context, id string) error {
	return c.do(ctx, request{method: "DELETE", path: "/snapshots/" + url.PathEscape(id), again: true}, nil)
}

// SnapshotLog reads the log of a snapshot's build as it is written. The stream of
// a build that failed may not end by itself. The caller closes it.
func (c *Client) SnapshotLog(ctx context.Context, id string, follow bool) (io.ReadCloser, error) {
	return c.buildLog(ctx, "/snapshots/"+url.PathEscape(id), follow)
}

// SandboxLog is SnapshotLog for a sandbox made of a Build.
func (c *Client) SandboxLog(ctx context.Context, id string, follow bool) (io.ReadCloser, error) {
	return c.buildLog(ctx, sandboxPath(id), follow)
}

func (c *Client) buildLog(ctx context.Context, of string, follow bool) (io.ReadCloser, error) {
	q := url.Values{"follow": {strconv.FormatBool(follow)}}
	var at struct {
		URL string `json:"url"`
	}
	r := request{method: "GET", path: of + "/build-logs", query: q, again: true, timeout: -1}
	switch err := c.do(ctx, request{method: "GET", path: of + "/build-logs-url", again: true}, &at); {
	case err == nil && at.URL != "":
		u, err := url.Parse(at.URL)
		if err != nil || u.Scheme != "https" && u.Scheme != "http" {
			return nil, &Error{Method: "GET", Path: of + "/build-logs-url", Status: http.StatusOK, Message: "the answer is no address", kind: ErrUnavailable}
		}
		r.path, r.query = u.EscapedPath(), u.Query()
		r.query.Set("follow", strconv.FormatBool(follow))
		r.base = u.Scheme + "://" + u.Host
	case err != nil && !errors.Is(err, ErrNotFound): // else an older server
		return nil, err
	}
	resp, cancel, err := c.send(ctx, r) //nolint:bodyclose // the caller closes it
	if err != nil {
		return nil, err
	}
	return &closing{resp.Body, cancel}, nil
}

// Volumes lists the organization's volumes.
func (c *Client) Volumes(ctx context.Context) ([]Volume, error) {
	return get[[]Volume](ctx, c, request{method: "GET", path: "/volumes", again: true})
}

// VolumeByName finds one.
func (c *Client) VolumeByName(ctx context.Context, name string) (*Volume, error) {
	out := &Volume{}
	if err := c.do(ctx, request{method: "GET", path: "/volumes/by-name/" + url.PathEscape(name), again: true}, out); err != nil {
		return nil, err
	}
	return out, nil
}

// CreateVolume begins to make one; of a name in use the platform says 400.
func (c *Client) CreateVolume(ctx context.Context, name string) (*Volume, error) {
	body := struct {
		Name string `json:"name"`
	}{name}
	out := &Volume{}
	if err := c.do(ctx, request{method: "POST", path: "/volumes", body: body}, out); err != nil {
		return nil, err
	}
	return out, nil
}

// DeleteVolume deletes one by its id; ErrConflict while a sandbox has it.
func (c *Client) DeleteVolume(ctx context.Context, id string) error {
	return c.do(ctx, request{method: "DELETE", path: "/volumes/" + url.PathEscape(id), again: true}, nil)
}

// PushAccess asks for a place for build contexts.
func (c *Client) PushAccess(ctx context.Context) (PushAccess, error) {
	return get[PushAccess](ctx, c, request{method: "GET", path: "/object-storage/push-access", again: true})
}

func sandboxPath(idOrName string) string { return "/sandbox/" + url.PathEscape(idOrName) }
