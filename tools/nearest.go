package tools

import (
	"slices"
	"strings"
)

// nearest finds the known name that was meant, or "".
func nearest(name string, known []string) string {
	word := strings.ToLower(strings.ReplaceAll(name, "-", "_"))
	if len(word) > 64 {
		return ""
	}
	snake := snakeCase(name)
	for _, w := range append([]string{snake, word}, aliases[snake]...) {
		if slices.Contains(known, w) {
			return w
		}
	}
	for _, a := range aliases[word] {
		if slices.Contains(known, a) {
			return a
		}
	}
	best, least := "", len(word)/3+1
	for _, k := range known {
		if d := distance(snake, k); d < least {
			best, least = k, d
		}
	}
	if best != "" {
		return best
	}
	for _, k := range known {
		if len(word) >= 3 && strings.HasPrefix(k, word+"_") {
			return k
		}
	}
	return ""
}

// snakeCase turns autoStopInterval into auto_stop_interval.
func snakeCase(s string) string {
	var b strings.Builder
	for i, r := range s {
		if r >= 'A' && r <= 'Z' {
			if i > 0 && !strings.HasSuffix(b.String(), "_") {
				b.WriteByte('_')
			}
			r += 'a' - 'A'
		}
		if r == '-' {
			r = '_'
		}
		b.WriteRune(r)
	}
	return b.String()
}

// distance is the number of single-character edits between a and b.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := 1; i <= len(a); i++ {
		diagonal := row[0]
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := diagonal
			if a[i-1] != b[j-1] {
				cost++
			}
			diagonal = row[j]
			row[j] = min(cost, row[j]+1, row[j-1]+1)
		}
	}
	return row[len(b)]
}
