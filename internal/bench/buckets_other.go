//go:build !linux

package main

func (b *bench) buckets() ([]row, error) {
	b.absent = append(b.absent, "buckets are mounted on Linux only")
	return nil, nil
}
