package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"path/filepath"
	"slices"

	"berth/internal/driver"
)

// cloud is a berth that serves the Daytona API.
type cloud struct {
	server *driver.Server
	url    string // of its API
}

// key is good for every API that asks for none.
const key = "demo"

// atDaytona puts the steps that a cloud needs around those of the job.
func (d *demo) atDaytona(job []step) []step {
	d.user = "daytona"
	return slices.Concat(
		[]step{{"A Daytona of our own: one program, no cloud", d.startCloud}},
		job[:2],
		[]step{{"What Daytona has of it", d.seen}},
		job[2:],
		[]step{{"Nothing is left at Daytona either", d.unseen}},
	)
}

func (d *demo) startCloud(ctx context.Context) error {
	port, err := driver.FreePort()
	if err != nil {
		return err
	}
	address := fmt.Sprintf("127.0.0.1:%d", port)
	p := d.program
	p.State = filepath.Join(d.dir, "cloud")
	p.Args = []string{"--provider", "local", "--daytona-api", address}
	server, err := p.ListenAndServe(ctx, 0)
	if err != nil {
		return err
	}
	d.cloud = &cloud{server: server, url: "http://" + address + "/api"}
	d.program.Args = []string{"--provider", "daytona"}
	d.program.Env = append(d.program.Env, "DAYTONA_API_URL="+d.cloud.url, "DAYTONA_API_KEY="+key,
		"DAYTONA_JWT_TOKEN=", "DAYTONA_ORGANIZATION_ID=", "DAYTONA_TARGET=") // a cloud that this machine has a key for is not asked
	d.say("berth serve --daytona-api %s (pid %d)", address, server.PID)
	d.say("the server that comes next has provider daytona and DAYTONA_API_URL=%s", d.cloud.url)
	return nil
}

// sandbox is one at Daytona.
type sandbox struct {
	ID, Name, State string
}

// list asks Daytona itself which sandboxes there are.
func (c *cloud) list(ctx context.Context) ([]sandbox, error) {
	var page struct{ Items []sandbox }
	err := c.ask(ctx, http.MethodGet, "/sandbox", &page)
	return page.Items, err
}

// ask has Daytona answer into v.
func (c *cloud) ask(ctx context.Context, method, path string, v any) error {
	req, err := http.NewRequestWithContext(ctx, method, c.url+path, nil)
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+key)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s %s: %s", method, path, resp.Status)
	}
	return json.NewDecoder(resp.Body).Decode(v)
}

// end stops the cloud, and deletes what a demo that broke off left in it.
func (c *cloud) end(ctx context.Context) {
	all, _ := c.list(ctx)
	for _, s := range all {
		_ = c.ask(ctx, http.MethodDelete, "/sandbox/"+s.ID, &sandbox{})
	}
	c.server.Stop()
}

func (d *demo) seen(ctx context.Context) error {
	all, err := d.cloud.list(ctx)
	if err != nil {
		return err
	}
	if len(all) != 1 || all[0].State != "started" {
		return off("there is not one sandbox that runs: %v", all)
	}
	d.say("one sandbox, %s, %s", all[0].Name, d.paint("36", all[0].State))
	return nil
}

func (d *demo) unseen(ctx context.Context) error {
	all, err := d.cloud.list(ctx)
	if err != nil {
		return err
	}
	if len(all) > 0 {
		return off("%d sandboxes are left: %v", len(all), all)
	}
	d.say("its list is empty")
	return nil
}
