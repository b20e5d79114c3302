//go:build linux

package rootfs

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

const ours = "/usr/bin/sudo\n/usr/bin/sudo.distrib\n:\n/bin/fusermount3\n/bin/fusermount3.distrib\n:\n/usr/bin/fusermount3\n/usr/bin/fusermount3.distrib\n:\n" +
	"/bin/fusermount\n/bin/fusermount.distrib\n:\n/usr/bin/fusermount\n/usr/bin/fusermount.distrib\n:\n"

func TestDiversions(t *testing.T) {
	for _, c := range []struct{ name, list, want string }{
		{"none", "", ours},
		{"others", "/bin/sh\n/bin/sh.distrib\ndash\n", "/bin/sh\n/bin/sh.distrib\ndash\n" + ours},
		{"no_end_of_line", "/bin/sh\n/bin/sh.distrib\ndash", "/bin/sh\n/bin/sh.distrib\ndash\n" + ours},
		{"told", ours, ours},
		{"somebody_elses_sudo", "/usr/bin/sudo\n/usr/bin/sudo.ws\nother\n", "/usr/bin/sudo\n/usr/bin/sudo.ws\nother\n" + strings.TrimPrefix(ours, "/usr/bin/sudo\n/usr/bin/sudo.distrib\n:\n")},
		{"damaged", "/bin/sh\n/bin/sh.distrib\n", "/bin/sh\n/bin/sh.distrib\n"},
	} {
		got := string(diversions([]byte(c.list)))
		if got != c.want {
			t.Errorf("%s: diversions(%q) = %q, want %q", c.name, c.list, got, c.want)
		}
		if back := strings.TrimSuffix(string(undiverted([]byte(got))), "\n"); back != strings.TrimSuffix(strings.TrimSuffix(c.list, ours), "\n") {
			t.Errorf("%s: undiverted(%q) = %q, want %q", c.name, got, back, c.list)
		}
	}
}

func TestOverrides(t *testing.T) {
	const all = "root root 755 /bin/fusermount3\nroot root 755 /usr/bin/fusermount3\nroot root 755 /bin/fusermount\nroot root 755 /usr/bin/fusermount\n"
	for _, c := range []struct{ name, list, want string }{
		{"none", "", all},
		{"told", all, all},
		{"others", "root crontab 2755 /usr/bin/crontab", "root crontab 2755 /usr/bin/crontab\n" + all},
		{"an_administrators", "root fuse 4754 /bin/fusermount3\n", "root fuse 4754 /bin/fusermount3\n" + strings.TrimPrefix(all, "root root 755 /bin/fusermount3\n")},
	} {
		got := string(overrides([]byte(c.list)))
		if got != c.want {
			t.Errorf("%s: overrides(%q) = %q, want %q", c.name, c.list, got, c.want)
		}
		if back := strings.TrimSuffix(string(notOverridden([]byte(got))), "\n"); back != strings.TrimSuffix(strings.TrimSuffix(c.list, all), "\n") {
			t.Errorf("%s: notOverridden(%q) = %q, want %q", c.name, got, back, c.list)
		}
	}
}

// What lies at the names of dpkg's files may be anything, and leads nowhere.
func TestDivertAmongHostileFiles(t *testing.T) {
	outside := filepath.Join(t.TempDir(), "outside")
	for _, c := range []struct {
		name string
		make func(dpkg string) error
		told bool
	}{
		{"fine", func(string) error { return nil }, true},
		{"a_link_for_the_list", func(d string) error { return os.Symlink(outside, filepath.Join(d, "diversions")) }, false},
		{"a_link_for_the_new_list", func(d string) error { return os.Symlink(outside, filepath.Join(d, "diversions-berth")) }, true},
		{"a_pipe", func(d string) error { return unix.Mkfifo(filepath.Join(d, "diversions"), 0o600) }, false},
		{"a_directory", func(d string) error { return os.Mkdir(filepath.Join(d, "diversions"), 0o700) }, false},
		{"a_directory_for_the_new_list", func(d string) error { return os.Mkdir(filepath.Join(d, "diversions-berth"), 0o700) }, false},
		{"too_long", func(d string) error {
			return os.WriteFile(filepath.Join(d, "diversions"), make([]byte, maxList+1), 0o600)
		}, false},
		{"no_status", func(d string) error { return os.Remove(filepath.Join(d, "status")) }, false},
		{"a_link_for_the_directory", func(d string) error {
			if err := os.RemoveAll(d); err != nil {
				return err
			}
			return os.Symlink(filepath.Dir(outside), d)
		}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			root := t.TempDir()
			dpkg := filepath.Join(root, DpkgDir)
			if err := os.MkdirAll(dpkg, 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(dpkg, "status"), nil, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := c.make(dpkg); err != nil {
				t.Fatal(err)
			}
			fd, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(fd)
			r := &builder{root: fd}
			if got := r.divert(); got != c.told {
				t.Errorf("divert() = %v, want %v", got, c.told)
			}
			if c.told {
				text, err := os.ReadFile(filepath.Join(dpkg, "diversions"))
				if err != nil || string(text) != ours {
					t.Errorf("diversions = %q, %v", text, err)
				}
			}
			if _, err := os.Lstat(outside); err == nil {
				t.Error("a file outside was made")
			}
		})
	}
}
