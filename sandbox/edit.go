package sandbox

import (
	"bytes"
	"context"
	"fmt"
	"hash/fnv"
	"io"
	"strings"
	"time"
)

// EditFile replaces texts in a file: all edits or none, one after the other. A
// text that is found never, or more than once without ReplaceAll, is an error
// that says where. The file is replaced at once, and keeps its mode.
//
// Edits of one file follow each other, also those of other processes that share
// the event directory. A file that a program inside changed meanwhile is edited
// as it is then: the file is compared just before it is replaced. What is
// written in the instant between is lost, as with every editor.
func (m *Manager) EditFile(ctx context.Context, key Key, r EditFileRequest) (*EditFileResult, error) {
	ctx = withDeadline(ctx)
	var f faults
	if len(r.Edits) == 0 {
		f.add("edits", "there are none", "1 to 1000 of {old_text, new_text, replace_all}", "")
	}
	if len(r.Edits) > MaxEditCount {
		f.add("edits", fmt.Sprintf("there are %d", len(r.Edits)), "at most 1000", "")
	}
	for i, e := range r.Edits {
		name := fmt.Sprintf("edits.%d", i)
		switch {
		case e.OldText == "":
			f.add(name+".old_text", "it is empty", "text that is in the file", "write_file makes new files, with append it adds at the end")
		case e.OldText == e.NewText:
			f.add(name+".new_text", "it is the same as old_text", "", "")
		}
	}
	if err := f.err(); err != nil {
		return nil, err
	}
	var res *EditFileResult
	notice, err := m.onFiles(ctx, key, r.Path, func(files Files, path string) error {
		// The lock is that of the file, by whatever name it is called.
		info, err := files.Stat(ctx, path)
		if err != nil {
			return err
		}
		unlock, err := m.editLock(ctx, key, info.Path)
		if err != nil {
			return err
		}
		defer unlock()
		old, info, err := readEditable(ctx, files, path)
		if err != nil {
			return err
		}
		var text string
		var count int
		for tries := 0; ; tries++ {
			if text, count, err = applyEdits(string(old), r.Edits, info.Path); err != nil {
				return err
			}
			now, _, err := readEditable(ctx, files, path)
			if err != nil {
				return err
			}
			if bytes.Equal(old, now) {
				break
			}
			if tries == 3 {
				return &UserError{Err: ErrUnavailable, Text: fmt.Sprintf("%s changes all the time; nothing was changed; stop what writes to it, see list_processes", info.Path)}
			}
			old = now
		}
		wctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Until(callDeadline(ctx)))
		defer cancel()
		w, err := files.Write(wctx, path, strings.NewReader(text), WriteOptions{})
		if err != nil {
			return err
		}
		res = &EditFileResult{Path: w.Path, Count: count, Diff: unifiedDiff(w.Path, string(old), text)}
		return nil
	})
	if err != nil {
		return nil, err
	}
	res.Notice = notice
	return res, nil
}

// readEditable reads a file that can be edited, whole.
func readEditable(ctx context.Context, files Files, path string) ([]byte, FileInfo, error) {
	body, info, err := files.Open(ctx, path)
	if err != nil {
		return nil, info, err
	}
	text, err := io.ReadAll(io.LimitReader(body, MaxEditFile+1))
	_ = body.Close()
	if err != nil {
		return nil, info, fmt.Errorf("read: %w", err)
	}
	if len(text) > MaxEditFile {
		return nil, info, &UserError{Err: ErrLimit, Text: fmt.Sprintf("%s has %d bytes, more than the 16,777,216 that can be edited; use a command such as sed", info.Path, info.Size)}
	}
	if mime := sniff(text[:min(len(text), sniffed)]); mime != "text/plain" {
		return nil, info, &UserError{Err: ErrUnsupported, Text: fmt.Sprintf("%s is binary (%s); edit_file changes text; use a command, or write_file with base64", info.Path, mime)}
	}
	return text, info, nil
}

