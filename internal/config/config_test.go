package config_test

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"berth/internal/config"
	"berth/internal/secret"
	"berth/mounts"
	"berth/sandbox"
)

func write(t *testing.T, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "berth.yaml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func TestExampleHoldsEveryKeyWithItsDefault(t *testing.T) {
	const file = "../../config.example.yaml"
	got, err := config.Load(config.Source{File: file})
	if err != nil {
		t.Fatal(err)
	}
	got.File, got.Origin = "", nil
	want, err := config.Load(config.Source{})
	if err != nil {
		t.Fatal(err)
	}
	want.Origin = nil
	// An empty list or map in the file means the same as none.
	if diff := cmp.Diff(want, got, cmp.Transformer("empty", func(m map[string]string) string { return cmp.Diff(nil, m) }),
		cmp.FilterValues(func(a, b []string) bool { return len(a)+len(b) == 0 }, cmp.Ignore()),
		cmp.FilterValues(func(a, b []config.HostDir) bool { return len(a)+len(b) == 0 }, cmp.Ignore()),
		cmp.FilterValues(func(a, b []config.Volume) bool { return len(a)+len(b) == 0 }, cmp.Ignore()),
		cmp.FilterValues(func(a, b map[string]secret.Text) bool { return len(a)+len(b) == 0 }, cmp.Ignore()),
		cmp.FilterValues(func(a, b map[string][]string) bool { return len(a)+len(b) == 0 }, cmp.Ignore()),
		cmp.FilterValues(func(a, b map[string]string) bool { return len(a)+len(b) == 0 }, cmp.Ignore()),
		cmp.FilterValues(func(a, b []config.Mount) bool { return len(a)+len(b) == 0 }, cmp.Ignore()),
		cmp.FilterValues(func(a, b map[string]mounts.Connection) bool { return len(a)+len(b) == 0 }, cmp.Ignore()),
		cmp.Comparer(func(a, b *mounts.Set) bool { return cmp.Equal(a.Offers(), b.Offers()) }),
		cmp.AllowUnexported(config.Environment{})); diff != "" {
		t.Errorf("config.example.yaml differs from the defaults (-default +example):\n%s", diff)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(string(text), "\n")
	var walk func(prefix string, depth int, v reflect.Type)
	walk = func(prefix string, depth int, v reflect.Type) {
		for i := range v.NumField() {
			f := v.Field(i)
			key := f.Tag.Get("yaml")
			if key == "-" {
				continue
			}
			line := regexp.MustCompile(`^` + strings.Repeat("  ", depth) + key + `:`)
			found := false
			for n := 1; n < len(lines); n++ {
				if line.MatchString(lines[n]) {
					found = true
					if !strings.HasPrefix(strings.TrimSpace(lines[n-1]), "# ") {
						t.Errorf("%s%s: no comment above line %d", prefix, key, n+1)
					}
				}
			}
			if !found {
				t.Errorf("%s%s is not in config.example.yaml", prefix, key)
			}
			if f.Type.Kind() == reflect.Struct && f.Type != reflect.TypeFor[secret.Text]() {
				walk(prefix+key+".", depth+1, f.Type)
			}
		}
	}
	walk("", 0, reflect.TypeFor[config.Config]())
}

func TestPrecedence(t *testing.T) {
	file := write(t, "log: {level: warn, format: json}\nlimits: {max_sandboxes: 7}\ntoolsets: [core]\n")
	got, err := config.Load(config.Source{
		File:    file,
		Environ: []string{"BERTH_LOG_LEVEL=error", "BERTH_LIMITS_MAX_SANDBOXES=8", "BERTH_TOOLSETS=core, files", "BERTH_SESSION="},
		Flags:   []config.Flag{{Name: "--log-level", Key: "log.level", Value: "debug"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	if got.Log.Level != "debug" || got.Limits.MaxSandboxes != 8 || got.Log.Format != "json" || got.Limits.MaxProcesses != 512 {
		t.Errorf("flag %q, variable %d, file %q, default %d; want debug, 8, json, 512",
			got.Log.Level, got.Limits.MaxSandboxes, got.Log.Format, got.Limits.MaxProcesses)
	}
	if diff := cmp.Diff([]string{"core", "files"}, got.Toolsets); diff != "" {
		t.Errorf("toolsets (-want +got):\n%s", diff)
	}
}

func TestFileIsFound(t *testing.T) {
	home := t.TempDir()
	file := filepath.Join(home, ".config", "berth", "config.yaml")
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte("session: from-home\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, environ := range map[string][]string{
		"home":         {"HOME=" + home},
		"xdg":          {"XDG_CONFIG_HOME=" + filepath.Join(home, ".config"), "HOME=/nowhere"},
		"BERTH_CONFIG": {"BERTH_CONFIG=" + file},
	} {
		got, err := config.Load(config.Source{Environ: environ})
		if err != nil || got.Session != "from-home" || got.File != file {
			t.Errorf("%s: session %q of %q, %v; want from-home of %q", name, got.Session, got.File, err, file)
		}
	}
	if _, err := config.Load(config.Source{File: filepath.Join(home, "absent.yaml")}); err == nil || !strings.Contains(err.Error(), "no such config file") {
		t.Errorf("absent file asked for: %v", err)
	}
}

func TestExpansion(t *testing.T) {
	file := write(t, "auth:\n  tokens: {a: \"${T}\"}\ndefaults:\n  env: {A: 'x${V}y', B: '$${V}', C: $V}\nlimits:\n  max_sandboxes: ${N}\n")
	got, err := config.Load(config.Source{File: file, Environ: []string{"T=0123456789abcdef", "V=v", "N=5"}})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string]string{"A": "xvy", "B": "${V}", "C": "$V"}, got.Defaults.Env); diff != "" {
		t.Errorf("env (-want +got):\n%s", diff)
	}
	if got.Limits.MaxSandboxes != 5 || got.Auth.Tokens["a"].Reveal() != "0123456789abcdef" {
		t.Errorf("max_sandboxes %d, token %q", got.Limits.MaxSandboxes, got.Auth.Tokens["a"].Reveal())
	}
	// Expansion happens after parsing: a value cannot add keys.
	got, err = config.Load(config.Source{File: file, Environ: []string{"T=0123456789abcdef", "V=v\ninsecure: true", "N=5"}})
	if err != nil || got.Insecure {
		t.Errorf("a value with a new line: insecure %v, %v", got.Insecure, err)
	}
}

func TestTokenVariable(t *testing.T) {
	got, err := config.Load(config.Source{Environ: []string{"BERTH_TOKEN=0123456789abcdef", "BERTH_HTTP=0.0.0.0:1"}})
	if err != nil || got.Auth.Tokens[config.TokenOwner].Reveal() != "0123456789abcdef" {
		t.Errorf("BERTH_TOKEN: %v, %v", got, err)
	}
}

func TestUnknownVariablesAreRemarked(t *testing.T) {
	got, err := config.Load(config.Source{Environ: []string{"BERTH_LOG_LEVL=debug", "BERTHA=1"}})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"environment variable BERTH_LOG_LEVL is not known and has no effect; did you mean BERTH_LOG_LEVEL?"}
	if diff := cmp.Diff(want, got.Warnings); diff != "" {
		t.Errorf("warnings (-want +got):\n%s", diff)
	}
}

func TestFaultyNetworkLists(t *testing.T) {
	file := write(t, "defaults:\n  network_allow_list: [10.0.0.300/8, 1.2.3.4, 10.1.2.3/8]\n  network_allow_domains: [UP!]\nlimits:\n  network_allow_list: [nothing]\n")
	_, err := config.Load(config.Source{File: file})
	if err == nil {
		t.Fatal("faulty lists are taken")
	}
	for _, want := range []string{
		"line 2: defaults.network_allow_list: \"10.0.0.300/8\" is not an address range; allowed: CIDRs such as",
		"line 2: defaults.network_allow_list: 10.1.2.3/8 has bits beyond its length; did you mean 10.0.0.0/8?",
		"line 3: defaults.network_allow_domains: \"up!\" is not a name; allowed: names in lower case",
		"line 5: limits.network_allow_list: \"nothing\" is not an address range",
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("got:\n%v\nwant %q in it", err, want)
		}
	}
}

func TestHostDirs(t *testing.T) {
	file := write(t, "limits:\n  host_dirs: [{host: /a, path: /in/a, read_only: true}]\n")
	got, err := config.Load(config.Source{File: file, Flags: []config.Flag{
		{Name: "--dir", Key: "limits.host_dirs", Value: "/b:/in/b", Add: true},
		{Name: "--dir", Key: "limits.host_dirs", Value: "/c,:x:/in/c:ro", Add: true},
	}})
	if err != nil {
		t.Fatal(err)
	}
	want := []config.HostDir{{"/a", "/in/a", true}, {"/b", "/in/b", false}, {"/c,:x", "/in/c", true}}
	if diff := cmp.Diff(want, got.Limits.HostDirs); diff != "" {
		t.Errorf("host_dirs (-want +got):\n%s", diff)
	}
}

func TestDefaultVolumes(t *testing.T) {
	file := write(t, "defaults:\n  volumes: [{volume: cache, path: /cache, subpath: pip, read_only: true}, {volume: data, path: /data}]\n")
	got, err := config.Load(config.Source{File: file})
	if err != nil {
		t.Fatal(err)
	}
	want := []sandbox.VolumeMount{{Volume: "cache", Path: "/cache", Subpath: "pip", ReadOnly: true}, {Volume: "data", Path: "/data"}}
	if diff := cmp.Diff(want, got.Defaults.Spec().Volumes); diff != "" {
		t.Errorf("of a file (-want +got):\n%s", diff)
	}
	if got, err = config.Load(config.Source{Environ: []string{"BERTH_DEFAULTS_VOLUMES=cache/pip:/cache:ro, data:/data"}}); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got.Defaults.Spec().Volumes); diff != "" {
		t.Errorf("of the environment (-want +got):\n%s", diff)
	}
	file = write(t, "defaults:\n  volumes: [{volume: UP, path: /etc}, {volume: data, path: relative}]\n")
	_, err = config.Load(config.Source{File: file})
	for _, want := range []string{"defaults.volumes[0].volume", "defaults.volumes[0].path", "defaults.volumes[1].path"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("faulty volumes: %v, want %s named", err, want)
		}
	}
	if _, err = config.Load(config.Source{Environ: []string{"BERTH_DEFAULTS_VOLUMES=data"}}); err == nil || !strings.Contains(err.Error(), "VOLUME:PATH") {
		t.Errorf("a volume without a path: %v", err)
	}
}

