//go:build linux

package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/docker/cli/cli/config"
	dockertypes "github.com/docker/cli/cli/config/types"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"berth/internal/imagename"
)

// How long a registry is waited for.
const (
	dialTime  = 15 * time.Second
	headTime  = 60 * time.Second // until it begins to answer
	stallTime = 60 * time.Second // without stallBytes, or the end
	smallTime = 5 * time.Minute  // for a manifest or configuration, whole
	attempts  = 5                // in a row without a byte more
)

// stallBytes is how much a registry must send in stallTime.
const stallBytes = 16 << 10

// registry is an image in a registry, or in its mirrors.
type registry struct {
	s  *Store
	n  Name
	at []*endpoint
}

// endpoint is one place to ask.
type endpoint struct {
	repo name.Repository

	mu     sync.Mutex
	client *http.Client // nil until it was asked first
}

func (r *registry) stored() bool { return false }

// remote lists where n may be: the mirrors of its registry, then itself.
func (s *Store) remote(_ context.Context, n Name) (source, error) {
	r := &registry{s: s, n: n}
	repo := n.ref.Context()
	host := repo.RegistryStr()
	if host == imagename.HubHost {
		host = imagename.Hub
	}
	for _, text := range s.o.Mirrors[host] {
		m, err := parseMirror(text)
		if err != nil {
			return nil, err
		}
		var opts []name.Option
		if m.insecure {
			opts = append(opts, name.Insecure)
		}
		full := m.host + "/" + strings.TrimPrefix(m.prefix+"/"+repo.RepositoryStr(), "/")
		mr, err := name.NewRepository(full, opts...)
		if err != nil {
			return nil, err
		}
		r.at = append(r.at, &endpoint{repo: mr})
	}
	r.at = append(r.at, &endpoint{repo: repo})
	return r, nil
}

// each asks one place after the other until one answers; the error is the
// registry's own.
func (r *registry) each(ctx context.Context, f func(*endpoint) error) error {
	var err error
	for _, e := range r.at {
		if err = f(e); err == nil || ctx.Err() != nil {
			return err
		}
		if e != r.at[len(r.at)-1] {
			r.s.log.WarnContext(ctx, "mirror left out", slog.String("image", r.n.Full), slog.String("mirror", e.repo.RegistryStr()), slog.Any("err", err))
		}
	}
	return err
}

// connect asks the registry how it wants to be asked, once.
func (r *registry) connect(ctx context.Context, e *endpoint) (*http.Client, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.client != nil {
		return e.client, nil
	}
	auth, err := r.s.credentials(e.repo)
	if err != nil {
		return nil, err
	}
	// A mirror is the operator's own choice.
	private := e != r.at[len(r.at)-1] || r.n.Alias || r.s.o.Private != nil && r.s.o.Private(r.n)
	ctx, cancel := context.WithTimeout(ctx, smallTime)
	defer cancel()
	t, err := transport.NewWithContext(ctx, e.repo.Registry, auth, r.s.roundTripper(private), []string{e.repo.Scope(transport.PullScope)})
	if err != nil {
		return nil, err
	}
	e.client = &http.Client{Transport: t, CheckRedirect: func(_ *http.Request, via []*http.Request) error {
		if len(via) >= maxRedirects {
			return errRedirects
		}
		return nil
	}}
	return e.client, nil
}

const maxRedirects = 10

var errRedirects = fmt.Errorf("it answers with more than %d redirects", maxRedirects)

