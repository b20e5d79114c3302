//go:build linux

package local

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"berth/sandbox"
	"berth/sandbox/local/client"
	"berth/sandbox/local/journal"
	"berth/sandbox/local/tree"
	"berth/sandbox/local/wire"
)

// Instance is a handle on one sandbox of the state directory.
type Instance struct {
	p   *Provider
	s   *store
	id  string
	key sandbox.Key // empty in lists, where the record tells
}

var (
	_ sandbox.Instance         = (*Instance)(nil)
	_ sandbox.Glancer          = (*Instance)(nil)
	_ sandbox.Updater          = (*Instance)(nil)
	_ sandbox.Resizer          = (*Instance)(nil)
	_ sandbox.Archiver         = (*Instance)(nil)
	_ sandbox.Recoverer        = (*Instance)(nil)
	_ sandbox.Retirer          = (*Instance)(nil)
	_ sandbox.ProcessForgetter = (*Instance)(nil)
)

func (in *Instance) dir() string    { return in.s.sandboxDir(in.id) }
func (in *Instance) layers() string { return in.s.layersPath(in.id) }

func (in *Instance) has(name string) bool {
	_, err := os.Lstat(filepath.Join(in.dir(), name))
	return err == nil
}

func (in *Instance) gone() bool {
	_, err := os.Lstat(in.dir())
	return errors.Is(err, fs.ErrNotExist)
}

// view is what a sandbox is at one moment.
type view struct {
	status  sandbox.Status
	reason  string
	rec     *record     // nil when damaged
	mon     wire.Record // zero when it was never started
	alive   bool
	crashed bool // the last monitor did not end in order
}

// look reads the present state; fs.ErrNotExist when there is no sandbox. It
// changes nothing and takes no lock.
func (in *Instance) look() (view, error) {
	var v view
	var bad *damaged
	rec, err := readRecord(in.dir())
	if err != nil && !errors.As(err, &bad) {
		return v, err
	}
	v.rec = rec
	v.mon, v.alive, err = in.p.engine.monitor(in.dir())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		if in.gone() {
			return v, fs.ErrNotExist
		}
		// The record of a dead monitor is no reason to lose a sandbox.
		in.p.log.Warn("monitor record cannot be read", slog.String("sandbox", in.id), slog.Any("err", err))
	}
	v.crashed = !v.alive && v.mon.Version != 0 && v.mon.Stopped == 0
	op := operation(in.s.lockPath(in.id))
	switch {
	case op == opDestroying:
		v.status = sandbox.StatusDestroying
	case bad != nil:
		v.status, v.reason = sandbox.StatusError, bad.why
	case rec.Error != "":
		v.status, v.reason = sandbox.StatusError, rec.Error
	case op == opCreating, op == opStarting && !v.alive:
		v.status = sandbox.StatusStarting
	case op == opStopping, v.alive && v.mon.Stopping != 0:
		v.status = sandbox.StatusStopping
	case op == opArchiving && rec.Archived == nil:
		v.status = sandbox.StatusArchiving
	case v.alive:
		v.status = sandbox.StatusRunning
	case rec.Archived != nil:
		v.status = sandbox.StatusArchived
	case rec.Sealing != "":
		// Whoever was sharing its files was killed, and it would run else.
		v.status = sandbox.StatusStopped
	case v.mon.Version != 0 && (rec.Spec.deletedOnStop() || in.has(journal.DeleteName)):
		// The monitor stopped it; whoever comes next removes it.
		v.status = sandbox.StatusDestroyed
	default:
		v.status = sandbox.StatusStopped
		if _, err := os.Lstat(in.layers()); errors.Is(err, fs.ErrNotExist) && !in.gone() {
			v.status, v.reason = sandbox.StatusError, "its files are missing: "+in.layers()+" is not there"
		} else if gone := in.s.missingLayer(rec); gone != "" && !in.gone() {
			v.status, v.reason = sandbox.StatusError, "its files are missing: "+gone+" is not there"
		}
	}
	return v, nil
}

// lookLocked is look for the holder of the lock, whose own operation does not
// count.
func (in *Instance) lookLocked(l *lock, op string) (view, error) {
	l.mark(opOther)
	defer l.mark(op)
	return in.look()
}

// Info reads the present state.
func (in *Instance) Info(ctx context.Context) (sandbox.Info, error) { return in.told(ctx, asked) }

// Glance reads the present state, and asks the monitor for nothing but mounts.
func (in *Instance) Glance(ctx context.Context) (sandbox.Info, error) { return in.told(ctx, glance) }

// detail is how much is to be known about a running sandbox.
type detail int

const (
	glance detail = iota // nothing that costs time
	listed               // what the monitor measures
	asked                // refused connections and, walking its files, the disk it takes
)

