package providertest

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"syscall"
	"testing"

	"berth/sandbox"
)

// testRecords shows what is kept with processes, and that it can be dropped.
func testRecords(t *testing.T, s *suite) {
	if !s.can(t, Records) {
		return
	}
	b := s.make(t)
	note := strings.Repeat("ü\x00\"\n", 1000)
	c := b.command("echo out; echo err >&2; echo end; exit 3")
	c.Note = note
	info, out, errs := b.ended(b.spawn(c))
	if code(info) != 3 || info.Note != note || out != "out\nend\n" || errs != "err\n" {
		t.Errorf("a command with a note: %+v, %q, %q", info, out, errs)
	}
	m := b.command("for i in 1 2 3 4; do echo out $i; echo err $i >&2; done")
	m.Merge = true
	if info, out, errs := b.ended(b.spawn(m)); code(info) != 0 || info.Note != "" || errs != "" || out != "out 1\nerr 1\nout 2\nerr 2\nout 3\nerr 3\nout 4\nerr 4\n" {
		t.Errorf("stdout and stderr as one: %+v, %q, %q", info, out, errs)
	}
	if out := b.must("echo out >/dev/stdout; echo err >>/dev/stderr"); out != "out\n" {
		t.Errorf("/dev/stdout: %q", out)
	}
	if s.h.Reopen != nil {
		s.p = s.h.Reopen(t, s.p)
		b.lookup()
	}
	if l, err := b.inst.Processes(s.ctx(t)); err != nil || len(l) != 3 || l[0].Note != note {
		t.Errorf("Processes: %+v, %v", l, err)
	}
	forget := b.inst.(sandbox.ProcessForgetter).ForgetProcess
	wantErr(t, "ForgetProcess of none", forget(s.ctx(t), "p-unknown"), sandbox.ErrNoProcess)
	r := b.spawn(b.command("exec sleep 600"))
	wantErr(t, "ForgetProcess of one that runs", forget(s.ctx(t), r.ID()), syscall.EBUSY)
	b.kill(r)
	if err := forget(s.ctx(t), c.ID); err != nil {
		t.Errorf("ForgetProcess: %v", err)
	}
	_, err := b.inst.Process(s.ctx(t), c.ID)
	wantErr(t, "Process after ForgetProcess", err, sandbox.ErrNoProcess)
	if l, err := b.inst.Processes(s.ctx(t)); err != nil || len(l) != 3 || l[0].ID != m.ID {
		t.Errorf("Processes after ForgetProcess: %+v, %v", l, err)
	}
	// The id is free, and nothing of the former process shows; or, where a request may
	// come late and twice, the id is used up.
	again := b.command("echo again")
	again.ID = c.ID
	p, err := b.inst.Spawn(b.ctx(t), again)
	if errors.Is(err, sandbox.ErrMaybeStarted) {
		return
	}
	if err != nil {
		t.Fatalf("a forgotten id used again: %v", err)
	}
	if info, out, _ := b.ended(p); code(info) != 0 || info.Note != "" || out != "again\n" {
		t.Errorf("a forgotten id used again: %+v, %q", info, out)
	}
}

