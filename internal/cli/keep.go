package cli

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"
)

// keep returns the secret in file: 64 hexadecimal digits, readable by its owner
// only. It is made when there is none; of several servers that start at once
// one makes it, and all return the same.
func keep(file string) (text string, fresh bool, err error) {
	if text, err = kept(file); !errors.Is(err, fs.ErrNotExist) {
		return text, false, err
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return "", false, fmt.Errorf("state directory: %w", err)
	}
	var b [32]byte
	_, _ = rand.Read(b[:]) // never fails, see crypto/rand
	text = hex.EncodeToString(b[:])
	part := fmt.Sprintf("%s.%d-%s", file, os.Getpid(), rand.Text()[:8])
	if err := writeSynced(part, []byte(text+"\n")); err != nil {
		return "", false, err
	}
	defer func() { _ = os.Remove(part) }() // its content lives on under its name
	// A link either gives the whole file its name or finds that somebody was
	// faster.
	if err := os.Link(part, file); errors.Is(err, fs.ErrExist) {
		text, err = kept(file)
		return text, false, err
	} else if err != nil {
		return "", false, fmt.Errorf("keep a secret: %w", err)
	}
	return text, true, nil
}

func kept(file string) (string, error) {
	info, err := os.Stat(file)
	if err != nil {
		return "", err
	}
	if runtime.GOOS != "windows" && info.Mode().Perm()&0o077 != 0 {
		return "", fmt.Errorf("%s can be read by others (mode %04o); run chmod 600 on it, or delete it to have a new one made", file, info.Mode().Perm())
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return "", err
	}
	text := strings.TrimSpace(string(b))
	if raw, err := hex.DecodeString(text); err != nil || len(raw) < 32 {
		return "", fmt.Errorf("%s is damaged; delete it to have a new one made", file)
	}
	return text, nil
}

func writeSynced(file string, b []byte) error {
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	return errors.Join(err, f.Sync(), f.Close())
}

// announcement tells other commands of a server that listens.
type announcement struct {
	PID     int       `json:"pid"`
	Address string    `json:"address"`
	Started time.Time `json:"started"`
	Birth   birth     `json:"birth"`
}

// birth tells processes apart that had the same id: by the boot, the process
// namespace and the start time. All are empty where they cannot be told.
type birth struct {
	Boot      string `json:"boot,omitempty"`
	Namespace string `json:"namespace,omitempty"`
	Start     string `json:"start,omitempty"`
}

// announce records that this process listens at address, until forget is
// called. A record that kill -9 leaves behind is recognised by its process
// being gone.
func announce(state, address string) (forget func(), err error) {
	dir := filepath.Join(state, "servers")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("state directory: %w", err)
	}
	announced(state) // removes what dead servers left
	b, err := json.Marshal(announcement{PID: os.Getpid(), Address: address, Started: time.Now(), Birth: birthOf(os.Getpid())})
	if err != nil {
		return nil, err
	}
	file := filepath.Join(dir, strconv.Itoa(os.Getpid())+".json")
	part := file + ".new"
	_ = os.Remove(part) // of a former process with our id
	if err := writeSynced(part, b); err != nil {
		return nil, fmt.Errorf("state directory: %w", err)
	}
	if err := os.Rename(part, file); err != nil {
		return nil, fmt.Errorf("state directory: %w", err)
	}
	return func() { _ = os.Remove(file) }, nil
}

// dead reports whether the server has surely ended. Of another namespace, such
// as another container's, and without a birth nothing is sure.
func (n announcement) dead() bool {
	now := birthOf(n.PID)
	then := n.Birth
	switch {
	case now == (birth{}) || then == (birth{}):
		return false
	case then.Boot != now.Boot:
		return true
	default:
		return then.Namespace == now.Namespace && then.Start != now.Start
	}
}

// elsewhere reports whether the server belongs to another process namespace,
// whose addresses need not be ours.
func (n announcement) elsewhere() bool {
	return n.Birth != (birth{}) && n.Birth.Namespace != birthOf(n.PID).Namespace
}

// announced lists the servers that are recorded, and removes the records of
// those that have ended without doing so.
func announced(state string) []announcement {
	files, err := filepath.Glob(filepath.Join(state, "servers", "*.json"))
	if err != nil {
		return nil
	}
	var list []announcement
	for _, f := range files {
		var n announcement
		if b, err := os.ReadFile(f); err != nil || json.Unmarshal(b, &n) != nil || n.Address == "" {
			continue
		}
		if n.dead() {
			_ = os.Remove(f) // the next one tries again
			continue
		}
		list = append(list, n)
	}
	return list
}

// healthy asks a listening server how it is.
func healthy(ctx context.Context, address string) error {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return err
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+net.JoinHostPort(host, port)+"/healthz", nil)
	if err != nil {
		return err
	}
	client := &http.Client{Transport: &http.Transport{Proxy: nil, DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("http://%s/healthz answers %s", address, resp.Status)
	}
	return nil
}

type healthcheckCommand struct{}

// Help is shown by --help.
func (*healthcheckCommand) Help() string {
	return "Asks each server that listens with this state directory. With none, as where clients start " +
		"berth serve on stdio themselves, it says whether sandboxes can be made here."
}

func (*healthcheckCommand) Run(a *App) error {
	c, err := a.settings()
	if err != nil {
		return err
	}
	state, err := stateDir(a, c)
	if err != nil {
		return err
	}
	servers, alive := announced(state), 0
	var last error
	for _, s := range servers {
		if err := healthy(a.ctx, s.Address); err != nil {
			if !s.elsewhere() {
				last = err
			}
			continue
		}
		alive++
	}
	switch {
	case alive > 0:
		_, err := fmt.Fprintf(a.Stdout, "healthy: %d listening\n", alive)
		return err
	case last != nil:
		return fmt.Errorf("unhealthy: %w", last)
	}
	if err := a.usable(c); err != nil {
		return fmt.Errorf("unhealthy: %w", err)
	}
	_, err = fmt.Fprintln(a.Stdout, "healthy: ready for stdio")
	return err
}
