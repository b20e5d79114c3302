//go:build linux

package local_test

import (
	"os"
	"os/exec"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"berth/sandbox"
	"berth/sandbox/local"
)

// Packages whose programs berth's own stand for are installed, upgraded and
// removed as everywhere, and berth's stay.
func TestPackagesOfOurPrograms(t *testing.T) {
	if _, err := exec.LookPath("dpkg-deb"); err != nil {
		t.Skip("the packages are made by dpkg-deb, which this machine does not have")
	}
	in, err := provider(t, local.Options{Dir: stateDir(t)}).Create(t.Context(), testKey, sandbox.Spec{})
	must(t, err)
	const build = `set -e; cd /tmp; for v in 1 2; do rm -rf p; mkdir -p p/DEBIAN p/usr/bin p/bin p/etc
		printf 'Package: berth-tried\nVersion: %s\nArchitecture: all\nMaintainer: x\nDescription: x\n' $v >p/DEBIAN/control
		printf '/etc/berth-tried.conf\n' >p/DEBIAN/conffiles; echo $v >p/etc/berth-tried.conf
		printf '#!/bin/sh\nset -e\nfor f in /bin/fusermount3 /bin/fusermount; do dpkg-statoverride --list $f >/dev/null || chmod 4755 $f; done\n' >p/DEBIAN/postinst; chmod 755 p/DEBIAN/postinst
		for f in usr/bin/sudo bin/fusermount3 bin/fusermount; do printf '#!/bin/sh\necho real %s\n' $v >p/$f; chmod 755 p/$f; done
		dpkg-deb -b p tried$v.deb >/dev/null; done`
	wantRun(t, in, "root", build, "")
	still, asBefore := "sudo id -u", "0"
	if f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0); err == nil { // else there is no fusermount of berth's
		_ = f.Close()
		still, asBefore = still+" && fusermount3 -V | grep -o berth && /usr/bin/fusermount -V | grep -o berth", "0\nberth\nberth"
	}
	// Those of the machine, if it has them, give way.
	wantRun(t, in, "root", "dpkg -i --force-overwrite --force-conflicts /tmp/tried1.deb >/dev/null 2>&1 && /usr/bin/sudo.distrib && cat /etc/berth-tried.conf", "real 1\n1")
	wantRun(t, in, "agent", still, asBefore)
	// It is hidden, like most of the machine's.
	wantRun(t, in, "root", "rm /etc/berth-tried.conf; dpkg -i --force-overwrite /tmp/tried2.deb </dev/null >/dev/null 2>&1 && /usr/bin/fusermount3.distrib && cat /etc/berth-tried.conf", "real 2\n2")
	wantRun(t, in, "agent", still, asBefore)
	wantRun(t, in, "root", "dpkg -P berth-tried >/dev/null 2>&1 && ! test -e /usr/bin/sudo.distrib && dpkg --audit", "")
	wantRun(t, in, "agent", still, asBefore)
	must(t, in.Stop(t.Context()))
	must(t, in.Start(t.Context()))
	wantRun(t, in, "root", "sort /var/lib/dpkg/diversions | uniq -c | grep -c '1 /usr/bin/sudo$'", "1")
	wantRun(t, in, "agent", still, asBefore)
}

// In images dpkg is told too; other package managers find their place free.
func TestProgramsInImages(t *testing.T) {
	p := withImages(t)
	conf := v1.Config{Env: []string{"PATH=/usr/local/bin:/usr/bin:/bin"}}
	for _, c := range []struct {
		name  string
		files []file
		shell string
		want  string
	}{
		{"dpkg", []file{{name: "var/lib/dpkg/status", mode: 0o644}}, "command -v sudo; cat /var/lib/dpkg/diversions | while read l; do case $l in */sudo) echo $l;; esac; done", "/usr/bin/sudo\n/usr/bin/sudo"},
		{"apk", []file{{name: "lib/apk/db/installed", mode: 0o644}}, "command -v sudo; test -e /usr/bin/sudo || echo free", "/usr/local/bin/sudo\nfree"},
		{"apk_with_sudo", []file{{name: "lib/apk/db/installed", mode: 0o644}, {name: "usr/bin/sudo", body: "#!/bin/sh\necho real\n"}}, "/usr/bin/sudo id -u", "0"},
		{"none", nil, "command -v sudo; test -e /var/lib/dpkg || echo none", "/usr/bin/sudo\nnone"},
	} {
		t.Run(c.name, func(t *testing.T) {
			ref := push(t, imageOf(t, conf, layerOf(t, append(systemFiles(t), c.files...)...)), "packages:"+c.name)
			in, err := p.Create(t.Context(), sandbox.Key{Owner: "o", Session: sandbox.SessionID(c.name)}, sandbox.Spec{Image: ref})
			must(t, err)
			wantRun(t, in, "", c.shell, c.want)
			wantRun(t, in, "", "sudo id -u", "0")
		})
	}
}