// editLocks is the number of locks of edits: two files may share one.
const editLocks = 64

// editLock makes edits of one file follow each other: by this process, and by
// others with the same event directory. It is waited for until the call's end.
func (m *Manager) editLock(ctx context.Context, key Key, path string) (unlock func(), err error) {
	h := fnv.New32a()
	_, _ = io.WriteString(h, string(key.Owner)+"\x00"+string(key.Session)+"\x00"+path)
	n := h.Sum32() % editLocks
	busy := &UserError{Err: ErrUnavailable, Text: "another edit_file of this file does not end; nothing was changed; make the same call again"}
	release := func() {}
	for wait := time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		if m.edits[n].TryLock() {
			if m.events == nil {
				break
			}
			if release, err = m.events.lock(fmt.Sprintf(".edit-%d", n)); release != nil {
				break
			}
			m.edits[n].Unlock()
			if err != nil {
				return nil, fmt.Errorf("lock the file: %w", err)
			}
		}
		if time.Now().Add(wait).After(callDeadline(ctx)) {
			return nil, busy
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(wait):
		}
	}
	return func() { release(); m.edits[n].Unlock() }, nil
}

// applyEdits carries out all edits or none.
func applyEdits(text string, edits []Edit, path string) (string, int, error) {
	count := 0
	for i, e := range edits {
		old, to := e.OldText, e.NewText
		n := strings.Count(text, old)
		// A reader sees lines, not their ends: texts with \n fit files with \r\n.
		if n == 0 && strings.Contains(old, "\n") && !strings.Contains(old, "\r\n") && strings.Contains(text, "\r\n") {
			if crlf := strings.ReplaceAll(old, "\n", "\r\n"); strings.Contains(text, crlf) {
				old, n = crlf, strings.Count(text, crlf)
			}
		}
		if n > 0 && !strings.Contains(e.NewText, "\r\n") && mostlyCRLF(text) {
			to = strings.ReplaceAll(e.NewText, "\n", "\r\n")
		}
		times := 1
		if e.ReplaceAll {
			times = n
		}
		field := fmt.Sprintf("edits.%d.old_text", i)
		earlier := ""
		if i > 0 {
			earlier = " (after the edits before it)"
		}
		switch {
		case n == 0:
			hint := "read_file shows the exact text, blanks and tabs too"
			if at := nearest(text, e.OldText); at > 0 {
				hint = fmt.Sprintf("line %d is like its first line; %s", at, hint)
			}
			return "", 0, &FieldError{Field: field, Problem: fmt.Sprintf("it is not in %s%s; nothing was changed", path, earlier), Hint: hint}
		case n > 1 && !e.ReplaceAll:
			return "", 0, &FieldError{Field: field, Problem: fmt.Sprintf("it is %d times in %s%s, at lines %s; nothing was changed", n, path, earlier, places(text, old)),
				Hint: "add the lines around the one meant, or set replace_all"}
		case int64(len(text))+int64(times)*int64(len(to)-len(old)) > MaxEditFile:
			// Before it is made: a short edit makes terabytes of a small file.
			return "", 0, &UserError{Err: ErrLimit, Text: "the edited file would have more than 16,777,216 bytes; nothing was changed; use a command such as sed"}
		}
		text = strings.Replace(text, old, to, times)
		count += times
	}
	return text, count, nil
}

// mostlyCRLF tells that every line of text ends in \r\n.
func mostlyCRLF(text string) bool {
	n := strings.Count(text, "\n")
	return n > 0 && strings.Count(text, "\r\n") == n
}

// places are the line numbers at which old is found, at most ten.
func places(text, old string) string {
	var at []string
	line, from := 1, 0
	for {
		i := strings.Index(text[from:], old)
		if i < 0 {
			break
		}
		if len(at) == 10 {
			at = append(at, "…")
			break
		}
		line += strings.Count(text[from:from+i], "\n")
		at = append(at, fmt.Sprint(line))
		line += strings.Count(text[from+i:from+i+len(old)], "\n")
		from += i + len(old)
	}
	return strings.Join(at, ", ")
}