// get asks for a path of the repository, and again while the fault may pass.
func (r *registry) get(ctx context.Context, e *endpoint, what, accept, bytesFrom string) (*http.Response, error) {
	for try := 0; ; try++ {
		resp, err := r.once(ctx, e, what, accept, bytesFrom)
		if err == nil {
			return resp, nil
		}
		var te *transport.Error
		passing := !errors.As(err, &te) || te.StatusCode >= 500 || te.StatusCode == http.StatusRequestTimeout
		var private *privateError
		var dns *net.DNSError
		if !passing || try == 2 || ctx.Err() != nil || errors.As(err, &private) || errors.Is(err, errRedirects) || errors.As(err, &dns) || errors.Is(err, syscall.ECONNREFUSED) {
			return nil, r.explain(e, what, err)
		}
		t := time.NewTimer(time.Second << try)
		select {
		case <-ctx.Done():
			t.Stop()
			return nil, ctx.Err()
		case <-t.C:
		}
	}
}

func (r *registry) once(ctx context.Context, e *endpoint, what, accept, bytesFrom string) (*http.Response, error) {
	client, err := r.connect(ctx, e)
	if err != nil {
		return nil, err
	}
	u := url.URL{Scheme: e.repo.Scheme(), Host: e.repo.RegistryStr(), Path: "/v2/" + e.repo.RepositoryStr() + "/" + what}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, err
	}
	if accept != "" {
		req.Header.Set("Accept", accept)
	}
	if bytesFrom != "" {
		req.Header.Set("Range", bytesFrom)
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	if err := transport.CheckError(resp, http.StatusOK, http.StatusPartialContent, http.StatusRequestedRangeNotSatisfiable); err != nil {
		_ = resp.Body.Close()
		return nil, err
	}
	return resp, nil
}

// explain says what a registry's refusal means. Little is shown of what it
// answered.
func (r *registry) explain(e *endpoint, what string, err error) error {
	host := e.repo.RegistryStr()
	if host == imagename.HubHost {
		host = imagename.Hub
	}
	var te *transport.Error
	var private *privateError
	var dns *net.DNSError
	switch {
	case errors.Is(err, context.Canceled):
		return err
	case errors.As(err, &private):
		return fault("%s: %s is at the address %s, which is not public; the operator can allow it by naming this registry in limits.allowed_images", r.n.Full, host, private.addr)
	case errors.As(err, &dns):
		return fault("%s: there is no host %s, or this machine cannot look it up (%s)", r.n.Full, host, dns.Err)
	case errors.As(err, &te):
		code := ""
		if len(te.Errors) > 0 {
			code = ", " + string(te.Errors[0].Code)
		}
		switch te.StatusCode {
		case http.StatusNotFound:
			if strings.HasPrefix(what, "blobs/") {
				return fault("%s: %s lacks a part of the image; ask who keeps it", r.n.Full, host)
			}
			return fault("there is no image %s in %s, or it may not be seen without logging in; check the name and its tag", r.n.Full, host)
		case http.StatusUnauthorized, http.StatusForbidden:
			return fault("%s: %s refuses access (%d%.40s); check the name, or let the operator log in there (docker login %s, or podman login), as the user who runs berth", r.n.Full, host, te.StatusCode, code, host)
		case http.StatusTooManyRequests:
			return fault("%s: %s gives no more images to this address for now; wait, or let the operator log in there (docker login %s)", r.n.Full, host, host)
		}
		return fault("%s: %s answers %d%.40s; try again later", r.n.Full, host, te.StatusCode, code)
	}
	var ue *url.Error
	if errors.As(err, &ue) {
		err = ue.Err // without the address, which may hold a token
	}
	return fault("%s: %s cannot be reached: %.200s", r.n.Full, host, err)
}

var manifestTypes = strings.Join([]string{string(types.OCIImageIndex), string(types.DockerManifestList), string(types.OCIManifestSchema1), string(types.DockerManifestSchema2)}, ", ")

func (r *registry) root(ctx context.Context) (b []byte, kind types.MediaType, err error) {
	err = r.each(ctx, func(e *endpoint) error {
		b, kind, err = r.manifest(ctx, e, r.n.ref.Identifier())
		return err
	})
	return b, kind, err
}