func TestSpec(t *testing.T) {
	c := config.Default()
	s := c.Defaults.Spec()
	if *s.AutoStop != sandbox.DefaultAutoStop || *s.AutoArchive != sandbox.DefaultAutoArchive || s.AutoDelete != nil || *s.Timeout != sandbox.DefaultTimeout {
		t.Errorf("Default().Defaults.Spec() = %+v, want the sandbox package's defaults", s)
	}
	c.Defaults.AutoDeleteMinutes = 0
	if s := c.Defaults.Spec(); s.AutoDelete == nil || *s.AutoDelete != 0 {
		t.Errorf("auto_delete_minutes 0: %v, want at once", s.AutoDelete)
	}
}

func TestSecretsStayOutOfErrors(t *testing.T) {
	file := write(t, "auth:\n  tokens: {a: hunter2, b: \"sha256:hunter2\", c: [hunter2]}\nlimits: {max_processes: \"${S}\"}\nlog: {level: \"${S}\"}\n")
	_, err := config.Load(config.Source{File: file, Environ: []string{"S=hunter2", "BERTH_TOKEN=hunter2"}})
	if ce, ok := errors.AsType[*config.Error](err); !ok || len(ce.Problems) < 5 {
		t.Fatalf("err = %v, want five problems or more", err)
	}
	if strings.Contains(err.Error(), "hunter2") {
		t.Errorf("the error shows a secret:\n%v", err)
	}
}

