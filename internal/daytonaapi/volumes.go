package daytonaapi

import (
	"context"
	"crypto/sha256"
	"encoding/base32"
	"errors"
	"net/http"
	"path"
	"regexp"
	"slices"
	"strings"
	"time"

	"berth/sandbox"
)

// volumeRecord is kept of each volume made here. The Manager makes the volume
// when a sandbox first has it.
type volumeRecord struct {
	Owner   sandbox.Owner `json:"owner"`
	Name    string        `json:"name"`
	Created time.Time     `json:"created"`
}

type volumeBody struct {
	ID             string  `json:"id"`
	Name           string  `json:"name"`
	OrganizationID string  `json:"organizationId"`
	State          string  `json:"state"`
	CreatedAt      string  `json:"createdAt"`
	UpdatedAt      string  `json:"updatedAt"`
	LastUsedAt     *string `json:"lastUsedAt"`
	ErrorReason    *string `json:"errorReason"`
}

// volume is one of an owner's, and what the Manager calls it.
type volume struct {
	volumeBody
	plain string
}

// volumeID is the id of an owner's volume.
func volumeID(owner sandbox.Owner, plain string) string {
	return derivedID("volume", string(owner), plain)
}

var plainVolume = lazily(`^[a-z0-9][a-z0-9-]{0,62}$`)

// plainName is what the Manager calls a volume of that name: the name itself
// where that can be.
func plainName(name string, fits *regexp.Regexp) string {
	if fits.MatchString(name) {
		return name
	}
	sum := sha256.Sum256([]byte(name))
	return "x-" + strings.ToLower(base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(sum[:20]))
}

// volumesOf are an owner's volumes: those made here, and those that sessions
// made by using them; the newest first.
func (s *Server) volumesOf(ctx context.Context, owner sandbox.Owner) ([]volume, error) {
	if !s.m.HasVolumes() {
		return nil, refuse(http.StatusServiceUnavailable, "volumes are not there on this server")
	}
	used, err := s.m.ListVolumes(ctx, owner)
	if err != nil {
		return nil, err
	}
	var list []volume
	add := func(name, plain string, created time.Time) {
		list = append(list, volume{volumeBody{ID: volumeID(owner, plain), Name: name, OrganizationID: organization(owner), State: "ready", CreatedAt: stamp(created), UpdatedAt: stamp(created)}, plain})
	}
	for _, r := range s.records.volumes.all(func(r volumeRecord) bool { return r.Owner == owner }) {
		add(r.Name, plainName(r.Name, plainVolume()), r.Created)
	}
	for _, v := range used {
		if !slices.ContainsFunc(list, func(x volume) bool { return x.plain == v.Name }) {
			add(v.Name, v.Name, v.Created)
		}
	}
	slices.SortFunc(list, func(a, b volume) int {
		return strings.Compare(b.CreatedAt+b.Name, a.CreatedAt+a.Name)
	})
	return list, nil
}

func (s *Server) listVolumes(c *call) (any, error) {
	list, err := s.volumesOf(c.ctx(), c.owner)
	bodies := []volumeBody{}
	for _, v := range list {
		bodies = append(bodies, v.volumeBody)
	}
	return bodies, err
}

// volume finds one by what is asked of it.
func (s *Server) volume(ctx context.Context, owner sandbox.Owner, is func(volume) bool) (volume, error) {
	list, err := s.volumesOf(ctx, owner)
	if err != nil {
		return volume{}, err
	}
	if i := slices.IndexFunc(list, is); i >= 0 {
		return list[i], nil
	}
	return volume{}, refuse(http.StatusNotFound, "Volume not found")
}

func (s *Server) getVolume(c *call) (any, error) {
	v, err := s.volume(c.ctx(), c.owner, func(v volume) bool { return v.ID == c.r.PathValue("v") })
	return v.volumeBody, err
}

func (s *Server) volumeByName(c *call) (any, error) {
	v, err := s.volume(c.ctx(), c.owner, func(v volume) bool { return v.Name == c.r.PathValue("name") })
	return v.volumeBody, err
}

// maxVolumes bounds an owner's volumes.
const maxVolumes = 100