func (r *registry) manifest(ctx context.Context, e *endpoint, id string) ([]byte, types.MediaType, error) {
	ctx, cancel := context.WithTimeout(ctx, smallTime)
	defer cancel()
	resp, err := r.get(ctx, e, "manifests/"+id, manifestTypes, "")
	if err != nil {
		return nil, "", err
	}
	b, err := readSmall(resp)
	if err != nil {
		return nil, "", r.explain(e, "manifests/", err)
	}
	if strings.HasPrefix(id, "sha256:") && digestOf(b) != id {
		return nil, "", fault("%s: %s sent something else than %s", r.n.Full, e.repo.RegistryStr(), id)
	}
	kind, _, _ := strings.Cut(resp.Header.Get("Content-Type"), ";")
	return b, mediaType(b, types.MediaType(kind)), nil
}

func readSmall(resp *http.Response) ([]byte, error) {
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxManifest+1))
	if err == nil && len(b) > maxManifest {
		err = fmt.Errorf("it sends more than %d bytes", maxManifest)
	}
	return b, err
}

func (r *registry) small(ctx context.Context, d v1.Descriptor) (b []byte, err error) {
	if !validDigest(d.Digest.String()) {
		return nil, fault("%s names a digest that is no SHA-256", r.n.Full)
	}
	err = r.each(ctx, func(e *endpoint) error {
		if d.MediaType.IsIndex() || d.MediaType.IsImage() {
			b, _, err = r.manifest(ctx, e, d.Digest.String())
			return err
		}
		ctx, cancel := context.WithTimeout(ctx, smallTime)
		defer cancel()
		resp, err := r.get(ctx, e, "blobs/"+d.Digest.String(), "", "")
		if err != nil {
			return err
		}
		if b, err = readSmall(resp); err != nil {
			return r.explain(e, "blobs/", err)
		}
		if digestOf(b) != d.Digest.String() {
			return fault("%s: %s sent something else than %s", r.n.Full, e.repo.RegistryStr(), d.Digest)
		}
		return nil
	})
	return b, err
}

func (r *registry) blob(ctx context.Context, l Layer, from int64) (body io.ReadCloser, at int64, err error) {
	err = r.each(ctx, func(e *endpoint) error {
		part := ""
		if from > 0 {
			part = fmt.Sprintf("bytes=%d-%d", from, l.Size-1)
		}
		resp, err := r.get(ctx, e, "blobs/"+l.Blob, "", part)
		if err != nil {
			return err
		}
		at = 0
		switch resp.StatusCode {
		case http.StatusPartialContent:
			begin, _, _ := strings.Cut(strings.TrimPrefix(resp.Header.Get("Content-Range"), "bytes "), "-")
			if n, perr := strconv.ParseInt(begin, 10, 64); perr == nil && n == from {
				at = from
				break
			}
			fallthrough
		case http.StatusRequestedRangeNotSatisfiable:
			_ = resp.Body.Close()
			if resp, err = r.get(ctx, e, "blobs/"+l.Blob, "", ""); err != nil {
				return err
			}
			if resp.StatusCode != http.StatusOK {
				_ = resp.Body.Close()
				return fault("%s: %s answers %d", r.n.Full, e.repo.RegistryStr(), resp.StatusCode)
			}
		}
		body = resp.Body
		return nil
	})
	return body, at, err
}

// privateError: an address that the caller may not have reached for it.
type privateError struct{ addr string }

func (e *privateError) Error() string { return "the address " + e.addr + " is not public" }

// Ranges beside those that net/netip knows to lead nowhere public.
var notPublic = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"), netip.MustParsePrefix("100.64.0.0/10"), netip.MustParsePrefix("192.0.0.0/24"), netip.MustParsePrefix("198.18.0.0/15"),
	netip.MustParsePrefix("240.0.0.0/4"), netip.MustParsePrefix("64:ff9b::/96"), netip.MustParsePrefix("64:ff9b:1::/48"), netip.MustParsePrefix("2002::/16"), netip.MustParsePrefix("2001::/32"),
	netip.MustParsePrefix("168.63.129.16/32"), // Azure's, for its machines alone
}

