package main

import (
	"fmt"
	"time"
)

// flood connects without end to addresses that are refused and to one that is let
// out and answers nobody, and asks for names; many at a time where there is Python.
const flood = `python3 -c '
import socket
while True:
    open = []
    for i in range(500):
        s = socket.socket()
        s.setblocking(False)
        s.connect_ex(("10.9.8.%d" % (i % 250), 80) if i % 2 else ("203.0.113.9", 80))
        open.append(s)
' || while :; do : <>/dev/tcp/10.9.8.7/80; getent hosts x.invalid; done 2>/dev/null`

// greedy: ten sandboxes answer in turn, alone and beside one that multiplies its
// processes, takes memory, writes 10 GiB to its disk and floods the network with
// connections, all at once and within its limits.
func (b *bench) greedy() ([]row, error) {
	s, err := b.stdio()
	if err != nil {
		return nil, err
	}
	defer s.Close()
	const neighbours = 10
	name := func(i int) string { return fmt.Sprintf("neighbour-%d", i%neighbours) }
	once := []contender{{"berth", func(i int) error { return runTrue(b.ctx, s, name(i)) }}}
	for i := range neighbours {
		if err := runTrue(b.ctx, s, name(i)); err != nil {
			return nil, err
		}
	}
	alone, err := interleave(10*neighbours, once)
	if err != nil {
		return nil, err
	}
	if _, err := s.Must(b.ctx, "start_sandbox", map[string]any{"session_id": "greedy",
		"resources": map[string]any{"cpu": 0.5, "memory_gib": 0.5, "disk_gib": 1}}); err != nil {
		b.absent = append(b.absent, "neighbours of a greedy sandbox, since limits cannot be held here")
		return nil, nil
	}
	for _, command := range []string{
		flood, // first: the last leaves no room for processes
		"while :; do head -c 10G /dev/zero > full; rm full; done",
		"while :; do tail -n 1 /dev/zero; done",
		"bomb() { bomb | bomb & }; bomb; sleep 600",
	} {
		if _, err := s.Must(b.ctx, "spawn_process", map[string]any{"session_id": "greedy", "command": command}); err != nil {
			return nil, err
		}
	}
	time.Sleep(2 * time.Second) // it needs time to fill up
	beside, err := interleave(10*neighbours, once)
	if err != nil {
		return nil, err
	}
	if err := destroy(b.ctx, s, "greedy"); err != nil {
		return nil, err
	}
	for i := range neighbours {
		if err := destroy(b.ctx, s, name(i)); err != nil {
			return nil, err
		}
	}
	before, after := alone["berth"].p50(), beside["berth"].p50()
	return []row{{"`true` in ten sandboxes beside a greedy one (fork bomb, memory, disk, connections)", "≤ 2 × alone",
		fmt.Sprintf("p50 %s, alone %s (%.1f×)", ms(after), ms(before), float64(after)/float64(before)), "", judge(after <= 2*before)}}, nil
}