// told is info that knows tombstones.
func (in *Instance) told(ctx context.Context, d detail) (sandbox.Info, error) {
	info, err := in.info(ctx, d)
	if errors.Is(err, fs.ErrNotExist) {
		t, terr := in.s.readTombstone(in.id)
		if errors.Is(terr, fs.ErrNotExist) {
			return info, fmt.Errorf("session %s: %w", in.key.Session, sandbox.ErrNotFound)
		}
		if terr != nil {
			return info, terr
		}
		info = in.p.describe(t.Spec)
		info.Key, info.Created, info.Stopped, info.Status, info.Reason = in.key, t.Created, t.Destroyed, sandbox.StatusDestroyed, t.Reason
		return info, nil
	}
	return info, err
}

// info is Info without tombstones.
func (in *Instance) info(ctx context.Context, d detail) (sandbox.Info, error) {
	v, err := in.look()
	if err != nil {
		return sandbox.Info{}, err
	}
	if v.rec == nil {
		info := in.p.describe(specRecord{})
		info.Key, info.Status, info.Reason, info.Name = in.key, v.status, v.reason, string(in.key.Session)
		if in.key.Session == "" {
			if r, err := readCopy(in.dir()); err == nil {
				info.Key, info.Name, info.Created = r.key(), r.Session, r.Created
			} else {
				info.Name = in.id
			}
		}
		return info, nil
	}
	info := in.p.describe(v.rec.Spec)
	info.Key, info.Status, info.Reason, info.Created = v.rec.key(), v.status, v.reason, v.rec.Created
	if info.Name == "" {
		info.Name = v.rec.Session
	}
	for _, r := range v.rec.Ports {
		info.Ports = append(info.Ports, r.port())
	}
	info.Mounts = in.mounts(ctx, &v)
	info.Guarantees = in.p.guarantees(&v, v.rec.Spec)
	if v.rec.Image != nil {
		v.rec.Image.tell(&info)
	} else if v.rec.MadeOn.Host != v.rec.Base.Host {
		info.BaseChanged = changed(v.rec.MadeOn, v.rec.Base)
	} else if now := fingerprint(in.p.kindFor(v.rec.IDs, v.rec.Spec.Account)); now.Host != v.rec.MadeOn.Host {
		info.BaseChanged = changed(v.rec.MadeOn, now)
	}
	switch v.status {
	case sandbox.StatusRunning:
		if d > glance {
			in.running(ctx, &v, &info, d == asked)
		}
	case sandbox.StatusStopped, sandbox.StatusArchived, sandbox.StatusError, sandbox.StatusDestroyed:
		info.Stopped, info.StopReason = in.stopped(&v), v.stopReason()
		if d := v.rec.Spec.autoDelete(); d >= 0 && !info.Stopped.IsZero() {
			info.Expires = info.Stopped.Add(d)
		}
		if v.crashed && info.Reason == "" {
			info.Reason = in.settle(&v).text()
		}
	}
	return info, nil
}

func changed(from, to baseName) string {
	if from.System != to.System {
		return "the host's system directories changed since this sandbox was made: " + from.System + " became " + to.System
	}
	return "the host's system directories changed since this sandbox was made (packages were installed or upgraded)"
}

// running adds what changes while it runs; all asks for what costs most.
func (in *Instance) running(ctx context.Context, v *view, info *sandbox.Info, all bool) {
	usage := sandbox.Usage{CPU: -1, Memory: -1, Processes: -1, Disk: -1}
	walked := make(chan int64, 1)
	if all {
		go func() { walked <- in.filesTake() }() // while the monitor is asked
	} else {
		walked <- -1
	}
	if c, err := in.p.engine.connect(ctx, in.dir()); err == nil {
		if u, err := c.Usage(ctx); err == nil {
			usage.CPU, usage.Memory, usage.Processes = time.Duration(u.CPUNS), u.Memory, u.Processes
			if u.Disk > 0 {
				usage.Disk = u.Disk
			}
			if idle := v.rec.Spec.autoStop(); idle > 0 && u.IdleSince > 0 {
				info.IdleDeadline = time.Unix(0, u.IdleSince).Add(idle)
			}
		}
		if all && v.mon.Ready.Network.State == string(sandbox.Enforced) {
			if n, err := c.Network(ctx, nil); err == nil {
				info.Refused = client.Refusals(n.Refused)
			}
		}
	}
	if n := <-walked; usage.Disk < 0 { // else its own file system has told
		usage.Disk = n
	}
	info.Usage = &usage
}

// filesTake adds up the bytes of the sandbox's files; -1 when that takes too long.
func (in *Instance) filesTake() int64 {
	if n, ok := tree.Usage(in.layers(), 200*time.Millisecond); ok {
		return n
	}
	return -1
}

// stopped tells since when a sandbox that does not run has not; zero when it
// never ran.
func (in *Instance) stopped(v *view) time.Time {
	switch {
	case v.rec.Archived != nil:
		return v.rec.Archived.Stopped
	case v.mon.Stopped != 0:
		return time.Unix(0, v.mon.Stopped).UTC()
	case v.rec.Lost != nil && v.rec.Lost.Monitor == v.mon.Started && v.mon.Version != 0:
		return v.rec.Lost.Noticed
	case v.mon.Version == 0:
		return v.rec.Created // its only start failed or was interrupted
	}
	return time.Now().UTC() // just found out; settle notes it
}

