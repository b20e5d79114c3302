//go:build linux

package guest

import (
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"berth/sandbox/local/isolate/raw"
)

// A shell takes longer to start than most programs. Where all that bash would do is
// to find one program and to become it, as `bash -c 'git status'` does, the program
// is executed at once, with the arguments and the environment that bash would have
// given it. Whatever is not plain is left to the shell, and so is every error, so
// that it has the shell's own words and exit code.

// simple is the words of a command that is nothing but the name of a program and
// arguments that mean themselves; nil when it is, or may be, more.
func simple(text string) (words []string) {
	if len(text) > longText {
		return nil
	}
	var word strings.Builder
	open := false // a word has begun; quotes may leave it empty
	end := func() {
		if open {
			words = append(words, word.String())
			word.Reset()
		}
		open = false
	}
	text = strings.Trim(text, " \t\n")
	for i := 0; i < len(text); i++ {
		switch c := text[i]; {
		case c == ' ' || c == '\t':
			end()
		case c == '\'' || c == '"':
			quoted, _, closed := strings.Cut(text[i+1:], string(c))
			if !closed || !literal(quoted, c) {
				return nil
			}
			word.WriteString(quoted)
			open = true
			i += len(quoted) + 1
		case 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.IndexByte("_./:,+@%-", c) >= 0,
			c == '=' && len(words) > 0: // in the first word it may assign
			word.WriteByte(c)
			open = true
		default:
			return nil
		}
	}
	end()
	if len(words) == 0 || words[0] == "" || words[0][0] == '%' || shellWord(words[0]) {
		return nil
	}
	if idle(words[0]) && len(words) > 1 { // as a program it may know --help
		return nil
	}
	return words
}

// idle tells whether a word is one of the builtins that do the same as programs.
func idle(word string) bool { return word == "true" || word == "false" }

// literal tells whether text between two quotes, each a q, stands for itself.
func literal(text string, q byte) bool {
	for i := range len(text) {
		switch c := text[i]; {
		case c < ' ' && c != '\t' && c != '\n', c == 0x7f: // bash marks things by some of them
			return false
		case q == '"' && (c == '$' || c == '`' || c == '\\'):
			return false
		}
	}
	return true
}

// shellWord tells whether bash does not look for a name in PATH: its keywords and
// builtins (`compgen -kb`) but true and false, which do as builtins what they do as
// programs, and builtins of other shells. A switch, since a map would be made whenever
// a monitor or an init starts.
func shellWord(name string) bool {
	switch name {
	case ".", ":", "[", "alias", "bg", "bind", "break", "builtin", "caller", "cd", "command", "compgen", "complete", "compopt",
		"continue", "declare", "dirs", "disown", "echo", "enable", "eval", "exec", "exit", "export", "fc", "fg", "getopts", "hash",
		"help", "history", "jobs", "kill", "let", "local", "logout", "mapfile", "popd", "printf", "pushd", "pwd", "read", "readarray",
		"readonly", "return", "set", "shift", "shopt", "source", "suspend", "test", "times", "trap", "type", "typeset", "ulimit",
		"umask", "unalias", "unset", "wait", "case", "coproc", "do", "done", "elif", "else", "esac", "fi", "for", "function", "if", "in",
		"select", "then", "time", "until", "while", "chdir":
		return true
	}
	return false
}

// unshelled tells whether bash would hand env on as it is, with what direct adds,
// and itself not do anything because of it.
func unshelled(env map[string]string) bool {
	for k := range env {
		if strings.HasPrefix(k, "BASH") { // BASH_ENV, functions, options
			return false
		}
	}
	for _, k := range []string{"SHELLOPTS", "EXECIGNORE", "POSIXLY_CORRECT", "PWD", "OLDPWD", "SHLVL", "_",
		// It sets or drops these; for the last two Debian's reads ~/.bashrc.
		"IFS", "OPTIND", "OPTERR", "LINENO", "EPOCHSECONDS", "EPOCHREALTIME", "RANDOM", "SRANDOM", "PPID", "HISTCMD", "COMP_WORDBREAKS",
		"PS1", "PS2", "PS4", "SSH_CLIENT", "SSH2_CLIENT"} {
		if _, ok := env[k]; ok {
			return false
		}
	}
	// In PATH it expands a tilde.
	return env["PATH"] != "" && env["PATH"][0] != '~' && !strings.Contains(env["PATH"], ":~")
}

// served tells whether a file system of FUSE is asked for one of files, by their
// names: it may take its time, or for ever, which a shell waits for after its start, and
// a start would not be over. What links lead to is not looked up.
func (g *guest) served(cwd string, files []string) bool {
	g.fuse.mu.Lock()
	defer g.fuse.mu.Unlock()
	if len(g.fuse.others)+len(g.fuse.buckets) == 0 {
		return false
	}
	for _, name := range files {
		if !path.IsAbs(name) {
			name = path.Join(cwd, name)
		}
		for at := path.Clean(name); at != "/"; at = path.Dir(at) {
			if g.fuse.others[at] != nil || g.fuse.buckets[at] != nil {
				return true
			}
		}
	}
	return false
}

// direct adds the execution of the first of files that may be executed, as bash
// chooses it; when that does not work the next steps follow.
func direct(p *raw.Program, words, files []string, vars []uintptr) {
	pwd := p.Bytes(append([]byte("PWD="), make([]byte, unix.PathMax)...))
	shell := []func(){p.Else(unix.SYS_GETCWD, pwd+uintptr(len("PWD=")), unix.PathMax)}
	argv := p.Strings(words)
	vars = append(vars[:len(vars):len(vars)], pwd, p.String("SHLVL=0"))
	for _, name := range files {
		file := p.String(name)
		next := p.Else(unix.SYS_FACCESSAT, atCwd, file, unix.X_OK)
		shell = append(shell, p.Else(unix.SYS_EXECVE, file, argv, p.List(append(vars, p.String("_="+name)))))
		next()
	}
	for _, goOn := range shell {
		goOn()
	}
}
