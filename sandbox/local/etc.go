//go:build linux

package local

import (
	"bufio"
	"bytes"
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"berth/sandbox"
	"golang.org/x/sys/unix"
)

// shownEtc is what of the host's /etc a sandbox sees, as patterns below /etc;
// directories with all that is in them. It is a list of what is shown, never of
// what is hidden: a file that nobody thought of stays outside. Even a shown
// file is left out when not everyone on the host may read it, or when it seems
// to hold a password.
var shownEtc = []string{
	// what system this is
	"debian_version", "os-release", "lsb-release", "*-release", "issue", "issue.net", "timezone", "localtime", "locale.alias", "locale.conf", "locale.gen", "default/locale",
	// programs and libraries
	"alternatives", "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "ld-musl-*.path", "shells", "skel", "inputrc", "bash.bashrc", "bashrc", "bash_completion.d", "profile", "terminfo", "mime.types",
	"magic", "magic.mime", "mailcap", "vim", "nanorc", "papersize", "paperspecs", "xattr.conf", "fonts", "xml", "sgml", "groff", "manpath.config", "emacs",
	"ImageMagick-*", "glvnd", "OpenCL", "gtk-*", "xdg", "libnl-3", "vdpau_wrapper.cfg",
	// names of the network, not its addresses
	"services", "protocols", "rpc", "ethertypes", "host.conf", "gai.conf", "netconfig",
	// certificates that everybody trusts
	"ssl/certs", "ssl/openssl.cnf", "ca-certificates", "ca-certificates.conf", "pki/tls/certs", "pki/tls/cert.pem", "pki/tls/openssl.cnf", "pki/ca-trust", "crypto-policies",
	// languages
	"python*", "perl", "java-*", "java", "jvm*", "node", "nodejs", "ruby", "R", "php", "lua", "texmf", "ghc", "julia", "octave*", "dotnet", "maven/m2.conf", "maven/logging", "pip.conf",
	// packages and accounts, for apt and its scripts
	"apt/sources.list", "apt/sources.list.d", "apt/trusted.gpg", "apt/trusted.gpg.d", "apt/keyrings", "apt/preferences.d", "apt/apt.conf.d", "dpkg", "debconf.conf", "adduser.conf", "deluser.conf",
	"login.defs", "default/useradd", "pam.conf", "pam.d", "security/limits.conf", "security/pam_env.conf", "security/access.conf", "security/namespace.conf", "ucf.conf", "selinux/semanage.conf", "update-motd.d",
	"apk", "pacman.conf", "pacman.d/mirrorlist", "yum.repos.d", "dnf", "zypp/repos.d",
}

// neverEtc wins over shownEtc, by any element of the path.
var neverEtc = regexp.MustCompile(`(?i)^(shadow|gshadow|passwd|group)[-+]?$|^(ssh|private|sudoers|sudoers\.d|docker|kubernetes|machine-id|krb5.*|cloud|hostname|auth\.conf|auth\.conf\.d|credentials?|.*\.key|.*secret.*|.*passwd.*|.*password.*|.*token.*|netrc|\.netrc|settings\.xml|protected\.d|proxy.*)$`)

// credential finds what looks like one in a configuration file: a user and a
// password in a URL, or a key that says so.
var credential = regexp.MustCompile(`(?im)://[^/\s:@]*:[^/\s@]+@|^\s*[^#;/*\s]*(password|passwd|secret|auth_?token|api_?key)\s*[=:]\s*\S`)

// Sizes above which a file is not looked through, and not shown as a file of
// configuration either.
const maxEtcFile = 16 << 20

// copyEtc copies what is shown of /etc into dst.
func copyEtc(dst string) error {
	for _, pattern := range shownEtc {
		matches, err := filepath.Glob(filepath.Join("/etc", pattern))
		if err != nil {
			return err
		}
		for _, m := range matches {
			if err := copyShown(m, filepath.Join(dst, strings.TrimPrefix(m, "/etc")), 0); err != nil {
				return err
			}
		}
	}
	return nil
}

