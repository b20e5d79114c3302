package mounts

import (
	"encoding/base64"
	"encoding/json"
	"path"
	"strings"

	"berth/internal/secret"
)

// Connection is access to a bucket service: the operator's, under a name, or
// one that came with a call. Its yaml tags are keys of the config file.
type Connection struct {
	Kind Kind `yaml:"kind"`
	// Bucket, Prefix and ReadOnly hold for mounts that say nothing else.
	// ReadOnly holds for all.
	Bucket   string `yaml:"bucket"`
	Prefix   string `yaml:"prefix"`
	ReadOnly bool   `yaml:"read_only"`
	// Endpoint is the URL of a service other than the kind's own.
	Endpoint string `yaml:"endpoint"`
	// Region of S3; "auto" where there is none.
	Region string `yaml:"region"`
	// Anonymous asks without a signature.
	Anonymous bool `yaml:"anonymous"`
	// Ambient takes the identity of this machine.
	Ambient bool `yaml:"ambient"`

	AccessKeyID     secret.Text `yaml:"access_key_id"`
	SecretAccessKey secret.Text `yaml:"secret_access_key"`
	SessionToken    secret.Text `yaml:"session_token"`
	// ServiceAccountKey is JSON text.
	ServiceAccountKey secret.Text `yaml:"service_account_key"`

	Account          string      `yaml:"account"`
	AccountKey       secret.Text `yaml:"account_key"`
	SASToken         secret.Text `yaml:"sas_token"`
	ConnectionString secret.Text `yaml:"connection_string"`
}

// Check returns the connection with its texts in their one form, or all that is
// wrong with it: an error that joins *Problems.
func (c Connection) Check() (Connection, error) {
	var l problems
	c.Endpoint = l.endpoint(c.Endpoint)
	switch c.Kind {
	case S3, GCS, Azure:
	case "":
		l.add("kind", "it is missing", "s3, gcs, azure", "R2, MinIO and others that speak S3 are s3 with an endpoint")
		return c, l.err()
	default:
		l.add("kind", shown(string(c.Kind))+" is not known", "s3, gcs, azure", "R2, MinIO and others that speak S3 are s3 with an endpoint")
		return c, l.err()
	}
	if c.Bucket != "" {
		l.bucket(c.Kind, c.Bucket)
	}
	if c.Prefix != "" {
		if c.Bucket == "" {
			l.add("prefix", "there is no bucket that it belongs to", "", "name the bucket too")
		}
		c.Prefix = l.prefix(c.Prefix)
	}
	c.foreign(&l)
	if c.Anonymous && c.Ambient {
		l.add("anonymous", "ambient is set too", "one of them", "")
	}
	switch c.Kind {
	case S3:
		c.checkS3(&l)
	case GCS:
		c.checkGCS(&l)
	case Azure:
		c.checkAzure(&l)
	}
	return c, l.err()
}

// foreign names what belongs to another kind.
func (c *Connection) foreign(l *problems) {
	for _, f := range []struct {
		name string
		kind Kind
		set  bool
	}{
		{"region", S3, c.Region != ""}, {"access_key_id", S3, !c.AccessKeyID.IsZero()}, {"secret_access_key", S3, !c.SecretAccessKey.IsZero()},
		{"session_token", S3, !c.SessionToken.IsZero()}, {"service_account_key", GCS, !c.ServiceAccountKey.IsZero()},
		{"account", Azure, c.Account != ""}, {"account_key", Azure, !c.AccountKey.IsZero()}, {"sas_token", Azure, !c.SASToken.IsZero()},
		{"connection_string", Azure, !c.ConnectionString.IsZero()},
	} {
		if f.set && f.kind != c.Kind {
			l.add(f.name, "it belongs to "+string(f.kind)+", and the kind is "+string(c.Kind), "", "leave it out")
		}
	}
}

// keyed tells that keys are given where others ask for none.
func (c *Connection) keyed(l *problems, keys bool) {
	switch {
	case keys && c.Anonymous:
		l.add("anonymous", "keys are given too", "one of them", "")
	case keys && c.Ambient:
		l.add("ambient", "keys are given too", "one of them", "")
	}
}

func (c *Connection) checkS3(l *problems) {
	if c.Region != "" && !regionPattern().MatchString(c.Region) {
		l.add("region", shown(c.Region)+" is no region", "such as eu-central-1, or auto for services that have none", "")
	}
	id, key := !c.AccessKeyID.IsZero(), !c.SecretAccessKey.IsZero()
	c.keyed(l, id || key)
	switch {
	case id && !key:
		l.add("secret_access_key", "access_key_id is given without it", "both or neither", "")
	case key && !id:
		l.add("access_key_id", "secret_access_key is given without it", "both or neither", "")
	case !c.SessionToken.IsZero() && !id:
		l.add("session_token", "it is given without keys", "with access_key_id and secret_access_key", "")
	case !id && c.Endpoint != "" && !c.Anonymous && !c.Ambient:
		l.add("access_key_id", "there is an endpoint and no keys", "access_key_id and secret_access_key",
			"public buckets without keys are AWS's; where this service has some, set anonymous: true")
	case !id && !c.Ambient:
		c.Anonymous = true // a public bucket
	}
	if token := c.AccessKeyID.Reveal() + c.SecretAccessKey.Reveal() + c.SessionToken.Reveal(); strings.ContainsAny(token, " \t\r\n") {
		l.add("access_key_id", "the keys hold white space", "the keys as the service gave them", "look for a line end that was copied along")
	}
}

