package daytona

import (
	"bytes"
	"compress/flate"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base32"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"berth/sandbox"
	"berth/sandbox/daytona/api"
)

// Labels of ours. All other labels of a sandbox are the user's, but for the one
// in which the platform's SDKs keep the language.
const (
	labelPrefix  = "berth/"
	labelForm    = labelPrefix + "form" // of these labels: "1"
	labelOwner   = labelPrefix + "owner"
	labelSession = labelPrefix + "session"
	labelMade    = labelPrefix + "made" // by which attempt to create it
	labelSpace   = labelPrefix + "space"
	labelSpec    = labelPrefix + "spec"   // and ".1", ".2" …: what it does not fit
	labelEnv     = labelPrefix + "env"    // likewise, sealed
	labelMounts  = labelPrefix + "mounts" // likewise: what mount_bucket added
	languageKey  = "code-toolbox-language"

	form = "1"
	// A label holds so many bytes, and a text so many labels: servers bound both.
	labelMost = 240
	partsMost = 24
)

// record is what of a spec the platform does not hold, or holds otherwise.
type record struct {
	Name     string         `json:"name,omitempty"`
	Image    string         `json:"image,omitempty"`
	Snapshot string         `json:"snapshot,omitempty"` // as its owner calls it
	User     string         `json:"user,omitempty"`
	Cwd      string         `json:"cwd,omitempty"`
	Timeout  *int64         `json:"timeout_s,omitempty"`
	Network  *networkRecord `json:"network,omitempty"`
	Volumes  []volumeRecord `json:"volumes,omitempty"`
	Mounts   []mountRecord  `json:"mounts,omitempty"`
	// What was asked for, in cores and bytes.
	CPU    float64 `json:"cpu,omitempty"`
	Memory int64   `json:"memory,omitempty"`
	Disk   int64   `json:"disk,omitempty"`
}

type networkRecord struct {
	Block   bool     `json:"block,omitempty"`
	CIDRs   []string `json:"cidrs,omitempty"`
	Domains []string `json:"domains,omitempty"`
	// Late: it was changed while the sandbox did not run, and is to be told to
	// the platform at the next start.
	Late bool `json:"late,omitempty"`
	// Asked is NetworkPolicy.Asked.
	Asked *networkRecord `json:"asked,omitempty"`
}

type volumeRecord struct {
	Volume  string `json:"volume"`
	Path    string `json:"path"`
	Subpath string `json:"subpath,omitempty"`
}

// nameOf is the name at the platform of the key's sandbox: there is one sandbox
// of a name. It begins like the session's id, for people.
func (p *Provider) nameOf(key sandbox.Key) string {
	sum := sha256.Sum256([]byte(p.o.space + "\x00" + string(key.Owner) + "\x00" + string(key.Session)))
	code := strings.ToLower(base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(sum[:10]))
	head := string(key.Session)
	if len(head) > 40 {
		head = head[:40]
	}
	return "berth-" + strings.Trim(head, "._-") + "-" + code
}

// ownerOf reads whose sandbox it is; empty when it is none of berth's.
func ownerOf(sb *api.Sandbox) (sandbox.Owner, sandbox.SessionID) {
	session, err := sandbox.ParseSessionID(sb.Labels[labelSession])
	if err != nil {
		return "", ""
	}
	return sandbox.Owner(sb.Labels[labelOwner]), session
}

// recordOf is what of spec is kept in labels.
func recordOf(spec sandbox.Spec) record {
	r := record{Name: spec.Name, Image: spec.Image, Snapshot: spec.Snapshot, Cwd: spec.WorkingDirectory,
		CPU: spec.Resources.CPU, Memory: spec.Resources.Memory, Disk: spec.Resources.Disk}
	if spec.User != placeholderUser {
		r.User = spec.User
	}
	if spec.Timeout != nil {
		r.Timeout = new(int64(*spec.Timeout / time.Second))
	}
	if n := spec.Network; n != nil && n.Limited() {
		r.Network = networkRecordOf(*n)
	}
	for _, v := range spec.Volumes {
		r.Volumes = append(r.Volumes, volumeRecord{v.Volume, v.Path, v.Subpath})
	}
	r.Mounts = fromMounts(spec.Mounts)
	return r
}

