package resident

// Build tells builds of the helper apart.
func (b *Box) Build(goarch string) string { return b.build(goarch) }
