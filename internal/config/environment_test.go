package config_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"berth/internal/config"
)

func TestDotenv(t *testing.T) {
	tests := []struct {
		name, env, local string
		environ          []string
		want             map[string]string // "" = not set
		source           map[string]string
		warns            string
	}{
		{name: "services_only", env: "S3_BUCKET=b\nLD_PRELOAD=/x\nBERTH_HTTP=0.0.0.0:1\nPATH=/x",
			want: map[string]string{"S3_BUCKET": "b", "LD_PRELOAD": "", "BERTH_HTTP": "", "PATH": ""}},
		{name: "syntax", env: "export S3_A='x y' # note\nS3_B=\"q\"\n# S3_C=1\n S3_D = plain # note\nS3_E\nS3_F=a#b\nS3_G=${HOME}",
			want: map[string]string{"S3_A": "x y", "S3_B": "q", "S3_C": "", "S3_D": "plain", "S3_E": "", "S3_F": "a#b", "S3_G": "${HOME}"}},
		{name: "lines_in_quotes", env: "OTHER='\nS3_A=no\n' # note\nGCS_A='{\n  \"type\": \"x\",\r\n  \"k\": \"a\\nb#\"\n}' # note\nS3_B=\"one\n\ntwo\"\nS3_C=\"open\nS3_D=d",
			want: map[string]string{"S3_A": "", "GCS_A": "{\n  \"type\": \"x\",\r\n  \"k\": \"a\\nb#\"\n}", "S3_B": "one\n\ntwo", "S3_C": "\"open", "S3_D": "d"}},
		{name: "local_wins", env: "S3_BUCKET=a", local: "S3_BUCKET=b",
			want: map[string]string{"S3_BUCKET": "b"}, source: map[string]string{"S3_BUCKET": ".env.local"}},
		{name: "real_wins", env: "S3_BUCKET=a", local: "S3_BUCKET=b", environ: []string{"S3_BUCKET=c"},
			want: map[string]string{"S3_BUCKET": "c"}, source: map[string]string{"S3_BUCKET": "the environment"}},
		{name: "endpoint_with_key", env: "S3_ENDPOINT=https://x\nS3_ACCESS_KEY_ID=k\nS3_SECRET_ACCESS_KEY=s",
			want: map[string]string{"S3_ENDPOINT": "https://x", "S3_ACCESS_KEY_ID": "k"}},
		{name: "endpoint_without_key", env: "S3_ENDPOINT=https://evil", environ: []string{"S3_SECRET_ACCESS_KEY=mine"},
			want: map[string]string{"S3_ENDPOINT": "", "S3_SECRET_ACCESS_KEY": "mine"}, warns: "S3_ENDPOINT in .env is ignored"},
		{name: "endpoint_with_half_a_key", env: "S3_ENDPOINT=https://evil\nS3_ACCESS_KEY_ID=k", environ: []string{"S3_SECRET_ACCESS_KEY=mine"},
			want: map[string]string{"S3_ENDPOINT": ""}, warns: "S3_ENDPOINT in .env is ignored"},
		{name: "endpoint_and_key_in_different_files", env: "DAYTONA_API_KEY=k", local: "DAYTONA_API_URL=https://evil",
			want: map[string]string{"DAYTONA_API_URL": "", "DAYTONA_API_KEY": "k"}, warns: "DAYTONA_API_URL in .env.local is ignored"},
		{name: "other_services_key", env: "DAYTONA_API_URL=https://x\nS3_SECRET_ACCESS_KEY=s", environ: []string{"DAYTONA_API_KEY=mine"},
			want: map[string]string{"DAYTONA_API_URL": ""}, warns: "DAYTONA_API_URL in .env is ignored"},
		{name: "real_key_covers_the_files", env: "DAYTONA_API_URL=https://x\nDAYTONA_API_KEY=k", environ: []string{"DAYTONA_API_KEY=mine"},
			want: map[string]string{"DAYTONA_API_URL": "", "DAYTONA_API_KEY": "mine"}, warns: "DAYTONA_API_URL in .env is ignored"},
		{name: "real_endpoint_stays", env: "S3_ACCESS_KEY_ID=k", environ: []string{"S3_ENDPOINT=https://mine"},
			want: map[string]string{"S3_ENDPOINT": "https://mine", "S3_ACCESS_KEY_ID": "k"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			for name, text := range map[string]string{".env": tt.env, ".env.local": tt.local} {
				if text != "" {
					if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
						t.Fatal(err)
					}
				}
			}
			c, err := config.Load(config.Source{Dir: dir, Environ: tt.environ})
			if err != nil {
				t.Fatal(err)
			}
			for name, want := range tt.want {
				if got, ok := c.Environment.Lookup(name); got.Reveal() != want || ok != (want != "") {
					t.Errorf("Lookup(%s) = %q, %v; want %q", name, got.Reveal(), ok, want)
				}
			}
			for name, want := range tt.source {
				if got := c.Environment.Source(name); got != want {
					t.Errorf("Source(%s) = %q, want %q", name, got, want)
				}
			}
			// The values here make no connections, which is remarked too.
			c.Warnings = slices.DeleteFunc(c.Warnings, func(w string) bool { return strings.HasPrefix(w, "the connection ") })
			if all := strings.Join(c.Warnings, "\n"); !strings.Contains(all, tt.warns) || tt.warns == "" && all != "" {
				t.Errorf("warnings %q, want %q", all, tt.warns)
			}
			if c.HTTP != "" {
				t.Errorf("a .env file set http to %q", c.HTTP)
			}
		})
	}
}

func TestDotenvThatIsNoFile(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, ".env"), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := config.Load(config.Source{Dir: dir}); err != nil {
		t.Errorf("a directory named .env: %v", err)
	}
}
