package daytona

import (
	"crypto/sha256"
	"encoding/base32"
	"regexp"
	"strings"

	"berth/sandbox"
)

// Names of snapshots and volumes belong to an owner; at the platform they belong
// to the account. The local owner, who works with the account as its own, has
// them as they are. Those of another owner, a tenant of the operator's, are kept
// apart by a prefix of theirs.

var tenant = regexp.MustCompile(`^b-[a-z2-7]{8}-`)

func (p *Provider) prefixOf(owner sandbox.Owner) string {
	if owner == sandbox.LocalOwner && p.o.space == "" {
		return ""
	}
	sum := sha256.Sum256([]byte(p.o.space + string(owner)))
	return "b-" + strings.ToLower(base32.StdEncoding.EncodeToString(sum[:5])) + "-"
}

// ownName is what owner calls a name of the platform's. mine tells that it is the
// owner's own, seen that the owner may use it: what the account itself has,
// everybody may.
func (p *Provider) ownName(owner sandbox.Owner, name string) (own string, mine, seen bool) {
	prefix := p.prefixOf(owner)
	switch {
	case prefix != "" && strings.HasPrefix(name, prefix):
		return name[len(prefix):], true, true
	case tenant.MatchString(name):
		return "", false, false
	}
	return name, prefix == "", true
}