func networkRecordOf(n sandbox.NetworkPolicy) *networkRecord {
	r := &networkRecord{Block: n.BlockAll, Domains: n.AllowDomains}
	for _, c := range n.AllowCIDRs {
		r.CIDRs = append(r.CIDRs, c.String())
	}
	if n.Asked != nil {
		r.Asked = networkRecordOf(*n.Asked)
	}
	return r
}

func (r *networkRecord) policy() sandbox.NetworkPolicy {
	if r == nil {
		return sandbox.NetworkPolicy{}
	}
	p := sandbox.NetworkPolicy{BlockAll: r.Block, AllowDomains: r.Domains}
	for _, c := range r.CIDRs {
		if prefix, err := netip.ParsePrefix(c); err == nil {
			p.AllowCIDRs = append(p.AllowCIDRs, prefix)
		}
	}
	if r.Asked != nil {
		p.Asked = new(r.Asked.policy())
	}
	return p
}

// labels are all of a sandbox's, of the user's in spec and of ours. made is the
// label of that name.
func (p *Provider) labels(key sandbox.Key, spec sandbox.Spec, made string, late bool) (map[string]string, error) {
	out := map[string]string{}
	for k, v := range spec.Labels {
		if strings.HasPrefix(k, labelPrefix) || k == languageKey {
			return nil, &sandbox.FieldError{Field: "labels", Problem: fmt.Sprintf("%q is a label of berth's own", k), Allowed: "keys that do not begin with " + labelPrefix}
		}
		out[k] = v
	}
	out[labelForm], out[labelOwner], out[labelSession] = form, string(key.Owner), string(key.Session)
	if made != "" {
		out[labelMade] = made
	}
	if p.o.space != "" {
		out[labelSpace] = p.o.space
	}
	if spec.Language != "" {
		out[languageKey] = string(spec.Language)
	}
	r := recordOf(spec)
	if late && r.Network == nil {
		r.Network = &networkRecord{}
	}
	if late {
		r.Network.Late = true
	}
	b, err := json.Marshal(r)
	if err != nil {
		return nil, err
	}
	if !put(out, labelSpec, ascii(b)) {
		return nil, &sandbox.FieldError{Field: "working_directory", Problem: "the session's settings are longer than what can be kept with a sandbox at Daytona",
			Allowed: fmt.Sprintf("%d bytes in all", labelMost*partsMost), Hint: "use shorter paths, and fewer network ranges"}
	}
	if len(spec.Env) == 0 {
		return out, nil
	}
	sealed, err := p.seal(key, spec.Env)
	if err != nil {
		return nil, err
	}
	if !put(out, labelEnv, sealed) {
		return nil, &sandbox.FieldError{Field: "env", Problem: fmt.Sprintf("it has %d bytes as it is kept with a sandbox at Daytona", len(sealed)),
			Allowed: fmt.Sprintf("%d bytes, compressed and sealed", labelMost*partsMost), Hint: "put long data in a file with write_file"}
	}
	return out, nil
}

// put writes a text of ASCII into as many labels as it takes.
func put(labels map[string]string, name, text string) bool {
	for i := 0; text != "" || i == 0; i++ {
		if i == partsMost {
			return false
		}
		n := min(len(text), labelMost)
		labels[part(name, i)] = text[:n]
		text = text[n:]
	}
	return true
}

func part(name string, i int) string {
	if i == 0 {
		return name
	}
	return name + "." + strconv.Itoa(i)
}

// take reads what put wrote; "" when there is nothing.
func take(labels map[string]string, name string) string {
	var b strings.Builder
	for i := range partsMost {
		text, ok := labels[part(name, i)]
		if !ok {
			break
		}
		b.WriteString(text)
	}
	return b.String()
}

