//go:build linux

package local

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	"berth/sandbox"
	"berth/sandbox/local/tree"
	"berth/sandbox/local/wire"
)

const recordVersion = 1

// record is sandbox.json: what must outlive everything. Whether the sandbox
// runs is not in it, only the monitor knows. It is changed under the lock.
type record struct {
	Version int        `json:"version"`
	Owner   string     `json:"owner"`
	Session string     `json:"session"`
	Created time.Time  `json:"created"`
	Spec    specRecord `json:"spec"`
	IDs     wire.IDs   `json:"ids"`
	// DiskKind is how the disk limit is held, see wire.Disk; empty without one.
	DiskKind string `json:"disk_kind,omitempty"`
	// MadeOn and Base are the host's system directories when it was made and
	// when it was last started.
	MadeOn baseName `json:"made_on"`
	Base   baseName `json:"base"`
	// Image is what it was made of; nil for the default root.
	Image *imageRecord `json:"image,omitempty"`
	// Root is what a build said of commands in sandboxes of the default root.
	Root *rootConfig `json:"root,omitempty"`
	// Build is the lock that is held by whoever needs this sandbox, which is
	// one step of a build; see builder.
	Build string `json:"build,omitempty"`
	// Sealed are the layers between the default root and the sandbox's own,
	// lowest first; see seal. Sealing, one of them, was begun and may not be
	// done.
	Sealed  []string `json:"sealed,omitempty"`
	Sealing string   `json:"sealing,omitempty"`
	// Unsynced is the boot of the machine in which its layers were copied from
	// another's, until wire.SyncedName tells that they are on the disk.
	Unsynced string `json:"unsynced,omitempty"`
	// Error makes StatusError.
	Error    string    `json:"error,omitempty"`
	Lost     *lost     `json:"lost,omitempty"`
	Archived *archived `json:"archived,omitempty"`
	// Ports are exposed until it is destroyed. They are its own: nothing made
	// from this sandbox takes them over.
	Ports []portRecord `json:"ports,omitempty"`
	// Mounts are those beside Spec's. A fork has them.
	Mounts []mountRecord `json:"mounts,omitempty"`
}

// baseName identifies a state of the host's system directories.
type baseName struct {
	Fingerprint string `json:"fingerprint"` // of the layers
	Host        string `json:"host"`        // of the directories alone
	System      string `json:"system"`      // for people: "Debian GNU/Linux 12 (bookworm)"
}

// lost is noted once a monitor is found dead that did not end in order.
type lost struct {
	Monitor   int64     `json:"monitor"` // Record.Started of that monitor
	Noticed   time.Time `json:"noticed"`
	Processes int       `json:"processes"`
	Rebooted  bool      `json:"rebooted"`
	// Unsynced: files that it was made of had not all been written to the disk.
	Unsynced bool `json:"unsynced,omitempty"`
}

// archived describes archive.tar.zst.
type archived struct {
	At      time.Time    `json:"at"`
	Stopped time.Time    `json:"stopped"`
	SHA256  string       `json:"sha256"` // of the compressed file
	Size    int64        `json:"size"`
	Content tree.Summary `json:"content"`
}

// specRecord is sandbox.Spec with the names of the configuration.
type specRecord struct {
	Name             string            `json:"name,omitempty"`
	Labels           map[string]string `json:"labels,omitempty"`
	Language         string            `json:"language,omitempty"`
	Env              map[string]string `json:"env,omitempty"`
	Image            string            `json:"image,omitempty"`
	Snapshot         string            `json:"snapshot,omitempty"`
	Account          string            `json:"account,omitempty"`
	User             string            `json:"user,omitempty"`
	Ephemeral        *bool             `json:"ephemeral,omitempty"`
	Public           *bool             `json:"public,omitempty"`
	Volumes          []volumeRecord    `json:"volumes,omitempty"`
	Mounts           []mountRecord     `json:"mounts,omitempty"`
	AutoStop         *time.Duration    `json:"auto_stop_ns,omitempty"`
	AutoArchive      *time.Duration    `json:"auto_archive_ns,omitempty"`
	AutoDelete       *time.Duration    `json:"auto_delete_ns,omitempty"`
	Timeout          *time.Duration    `json:"timeout_ns,omitempty"`
	WorkingDirectory string            `json:"working_directory,omitempty"`
	Network          *wire.Network     `json:"network,omitempty"`
	NetworkAsked     *wire.Network     `json:"network_asked,omitempty"` // sandbox.NetworkPolicy.Asked
	CPU              float64           `json:"cpu,omitempty"`           // cores
	Memory           int64             `json:"memory_bytes,omitempty"`  // as are these
	Disk             int64             `json:"disk_bytes,omitempty"`
}

