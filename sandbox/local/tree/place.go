//go:build linux

package tree

import (
	"slices"
	"strings"
)

// place is a name in a tree. Names are kept as places, since a path repeats those
// of all directories above it: of many names deep in a tree, that is far more
// than they take on the disk. nil is the tree's top.
type place struct {
	in   *place
	name string
}

// String is the path from the top.
func (p *place) String() string {
	var names []string
	for ; p != nil; p = p.in {
		names = append(names, p.name)
	}
	slices.Reverse(names)
	return strings.Join(names, "/")
}
