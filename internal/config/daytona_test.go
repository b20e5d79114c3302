package config_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"berth/internal/config"
)

// The user's key goes to no address that a file of somebody else's repository
// names.
func TestDaytonaAccess(t *testing.T) {
	for _, tt := range []struct {
		name, file, env, dotenv string
		key, url, from          string
		warning                 string
	}{
		{name: "nothing"},
		{name: "environment", env: "DAYTONA_API_KEY=k1 DAYTONA_API_URL=https://e/api", key: "k1", url: "https://e/api", from: "DAYTONA_API_KEY of the environment"},
		{name: "dotenv", dotenv: "DAYTONA_API_KEY=k2\nDAYTONA_API_URL=https://d/api", key: "k2", url: "https://d/api", from: "DAYTONA_API_KEY of .env"},
		{name: "file wins", file: "daytona: {api_key: k3, url: https://f/api}", env: "DAYTONA_API_KEY=k1 DAYTONA_API_URL=https://e/api", key: "k3", url: "https://f/api", from: "the settings (daytona.api_key)"},
		{name: "environment wins over dotenv", env: "DAYTONA_API_KEY=k1", dotenv: "DAYTONA_API_KEY=k2\nDAYTONA_API_URL=https://evil/api", key: "k1", from: "DAYTONA_API_KEY of the environment", warning: "DAYTONA_API_URL in .env is ignored"},
		{name: "key of the file, address of a repository", file: "daytona: {api_key: k3}", dotenv: "DAYTONA_API_KEY=k2\nDAYTONA_API_URL=https://evil/api", key: "k3", from: "the settings (daytona.api_key)", warning: "DAYTONA_API_URL in .env is ignored"},
		{name: "key of the file, address of the environment", file: "daytona: {api_key: k3}", env: "DAYTONA_API_URL=https://e/api", key: "k3", url: "https://e/api", from: "the settings (daytona.api_key)"},
		{name: "former name", env: "DAYTONA_API_KEY=k1 DAYTONA_SERVER_URL=https://o/api", key: "k1", url: "https://o/api", from: "DAYTONA_API_KEY of the environment", warning: "DAYTONA_SERVER_URL is the former name"},
		{name: "former name of a repository", env: "DAYTONA_API_KEY=k1", dotenv: "DAYTONA_SERVER_URL=https://evil/api", key: "k1", from: "DAYTONA_API_KEY of the environment", warning: "is ignored"},
		{name: "both names", env: "DAYTONA_API_KEY=k1 DAYTONA_SERVER_URL=https://o/api DAYTONA_API_URL=https://n/api", key: "k1", url: "https://n/api", from: "DAYTONA_API_KEY of the environment"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			s := config.Source{Environ: append(strings.Fields(tt.env), "HOME="+dir), Dir: dir}
			if tt.dotenv != "" {
				if err := os.WriteFile(filepath.Join(dir, ".env"), []byte(tt.dotenv), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if tt.file != "" {
				s.File = write(t, tt.file)
			}
			c, err := config.Load(s)
			if err != nil {
				t.Fatal(err)
			}
			d := c.DaytonaAccess()
			if !d.Set() {
				d.From = ""
			}
			if d.Key.Reveal() != tt.key || d.URL != tt.url || d.From != tt.from {
				t.Errorf("got key %q, url %q, from %q; want %q, %q, %q", d.Key.Reveal(), d.URL, d.From, tt.key, tt.url, tt.from)
			}
			if got := strings.Join(c.Warnings, "\n"); tt.warning == "" && got != "" || !strings.Contains(got, tt.warning) {
				t.Errorf("warnings %q, want %q in them", got, tt.warning)
			}
		})
	}
}

func TestDaytonaFaults(t *testing.T) {
	for text, want := range map[string]string{
		"daytona: {url: ftp://x}":                  "daytona.url",
		"daytona: {url: 'https://a:b@x/api'}":      "daytona.url",
		"daytona: {jwt: a.b.c}":                    "daytona.organization",
		"daytona: {adopt: maybe}":                  "daytona.adopt",
		"daytona: {probe: example.com}":            "daytona.probe",
		"provider: daytonna":                       "did you mean daytona?",
		"daytona: {api_key: k, url: 'http://x/a'}": "",
	} {
		c, err := config.Load(config.Source{File: write(t, text)})
		switch {
		case want == "" && err != nil:
			t.Errorf("%s: %v", text, err)
		case want == "" && !strings.Contains(strings.Join(c.Warnings, ""), "unencrypted"):
			t.Errorf("%s: warnings %q", text, c.Warnings)
		case want != "" && (err == nil || !strings.Contains(err.Error(), want)):
			t.Errorf("%s: got %v, want %q", text, err, want)
		}
	}
}