func fromSpec(s sandbox.Spec) specRecord {
	var asked *sandbox.NetworkPolicy
	if s.Network != nil {
		asked = s.Network.Asked
	}
	return specRecord{Name: s.Name, Labels: maps.Clone(s.Labels), Language: string(s.Language), Env: maps.Clone(s.Env), Image: s.Image, Snapshot: s.Snapshot, Account: s.Account, User: s.User,
		Ephemeral: s.Ephemeral, Public: s.Public, Volumes: fromVolumes(s.Volumes), Mounts: fromMounts(s.Mounts), AutoStop: s.AutoStop, AutoArchive: s.AutoArchive, AutoDelete: s.AutoDelete, Timeout: s.Timeout,
		WorkingDirectory: s.WorkingDirectory, CPU: s.Resources.CPU, Memory: s.Resources.Memory, Disk: s.Resources.Disk, Network: fromNetwork(s.Network), NetworkAsked: fromNetwork(asked)}
}

func (r specRecord) spec() sandbox.Spec {
	network := toNetwork(r.Network)
	if network != nil {
		network.Asked = toNetwork(r.NetworkAsked)
	}
	return sandbox.Spec{Name: r.Name, Labels: r.Labels, Language: sandbox.Language(r.Language), Env: r.Env, Image: r.Image, Snapshot: r.Snapshot, Account: r.Account, User: r.User,
		Ephemeral: r.Ephemeral, Public: r.Public, Volumes: toVolumes(r.Volumes), Mounts: toMounts(r.Mounts), AutoStop: r.AutoStop, AutoArchive: r.AutoArchive, AutoDelete: r.AutoDelete, Timeout: r.Timeout,
		WorkingDirectory: r.WorkingDirectory, Resources: sandbox.Resources{CPU: r.CPU, Memory: r.Memory, Disk: r.Disk}, Network: network}
}

func fromNetwork(p *sandbox.NetworkPolicy) *wire.Network {
	if p == nil {
		return nil
	}
	return &wire.Network{BlockAll: p.BlockAll, CIDRs: slices.Clone(p.AllowCIDRs), Domains: slices.Clone(p.AllowDomains)}
}

func toNetwork(n *wire.Network) *sandbox.NetworkPolicy {
	if n == nil { // a sandbox made before there was a policy: public
		return nil
	}
	return &sandbox.NetworkPolicy{BlockAll: n.BlockAll, AllowCIDRs: slices.Clone(n.CIDRs), AllowDomains: slices.Clone(n.Domains)}
}

// network is what the gate is told.
func (p *Provider) network(r specRecord) *wire.Network {
	n := wire.Network{}
	if r.Network != nil {
		n = *r.Network
	}
	n.Proxy, n.NoProxy, n.Host = p.opts.Proxy.Reveal(), p.opts.NoProxy, p.opts.HostAddresses
	return &n
}

func (r specRecord) ephemeral() bool { return r.Ephemeral != nil && *r.Ephemeral }
func (r specRecord) autoStop() time.Duration {
	if r.AutoStop == nil {
		return sandbox.DefaultAutoStop
	}
	return *r.AutoStop
}

// autoArchive never answers 0: that means the longest.
func (r specRecord) autoArchive() time.Duration {
	switch {
	case r.AutoArchive == nil:
		return sandbox.DefaultAutoArchive
	case *r.AutoArchive <= 0 || *r.AutoArchive > sandbox.MaxAutoArchive:
		return sandbox.MaxAutoArchive
	}
	return *r.AutoArchive
}

