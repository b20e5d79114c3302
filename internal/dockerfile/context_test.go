package dockerfile_test

import (
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"berth/internal/dockerfile"
)

func TestContext(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		".dockerignore": "# what is secret\n*.env\nnode_modules\n!keep.env\n", "app/main.py": "x", "app/lib/a.py": "a", "app/x.env": "1", "app/keep.env": "2", "other/b": "b", "top.txt": "t", "node_modules/big/c": "c", "root.env": "3", "keep.env": "4",
	} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o640); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("../../outside", filepath.Join(dir, "app", "link")); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ copy, want string }{
		{"COPY top.txt /", "top.txt"},
		{"COPY app /x/", "app app/keep.env app/lib app/lib/a.py app/link app/main.py app/x.env"},
		{"COPY app/lib/*.py other /x/", "app/lib app/lib/a.py other other/b"},
		{"COPY ./app/$X/y /x/", "app app/keep.env app/lib app/lib/a.py app/link app/main.py app/x.env"},
		{"COPY . /x/", ".dockerignore app app/keep.env app/lib app/lib/a.py app/link app/main.py app/x.env keep.env other other/b top.txt"},
		{"RUN true", ""},
	} {
		b, err := dockerfile.Parse("FROM x\n"+tt.copy, nil)
		if err != nil {
			t.Fatal(err)
		}
		files, err := dockerfile.Context(b, dir, filepath.Join(dir, "none"))
		if got := strings.Join(slices.Sorted(maps.Keys(files)), " "); got != tt.want || err != nil {
			t.Errorf("files for %s = %s, %v, want %s", tt.copy, got, err, tt.want)
		}
		if f, ok := files["app/link"]; ok && (f.Link != "../../outside" || f.Mode&fs.ModeSymlink == 0) {
			t.Errorf("a link is %+v", f)
		}
		if f, ok := files["top.txt"]; ok && (f.Digest == "" || f.Mode != 0o640) {
			t.Errorf("a file is %+v", f)
		}
	}
}
