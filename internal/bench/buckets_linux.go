package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"berth/internal/buckettest"
	"berth/mounts"
)

// roundTrip is how far away the far services are.
const roundTrip = 20 * time.Millisecond

// job is one line of the table: what the client is asked for, with the units that
// it does.
type job struct {
	what, goal string
	op, path   string
	n          int
	units      float64
	unit       string // of units a second; empty: the time is told
	// least is the goal in units a second; most in time.
	least float64
	most  time.Duration
	// then is the line about the second half, of the same number of units.
	then string
	// writes: it is done when the bucket has it.
	writes bool
}

// scale is how much is done with a service.
type scale struct {
	big, writes, reads, names int
	// many is the directory of that many names; one of 1,000 is read from.
	many string
}

func (s scale) jobs() []job {
	return []job{
		{what: fmt.Sprintf("write %d MiB, until the bucket has it", s.big), goal: "≥ 300 MB/s", op: "write", path: "big", n: s.big, units: float64(s.big<<20) / 1e6, unit: "MB/s", least: 300, writes: true},
		{what: fmt.Sprintf("read %d MiB, cold", s.big), goal: "≥ 700 MB/s", op: "read", path: "read/big", n: s.big, units: float64(s.big<<20) / 1e6, unit: "MB/s", least: 700, then: "— once more"},
		{what: fmt.Sprintf("%d reads of 4 KiB at random places of %d MiB, cold", randomReads, s.big), op: "random", path: "read/big", n: s.big},
		{what: fmt.Sprintf("write %d files of 4 KiB, until the bucket has them", s.writes), goal: "≥ 400 a second", op: "writes", path: "small", n: s.writes, units: float64(s.writes), unit: "a second", least: 400, writes: true},
		{what: fmt.Sprintf("list and read %d files of 4 KiB, cold", s.reads), goal: "≥ 400 a second", op: "reads", path: "read/small", n: s.reads, units: float64(s.reads), unit: "a second", least: 400},
		{what: fmt.Sprintf("list %d names, cold", s.names), goal: "≤ 0.5 s", op: "list", path: "read/" + s.many, n: s.names, most: 500 * time.Millisecond, then: "— then stat each"},
	}
}

// buckets: real services, and the programs of this machine that mount them, each
// with a fresh mount and nothing in its caches, in turn.
func (b *bench) buckets() ([]row, error) {
	if err := os.Setenv(buckettest.RequireVariable, "1"); err != nil {
		return nil, err
	}
	t := &lent{dir: filepath.Join(b.dir, "buckets")}
	defer t.end()
	var s3, gcs *buckettest.Server
	if err := t.try(func() { s3 = buckettest.S3(t) }); err != nil {
		b.absent = append(b.absent, "buckets: "+err.Error())
		return nil, nil
	}
	if err := t.try(func() { gcs = buckettest.GCS(t) }); err != nil {
		b.absent = append(b.absent, "buckets of Google: "+err.Error())
	}
	if err := os.Unsetenv(buckettest.RequireVariable); err != nil { // it is not berth's to hear of
		return nil, err
	}
	near := scale{big: 256, writes: 300, reads: 1000, names: 10_000, many: "many"}
	away := scale{big: 128, writes: 50, reads: 300, names: 1000, many: "small"}
	// The server that plays Google takes longer for each object that it has.
	fake := scale{big: 64, writes: 50, reads: 300, names: 1000, many: "small"}
	type place struct {
		title string
		*service
		scale
		peers map[string]func(*service, string, string) ([]string, []string, error)
		order []string
	}
	s3Peers := map[string]func(*service, string, string) ([]string, []string, error){"s3fs": s3fs, "rclone": rclone}
	places := []place{{"S3", s3Service("near", s3, s3.Job.Service.Endpoint), near, s3Peers, []string{"s3fs", "rclone"}}}
	d, err := far(b.ctx, strings.TrimPrefix(s3.Job.Service.Endpoint, "http://"), roundTrip)
	if err != nil {
		return nil, err
	}
	defer d.close()
	places = append(places, place{fmt.Sprintf("S3 %v away", roundTrip), s3Service("far", s3, "http://"+d.addr()), away, s3Peers, []string{"s3fs", "rclone"}})
	if gcs != nil {
		places = append(places, place{"GCS", gcsService(b.ctx, "google", gcs), fake,
			map[string]func(*service, string, string) ([]string, []string, error){"gcsfuse": gcsfuse, "rclone": rclone}, []string{"gcsfuse", "rclone"}})
	}
	for i, p := range places {
		srv, seeds := s3, map[string]scale{"read/": near, "away/": away}
		if p.job.Service.Kind == mounts.GCS {
			srv, seeds = gcs, map[string]scale{"read/": fake}
		} else if i > 0 {
			continue // the same bucket
		}
		if err := t.try(func() { seed(t, srv, seeds) }); err != nil {
			return nil, err
		}
	}

	var list []*service
	for _, p := range places {
		list = append(list, p.service)
	}
	us, err := b.bucketSandbox(list)
	if err != nil {
		return nil, err
	}
	defer func() {
		_ = destroy(b.ctx, us.s, us.session) // what a failure left; else it is gone
		us.s.Close()
	}()
	var rows []row
	for _, p := range places {
		views := []view{us}
		for _, name := range p.order {
			v := &peer{ctx: b.ctx, title: name, client: us.client, dir: filepath.Join(b.dir, "views", name+"-"+p.name), argv: p.peers[name]}
			if _, err := exec.LookPath(name); err != nil {
				b.absent = append(b.absent, fmt.Sprintf("%s with %s (not installed)", name, p.title))
			} else if err := v.mount(p.service); err != nil {
				b.absent = append(b.absent, fmt.Sprintf("%s with %s (%s)", name, p.title, oneLine(err)))
			} else if err := v.unmount(); err != nil {
				return nil, err
			} else {
				views = append(views, v)
			}
		}
		r, err := b.compare(p.title, p.service, p.scale, views)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", p.title, err)
		}
		rows = append(rows, r...)
	}
	return rows, destroy(b.ctx, us.s, us.session)
}