func (s *Server) createVolume(c *call) (any, error) {
	var body struct {
		Name string `json:"name"`
	}
	if err := c.decode(&body); err != nil {
		return nil, err
	}
	if body.Name == "" || len(body.Name) > 255 {
		return nil, refuse(http.StatusBadRequest, "name must be a text of 1 to 255 bytes")
	}
	if err := checkName("name", body.Name); err != nil {
		return nil, err
	}
	s.making.Lock() // so that of two with one name one is refused
	defer s.making.Unlock()
	list, err := s.volumesOf(c.ctx(), c.owner)
	if err != nil {
		return nil, err
	}
	plain := plainName(body.Name, plainVolume())
	switch {
	case slices.ContainsFunc(list, func(v volume) bool { return v.plain == plain }):
		return nil, refuse(http.StatusBadRequest, "Volume with name %s already exists", body.Name)
	case len(list) >= maxVolumes:
		return nil, refuse(http.StatusBadRequest, "Volume quota exceeded: there are %d; delete one first", len(list))
	}
	if err := s.records.volumes.put(volumeID(c.owner, plain), volumeRecord{Owner: c.owner, Name: body.Name, Created: time.Now().UTC()}); err != nil {
		return nil, err
	}
	v, err := s.volume(c.ctx(), c.owner, func(v volume) bool { return v.plain == plain })
	return v.volumeBody, err
}

func (s *Server) deleteVolume(c *call) (any, error) {
	v, err := s.volume(c.ctx(), c.owner, func(v volume) bool { return v.ID == c.r.PathValue("v") })
	if err != nil {
		return nil, err
	}
	s.making.Lock()
	defer s.making.Unlock()
	err = s.m.DeleteVolume(c.ctx(), c.owner, v.plain)
	switch {
	case errors.Is(err, sandbox.ErrLimit):
		why, _, _ := strings.Cut(err.Error(), "; ") // what follows names tools
		return nil, refuse(http.StatusConflict, "Volume is in use by a sandbox: %s; delete that first, or when it is being deleted already, try again in a moment", why)
	case err != nil && !errors.Is(err, sandbox.ErrNotFound): // never used
		return nil, err
	}
	return nil, s.records.volumes.drop(v.ID)
}

// notOverSystem are places that nothing is mounted in.
var notOverSystem = []string{"/proc", "/sys", "/dev", "/boot", "/etc", "/bin", "/sbin", "/lib", "/lib64"}

// mounts are a request's volumes, as the domain has them; their ids may be names.
func (s *Server) mounts(ctx context.Context, owner sandbox.Owner, list []volumeMount) ([]sandbox.VolumeMount, error) {
	var out []sandbox.VolumeMount
	for _, m := range list {
		v, err := s.volume(ctx, owner, func(v volume) bool { return v.ID == m.VolumeID || v.Name == m.VolumeID })
		if status, _, _ := told(err); err != nil && status == http.StatusNotFound {
			return nil, refuse(http.StatusNotFound, "Volume with ID or name %.80s not found", m.VolumeID)
		}
		if err != nil {
			return nil, err
		}
		at, sub := m.MountPath, m.Subpath
		bad := func(field, text string) error {
			return &sandbox.FieldError{Field: field, Problem: text}
		}
		switch {
		case !strings.HasPrefix(at, "/") || path.Clean(at) == "/" || path.Clean(at) != strings.TrimSuffix(at, "/"):
			return nil, bad("volumes.mountPath", "it must be an absolute path, not /, without '.', '..' and '//'")
		case slices.ContainsFunc(notOverSystem, func(p string) bool { return at == p || strings.HasPrefix(at, p+"/") }):
			return nil, bad("volumes.mountPath", at+" belongs to the system")
		case strings.HasPrefix(sub, "/") || strings.Contains(sub, "//") || slices.Contains(strings.Split(sub, "/"), ".."):
			return nil, bad("volumes.subpath", "it must be a relative path without '..' and '//'")
		}
		out = append(out, sandbox.VolumeMount{Volume: v.plain, Path: path.Clean(at), Subpath: strings.TrimSuffix(sub, "/")})
	}
	return out, nil
}
