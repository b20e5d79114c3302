//go:build linux

package local

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"berth/sandbox"
	"berth/sandbox/local/image"
	"berth/sandbox/local/tree"
	"berth/sandbox/local/wire"
)

// ImageOptions say where images come from. The zero value works.
type ImageOptions struct {
	// Aliases, Mirrors, Platform, AuthFiles: see image.Options.
	Aliases   map[string]string
	Mirrors   map[string][]string
	Platform  string
	AuthFiles []string
	// Private are patterns of images (see sandbox.Imager) whose registry may be
	// at an address that is not public.
	Private []string
	// MaxBytes bounds what one layer unpacks to; 0: image.DefaultMaxBytes.
	MaxBytes int64
	// KeepUnused is how long an image is kept that no sandbox stands on, since
	// one was made of it last; 0: for ever.
	KeepUnused time.Duration
}

// imageRecord is what a sandbox's record says of its image.
type imageRecord struct {
	image.Image
	// Account runs commands, Root is sudo's.
	Account image.Account `json:"account"`
	Root    image.Account `json:"root"`
	// Runtimes are the interpreters that the image has, by language.
	Runtimes map[string]string `json:"runtimes,omitempty"`
}

func (o ImageOptions) store(dir string, log *slog.Logger) (*image.Store, error) {
	return image.New(image.Options{Dir: dir, Logger: log, Aliases: o.Aliases, Mirrors: o.Mirrors, Platform: o.Platform, AuthFiles: o.AuthFiles,
		MaxBytes: o.MaxBytes, Private: func(n image.Name) bool { return n.Match(o.Private) }})
}

// imageStore is the one in the state directory.
func (p *Provider) imageStore(s *store) (*image.Store, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ended {
		return nil, sandbox.ErrClosed
	}
	dir := s.path("images")
	if p.images != nil && p.imagesDir == dir {
		return p.images, nil
	}
	is, err := p.opts.Images.store(dir, p.log)
	if err != nil {
		return nil, err
	}
	p.images, p.imagesDir = is, dir
	return is, nil
}

// CheckImage tells whether name may be named: see sandbox.Imager.
func (p *Provider) CheckImage(name string, allowed []string) error {
	n, err := p.names.Parse(name)
	if err != nil || allowed == nil || n.Alias || n.Match(allowed) {
		return err
	}
	hint := "name one of those, or ask the operator, whose setting limits.allowed_images is"
	if n.File {
		return &sandbox.FieldError{Field: "image", Problem: "files of this machine are the operator's alone", Allowed: "images of a registry", Hint: "or ask the operator to allow this one in limits.allowed_images"}
	}
	list := "none"
	if len(allowed) > 0 {
		list = strings.Join(allowed, ", ")
	}
	return &sandbox.FieldError{Field: "image", Problem: fmt.Sprintf("%.200s is not among the images that are allowed here", n.Full), Allowed: list, Hint: hint}
}

// layerForm is how layers lie on disk for sandboxes with these ids.
func layerForm(ids wire.IDs) image.Form {
	f := image.Form{As: treeAs(ids), Count: rangeSize, UserXattr: ids.Mode != wire.IDsRange}
	switch ids.Mode {
	case wire.IDsSub:
		f.Count = int(ids.Count)
		f.Name = fmt.Sprintf("sub-%d-%d-%d", ids.SubUID, ids.SubGID, ids.Count)
	case wire.IDsSingle:
		f.Name = "single-" + strconv.Itoa(os.Geteuid())
	default:
		f.Name = "range"
		if shift := layerShift(ids); shift != 0 {
			f.Name += "-" + strconv.Itoa(shift)
		}
	}
	return f
}

// formNow is the form of sandboxes that are made now.
func (p *Provider) formNow(s *store) image.Form {
	return layerForm(p.idsNow(s))
}

func report(ctx context.Context) func(image.Progress) {
	return func(p image.Progress) {
		sandbox.Report(ctx, sandbox.Progress{Text: p.String(), Done: p.Bytes, Total: p.Total})
	}
}