func oneLine(err error) string {
	return fmt.Sprintf("%.160s", strings.Join(strings.Fields(err.Error()), " "))
}

func s3Service(name string, srv *buckettest.Server, endpoint string) *service {
	job := srv.Job
	job.Service.Endpoint = endpoint
	return &service{name: name, endpoint: endpoint, job: job,
		has: func(key string) (int64, int, error) {
			fi, err := os.Stat(filepath.Join(srv.Dir, key))
			if errors.Is(err, fs.ErrNotExist) {
				return 0, 0, nil
			}
			if err != nil || !fi.IsDir() {
				return fi.Size(), 1, err
			}
			list, err := os.ReadDir(filepath.Join(srv.Dir, key))
			return 0, len(list), err
		},
		drop: func(prefix string) error { return os.RemoveAll(filepath.Join(srv.Dir, prefix)) },
	}
}

// gcsService asks the server's own API.
func gcsService(ctx context.Context, name string, srv *buckettest.Server) *service {
	endpoint := srv.Job.Service.Endpoint
	call := func(method, path string, into any) (found bool, err error) {
		req, err := http.NewRequestWithContext(ctx, method, endpoint+"/storage/v1/b/"+srv.Job.Bucket+"/o"+path, nil)
		if err != nil {
			return false, err
		}
		res, err := (&http.Client{}).Do(req)
		if err != nil {
			return false, err
		}
		defer res.Body.Close()
		if res.StatusCode >= 300 && res.StatusCode != http.StatusNotFound {
			return false, fmt.Errorf("%s %s: %s", method, path, res.Status)
		}
		if into == nil {
			return res.StatusCode < 300, nil
		}
		return true, json.NewDecoder(res.Body).Decode(into)
	}
	type object struct {
		Name string `json:"name"`
		Size int64  `json:"size,string"`
	}
	below := func(prefix string) ([]object, error) {
		var page struct {
			Items []object `json:"items"`
		}
		_, err := call(http.MethodGet, "?prefix="+url.QueryEscape(prefix), &page)
		return slices.DeleteFunc(page.Items, func(o object) bool { return strings.HasSuffix(o.Name, "/") }), err
	}
	return &service{name: name, endpoint: endpoint, job: srv.Job,
		has: func(key string) (int64, int, error) {
			list, err := below(key)
			if err != nil || len(list) == 0 {
				return 0, 0, err
			}
			return list[0].Size, len(list), nil
		},
		drop: func(prefix string) error {
			list, err := below(prefix)
			for _, o := range list {
				if err == nil {
					_, err = call(http.MethodDelete, "/"+url.PathEscape(o.Name), nil)
				}
			}
			return err
		},
	}
}

