//go:build linux

package isolate

// UseV2 makes the hierarchy of version 2 at root the only one that is found,
// with these controllers of it, until restore is called.
func UseV2(root string, controllers ...string) (restore func()) {
	found = func() []hierarchy {
		return []hierarchy{{root: root, own: root, v2: true, controllers: controllers}}
	}
	return func() { found = hierarchies }
}
