package daytonaapi

// volumeRecord is kept of each volume made here.
type volumeRecord struct{}