// ascii writes JSON without any byte that a label might not hold.
func ascii(b []byte) string {
	var out strings.Builder
	for _, r := range string(b) {
		switch {
		case r < 0x7f:
			out.WriteRune(r)
		case r > 0xffff:
			r -= 0x10000
			fmt.Fprintf(&out, `\u%04x\u%04x`, 0xd800+(r>>10), 0xdc00+(r&0x3ff))
		default:
			fmt.Fprintf(&out, `\u%04x`, r)
		}
	}
	return out.String()
}

// readRecord is what the labels keep; of a sandbox that was adopted, or whose
// labels somebody damaged, nothing.
func readRecord(sb *api.Sandbox) (r record, kept bool) {
	text := take(sb.Labels, labelSpec)
	if text == "" || json.Unmarshal([]byte(text), &r) != nil {
		return record{}, false
	}
	return r, true
}

// userLabels are the labels that are the user's.
func userLabels(all map[string]string) map[string]string {
	out := maps.Clone(all)
	maps.DeleteFunc(out, func(k, _ string) bool { return strings.HasPrefix(k, labelPrefix) || k == languageKey })
	if len(out) == 0 {
		return nil
	}
	return out
}

// Environment variables may be secrets. Labels are seen by all members of an
// organization and in the dashboard, so these are sealed: whoever has the API
// key, or what the operator sets in its place, can read them.

func (p *Provider) aead() (cipher.AEAD, error) {
	from := p.o.Seal
	if from.IsZero() {
		from = p.o.Key
	}
	if from.IsZero() {
		return nil, &sandbox.FieldError{Field: "env", Problem: "variables of a session are kept sealed, and with a JWT there is nothing to seal them with",
			Hint: "use an API key, or have the operator set daytona.seal"}
	}
	key, err := hkdf.Key(sha256.New, []byte(from.Reveal()), nil, "berth environment 1", 32)
	if err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

// context binds a seal to its sandbox.
func sealContext(key sandbox.Key) []byte {
	return []byte(string(key.Owner) + "\x00" + string(key.Session))
}

func (p *Provider) seal(key sandbox.Key, env map[string]string) (string, error) {
	a, err := p.aead()
	if err != nil {
		return "", err
	}
	plain, err := json.Marshal(env)
	if err != nil {
		return "", err
	}
	var packed bytes.Buffer
	w, err := flate.NewWriter(&packed, flate.BestCompression)
	if err != nil {
		return "", err
	}
	if _, err := w.Write(plain); err != nil {
		return "", err
	}
	if err := w.Close(); err != nil {
		return "", err
	}
	nonce := make([]byte, a.NonceSize())
	_, _ = rand.Read(nonce) // never fails, see crypto/rand
	return base64.RawStdEncoding.EncodeToString(a.Seal(nonce, nonce, packed.Bytes(), sealContext(key))), nil
}

var errSealed = errors.New("the session's environment variables were sealed with another key and cannot be read: commands run without them; give env again with start_sandbox")

// unseal reads the variables of the key's sandbox; errSealed when it cannot.
func (p *Provider) unseal(key sandbox.Key, labels map[string]string) (map[string]string, error) {
	text := take(labels, labelEnv)
	if text == "" {
		return nil, nil
	}
	a, err := p.aead()
	if err != nil {
		return nil, errSealed
	}
	b, err := base64.RawStdEncoding.DecodeString(text)
	if err != nil || len(b) < a.NonceSize() {
		return nil, errSealed
	}
	packed, err := a.Open(nil, b[:a.NonceSize()], b[a.NonceSize():], sealContext(key))
	if err != nil {
		return nil, errSealed
	}
	plain, err := io.ReadAll(io.LimitReader(flate.NewReader(bytes.NewReader(packed)), 4*sandbox.MaxEnv))
	if err != nil {
		return nil, errSealed
	}
	var env map[string]string
	if err := json.Unmarshal(plain, &env); err != nil {
		return nil, errSealed
	}
	return env, nil
}
