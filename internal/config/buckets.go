package config

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"berth/mounts"
	"berth/sandbox"
)

// validateBuckets makes Config.Buckets of the file's connections and, under
// them, those of the environment. A faulty one of the environment, whose
// variables may be meant for other programs, and one of the file that names a
// variable which is not set, are remarked and cannot be used.
func (l *loader) validateBuckets() {
	c := l.config
	connections, broken := mounts.Environment(c.Environment.Lookup)
	for name, endpoint := range map[mounts.Kind]string{mounts.S3: "S3_ENDPOINT", mounts.GCS: "GCS_ENDPOINT", mounts.Azure: "AZURE_STORAGE_ENDPOINT"} {
		if err := c.Environment.astray(endpoint); err != nil && connections[string(name)].Kind != "" {
			broken[string(name)] = err
		}
	}
	for name := range c.Connections {
		delete(broken, name)
	}
	maps.Copy(broken, l.unset)
	for _, name := range slices.Sorted(maps.Keys(broken)) {
		c.Warnings = append(c.Warnings, fmt.Sprintf("the connection %s cannot be used: %s", name, strings.ReplaceAll(broken[name].Error(), "\n", "; ")))
	}
	maps.Copy(connections, c.Connections)
	for name := range broken {
		delete(connections, name)
	}
	set, err := mounts.NewSet(connections, mounts.SetOptions{Rules: c.Limits.Buckets, Inline: c.Limits.InlineCredentials, Broken: broken})
	for _, p := range mounts.ProblemsOf(err) {
		// Which connections the environment makes depends on who looks.
		if strings.HasPrefix(p.Field, "limits.buckets[") && strings.HasSuffix(p.Field, "].connection") && ofEnvironment(l.rule(p.Field)) {
			continue
		}
		l.wrong(p.Field, p.Text, p.Allowed, p.Hint)
	}
	c.Buckets = set
	for _, err := range faultsOf((sandbox.Spec{Mounts: c.Defaults.mounts(), Volumes: c.Defaults.volumes()}).Validate()) {
		l.wrong("defaults."+err.Field, err.Problem, err.Allowed, err.Hint)
	}
	for _, m := range c.Defaults.Mounts {
		_, err := set.Complete(mounts.Target{Connection: m.Connection, Bucket: m.Bucket, Prefix: m.Prefix, ReadOnly: m.ReadOnly}, nil)
		for _, p := range mounts.ProblemsOf(err) {
			if p.Field == "connection" && (ofEnvironment(m.Connection) || broken[m.Connection] != nil) {
				continue
			}
			l.wrong("defaults.mounts."+m.Path+"."+p.Field, p.Text, p.Allowed, p.Hint)
		}
	}
}

// rule is the connection that a rule names whose field a problem is of.
func (l *loader) rule(field string) string {
	var i int
	if _, err := fmt.Sscanf(field, "limits.buckets[%d]", &i); err != nil || i >= len(l.config.Limits.Buckets) {
		return ""
	}
	return l.config.Limits.Buckets[i].Connection
}

// ofEnvironment tells whether a connection may come from variables.
func ofEnvironment(name string) bool {
	return name == string(mounts.S3) || name == string(mounts.GCS) || name == string(mounts.Azure) || name == ""
}
