package daytonaapi

// snapshotRecord is kept of each snapshot made here.
type snapshotRecord struct{}
