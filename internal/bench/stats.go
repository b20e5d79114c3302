package main

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// sample is a series of times of one contender.
type sample []time.Duration

func (s sample) quantile(q float64) time.Duration {
	if len(s) == 0 {
		return 0
	}
	sorted := slices.Clone(s)
	slices.Sort(sorted)
	return sorted[int(q*float64(len(sorted)-1)+0.5)]
}

func (s sample) p50() time.Duration { return s.quantile(0.5) }
func (s sample) p95() time.Duration { return s.quantile(0.95) }

func ms(d time.Duration) string { return fmt.Sprintf("%.2f ms", float64(d.Microseconds())/1000) }

// contender is one way of doing a thing; once does it once.
type contender struct {
	name string
	once func(i int) error
}

// settle is the pause before each turn: what a contender still does after its
// answer is not the next one's.
const settle = 20 * time.Millisecond

// interleave runs the contenders in turn, n times each, so that whatever else
// the machine does strikes all of them alike. Each round begins with the next one.
func interleave(n int, cs []contender) (map[string]sample, error) {
	got := map[string]sample{}
	for i := range n + 1 {
		for k := range cs {
			c := cs[(i+k)%len(cs)]
			time.Sleep(settle)
			begin := time.Now()
			if err := c.once(i); err != nil {
				return nil, fmt.Errorf("%s: %w", c.name, err)
			}
			if i > 0 { // the first warms up
				got[c.name] = append(got[c.name], time.Since(begin))
			}
		}
	}
	return got, nil
}

// beside names the peers' medians and how many times slower each is than ours.
func beside(got map[string]sample, ours string, cs []contender) string {
	var parts []string
	for _, c := range cs {
		if c.name == ours {
			continue
		}
		parts = append(parts, fmt.Sprintf("%s %s (%.1f×)", c.name, ms(got[c.name].p50()),
			float64(got[c.name].p50())/float64(got[ours].p50())))
	}
	return strings.Join(parts, ", ")
}