// testChanges shows what Files may be able to do beside reading and writing.
func testChanges(t *testing.T, s *suite) {
	if !s.can(t, FileChange) {
		return
	}
	b := s.make(t)
	home, files := b.info.Home, b.inst.Files()
	mode := func(m fs.FileMode) sandbox.Permissions { return sandbox.Permissions{Mode: &m} }
	ids := strings.Fields(b.must("id -u; id -g"))
	b.must("mkdir -p dir/sub; echo x >f; chmod 640 f; ln -s f link; ln -s dir dirlink; mkfifo fifo; ln -s nowhere broken")
	owned := sandbox.Permissions{Owner: ids[0], Group: ids[1]}
	if !s.can(t, RootsOwn) { // one id, which the user and root see under other numbers
		ids, owned = []string{"0", "0"}, mode(0o600)
	}
	i, err := files.Stat(s.ctx(t), home+"/f")
	if err != nil || i.Owner != ids[0] || i.Group != ids[1] {
		t.Errorf("Stat: %+v, %v, want owner and group %v", i, err, ids)
	}
	l, err := files.ReadDir(s.ctx(t), home+"/dir")
	if err != nil || len(l) != 1 || l[0].Owner != ids[0] {
		t.Errorf("ReadDir: %+v, %v", l, err)
	}

	permit := func(name string, p sandbox.Permissions) error {
		return files.(sandbox.FilePermitter).Permit(s.ctx(t), home+"/"+name, p)
	}
	for _, c := range []struct {
		name string
		p    sandbox.Permissions
	}{{"link", mode(0o600)}, {"dir", mode(0o700 | fs.ModeSticky)}, {"fifo", owned}} {
		if err := permit(c.name, c.p); err != nil {
			t.Errorf("Permit(%s, %+v): %v", c.name, c.p, err)
		}
	}
	if out := b.must("stat -c '%a %n' f dir fifo"); !strings.HasPrefix(out, "600 f\n1700 dir\n") {
		t.Errorf("after Permit: %q", out)
	}
	wantErr(t, "Permit of nothing", permit("none", mode(0o600)), fs.ErrNotExist)
	var field *sandbox.FieldError
	if err := permit("f", sandbox.Permissions{Owner: "nobody-has-this-name"}); !errors.As(err, &field) {
		t.Errorf("Permit to nobody: %v", err)
	}
	wantErr(t, "Permit of /proc/1/mem", files.(sandbox.FilePermitter).Permit(s.ctx(t), "/proc/1/mem", mode(0o666)), fs.ErrPermission, fs.ErrNotExist)

	rename := func(from, to string) error {
		return files.(sandbox.FileRenamer).Rename(s.ctx(t), home+"/"+from, home+"/"+to)
	}
	for _, c := range []struct {
		from, to string
		want     error
	}{
		{"f", "dir/g", nil}, {"broken", "still broken", nil}, {"dir", "dir 2", nil}, {"dirlink", "link 2", nil},
		{"none", "x", fs.ErrNotExist}, {"fifo", "dir 2/g", fs.ErrExist}, {"fifo", "nowhere/x", fs.ErrNotExist}, {"dir 2", "fifo", fs.ErrExist}, {"fifo", "dir 2/g/x", sandbox.ErrNotDir},
	} {
		if err := rename(c.from, c.to); c.want == nil && err != nil || !errors.Is(err, c.want) {
			t.Errorf("Rename(%s, %s): %v, want %v", c.from, c.to, err, c.want)
		}
	}
	if err := rename("dir 2", "dir 2/sub/below itself"); err == nil {
		t.Error("Rename of a directory into itself: no error")
	}
	if out := b.must("cat 'dir 2/g'; readlink 'still broken' 'link 2'; ls"); out != "x\nnowhere\ndir\ndir 2\nfifo\nlink\nlink 2\nstill broken\n" {
		t.Errorf("after Rename: %q", out)
	}

	remove := func(name string, directories bool) error {
		return files.(sandbox.FileRemover).Remove(s.ctx(t), home+"/"+name, directories)
	}
	for _, c := range []struct {
		name        string
		directories bool
		want        error
	}{
		{"none", true, fs.ErrNotExist}, {"dir 2", false, sandbox.ErrIsDir}, {"dir 2", true, sandbox.ErrNotEmpty}, {"dir 2/sub", false, sandbox.ErrIsDir},
		{"dir 2/sub", true, nil}, {"still broken", false, nil}, {"link", false, nil}, {"fifo", true, nil}, {"dir 2/g", false, nil}, {"dir 2", true, nil}, {"link 2/x", false, fs.ErrNotExist},
	} {
		if err := remove(c.name, c.directories); c.want == nil && err != nil || !errors.Is(err, c.want) {
			t.Errorf("Remove(%s, %v): %v, want %v", c.name, c.directories, err, c.want)
		}
	}
	if out := b.must("ls"); out != "link 2\n" {
		t.Errorf("after Remove: %q", out)
	}
	if err := files.(sandbox.FileRemover).Remove(s.ctx(t), "/", true); err == nil {
		t.Error("Remove of /: no error")
	}
	if s.can(t, RootUser) && s.can(t, RootsOwn) && s.can(t, Isolation) {
		root := b.command("mkdir /closed && echo x >/closed/f && chmod 755 /closed")
		root.User = "root"
		if info, _, errs := b.ended(b.spawn(root)); code(info) != 0 {
			t.Fatalf("as root: %s", errs)
		}
		closed := "/closed/f"
		for what, err := range map[string]error{
			"Remove": files.(sandbox.FileRemover).Remove(s.ctx(t), closed, false),
			"Rename": files.(sandbox.FileRenamer).Rename(s.ctx(t), closed, home+"/mine"),
			"Permit": files.(sandbox.FilePermitter).Permit(s.ctx(t), closed, mode(0o666)),
			"chown":  files.(sandbox.FilePermitter).Permit(s.ctx(t), closed, sandbox.Permissions{Owner: ids[0]}),
		} {
			wantErr(t, fmt.Sprintf("%s of root's file", what), err, fs.ErrPermission)
		}
	}
	if err := b.inst.Stop(s.ctx(t)); err != nil {
		t.Fatal(err)
	}
	wantErr(t, "Remove when it does not run", remove("link 2", false), sandbox.ErrNotRunning)
	wantErr(t, "Rename when it does not run", rename("link 2", "x"), sandbox.ErrNotRunning)
	wantErr(t, "Permit when it does not run", permit("link 2", mode(0o600)), sandbox.ErrNotRunning)
}
