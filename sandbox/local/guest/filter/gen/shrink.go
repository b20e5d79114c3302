//go:build linux

package main

import (
	"fmt"
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Every command loads its filter anew, and the kernel translates it each time, which
// takes as long as the filter is. So all ways to one verdict share its instruction,
// at the end, and what nothing leads to is left out.

// isRet and isJump tell the kinds apart; all other instructions lead to the next one.
func isRet(in unix.SockFilter) bool { return in.Code == unix.BPF_RET|unix.BPF_K }

func isJump(in unix.SockFilter) bool { return in.Code&7 == unix.BPF_JMP }

func shrink(prog []unix.SockFilter) ([]unix.SockFilter, error) {
	reached := make([]bool, len(prog))
	var verdicts []uint32
	// Jumps lead forward, so one pass finds all.
	reached[0] = true
	for i, in := range prog {
		switch {
		case !reached[i]:
		case isRet(in):
			if !slices.Contains(verdicts, in.K) {
				verdicts = append(verdicts, in.K)
			}
		case isJump(in):
			reached[i+1+int(in.Jt)], reached[i+1+int(in.Jf)] = true, true
		case isRet(prog[i+1]):
			return nil, fmt.Errorf("instruction %d leads to a verdict without a test", i)
		default:
			reached[i+1] = true
		}
	}
	place := make([]int, len(prog))
	size := 0
	for i, in := range prog {
		if place[i] = size; reached[i] && !isRet(in) {
			size++
		}
	}
	to := func(i int) int {
		if isRet(prog[i]) {
			return size + slices.Index(verdicts, prog[i].K)
		}
		return place[i]
	}
	var out []unix.SockFilter
	for i, in := range prog {
		switch {
		case !reached[i] || isRet(in):
			continue
		case isJump(in):
			in = jump(in.Code&0xf0, in.K, to(i+1+int(in.Jt))-place[i]-1, to(i+1+int(in.Jf))-place[i]-1)
		}
		out = append(out, in)
	}
	for _, v := range verdicts {
		out = append(out, ret(v))
	}
	return out, nil
}

// call is what a filter looks at.
type call struct {
	nr, arch uint32
	args     [6]uint64
}

func (c *call) word(off uint32) uint32 {
	switch {
	case off == 0:
		return c.nr
	case off == 4:
		return c.arch
	case off%8 == 0:
		return uint32(c.args[(off-16)/8])
	}
	return uint32(c.args[(off-16)/8] >> 32)
}

// run is the kernel's part, as far as filters here use it.
func run(prog []unix.SockFilter, c *call) uint32 {
	var a uint32
	for i := 0; ; i++ {
		in := prog[i]
		hit := false
		switch in.Code {
		case unix.BPF_RET | unix.BPF_K:
			return in.K
		case unix.BPF_LD | unix.BPF_W | unix.BPF_ABS:
			a = c.word(in.K)
			continue
		case unix.BPF_ALU | unix.BPF_AND | unix.BPF_K:
			a &= in.K
			continue
		case unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K:
			hit = a == in.K
		case unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K:
			hit = a >= in.K
		default:
			panic(fmt.Sprintf("code %#x is not known", in.Code))
		}
		if hit {
			i += int(in.Jt)
		} else {
			i += int(in.Jf)
		}
	}
}

// decide is what a call's answer is to be, by the rules themselves.
func decide(t target, rules map[uint32]*rule, fake []uint32, c *call) uint32 {
	r := rules[c.nr]
	switch {
	case c.arch != t.audit, t.x32 && c.nr >= 0x40000000:
		return retErrno | uint32(unix.ENOSYS)
	case slices.Contains(fake, c.nr):
		return retErrno
	case r == nil:
		return retErrno | uint32(unix.EPERM)
	case r.always && r.errno == 0:
		return retAllow
	case r.always && len(r.alternatives) == 0:
		return retErrno | r.errno
	}
	for _, conditions := range r.alternatives {
		if !slices.ContainsFunc(conditions, func(a specs.LinuxSeccompArg) bool { return !holds(a, c.args[a.Index]) }) {
			return retAllow
		}
	}
	return retErrno | uint32(unix.EPERM)
}

func holds(a specs.LinuxSeccompArg, v uint64) bool {
	switch a.Op {
	case specs.OpEqualTo:
		return v == a.Value
	case specs.OpMaskedEqual:
		return v&a.Value == a.ValueTwo
	case specs.OpLessThan:
		return v < a.Value
	}
	panic("operator " + a.Op + " is not known")
}

// verify compares a filter with the rules, on every call number, and on all values
// that a rule names, those beside them, and those whose upper half differs.
func verify(t target, rules map[uint32]*rule, fake []uint32, prog []unix.SockFilter) error {
	values := []uint64{0, 1, 1<<32 - 1, 1 << 32, ^uint64(0)}
	for _, r := range rules {
		for _, list := range r.alternatives {
			for _, c := range list {
				for _, v := range []uint64{c.Value, c.ValueTwo} {
					values = append(values, v-1, v, v+1, v|1<<32, v|1<<63)
				}
			}
		}
	}
	slices.Sort(values)
	values = slices.Compact(values)
	check := func(c call) error {
		if got, want := run(prog, &c), decide(t, rules, fake, &c); got != want {
			return fmt.Errorf("%+v is answered %#x, not %#x", c, got, want)
		}
		return nil
	}
	for nr := range uint32(1024) {
		for _, arch := range []uint32{t.audit, t.audit ^ 1, 0} {
			for _, base := range []uint32{0, 0x40000000, 0x80000000} {
				if err := check(call{nr: nr | base, arch: arch}); err != nil {
					return err
				}
			}
		}
		if rules[nr] == nil || rules[nr].always {
			continue
		}
		for i := range 6 {
			for j := range 6 {
				for _, v := range values {
					for _, w := range values {
						c := call{nr: nr, arch: t.audit}
						c.args[i], c.args[j] = v, w
						if err := check(c); err != nil {
							return err
						}
					}
				}
			}
		}
	}
	return nil
}