// nearest is the first line that is the first line of old but for blanks; 0
// when there is none.
func nearest(text, old string) int {
	want := ""
	for l := range strings.Lines(old) {
		if want = strings.TrimSpace(l); want != "" {
			break
		}
	}
	if want == "" {
		return 0
	}
	line := 0
	for l := range strings.Lines(text) {
		line++
		if strings.TrimSpace(l) == want {
			return line
		}
	}
	return 0
}

// Bounds of a diff: lines around a change, bytes in all, and lines of each text
// that are compared, counted from the first change.
const (
	diffContext = 3
	maxDiff     = 32 << 10
	maxCompared = 50_000
	longer      = "[the diff is longer; the file was changed as asked]\n"
)

// unifiedDiff shows what changed between two texts. It compares what lies
// between the common beginning and end in pieces of equal lines, which is exact
// enough for edits made by replacement, and linear for large files. A text of
// short lines takes many times its size in memory, so that not all is compared.
func unifiedDiff(path, a, b string) string {
	a, b, before := differing(a, b)
	x, xall := splitLines(a, maxCompared)
	y, yall := splitLines(b, maxCompared)
	ops := compareLines(x, y)
	whole := xall && yall
	if last := len(ops) - 1; !whole && last > 0 && (ops[last].x1 == len(x) || ops[last].y1 == len(y)) {
		ops = ops[:last] // goes on, nobody knows how, where the comparison ends
	}
	var out bytes.Buffer
	fmt.Fprintf(&out, "--- %s\n+++ %s\n", path, path)
	for i := 0; i < len(ops); {
		// A hunk: changes at most 2*diffContext lines apart.
		j := i
		for j+1 < len(ops) && ops[j+1].x0-ops[j].x1 <= 2*diffContext {
			j++
		}
		from, to := max(0, ops[i].x0-diffContext), min(len(x), ops[j].x1+diffContext)
		yfrom, yto := ops[i].y0-(ops[i].x0-from), ops[j].y1+(to-ops[j].x1)
		fmt.Fprintf(&out, "@@ -%s +%s @@\n", hunkRange(before+from, before+to), hunkRange(before+yfrom, before+yto))
		at := from
		for ; i <= j; i++ {
			writeLines(&out, ' ', x[at:ops[i].x0])
			writeLines(&out, '-', x[ops[i].x0:ops[i].x1])
			writeLines(&out, '+', y[ops[i].y0:ops[i].y1])
			at = ops[i].x1
		}
		writeLines(&out, ' ', x[at:to])
		if out.Len() > maxDiff {
			cut := out.Bytes()[:maxDiff]
			cut = cut[:headEnd(cut)]
			return strings.ToValidUTF8(string(cut), "\uFFFD") + longer
		}
	}
	if !whole {
		out.WriteString(longer)
	}
	return strings.ToValidUTF8(out.String(), "\uFFFD")
}

func hunkRange(from, to int) string {
	switch to - from {
	case 0:
		return fmt.Sprintf("%d,0", from)
	case 1:
		return fmt.Sprint(from + 1)
	}
	return fmt.Sprintf("%d,%d", from+1, to-from)
}

// differing leaves out what two texts have in common at their beginning and end,
// but for the lines around a change, and counts the lines left out before.
func differing(a, b string) (x, y string, before int) {
	same := 0
	for same < min(len(a), len(b)) && a[same] == b[same] {
		same++
	}
	start := strings.LastIndexByte(a[:same], '\n') + 1
	for i := 0; i < diffContext && start > 0; i++ {
		start = strings.LastIndexByte(a[:start-1], '\n') + 1
	}
	before = strings.Count(a[:start], "\n")
	rest := min(len(a), len(b)) - same
	a, b = a[start:], b[start:]
	for same = 0; same < rest && a[len(a)-1-same] == b[len(b)-1-same]; {
		same++
	}
	tail := a[len(a)-same:]
	for i := 0; i <= diffContext; i++ { // the first may be part of a line
		n := strings.IndexByte(tail, '\n')
		if n < 0 {
			return a, b, before
		}
		tail = tail[n+1:]
	}
	return a[:len(a)-len(tail)], b[:len(b)-len(tail)], before
}