// stopReason is what the last monitor wrote when it ended in order.
func (v *view) stopReason() string {
	if v.alive || v.mon.Stopped == 0 {
		return ""
	}
	return v.mon.Reason
}

// ended is why a sandbox goes that is deleted when it stops.
func (v *view) ended() string {
	if why := v.stopReason(); why != "" {
		return "stopped: " + why
	}
	return "stopped"
}

func (l *lost) text() string {
	if l == nil {
		return ""
	}
	cause := "the sandbox's monitor was killed"
	if l.Rebooted {
		cause = "the machine was restarted"
	}
	text := cause + ": " + strconv.Itoa(l.Processes) + " processes were lost"
	switch l.Processes {
	case 0:
		text = cause + ": no process was running"
	case 1:
		text = cause + ": 1 process was lost"
	}
	if l.Unsynced {
		text += "; it went down before all files of a fork or snapshot were on the disk, so that those written shortly before may be missing or cut short"
	}
	return text
}

// settle notes, once, that a monitor died out of order: when that was noticed
// and what was lost. Deadlines count from then, since nobody knows better.
func (in *Instance) settle(v *view) *lost {
	if l := v.rec.Lost; l != nil && l.Monitor == v.mon.Started {
		return l
	}
	n := 0
	if list, err := in.p.engine.history(in.dir()); err == nil {
		for _, i := range list {
			if i.State != sandbox.ProcessExited && (i.Ended.IsZero() || i.Ended.UnixNano() >= v.mon.Started) && i.Started.UnixNano() >= v.mon.Started {
				n++
			}
		}
	}
	l := &lost{Monitor: v.mon.Started, Noticed: time.Now().UTC(), Processes: n, Rebooted: v.mon.Boot != bootID()}
	l.Unsynced = l.Rebooted && in.s.incomplete(in.id, v.rec)
	k, err := tryAcquire(in.s.lockPath(in.id), opOther)
	if err != nil {
		return l // whoever holds it notes the same
	}
	defer k.release(false)
	in.note(l)
	return l
}

// note writes l into the record; for holders of the lock.
func (in *Instance) note(l *lost) {
	rec, err := readRecord(in.dir())
	if err != nil || rec.Lost != nil && rec.Lost.Monitor == l.Monitor {
		return
	}
	rec.Lost = l
	if err := in.s.writeRecord(in.id, rec); err != nil {
		in.p.log.Warn("lost processes not noted", slog.String("sandbox", in.id), slog.Any("err", err))
	}
}

func bootID() string {
	id, err := journal.BootID()
	if err != nil {
		return ""
	}
	return id
}

// Spawn starts a process.
func (in *Instance) Spawn(ctx context.Context, c sandbox.Command) (sandbox.Process, error) {
	conn, err := in.p.engine.connect(ctx, in.dir())
	if err != nil {
		return nil, in.notRunning(err)
	}
	return conn.Spawn(ctx, c)
}

// Process finds a process of a running or stopped sandbox.
func (in *Instance) Process(ctx context.Context, id sandbox.ProcessID) (sandbox.Process, error) {
	conn, err := in.p.engine.connect(ctx, in.dir())
	if err == nil {
		var proc sandbox.Process
		if proc, err = conn.Process(ctx, id); err == nil || !errors.Is(err, sandbox.ErrNotRunning) {
			return proc, err
		}
	}
	if !errors.Is(err, sandbox.ErrNotRunning) {
		return nil, err
	}
	if in.gone() {
		return nil, fmt.Errorf("%s: %w", id, sandbox.ErrNoProcess)
	}
	return in.p.engine.historyProcess(in.dir(), id)
}

// Processes lists the processes of a running or stopped sandbox.
func (in *Instance) Processes(ctx context.Context) ([]sandbox.ProcessInfo, error) {
	conn, err := in.p.engine.connect(ctx, in.dir())
	if err == nil {
		var list []sandbox.ProcessInfo
		if list, err = conn.Processes(ctx); err == nil || !errors.Is(err, sandbox.ErrNotRunning) {
			return list, err
		}
	}
	if !errors.Is(err, sandbox.ErrNotRunning) {
		return nil, err
	}
	if in.gone() {
		return nil, nil
	}
	return in.p.engine.history(in.dir())
}

// ForgetProcess drops an ended process of a running sandbox.
func (in *Instance) ForgetProcess(ctx context.Context, id sandbox.ProcessID) error {
	conn, err := in.p.engine.connect(ctx, in.dir())
	if err != nil {
		return in.notRunning(err)
	}
	return conn.Forget(ctx, id)
}

// notRunning makes the difference between a stopped sandbox and none.
func (in *Instance) notRunning(err error) error {
	if errors.Is(err, sandbox.ErrNotRunning) {
		return fmt.Errorf("session %s: %w", in.key.Session, sandbox.ErrNotRunning)
	}
	return err
}

// Files reaches the files of a running sandbox.
func (in *Instance) Files() sandbox.Files { return files{in} }