// pullImage makes sure that the image of a new sandbox is there, and says what
// its record says of it. The caller releases the pin when the record exists.
func (p *Provider) pullImage(ctx context.Context, s *store, spec sandbox.Spec) (*imageRecord, *image.Pin, error) {
	is, err := p.imageStore(s)
	if err != nil {
		return nil, nil, err
	}
	n, err := is.Parse(spec.Image)
	if err != nil {
		return nil, nil, err
	}
	form := p.formNow(s)
	im, pin, err := is.Pull(ctx, n, form, false, report(ctx))
	if err != nil {
		return nil, nil, err
	}
	r, err := recordOf(is, im, form, spec)
	if err != nil {
		pin.Release()
		return nil, nil, err
	}
	return r, pin, nil
}

func recordOf(is *image.Store, im *image.Image, form image.Form, spec sandbox.Spec) (*imageRecord, error) {
	dirs, err := is.Lower(im, form)
	if err != nil {
		return nil, err
	}
	return describeImage(image.View{Dirs: dirs}, im, form, spec.User)
}

// describeImage says what sandboxes of im, whose files v shows, run commands
// with; asked is who is to run them, if not the one that im names.
func describeImage(v image.View, im *image.Image, form image.Form, asked string) (*imageRecord, error) {
	r := &imageRecord{Image: *im, Runtimes: map[string]string{}}
	field, user := "image", im.User
	if asked != "" {
		field, user = "user", asked
	}
	ok := false
	if r.Account, ok = v.Account(user); !ok {
		return nil, &sandbox.FieldError{Field: field, Problem: fmt.Sprintf("%s has no user %.80q", im.Name, user), Allowed: "a user of its /etc/passwd, or a number", Hint: "pass user, such as root"}
	}
	if int(r.Account.UID) >= form.Count || int(r.Account.GID) >= form.Count {
		return nil, &sandbox.FieldError{Field: field, Problem: fmt.Sprintf("user %.80q has the id %d:%d, and sandboxes have only %d here", user, r.Account.UID, r.Account.GID, form.Count), Hint: "pass user, such as root"}
	}
	r.Root, _ = v.Account("0")
	for lang, names := range map[sandbox.Language][]string{
		sandbox.Python: {"python3", "python"}, sandbox.JavaScript: {"node", "nodejs"}, sandbox.Bash: {"bash"},
	} {
		if p := findProgram(v, pathOf(im), names); p != "" {
			r.Runtimes[string(lang)] = p
		}
	}
	if node := r.Runtimes[string(sandbox.JavaScript)]; node != "" {
		r.Runtimes[string(sandbox.TypeScript)] = node
	}
	return r, nil
}

func pathOf(im *image.Image) string {
	for _, e := range im.Env {
		if p, ok := strings.CutPrefix(e, "PATH="); ok && p != "" {
			return p
		}
	}
	return searchPath
}

func findProgram(v image.View, list string, names []string) string {
	for _, n := range names {
		for dir := range strings.SplitSeq(list, ":") {
			if p := path.Join(dir, n); path.IsAbs(p) && v.Program(p) {
				return p
			}
		}
	}
	return ""
}

// imageLayers makes sure that the layers of r's image are there, with ours on
// top of them, and returns them, the topmost first.
func (p *Provider) imageLayers(ctx context.Context, s *store, r *record) ([]string, error) {
	is, err := p.imageStore(s)
	if err != nil {
		return nil, err
	}
	form := layerForm(r.IDs)
	if !is.Ready(&r.Image.Image, form) {
		// Somebody removed them, or the machine lost its power.
		pin, err := is.Again(ctx, &r.Image.Image, form, report(ctx))
		if err != nil {
			return nil, err
		}
		defer pin.Release()
	}
	dirs, err := is.Lower(&r.Image.Image, form)
	if err != nil {
		return nil, err
	}
	b, err := s.imageTop(ctx, r, image.View{Dirs: dirs}, p.opts.step)
	if err != nil {
		return nil, fmt.Errorf("layer over the image: %w", err)
	}
	r.Base = b.name
	if r.MadeOn.Fingerprint == "" {
		r.MadeOn = b.name
	}
	return append([]string{b.layer("/")}, dirs...), nil
}

// topFormat changes whenever the layer over images would be built differently.
const topFormat = "1"