// autoDelete is negative for never.
func (r specRecord) autoDelete() time.Duration {
	if r.AutoDelete == nil || *r.AutoDelete < 0 {
		return sandbox.Never
	}
	return *r.AutoDelete
}

// deletedOnStop tells whether stopping means deleting.
func (r specRecord) deletedOnStop() bool { return r.ephemeral() || r.autoDelete() == 0 }

func (r *record) key() sandbox.Key {
	return sandbox.Key{Owner: sandbox.Owner(r.Owner), Session: sandbox.SessionID(r.Session)}
}

// The files of a sandbox's directory that are ours; all others are the monitor's.
const (
	recordFile  = "sandbox.json"
	recordCopy  = "sandbox.json.copy"
	layersDir   = "layers"
	archiveFile = "archive.tar.zst"
)

func (s *store) sandboxDir(id string) string { return filepath.Join(s.dir, "sandboxes", id) }

// damaged is a record that cannot be used; its sandbox is in StatusError.
type damaged struct{ why string }

func (d *damaged) Error() string { return d.why }

// readRecord reads and checks the record in dir. fs.ErrNotExist means that
// there is no sandbox; a *damaged, that there is one and its record is lost.
func readRecord(dir string) (*record, error) {
	var r record
	err := readJSON(filepath.Join(dir, recordFile), &r)
	var syntax *json.SyntaxError
	var kind *json.UnmarshalTypeError
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if _, serr := os.Lstat(dir); errors.Is(serr, fs.ErrNotExist) {
			return nil, fs.ErrNotExist
		} else if serr != nil {
			return nil, serr
		}
		return nil, &damaged{"its record " + recordFile + " is missing"}
	case errors.As(err, &syntax), errors.As(err, &kind), err != nil && err.Error() == "too large":
		return nil, &damaged{fmt.Sprintf("its record %s is damaged: %v", recordFile, err)}
	case err != nil:
		return nil, err
	}
	if r.Version < 1 {
		return nil, &damaged{"its record " + recordFile + " is damaged: it has no version"}
	}
	if r.Version > recordVersion {
		return nil, &damaged{fmt.Sprintf("its record %s is of version %d, and this berth knows versions up to %d; use the newer berth that made it", recordFile, r.Version, recordVersion)}
	}
	if want := sandboxID(r.key()); want != filepath.Base(dir) {
		return nil, &damaged{"its record " + recordFile + " belongs to another sandbox"}
	}
	return &r, nil
}

func (s *store) writeRecord(id string, r *record) error {
	dir := s.sandboxDir(id)
	if err := writeJSON(filepath.Join(dir, recordFile), r, true); err != nil {
		return err
	}
	_ = writeJSON(filepath.Join(dir, recordCopy), r, false)
	return nil
}

// orderRecord is writeRecord for what may be lost with the power; see orderJSON.
func (s *store) orderRecord(id string, r *record) error {
	dir := s.sandboxDir(id)
	if err := orderJSON(filepath.Join(dir, recordFile), r); err != nil {
		return err
	}
	_ = writeJSON(filepath.Join(dir, recordCopy), r, false)
	return nil
}

// readCopy reads the second copy of a record, for when the first is damaged.
func readCopy(dir string) (*record, error) {
	var r record
	if err := readJSON(filepath.Join(dir, recordCopy), &r); err != nil {
		return nil, err
	}
	if r.Version < 1 || r.Version > recordVersion {
		return nil, errors.New("unknown version")
	}
	return &r, nil
}

// tombstone is what is remembered of a destroyed sandbox.
type tombstone struct {
	Owner     string     `json:"owner"`
	Session   string     `json:"session"`
	Created   time.Time  `json:"created"`
	Destroyed time.Time  `json:"destroyed"`
	Spec      specRecord `json:"spec"`
	Reason    string     `json:"reason,omitempty"`
}

func (s *store) tombstonePath(id string) string { return filepath.Join(s.dir, "tombstones", id) }

func (s *store) readTombstone(id string) (*tombstone, error) {
	var t tombstone
	if err := readJSON(s.tombstonePath(id), &t); err != nil {
		return nil, err
	}
	return &t, nil
}
