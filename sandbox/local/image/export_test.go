//go:build linux

package image

import "time"

// Step makes o call f at every step.
func (o Options) Step(f func(string) error) Options { o.step = f; return o }

// Settle makes Close wait for the disk, so that tests can remove the store, and
// shortens other waits.
func (o Options) Settle() Options { o.settle, o.pause = time.Minute, time.Millisecond; return o }

// Stall is how long a registry may send next to nothing.
func (o Options) Stall(d time.Duration) Options { o.stall = d; return o }

// Unsettle makes a layer look like one of another boot of the machine.
func (s *Store) Unsettle(form Form, diff string) error {
	lf, err := s.layerFile(form, diff)
	if err != nil {
		return err
	}
	lf.Boot = "another"
	return writeJSON(s.layerDir(form, diff)+"/layer.json", lf, false)
}

// Public is the function public.
var Public = public