// splitLines are the first lines of s, at most most; all tells that there are
// no more.
func splitLines(s string, most int) (lines []string, all bool) {
	for l := range strings.Lines(s) {
		if len(lines) == most {
			return lines, false
		}
		lines = append(lines, l)
	}
	return lines, true
}

func writeLines(out *bytes.Buffer, mark byte, lines []string) {
	for _, l := range lines {
		if out.Len() > maxDiff {
			return // the rest would be cut
		}
		out.WriteByte(mark)
		if len(l) > maxDiff {
			out.WriteString(l[:maxDiff])
			return
		}
		out.WriteString(l)
		if !strings.HasSuffix(l, "\n") {
			out.WriteString("\n\\ No newline at end of file\n")
		}
	}
}

// change says that x[x0:x1] became y[y0:y1].
type change struct{ x0, x1, y0, y1 int }

// compareLines finds the changes: lines that are in both texts exactly once,
// in the same order, divide the texts, and so on within the parts.
func compareLines(x, y []string) []change {
	var ops []change
	var walk func(x0, x1, y0, y1, depth int)
	walk = func(x0, x1, y0, y1, depth int) {
		for x0 < x1 && y0 < y1 && x[x0] == y[y0] {
			x0, y0 = x0+1, y0+1
		}
		for x0 < x1 && y0 < y1 && x[x1-1] == y[y1-1] {
			x1, y1 = x1-1, y1-1
		}
		if x0 == x1 && y0 == y1 {
			return
		}
		anchors := uniqueInBoth(x, y, x0, x1, y0, y1)
		if len(anchors) == 0 || depth > 20 {
			ops = append(ops, change{x0, x1, y0, y1})
			return
		}
		for _, a := range anchors {
			walk(x0, a[0], y0, a[1], depth+1)
			x0, y0 = a[0]+1, a[1]+1
		}
		walk(x0, x1, y0, y1, depth+1)
	}
	walk(0, len(x), 0, len(y), 0)
	return ops
}

// uniqueInBoth pairs the lines that occur once in each part, as a sequence that
// rises in both.
func uniqueInBoth(x, y []string, x0, x1, y0, y1 int) [][2]int {
	type where struct{ nx, ny, y int }
	lines := make(map[string]*where, x1-x0)
	for _, l := range x[x0:x1] {
		if w := lines[l]; w != nil {
			w.nx++
		} else {
			lines[l] = &where{nx: 1}
		}
	}
	for i, l := range y[y0:y1] {
		if w := lines[l]; w != nil {
			w.ny++
			w.y = y0 + i
		}
	}
	// The longest rising sequence, by patience sorting.
	var pairs [][2]int
	for i := x0; i < x1; i++ {
		if w := lines[x[i]]; w.nx == 1 && w.ny == 1 {
			pairs = append(pairs, [2]int{i, w.y})
		}
	}
	var piles []int // index into pairs of each pile's top
	prev := make([]int, len(pairs))
	for i, p := range pairs {
		lo, hi := 0, len(piles)
		for lo < hi {
			mid := (lo + hi) / 2
			if pairs[piles[mid]][1] < p[1] {
				lo = mid + 1
			} else {
				hi = mid
			}
		}
		prev[i] = -1
		if lo > 0 {
			prev[i] = piles[lo-1]
		}
		if lo == len(piles) {
			piles = append(piles, i)
		} else {
			piles[lo] = i
		}
	}
	if len(piles) == 0 {
		return nil
	}
	seq := make([][2]int, len(piles))
	for i, k := piles[len(piles)-1], len(piles)-1; i >= 0; i, k = prev[i], k-1 {
		seq[k] = pairs[i]
	}
	return seq
}
