package toolbox

import (
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"berth/sandbox"
)

// apiVersion is the release of the platform whose toolbox this one answers as.
const apiVersion = "0.218.0"

func (t *Toolbox) version(c *call) error {
	return c.answer(http.StatusOK, map[string]string{"version": apiVersion})
}

func (t *Toolbox) workDir(c *call) error {
	_, info, err := t.manager.Files(c.ctx, c.key)
	if err != nil {
		return err
	}
	return c.answer(http.StatusOK, map[string]string{"dir": home(info)})
}

func (t *Toolbox) userHome(c *call) error {
	_, info, err := t.manager.Files(c.ctx, c.key)
	if err != nil {
		return err
	}
	return c.answer(http.StatusOK, map[string]string{"dir": info.Home})
}

// listening returns the TCP ports that something listens on, as the kernel
// tells inside.
func (t *Toolbox) listening(c *call) ([]int, error) {
	out, err := t.toolOutput(c.ctx, c.key, sandbox.RunRequest{Argv: []string{"cat", "/proc/net/tcp", "/proc/net/tcp6"}, Cwd: "/"})
	if failed := new(toolError); err != nil && !(errors.As(err, &failed) && out != "") { // without IPv6 there is no tcp6
		return nil, err
	}
	return listeningPorts(out), nil
}

// listeningPorts reads /proc/net/tcp: local address and state are the second
// and fourth column, in hexadecimal; 0A is a listener.
func listeningPorts(table string) []int {
	ports := map[int]bool{}
	for line := range strings.Lines(table) {
		f := strings.Fields(line)
		if len(f) < 4 || f[3] != "0A" {
			continue
		}
		_, port, ok := strings.Cut(f[1], ":")
		n, err := strconv.ParseUint(port, 16, 16)
		if ok && err == nil && n > 0 {
			ports[int(n)] = true
		}
	}
	return slices.Sorted(maps.Keys(ports))
}

func (t *Toolbox) ports(c *call) error {
	ports, err := t.listening(c)
	if err != nil {
		return err
	}
	if ports == nil {
		ports = []int{}
	}
	return c.answer(http.StatusOK, map[string][]int{"ports": ports})
}

func (t *Toolbox) portInUse(c *call) error {
	port, err := strconv.Atoi(c.r.PathValue("port"))
	if err != nil || port < 3000 || port > 9999 {
		return badRequest("port: %.40q does not fit; allowed: 3000 to 9999", c.r.PathValue("port"))
	}
	ports, err := t.listening(c)
	if err != nil {
		return err
	}
	return c.answer(http.StatusOK, map[string]bool{"isInUse": slices.Contains(ports, port)})
}

// measured is for how long the use of the CPU is measured.
const measured = 100 * time.Millisecond

// metricsScript tells what the system inside has: its CPUs, memory and disk.
const metricsScript = `nproc; grep -E '^(MemTotal|MemFree|MemAvailable|Cached):' /proc/meminfo; df -P -k / | tail -1`

// metrics answers the present use of resources, in bytes and per cent. Of what
// the sandbox is limited in, the total is its limit.
func (t *Toolbox) metrics(c *call) error {
	before, err := t.manager.GetSandbox(c.ctx, c.key)
	if err != nil {
		return err
	}
	began := time.Now()
	out, err := t.toolOutput(c.ctx, c.key, sandbox.RunRequest{Argv: []string{"sh", "-c", metricsScript}, Cwd: "/"})
	if err != nil {
		return err
	}
	select {
	case <-time.After(measured - time.Since(began)):
	case <-c.ctx.Done():
		return c.ctx.Err()
	}
	after, err := t.manager.GetSandbox(c.ctx, c.key)
	if err != nil {
		return err
	}
	took := time.Since(began)
	s := parseSystem(out)
	cpus := float64(s.cpus)
	if limit := after.Spec.Resources.CPU; limit > 0 && float64(limit) < cpus {
		cpus = float64(limit)
	}
	if limit := after.Spec.Resources.Memory; limit > 0 {
		s.memory = limit
	}
	if limit := after.Spec.Resources.Disk; limit > 0 {
		s.disk, s.diskUsed = limit, 0
	}
	now := time.Now().UTC()
	body := map[string]any{"cpuCount": cpus, "memTotal": s.memory, "memCache": s.cached, "diskTotal": s.disk,
		"timestamp": now.Format(time.RFC3339Nano), "timestampUnix": now.Unix()}
	if u, v := before.Usage, after.Usage; u != nil && v != nil {
		if u.CPU >= 0 && v.CPU >= u.CPU && cpus > 0 {
			body["cpuUsedPct"] = min(100, 100*(v.CPU-u.CPU).Seconds()/took.Seconds()/cpus)
		}
		if v.Memory >= 0 {
			body["memUsed"] = v.Memory
		}
		if v.Disk >= 0 && s.diskUsed == 0 {
			s.diskUsed = v.Disk
		}
	}
	body["diskUsed"], body["diskFree"] = s.diskUsed, max(0, s.disk-s.diskUsed)
	return c.answer(http.StatusOK, body)
}

// system is what metricsScript told; sizes in bytes.
type system struct {
	cpus                           int64
	memory, cached, disk, diskUsed int64
}

func parseSystem(out string) system {
	var s system
	number := func(f []string, i int) int64 {
		if i >= len(f) {
			return 0
		}
		n, err := strconv.ParseInt(f[i], 10, 53)
		if err != nil {
			return 0
		}
		return max(0, n)
	}
	for line := range strings.Lines(out) {
		f := strings.Fields(line)
		switch {
		case len(f) == 1:
			s.cpus = number(f, 0)
		case len(f) == 0:
		case f[0] == "MemTotal:":
			s.memory = number(f, 1) << 10
		case f[0] == "Cached:":
			s.cached = number(f, 1) << 10
		case len(f) >= 6:
			s.disk, s.diskUsed = number(f, 1)<<10, number(f, 2)<<10
		}
	}
	return s
}

// updateEnv changes the variables of all that is started from now on.
func (t *Toolbox) updateEnv(c *call) error {
	var q struct {
		Set              map[string]string `json:"set"`
		Unset            []string          `json:"unset"`
		UnsetValuePrefix string            `json:"unsetValuePrefix"`
	}
	if err := c.decode(&q); err != nil {
		return err
	}
	c.args["env"] = q.Set
	t.envs.Lock() // of two changes neither may undo the other
	defer t.envs.Unlock()
	if _, _, err := t.manager.Files(c.ctx, c.key); err != nil { // it must run
		return err
	}
	info, err := t.manager.GetSandbox(c.ctx, c.key)
	if err != nil {
		return err
	}
	env := maps.Clone(info.Spec.Env)
	if env == nil {
		env = map[string]string{}
	}
	for _, k := range q.Unset {
		delete(env, k)
	}
	if q.UnsetValuePrefix != "" {
		maps.DeleteFunc(env, func(_, v string) bool { return strings.HasPrefix(v, q.UnsetValuePrefix) })
	}
	maps.Copy(env, q.Set)
	if _, err := t.manager.UpdateSandbox(c.ctx, c.key, sandbox.Spec{Env: env}); err != nil {
		return err
	}
	return c.empty(http.StatusOK)
}

// missing answers for what the platform has and berth does not.
func missing(what string) func(*call) error {
	return func(*call) error {
		return &apiError{status: http.StatusNotImplemented, code: codeNotImplemented, text: fmt.Sprintf("%s is not supported by this server", what)}
	}
}
