package daytonaapi

// FillBuildLog writes a line to a new log that many times, and returns where its
// end is, and how many bytes of it are kept.
func FillBuildLog(text string, times int) (end, kept int) {
	l := newBuildLog()
	for range times {
		l.line(text)
	}
	data, end, _, _ := l.after(0)
	return end, len(data)
}