// seed stores what is read.
func seed(t *lent, srv *buckettest.Server, below map[string]scale) {
	names := func(prefix string, n int) (keys []string) {
		for i := range n {
			keys = append(keys, fmt.Sprintf("%s/f%05d", prefix, i))
		}
		return keys
	}
	for prefix, s := range below {
		srv.Fill(t, s.big<<20, prefix+"big")
		if prefix != "read/" {
			continue
		}
		srv.Fill(t, smallBytes, names(prefix+"small", 1000)...)
		if s.many != "small" {
			srv.Fill(t, 1, names(prefix+s.many, s.names)...)
		}
	}
}

type sandboxed struct {
	*ours
	client string
}

// bucketSandbox makes the sandbox of the mounts, with connections to the services.
func (b *bench) bucketSandbox(list []*service) (*sandboxed, error) {
	config := strings.Builder{}
	config.WriteString("connections:\n")
	for _, s := range list {
		j := s.job.Service
		fmt.Fprintf(&config, "  %s:\n    kind: %s\n    endpoint: %s\n    bucket: %s\n", s.name, j.Kind, s.endpoint, s.job.Bucket)
		if j.Anonymous {
			config.WriteString("    anonymous: true\n")
		} else {
			fmt.Fprintf(&config, "    region: %s\n    access_key_id: %s\n    secret_access_key: %s\n", j.Region, j.AccessKeyID, j.SecretAccessKey)
		}
	}
	file, bin := filepath.Join(b.dir, "buckets.yaml"), filepath.Join(b.dir, "bucket-bin")
	if err := os.WriteFile(file, []byte(config.String()), 0o600); err != nil {
		return nil, err
	}
	client, err := copySelf(bin)
	if err != nil {
		return nil, err
	}
	program := b.program
	program.State = filepath.Join(b.dir, "buckets-state")
	program.Args = append([]string{"--config", file, "--dir", bin + ":/bench:ro"}, program.Args...)
	s, err := program.Stdio(b.ctx, legacy)
	if err != nil {
		return nil, err
	}
	o := &ours{ctx: b.ctx, s: s, state: program.State, session: "buckets"}
	if err := runTrue(b.ctx, s, o.session); err != nil {
		s.Close()
		return nil, err
	}
	return &sandboxed{o, client}, nil
}

// taken is what one view was measured with.
type taken struct {
	first, then, p95 map[string]sample
	idle             []int64
	peak             int64
}

// compare has the views do each job in turn.
func (b *bench) compare(title string, s *service, scale scale, views []view) ([]row, error) {
	floor := map[string]sample{}
	got := map[string]*taken{}
	for _, v := range views {
		got[v.name()] = &taken{first: map[string]sample{}, then: map[string]sample{}, p95: map[string]sample{}}
	}
	jobs := scale.jobs()
	for round := range max(1, b.n/10) {
		for _, j := range jobs {
			for k := range views {
				v := views[(round+k)%len(views)]
				if err := b.once(s, v, j, got[v.name()]); err != nil {
					return nil, fmt.Errorf("%s: %s: %w", v.name(), j.what, err)
				}
			}
			took, ok, err := askAlone(b.ctx, s, j)
			if err != nil {
				return nil, fmt.Errorf("%s: %s: %w", alone, j.what, err)
			}
			if ok {
				floor[j.op] = append(floor[j.op], took)
			}
		}
	}
	var rows []row
	us := got["berth"]
	for i, j := range jobs {
		what := j.what
		if i == 0 {
			what = title + ": " + what
		}
		line := func(what, goal string, of func(*taken) sample, ok verdict) {
			var peers []string
			for _, v := range views[1:] {
				t := got[v.name()]
				text := told(j, of(t), t)
				peers = append(peers, fmt.Sprintf("%s %s (%.1f×)", v.name(), text, float64(of(t).p50())/float64(of(us).p50())))
			}
			if f := floor[j.op]; f != nil && what != j.then {
				peers = append(peers, fmt.Sprintf("%s %s (%.1f×)", alone, told(j, f, nil), float64(f.p50())/float64(of(us).p50())))
			}
			rows = append(rows, row{what, goal, told(j, of(us), us), strings.Join(peers, ", "), ok})
		}
		goal, ok := "", open
		if s.name == "near" && j.goal != "" {
			p50 := us.first[j.op].p50()
			goal, ok = j.goal, judge(p50 <= j.most || j.least > 0 && j.units/p50.Seconds() >= j.least)
		}
		line(what, goal, func(t *taken) sample { return t.first[j.op] }, ok)
		if j.then != "" {
			line(j.then, "", func(t *taken) sample { return t.then[j.op] }, open)
		}
	}
	memory := func(t *taken) string {
		slices.Sort(t.idle)
		return fmt.Sprintf("%s, %s", mib(t.idle[len(t.idle)/2]), mib(t.peak))
	}
	var peers []string
	for _, v := range views[1:] {
		peers = append(peers, v.name()+" "+memory(got[v.name()]))
	}
	return append(rows, row{"— memory of a mount's own: idle, most in all of this", "≤ 25 MiB", memory(us), strings.Join(peers, ", "), judge(us.peak <= 25<<20)}), nil
}

