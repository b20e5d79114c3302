package sandbox

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"regexp"
	"strings"
)

// ExportOptions of ExportSnapshot.
type ExportOptions struct {
	// To is the absolute path of the tar file, or with Dir of the directory.
	To  string
	Dir bool
	// Replace a file that is there.
	Replace bool
}

// SnapshotExport tells what ExportSnapshot wrote.
type SnapshotExport struct {
	To string
	// Image is the name under which it is loaded; Digest its manifest's.
	Image  string
	Digest string
	Layers int
	Size   int64 // bytes of the layers, compressed
	// Remarks tell what of the snapshot an image cannot hold.
	Remarks []string
}

// ExportSnapshot writes a snapshot as an image to a file or directory.
// Its progress is reported, see WithProgress.
func (m *Manager) ExportSnapshot(ctx context.Context, owner Owner, name string, o ExportOptions) (*SnapshotExport, error) {
	e, can := m.provider.(SnapshotExporter)
	if !can {
		return nil, &UserError{Err: ErrUnsupported, Text: "provider " + m.provider.Name() + " does not export snapshots"}
	}
	var f faults
	f.snapshot("name", name)
	if err := f.err(); err != nil {
		return nil, err
	}
	out, err := e.ExportSnapshot(ctx, owner, name, o)
	var fe *FieldError
	var ue *UserError
	switch {
	case err == nil:
		return &out, nil
	case errors.As(err, &fe), errors.As(err, &ue), ctx.Err() != nil:
		return nil, err
	case errors.Is(err, ErrNotFound):
		return nil, &FieldError{Field: "name", Problem: fmt.Sprintf("there is no snapshot %s", name), Hint: "list_snapshots shows those there are"}
	}
	return nil, fmt.Errorf("export the snapshot: %w", err)
}

// ImportSnapshot makes a snapshot of an image in a file or directory (an
// absolute path, after which ":TAG" may choose one of several). An empty name is
// made of the file's. Its progress is reported, see WithProgress.
func (m *Manager) ImportSnapshot(ctx context.Context, owner Owner, name, from string) (*SnapshotInfo, error) {
	i, can := m.provider.(SnapshotImporter)
	if !can {
		return nil, &UserError{Err: ErrUnsupported, Text: "provider " + m.provider.Name() + " does not import snapshots"}
	}
	if name == "" {
		if name = nameOfFile(from); name == "" {
			return nil, &FieldError{Field: "name", Problem: fmt.Sprintf("none can be made of %.80q", filepath.Base(from)), Hint: "give one"}
		}
	}
	var f faults
	f.snapshot("name", name)
	if err := f.err(); err != nil {
		return nil, err
	}
	info, err := i.ImportSnapshot(ctx, owner, name, from)
	var fe *FieldError
	var ue *UserError
	switch {
	case err == nil:
		return &info, nil
	case errors.As(err, &fe), errors.As(err, &ue), ctx.Err() != nil:
		return nil, err
	case errors.Is(err, ErrExists):
		return nil, &FieldError{Field: "name", Problem: fmt.Sprintf("there is a snapshot %s already", name), Allowed: "a new name", Hint: "snapshots never change; delete_snapshot removes one"}
	}
	return nil, fmt.Errorf("import the snapshot: %w", err)
}

var notInNames = regexp.MustCompile(`[^A-Za-z0-9._-]+`)

// nameOfFile makes a snapshot's name of a file's; empty when nothing is left.
func nameOfFile(from string) string {
	base := filepath.Base(from)
	for _, ext := range []string{".gz", ".tar", ".oci"} {
		base = strings.TrimSuffix(base, ext)
	}
	base = strings.TrimLeft(notInNames.ReplaceAllString(base, "-"), "._-")
	return base[:min(len(base), 63)]
}