func (c *Connection) checkGCS(l *problems) {
	key := c.ServiceAccountKey.Reveal()
	c.keyed(l, key != "")
	if key == "" {
		c.Anonymous = !c.Ambient // a public bucket
		return
	}
	const allowed = "the JSON text of a service account's key, which begins with {"
	trimmed := strings.TrimSpace(key)
	if !strings.HasPrefix(trimmed, "{") {
		const hint = `give what is in the file: in a shell NAME="$(cat key.json)"; in .env NAME='…' in single quotes, over as many lines as the file has`
		text := "it is no JSON"
		if path.IsAbs(trimmed) || strings.HasSuffix(trimmed, ".json") || strings.HasPrefix(trimmed, "~") || strings.HasPrefix(trimmed, "./") {
			text = "it is the path of a file"
		}
		l.add("service_account_key", text, allowed, hint)
		return
	}
	var k struct {
		Type        string `json:"type"`
		ClientEmail string `json:"client_email"`
		PrivateKey  string `json:"private_key"`
	}
	switch err := json.Unmarshal([]byte(trimmed), &k); {
	case err != nil: // whose text might show a part of it
		l.add("service_account_key", "it is no whole JSON object", allowed, "look whether its quotes and line ends survived")
	case k.Type != "service_account":
		l.add("service_account_key", `its "type" is not service_account`, allowed, "make a key of a service account")
	case k.ClientEmail == "" || k.PrivateKey == "":
		l.add("service_account_key", "client_email or private_key is missing in it", allowed, "")
	}
}

func (c *Connection) checkAzure(l *problems) {
	var given []string
	for _, f := range []struct {
		name string
		set  bool
	}{{"account_key", !c.AccountKey.IsZero()}, {"sas_token", !c.SASToken.IsZero()}, {"connection_string", !c.ConnectionString.IsZero()}} {
		if f.set {
			given = append(given, f.name)
		}
	}
	c.keyed(l, len(given) > 0)
	const need = "account with one of account_key and sas_token, or connection_string"
	switch {
	case len(given) > 1:
		l.add(given[1], given[0]+" is given too", "one of account_key, sas_token, connection_string", "")
	case len(given) == 0 && !c.Anonymous && !c.Ambient:
		l.add("account_key", "there are no keys", need, "for a public container set anonymous: true")
	}
	switch {
	case !c.ConnectionString.IsZero():
		if c.Account != "" {
			l.add("account", "connection_string names it already", "one of them", "")
		}
		s := c.ConnectionString.Reveal()
		if !strings.Contains(s, "AccountName=") && !strings.Contains(s, "BlobEndpoint=") {
			l.add("connection_string", "it names neither AccountName= nor BlobEndpoint=", "the text that the portal shows", "")
		}
	case c.Account == "":
		l.add("account", "it is missing", need, "")
	case !azureAccount().MatchString(c.Account):
		l.add("account", shown(c.Account)+" is no storage account", "3 to 24 lower-case letters and digits", "")
	}
	if k := c.AccountKey.Reveal(); k != "" {
		if b, err := base64.StdEncoding.DecodeString(k); err != nil || len(b) == 0 {
			l.add("account_key", "it is no key of a storage account", "base64 text", "")
		}
	}
	if t := c.SASToken.Reveal(); t != "" {
		if t = strings.TrimPrefix(t, "?"); !strings.Contains(t, "sig=") {
			l.add("sas_token", "it holds no signature", "the text from sv= to sig=…, without the URL", "")
		}
		c.SASToken = secret.New(t)
	}
}

// service is the connection with its secrets laid open, for bucketd.
func (c Connection) service() Service {
	return Service{
		Kind: c.Kind, Endpoint: c.Endpoint, Region: c.Region, Anonymous: c.Anonymous, Ambient: c.Ambient,
		AccessKeyID: c.AccessKeyID.Reveal(), SecretAccessKey: c.SecretAccessKey.Reveal(), SessionToken: c.SessionToken.Reveal(),
		ServiceAccountKey: strings.TrimSpace(c.ServiceAccountKey.Reveal()),
		Account:           c.Account, AccountKey: c.AccountKey.Reveal(), SASToken: c.SASToken.Reveal(), ConnectionString: c.ConnectionString.Reveal(),
	}
}