func copyShown(src, dst string, depth int) error {
	fi, err := os.Lstat(src)
	if err != nil || depth > 12 || neverEtc.MatchString(filepath.Base(src)) {
		return nil //nolint:nilerr // gone meanwhile, or not to be shown
	}
	switch {
	case fi.IsDir():
		names, err := os.ReadDir(src)
		if err != nil {
			return nil //nolint:nilerr // not shown
		}
		if err := os.MkdirAll(dst, 0o755); err != nil {
			return err
		}
		for _, n := range names {
			if err := copyShown(filepath.Join(src, n.Name()), filepath.Join(dst, n.Name()), depth+1); err != nil {
				return err
			}
		}
		return nil
	case fi.Mode()&fs.ModeSymlink != 0:
		to, err := os.Readlink(src)
		if err != nil {
			return nil //nolint:nilerr // not shown
		}
		// A link to a place that is not shown dangles inside, which tells
		// no more than a name.
		return place(dst, func() error { return os.Symlink(to, dst) })
	case fi.Mode().IsRegular() && fi.Mode().Perm()&0o004 != 0 && fi.Size() <= maxEtcFile:
		b, err := os.ReadFile(src)
		if err != nil {
			return nil //nolint:nilerr // not shown
		}
		if !bytes.Contains(b, []byte{0}) && credential.Match(b) {
			return nil
		}
		mode := 0o644 | fi.Mode().Perm()&0o111
		return place(dst, func() error { return os.WriteFile(dst, b, mode) })
	}
	return nil
}

func place(dst string, create func() error) error {
	if err := os.MkdirAll(filepath.Dir(dst), 0o755); err != nil {
		return err
	}
	if err := create(); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}

// account is one line of our passwd and group. The ids are Debian's, unless the
// host has others: what lies in the host's /usr belongs to those.
type account struct {
	name     string
	uid, gid int
	home     string
	shell    string
}

const nologin = "/usr/sbin/nologin"

// agentID is the user and group id of the ordinary user.
const agentID = 1000

// accounts are the users of the default root, the ordinary one of that name last.
func accounts(shell, name string) []account {
	list := []account{
		{"root", 0, 0, "/root", shell}, {"daemon", 1, 1, "/usr/sbin", nologin}, {"bin", 2, 2, "/bin", nologin}, {"sys", 3, 3, "/dev", nologin},
		{"sync", 4, 65534, "/bin", "/bin/sync"}, {"games", 5, 60, "/usr/games", nologin}, {"man", 6, 12, "/var/cache/man", nologin},
		{"lp", 7, 7, "/var/spool/lpd", nologin}, {"mail", 8, 8, "/var/mail", nologin}, {"news", 9, 9, "/var/spool/news", nologin},
		{"uucp", 10, 10, "/var/spool/uucp", nologin}, {"proxy", 13, 13, "/bin", nologin}, {"www-data", 33, 33, "/var/www", nologin},
		{"backup", 34, 34, "/var/backups", nologin}, {"list", 38, 38, "/var/list", nologin}, {"irc", 39, 39, "/run/ircd", nologin},
		{"_apt", 42, 65534, "/nonexistent", nologin}, {"nobody", 65534, 65534, "/nonexistent", nologin},
	}
	host := hostIDs("/etc/passwd")
	for i := range list {
		if id, ok := host[list[i].name]; ok && id < agentID {
			list[i].uid = id
		}
	}
	for name := range overrideNames(0) {
		if id, ok := host[name]; ok && id < agentID && !slices.ContainsFunc(list, func(a account) bool { return a.name == name }) {
			list = append(list, account{name, id, 65534, "/nonexistent", nologin})
		}
	}
	return append(list, account{name, agentID, agentID, homeOf(name), shell})
}

// checkAccount refuses the name of a user or group that the system has.
func checkAccount(name string) error {
	system := accounts("", sandbox.DefaultAccount)
	if name != sandbox.DefaultAccount && slices.ContainsFunc(system, func(a account) bool { return a.name == name }) ||
		slices.ContainsFunc(groupIDs, func(g groupID) bool { return g.name == name }) || overrideNames(1)[name] {
		return &sandbox.FieldError{Field: "account", Problem: name + " is a user or group of the system", Allowed: "another name"}
	}
	return nil
}

// overrideNames are the users (field 0) or groups (field 1) that dpkg was told
// to give files to. It refuses to work while it does not know one of them.
func overrideNames(field int) map[string]bool {
	names := map[string]bool{}
	b, err := os.ReadFile("/var/lib/dpkg/statoverride")
	if err != nil {
		return names
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) == 4 && !strings.HasPrefix(f[field], "#") {
			names[f[field]] = true
		}
	}
	return names
}

type groupID struct {
	name string
	gid  int
}

var groupIDs = []groupID{{"root", 0}, {"daemon", 1}, {"bin", 2}, {"sys", 3}, {"adm", 4}, {"tty", 5}, {"disk", 6}, {"lp", 7}, {"mail", 8}, {"news", 9}, {"uucp", 10}, {"man", 12},
	{"proxy", 13}, {"kmem", 15}, {"dialout", 20}, {"fax", 21}, {"voice", 22}, {"cdrom", 24}, {"floppy", 25}, {"tape", 26}, {"sudo", 27}, {"audio", 29}, {"dip", 30},
	{"www-data", 33}, {"backup", 34}, {"operator", 37}, {"list", 38}, {"irc", 39}, {"src", 40}, {"shadow", 42}, {"utmp", 43}, {"video", 44}, {"sasl", 45},
	{"plugdev", 46}, {"staff", 50}, {"games", 60}, {"users", 100}, {"nogroup", 65534}}

