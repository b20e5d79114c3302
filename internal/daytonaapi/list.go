package daytonaapi

import (
	"cmp"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Bounds of pages.
const (
	defaultPage = 100
	maxPage     = 200
)

// listCursor is where a list goes on. At keeps the sandboxes that are in use,
// and so are used later with every look, from leaving their places between pages.
type listCursor struct {
	Value string `json:"sortValue"`
	ID    string `json:"id"`
	At    string `json:"at"`
}

func (s *Server) listSandboxes(c *call) (any, error) {
	q := c.r.URL.Query()
	limit, err := number(q, "limit", defaultPage, 1, maxPage)
	if err != nil {
		return nil, err
	}
	items, sortBy, desc, err := s.selected(c)
	if err != nil {
		return nil, err
	}
	at := stamp(time.Now())
	var after *listCursor
	if text := q.Get("cursor"); text != "" {
		after = &listCursor{}
		b, err := base64.RawURLEncoding.DecodeString(text)
		if err != nil || json.Unmarshal(b, after) != nil || after.ID == "" {
			return nil, refuse(http.StatusBadRequest, "cursor is not from an earlier answer; leave it out to begin anew")
		}
		at = after.At
	}
	value := func(i listItem) string { return sortValue(i, sortBy, at) }
	order := func(av, aid, bv, bid string) int {
		n := cmp.Or(strings.Compare(av, bv), strings.Compare(aid, bid))
		if desc {
			n = -n
		}
		return n
	}
	slices.SortFunc(items, func(a, b listItem) int { return order(value(a), a.ID, value(b), b.ID) })
	out := listBody{Items: []listItem{}}
	for _, i := range items {
		if after != nil && order(value(i), i.ID, after.Value, after.ID) <= 0 {
			continue
		}
		if len(out.Items) == limit {
			last := out.Items[limit-1]
			b, _ := json.Marshal(listCursor{value(last), last.ID, at}) // plain text always encodes
			next := base64.RawURLEncoding.EncodeToString(b)
			out.NextCursor = &next
			break
		}
		out.Items = append(out.Items, i)
	}
	return out, nil
}

// listPaginated is the older form, by numbers.
func (s *Server) listPaginated(c *call) (any, error) {
	q := c.r.URL.Query()
	page, err := number(q, "page", 1, 1, 1<<30)
	if err != nil {
		return nil, err
	}
	limit, err := number(q, "limit", defaultPage, 1, maxPage)
	if err != nil {
		return nil, err
	}
	items, _, _, err := s.selected(c)
	if err != nil {
		return nil, err
	}
	slices.SortFunc(items, func(a, b listItem) int {
		return cmp.Or(strings.Compare(b.CreatedAt, a.CreatedAt), strings.Compare(a.ID, b.ID))
	})
	return paged(items, page, limit), nil
}

// paged is one page of a list.
func paged[T any](items []T, page, limit int) pageBody[T] {
	out := pageBody[T]{Items: []T{}, Total: len(items), Page: page, TotalPages: (len(items) + limit - 1) / limit}
	if from := (page - 1) * limit; page <= out.TotalPages {
		out.Items = items[from:min(from+limit, len(items))]
	}
	return out
}

// sortValue orders by text: numbers have leading zeros.
func sortValue(i listItem, by, at string) string {
	num := func(n float64) string { return strconv.FormatFloat(1e9+n, 'f', 3, 64) }
	switch by {
	case "name":
		return i.Name
	case "cpu":
		return num(i.CPU)
	case "memoryGib":
		return num(i.Memory)
	case "diskGib":
		return num(i.Disk)
	case "createdAt":
		return i.CreatedAt
	}
	return min(i.LastActivityAt, at)
}

var sorts = []string{"name", "cpu", "memoryGib", "diskGib", "lastActivityAt", "createdAt"}

// selected are the owner's sandboxes that the query asks for.
func (s *Server) selected(c *call) (items []listItem, sortBy string, desc bool, err error) {
	q := c.r.URL.Query()
	bad := func(format string, a ...any) ([]listItem, string, bool, error) {
		return nil, "", false, refuse(http.StatusBadRequest, format, a...)
	}
	sortBy = cmp.Or(q.Get("sort"), "lastActivityAt")
	if !slices.Contains(sorts, sortBy) {
		return bad("sort must be one of %s", strings.Join(sorts, ", "))
	}
	switch q.Get("order") {
	case "", "desc":
		desc = true
	case "asc":
	default:
		return bad("order must be asc or desc")
	}
	var labels map[string]string
	if text := q.Get("labels"); text != "" {
		if err := json.Unmarshal([]byte(text), &labels); err != nil {
			return bad("labels must be a JSON object of texts")
		}
	}
	wants, err := filters(q)
	if err != nil {
		return nil, "", false, err
	}
	all, err := s.everything(c.ctx(), c.owner)
	if err != nil {
		return nil, "", false, err
	}
	for _, v := range all {
		i := v.item(c.base)
		if i.State == "destroyed" || !hasLabels(i.Labels, labels) || slices.ContainsFunc(wants, func(want func(listItem) bool) bool { return !want(i) }) {
			continue
		}
		items = append(items, i)
	}
	return items, sortBy, desc, nil
}

func hasLabels(have, want map[string]string) bool {
	for k, v := range want {
		if h, ok := have[k]; !ok || h != v {
			return false
		}
	}
	return true
}

// filters are the query's other conditions.
func filters(q url.Values) ([]func(listItem) bool, error) {
	var list []func(listItem) bool
	prefix := func(name string, of func(listItem) string) {
		if p := strings.ToLower(q.Get(name)); p != "" {
			list = append(list, func(i listItem) bool { return strings.HasPrefix(strings.ToLower(of(i)), p) })
		}
	}
	oneOf := func(name string, of func(listItem) string) {
		var allowed []string
		for _, v := range q[name] {
			allowed = append(allowed, strings.Split(v, ",")...)
		}
		if len(allowed) > 0 {
			list = append(list, func(i listItem) bool { return slices.Contains(allowed, of(i)) })
		}
	}
	prefix("id", func(i listItem) string { return i.ID })
	prefix("name", func(i listItem) string { return i.Name })
	oneOf("states", func(i listItem) string { return i.State })
	oneOf("snapshots", func(i listItem) string { return i.Snapshot })
	oneOf("regionIds", func(i listItem) string { return i.Target })
	oneOf("sandboxClasses", func(i listItem) string { return i.SandboxClass })
	for _, f := range []struct {
		name string
		of   func(listItem) float64
	}{{"Cpu", func(i listItem) float64 { return i.CPU }}, {"MemoryGiB", func(i listItem) float64 { return i.Memory }}, {"DiskGiB", func(i listItem) float64 { return i.Disk }}} {
		for _, end := range []string{"min", "max"} {
			text := q.Get(end + f.name)
			if text == "" {
				continue
			}
			n, err := strconv.ParseFloat(text, 64)
			if err != nil {
				return nil, refuse(http.StatusBadRequest, "%s must be a number", end+f.name)
			}
			list = append(list, func(i listItem) bool { return f.of(i) == n || (f.of(i) > n) == (end == "min") })
		}
	}
	for _, f := range []struct {
		name string
		of   func(listItem) bool
	}{{"isPublic", func(i listItem) bool { return i.Public }}, {"isRecoverable", func(i listItem) bool { return i.Recoverable }}} {
		if text := q.Get(f.name); text != "" {
			list = append(list, func(i listItem) bool { return strconv.FormatBool(f.of(i)) == text })
		}
	}
	for _, f := range []struct {
		name string
		of   func(listItem) string
	}{{"createdAt", func(i listItem) string { return i.CreatedAt }}, {"lastEvent", func(i listItem) string { return i.LastActivityAt }}, {"lastActivity", func(i listItem) string { return i.LastActivityAt }}} {
		for _, end := range []string{"After", "Before"} {
			text := q.Get(f.name + end)
			if text == "" {
				continue
			}
			t, err := time.Parse(time.RFC3339, text)
			if err != nil {
				return nil, refuse(http.StatusBadRequest, "%s must be a time, such as %s", f.name+end, stamp(time.Now()))
			}
			list = append(list, func(i listItem) bool {
				n := strings.Compare(f.of(i), stamp(t))
				return n > 0 == (end == "After") && n != 0
			})
		}
	}
	return list, nil
}

// number reads a whole number of the query.
func number(q url.Values, name string, absent, least, most int) (int, error) {
	text := q.Get(name)
	if text == "" {
		return absent, nil
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < least || n > most {
		return 0, refuse(http.StatusBadRequest, "%s must be a whole number from %d to %d", name, least, most)
	}
	return n, nil
}