func told(j job, s sample, t *taken) string {
	switch {
	case j.unit != "":
		return fmt.Sprintf("%.0f %s", j.units/s.p50().Seconds(), j.unit)
	case j.op == "random":
		return fmt.Sprintf("%.2f s (p50 %s, p95 %s)", s.p50().Seconds(), ms(t.then[j.op].p50()), ms(t.p95[j.op].p50()))
	}
	return fmt.Sprintf("%.2f s", s.p50().Seconds())
}

// once has one view do one job, with a fresh mount.
func (b *bench) once(s *service, v view, j job, t *taken) error {
	syncDisk(b.dir)
	if err := v.mount(s); err != nil {
		return err
	}
	mounted := true
	defer func() {
		if mounted {
			_ = v.unmount() // the failure before it is what is told
		}
	}()
	pid, err := v.pid()
	if err != nil {
		return err
	}
	path := s.path(j)
	if j.writes {
		path = "written-" + v.name() + "/" + path
	}
	stop := watch(pid)
	begin := time.Now()
	w, err := v.work(j.op, path, j.n)
	called := time.Since(begin)
	if err != nil {
		stop()
		return err
	}
	if j.writes {
		if err := arrives(s, path, j); err != nil {
			stop()
			return err
		}
		w.Took += time.Since(begin) - called
	}
	first, peak := stop()
	fmt.Fprintf(os.Stderr, "  %s, %s: %s: %v, %v, %s\n", s.name, v.name(), j.what, w.Took.Round(time.Millisecond/10), w.Then.Round(time.Millisecond/10), mib(peak))
	t.first[j.op], t.then[j.op], t.p95[j.op] = append(t.first[j.op], w.Took), append(t.then[j.op], w.Then), append(t.p95[j.op], w.P95)
	t.idle, t.peak = append(t.idle, first), max(t.peak, peak)
	mounted = false
	if err := v.unmount(); err != nil {
		return err
	}
	if j.writes {
		return s.drop("written-" + v.name() + "/")
	}
	return nil
}

// arrives waits until the bucket has what was written.
func arrives(s *service, key string, j job) error {
	want, objects := int64(j.n)<<20, 1
	if j.op == "writes" {
		want, objects = 0, j.n
	}
	for end := time.Now().Add(5 * time.Minute); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		size, n, err := s.has(key)
		if err != nil {
			return err
		}
		if n >= objects && size >= want {
			return nil
		}
	}
	return fmt.Errorf("the bucket does not have %s after five minutes", key)
}

// syncDisk lets nobody wait for what another left to be written.
func syncDisk(dir string) {
	d, err := os.Open(dir)
	if err != nil {
		return
	}
	defer d.Close()
	_ = unix.Syncfs(int(d.Fd())) // best effort
}

// lent is what lets a program use servers that are made for tests.
type lent struct {
	testing.TB
	dir   string
	n     int
	after []func()
}

// lentFailure is what Fatal panics with; try makes an error of it.
type lentFailure string

func (t *lent) Helper()                   {}
func (t *lent) Cleanup(f func())          { t.after = append(t.after, f) }
func (t *lent) Fatal(args ...any)         { panic(lentFailure(fmt.Sprint(args...))) }
func (t *lent) Fatalf(s string, a ...any) { panic(lentFailure(fmt.Sprintf(s, a...))) }

func (t *lent) TempDir() string {
	t.n++
	dir := filepath.Join(t.dir, fmt.Sprint(t.n))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return dir
}

func (t *lent) try(f func()) (err error) {
	defer func() {
		if r := recover(); r != nil {
			text, ok := r.(lentFailure)
			if !ok {
				panic(r)
			}
			err = errors.New(string(text))
		}
	}()
	f()
	return nil
}

// end undoes in reverse order.
func (t *lent) end() {
	for i := len(t.after) - 1; i >= 0; i-- {
		t.after[i]()
	}
}