func FuzzLoad(f *testing.F) {
	for _, s := range []string{"", "log: {level: debug}", "a: &x [*x]", "limits: {host_dirs: [{host: /a}]}", "auth: {tokens: {a: ${X}}}", "- 1", "? [a]\n: b", "\x00", "--- 1\n--- 2"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		c, err := config.Load(config.Source{File: write(t, text), Environ: []string{"X=1"}})
		if (c == nil) == (err == nil) {
			t.Errorf("Load = %v, %v", c, err)
		}
	})
}

func TestHomeInPaths(t *testing.T) {
	file := write(t, "state: ~/foo\nlimits:\n  host_dirs: [{host: ~/, path: /a}, {host: ~other/x, path: /b}]\n")
	_, err := config.Load(config.Source{File: file, Environ: []string{"HOME=/home/me"}})
	if err == nil || !strings.Contains(err.Error(), file+" line 3: limits.host_dirs[1].host: ") || strings.Contains(err.Error(), "state") {
		t.Errorf("another user's home: %v; want a fault of host_dirs[1] alone, with the whole path of the file", err)
	}
	file = write(t, "state: ~/foo\nlimits:\n  host_dirs: [{host: ~/, path: /a}]\n")
	c, err := config.Load(config.Source{File: file, Environ: []string{"HOME=/home/me"}})
	if err != nil || c.State != "/home/me/foo" || c.Limits.HostDirs[0].Host != "/home/me" {
		t.Errorf("with HOME: %+v, %v", c, err)
	}
	if _, err := config.Load(config.Source{File: file}); err == nil || !strings.Contains(err.Error(), "HOME names no home directory") {
		t.Errorf("without HOME: %v", err)
	}
}