// hostIDs reads names and ids, and nothing else, of passwd or group.
func hostIDs(file string) map[string]int {
	ids := map[string]int{}
	f, err := os.Open(file)
	if err != nil {
		return ids
	}
	defer f.Close()
	sc := bufio.NewScanner(f)
	for sc.Scan() {
		fields := strings.Split(sc.Text(), ":")
		if len(fields) < 3 {
			continue
		}
		if id, err := strconv.Atoi(fields[2]); err == nil && id >= 0 {
			ids[fields[0]] = id
		}
	}
	return ids
}

// hostname inside every sandbox; the session's name is nobody's business but
// the caller's.
const hostname = "berth"

// netFiles are the files of /etc that say what the sandbox's network is.
func netFiles() map[string]string {
	return map[string]string{
		"hostname":    hostname + "\n",
		"hosts":       "127.0.0.1\tlocalhost\n127.0.1.1\t" + hostname + "\n::1\tlocalhost ip6-localhost ip6-loopback\n",
		"resolv.conf": "# The sandbox's egress gate answers.\nnameserver 10.0.2.3\noptions timeout:5 attempts:2\n",
	}
}

func aptConf(single bool) string {
	conf := "// berth: the sandbox is the wall\nAPT::Get::Assume-Yes \"true\";\nDPkg::Lock::Timeout \"60\";\n" +
		"Acquire::Retries \"0\"; // without a network it only takes longer\n"
	if single {
		conf += "APT::Sandbox::User \"root\"; // no other user exists here\n"
	}
	return conf
}

// writeEtc writes the files of /etc that are ours.
func writeEtc(etc, shell, name string, single bool) error {
	var passwd, group strings.Builder
	for _, a := range accounts(shell, name) {
		passwd.WriteString(a.name + ":x:" + strconv.Itoa(a.uid) + ":" + strconv.Itoa(a.gid) + ":" + a.name + ":" + a.home + ":" + a.shell + "\n")
	}
	host := hostIDs("/etc/group")
	groups := slices.Clone(groupIDs)
	for name := range overrideNames(1) {
		if id, ok := host[name]; ok && id < agentID && !slices.ContainsFunc(groups, func(g groupID) bool { return g.name == name }) {
			groups = append(groups, groupID{name, id})
		}
	}
	for _, g := range groups {
		if id, ok := host[g.name]; ok && id < agentID {
			g.gid = id
		}
		group.WriteString(g.name + ":x:" + strconv.Itoa(g.gid) + ":\n")
	}
	group.WriteString(name + ":x:" + strconv.Itoa(agentID) + ":\n")
	files := map[string]string{
		"passwd":        passwd.String(),
		"group":         group.String(),
		"nsswitch.conf": "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\nnetworks: files\nprotocols: files\nservices: files\nethers: files\nrpc: files\n",
		"mtab":          "", // a link, below
		"fstab":         "# nothing is mounted by hand here\n",
		// So that a first commit works; ~/.gitconfig wins.
		"gitconfig": "[user]\n\tname = " + name + "\n\temail = " + name + "@berth.invalid\n[init]\n\tdefaultBranch = main\n[safe]\n\tdirectory = *\n",
	}
	if _, err := os.Stat("/etc/apt"); err == nil {
		files["apt/apt.conf.d/99berth"] = aptConf(single)
	}
	if _, err := os.Stat("/etc/dpkg"); err == nil {
		// Most of /etc is not shown, so that dpkg would ask what became of it,
		// and fail without a terminal.
		files["dpkg/dpkg.cfg.d/berth"] = "force-unsafe-io\nforce-confmiss\nforce-confdef\nforce-confold\n"
	}
	maps.Copy(files, netFiles())
	for name, text := range files {
		path := filepath.Join(etc, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if name == "mtab" {
			if err := os.Symlink("/proc/self/mounts", path); err != nil {
				return err
			}
			continue
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			return err
		}
	}
	// Removed packages, docker's images and the like switch services and
	// documentation off; what is harmless there stays. umask must not matter.
	return openUp(etc)
}

// openUp gives a tree of our own making the permissions that its files were
// asked for, whatever berth's umask is.
func openUp(dir string) error {
	return filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.Type()&fs.ModeSymlink != 0 {
			return err
		}
		fi, err := d.Info()
		if err != nil {
			return err
		}
		want := fs.FileMode(0o644)
		if d.IsDir() || fi.Mode()&0o100 != 0 {
			want = 0o755
		}
		if fi.Mode().Perm() == want {
			return nil
		}
		return unix.Chmod(p, uint32(want))
	})
}