func public(a netip.Addr) bool {
	a = a.Unmap()
	if !a.IsGlobalUnicast() || a.IsPrivate() || a.IsLoopback() || a.IsLinkLocalUnicast() {
		return false
	}
	for _, p := range notPublic {
		if p.Contains(a) {
			return false
		}
	}
	return true
}

// roundTripper is made at the first pull. The guarded one refuses addresses
// that are not public, wherever a name, a redirect or a token server leads;
// only the machine's own proxy is trusted with that.
func (s *Store) roundTripper(private bool) http.RoundTripper {
	s.once.Do(func() {
		var proxies sync.Map
		proxy := func(r *http.Request) (*url.URL, error) {
			u, err := http.ProxyFromEnvironment(r)
			if u != nil {
				port := u.Port()
				if port == "" {
					port = map[string]string{"https": "443", "socks5": "1080", "socks5h": "1080"}[u.Scheme]
				}
				if port == "" {
					port = "80"
				}
				proxies.Store(net.JoinHostPort(u.Hostname(), port), true)
			}
			return u, err
		}
		plain := &net.Dialer{Timeout: dialTime}
		guard := &net.Dialer{Timeout: dialTime, Control: func(_, address string, _ syscall.RawConn) error {
			if a, err := netip.ParseAddrPort(address); err != nil || !public(a.Addr()) {
				return &privateError{address}
			}
			return nil
		}}
		build := func(dial func(context.Context, string, string) (net.Conn, error)) *http.Transport {
			return &http.Transport{Proxy: proxy, DialContext: dial, ForceAttemptHTTP2: true, MaxIdleConnsPerHost: 4, IdleConnTimeout: 30 * time.Second,
				TLSHandshakeTimeout: dialTime, ResponseHeaderTimeout: headTime}
		}
		s.transport = build(plain.DialContext)
		s.guarded = build(func(ctx context.Context, network, addr string) (net.Conn, error) {
			if _, ok := proxies.Load(addr); ok {
				return plain.DialContext(ctx, network, addr)
			}
			return guard.DialContext(ctx, network, addr)
		})
	})
	if private {
		return watching{s.transport, s.o.stall}
	}
	return watching{s.guarded, s.o.stall}
}

// credentials finds those for a repository: the most exact entry of the first
// file that has one.
func (s *Store) credentials(repo name.Repository) (authn.Authenticator, error) {
	var keys []string
	for full := repo.RegistryStr() + "/" + repo.RepositoryStr(); strings.Contains(full, "/"); full = full[:strings.LastIndexByte(full, '/')] {
		keys = append(keys, full)
	}
	keys = append(keys, repo.RegistryStr())
	if repo.RegistryStr() == imagename.HubHost {
		keys = append(keys, authn.DefaultAuthKey, imagename.Hub)
	}
	for _, file := range s.o.AuthFiles {
		f, err := os.Open(file)
		if err != nil {
			continue
		}
		cf, err := config.LoadFromReader(f)
		_ = f.Close()
		if err != nil {
			return nil, fault("the credentials file %s is damaged; it must be JSON as docker login writes it", file)
		}
		for _, key := range keys {
			c, err := cf.GetAuthConfig(key)
			if err != nil {
				// Its words may hold what it was to keep.
				return nil, fault("the credential helper that %s names for %s does not work; run docker login %s as the user who runs berth", file, key, repo.RegistryStr())
			}
			c.ServerAddress = ""
			if c != (dockertypes.AuthConfig{}) {
				return authn.FromConfig(authn.AuthConfig{Username: c.Username, Password: c.Password, Auth: c.Auth, IdentityToken: c.IdentityToken, RegistryToken: c.RegistryToken}), nil
			}
		}
	}
	return authn.Anonymous, nil
}
