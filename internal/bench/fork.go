package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

// What a sandbox that is forked has changed.
const (
	forkFiles = 1024
	forkBytes = forkFiles << 20
)

// fork: another sandbox of one that has changed a gigabyte of files and in which
// nothing runs, beside copying such a tree with cp. The first is made at once
// after writing, when little of it is on the disk. Each next one follows a small
// change, since the files of a sandbox that changed nothing are shared as they are.
func (b *bench) fork() ([]row, error) {
	p := b.program
	p.Env = append(p.Env, "BERTH_TOOLSETS=all")
	s, err := p.Stdio(b.ctx, legacy)
	if err != nil {
		return nil, err
	}
	defer s.Close()
	tree := filepath.Join(b.dir, "tree")
	if err := os.Mkdir(tree, 0o700); err != nil {
		return nil, err
	}
	const write = "head -c 1048576 /dev/urandom > one && for i in $(seq %d); do (echo $i; tail -c +9 one) > f$i || exit; done; rm one"
	cmd := exec.CommandContext(b.ctx, "sh", "-c", fmt.Sprintf(write, forkFiles))
	cmd.Dir = tree
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("%w: %s", err, out)
	}
	run := func(session, command string) error {
		a, err := s.Must(b.ctx, "execute_command", map[string]any{"session_id": session, "command": command})
		if err == nil && (a.Result.ExitCode == nil || *a.Result.ExitCode != 0) {
			err = fmt.Errorf("%s answered %q", command, a.Text)
		}
		return err
	}
	if err := run("forked", "mkdir ~/d && cd ~/d && "+fmt.Sprintf(write, forkFiles)); err != nil {
		return nil, err
	}
	var ours, cp sample
	n := max(5, b.n/3)
	for i := range n {
		if i > 0 {
			if err := run("forked", "echo x >> ~/d/f1"); err != nil {
				return nil, err
			}
		}
		id := fmt.Sprintf("fork-%d", i)
		begin := time.Now()
		if _, err := s.Must(b.ctx, "fork_sandbox", map[string]any{"session_id": "forked", "new_session_id": id}); err != nil {
			return nil, err
		}
		ours = append(ours, time.Since(begin))
		if err := run(id, fmt.Sprintf("test $(ls ~/d | wc -l) = %d", forkFiles)); err != nil {
			return nil, err
		}
		if err := destroy(b.ctx, s, id); err != nil {
			return nil, err
		}
		to := fmt.Sprintf("%s-%d", tree, i)
		begin = time.Now()
		if out, err := exec.CommandContext(b.ctx, "cp", "-a", tree, to).CombinedOutput(); err != nil {
			return nil, fmt.Errorf("cp: %w: %s", err, out)
		}
		cp = append(cp, time.Since(begin))
		if err := os.RemoveAll(to); err != nil {
			return nil, err
		}
	}
	begin := time.Now()
	if _, err := s.Must(b.ctx, "create_snapshot", map[string]any{"session_id": "forked", "name": "bench"}); err != nil {
		return nil, err
	}
	snapshot := time.Since(begin)
	for _, c := range []struct {
		tool string
		args map[string]any
	}{{"delete_snapshot", map[string]any{"name": "bench"}}, {"destroy_sandbox", map[string]any{"session_id": "forked"}}} {
		if _, err := s.Must(b.ctx, c.tool, c.args); err != nil {
			return nil, err
		}
	}
	return []row{
		{fmt.Sprintf("fork of a sandbox with %d MiB of changed files in %d", forkBytes>>20, forkFiles), "≤ 50 ms",
			fmt.Sprintf("p50 %s; right after they were written %s", ms(ours.p50()), ms(ours[0])),
			fmt.Sprintf("cp -a %s (%.1f×)", ms(cp.p50()), float64(cp.p50())/float64(ours.p50())), judge(ours.p50() <= 50*time.Millisecond && ours[0] <= 50*time.Millisecond)},
		{"— a snapshot of it: digest, and all on the disk", "", ms(snapshot), "", open},
	}, nil
}