// What the settings let pass, a sandbox can have.
func TestIntervalsFit(t *testing.T) {
	c, err := config.Load(config.Source{File: write(t, "defaults: {auto_stop_minutes: 525600, auto_delete_minutes: 525600, auto_archive_minutes: 43200}\n")})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Defaults.Spec().Validate(); err != nil {
		t.Error(err)
	}
	_, err = config.Load(config.Source{File: write(t, "defaults: {auto_stop_minutes: 525601}\n")})
	if err == nil || !strings.Contains(err.Error(), "0 to 525600 minutes") {
		t.Errorf("525601: %v", err)
	}
}

// What only the provider finds wrong is said of what was written, not of the key
// that it became.
func TestPlaced(t *testing.T) {
	file := write(t, "limits:\n  host_dirs: [{host: /a, path: /in/a}]\n")
	c, err := config.Load(config.Source{File: file, Environ: []string{"BERTH_LIMITS_MAX_PIDS=99"},
		Flags: []config.Flag{{Name: "--dir", Key: "limits.host_dirs", Value: "/b:/in/b", Add: true}}})
	if err != nil {
		t.Fatal(err)
	}
	fault := func(key string) error { return &sandbox.FieldError{Field: key, Problem: "wrong", Hint: "do so"} }
	const one = "1 problem in the settings:\n  "
	for _, f := range []struct {
		err  error
		want string
	}{
		{fault("limits.host_dirs[1]"), one + "--dir: wrong; do so"},
		{fault("limits.host_dirs[0]"), one + file + " line 2: limits.host_dirs[0]: wrong; do so"},
		{fault("limits.max_pids"), one + "BERTH_LIMITS_MAX_PIDS: limits.max_pids: wrong; do so"},
		{errors.Join(fault("state"), fault("limits.host_dirs[1]")), "2 problems in the settings:\n  state: wrong; do so\n  --dir: wrong; do so"},
		{fault("state"), "state: wrong; do so"},
		{errors.New("odd"), "odd"},
	} {
		if got := c.Placed(f.err).Error(); got != f.want {
			t.Errorf("Placed(%v) = %q, want %q", f.err, got, f.want)
		}
	}
}
