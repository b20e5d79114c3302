package daytonaapi

import (
	"log/slog"
	"strings"
	"time"

	"berth/sandbox"
)

// sweepEvery is how often what nobody needs any more is looked for.
const sweepEvery = time.Hour

// tidy removes it until the server closes.
func (s *Server) tidy() {
	t := time.NewTicker(sweepEvery)
	defer t.Stop()
	for {
		s.sweep()
		select {
		case <-s.ctx.Done():
			return
		case <-t.C:
		}
	}
}

// sweep removes uploads that were not used for long, records of sandboxes that
// were deleted by themselves, and the snapshots behind built sandboxes of which
// none is left.
func (s *Server) sweep() {
	s.storage.sweep(time.Now())
	owners := map[sandbox.Owner]bool{}
	for _, r := range s.records.sandboxes.all(func(sandboxRecord) bool { return true }) {
		owners[r.Owner] = true
		if _, err := s.see(s.ctx, r.key()); err != nil && s.ctx.Err() != nil {
			return
		}
	}
	for owner := range owners {
		for r := (sandbox.SnapshotListRequest{Limit: 200}); s.ctx.Err() == nil; {
			page, err := s.m.ListSnapshots(s.ctx, owner, r)
			if err != nil {
				s.log.Warn("sweep of the Daytona API", slog.Any("err", err))
				return
			}
			for _, i := range page.Snapshots {
				if strings.HasPrefix(i.Name, hiddenPrefix) && len(i.UsedBy) == 0 && i.State == sandbox.SnapshotActive && time.Since(i.Created) > sweepEvery {
					_ = s.m.DeleteSnapshot(s.ctx, owner, i.Name) // in use by now, or the next sweep's
				}
			}
			if r.Cursor = page.Next; r.Cursor == "" {
				break
			}
		}
	}
}
