package daytona

// InSpace keeps what a test makes apart from all else in its account.
func (o Options) InSpace(name string) Options {
	o.space = name
	return o
}
