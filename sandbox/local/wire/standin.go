package wire

import "sync/atomic"

var standIn atomic.Bool

// StandIn notes that this program, started under the name box, is box: its main
// hands over to package entry first.
func StandIn() { standIn.Store(true) }

// StandsIn tells whether StandIn was called. A program that does not stand in
// must not be started as box: it would do whatever it does, once more for each
// sandbox that it makes.
func StandsIn() bool { return standIn.Load() }