// imageTop is our layer over an image: what a sandbox has and the image may
// not. It is shared and swept like the layers of the default root.
func (s *store) imageTop(ctx context.Context, r *record, v image.View, step func(string) error) (base, error) {
	h := sha256.New()
	a := r.Image.Account
	fmt.Fprintln(h, topFormat, r.Image.Digest, layerForm(r.IDs).Name, a.UID, a.GID, a.Home, r.Image.WorkDir)
	name := "image-" + hex.EncodeToString(h.Sum(nil)[:12])
	b := base{name: baseName{Fingerprint: name}, dir: s.path("base", name)}
	if s.use(b) {
		return b, nil
	}
	l, err := acquire(ctx, s.baseLock(name), opCreating)
	if err != nil {
		return b, err
	}
	defer l.release(true)
	if s.use(b) {
		return b, nil
	}
	as := layersAs(r.IDs)
	return b, s.makeLayers(ctx, b, as, step, func(b base) error { return b.buildTop(ctx, r, v, as) })
}

func (b base) buildTop(ctx context.Context, r *record, v image.View, as tree.As) error {
	root := b.layer("/")
	if err := os.MkdirAll(filepath.Dir(root), 0o700); err != nil {
		return err
	}
	for _, d := range []string{"", "etc"} {
		if err := mkdir(filepath.Join(root, d), 0o755); err != nil {
			return err
		}
	}
	for name, text := range netFiles() {
		if err := os.WriteFile(filepath.Join(root, "etc", name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	if v.Dir("/etc/apt/apt.conf.d") && v.Plain("/etc/apt/apt.conf.d") {
		if err := os.MkdirAll(filepath.Join(root, "etc/apt/apt.conf.d"), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(root, "etc/apt/apt.conf.d/99berth"), []byte(aptConf(r.IDs.Mode == wire.IDsSingle)), 0o644); err != nil {
			return err
		}
	}
	if err := openUp(root); err != nil {
		return err
	}
	// What belongs to the user.
	var own []string
	for _, d := range []string{workspace, r.Image.Account.Home, r.Image.WorkDir} {
		if d == "" || d == "/" || d != workspace && v.Dir(d) || !v.Plain(d) {
			continue
		}
		at := root
		for part := range strings.SplitSeq(strings.Trim(d, "/"), "/") {
			at = filepath.Join(at, part)
			if _, err := os.Lstat(at); err == nil {
				continue
			}
			if err := mkdir(at, 0o755); err != nil {
				return err
			}
		}
		if !slices.Contains(own, at) {
			own = append(own, at)
		}
	}
	shift := layerShift(r.IDs)
	if shift != 0 {
		err := filepath.WalkDir(b.dir, func(p string, _ fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			return os.Lchown(p, shift, shift)
		})
		if err != nil {
			return err
		}
	}
	a := r.Image.Account
	if r.IDs.Mode == wire.IDsSingle || a.UID == 0 && a.GID == 0 {
		return nil
	}
	// The innermost first: what is given away cannot be entered.
	slices.Reverse(own)
	return as.Chown(ctx, shift+int(a.UID), shift+int(a.GID), own...)
}

// imageEnv is the environment that commands of an image sandbox begin with.
func imageEnv(im *image.Image) map[string]string {
	env := baseEnv(homeOf(sandbox.DefaultAccount))
	env["PATH"] = searchPath
	for _, e := range im.Env {
		if k, v, ok := strings.Cut(e, "="); ok && k != "" {
			env[k] = v
		}
	}
	if env["PATH"] == "" {
		env["PATH"] = searchPath
	}
	return env
}

func (r *imageRecord) users() []wire.User {
	list := []wire.User{{Name: r.Account.Name, UID: r.Account.UID, GID: r.Account.GID, Groups: r.Account.Groups, Home: r.Account.Home, Shell: r.Account.Shell}}
	if r.Account.UID != 0 || r.Account.Name != "root" {
		list = append(list, wire.User{Name: "root", UID: 0, GID: r.Root.GID, Home: r.Root.Home, Shell: r.Root.Shell})
	}
	return list
}

// tell adds to info what the image makes of a sandbox.
func (r *imageRecord) tell(info *sandbox.Info) {
	info.Image = &sandbox.ImageUse{Name: r.Name, Digest: r.Digest, Platform: r.Platform}
	info.User, info.Home, info.Runtimes = r.Account.Name, r.Account.Home, map[sandbox.Language]string{}
	for l, p := range r.Runtimes {
		info.Runtimes[sandbox.Language(l)] = p
	}
}
