package daytona

import (
	"fmt"
	"strings"

	"berth/internal/imagename"
	"berth/sandbox"
)

// CheckImage tells whether an image may be named: see sandbox.Imager. Files of
// this machine are none at the platform.
func (p *Provider) CheckImage(name string, allowed []string) error {
	_, full, err := imagename.Parse(name)
	switch {
	case err != nil:
		return imageFault(err)
	case allowed == nil || imagename.Match(full, nil, allowed):
		return nil
	}
	list := "none"
	if len(allowed) > 0 {
		list = strings.Join(allowed, ", ")
	}
	return &sandbox.FieldError{Field: "image", Problem: fmt.Sprintf("%.200s is not among the images that are allowed here", full), Allowed: list,
		Hint: "name one of those, or ask the operator, whose setting limits.allowed_images is"}
}

// imageName is how a Dockerfile names an image: as it was given, since servers may
// have names of their own.
func imageName(text string) (string, error) {
	if _, _, err := imagename.Parse(text); err != nil {
		return "", imageFault(err)
	}
	return strings.TrimPrefix(text, "docker://"), nil
}

func imageFault(err error) error {
	return &sandbox.FieldError{Field: "image", Problem: err.Error(), Allowed: "a name in a registry, such as debian:12 or ghcr.io/owner/name@sha256:…", Hint: "write it as for docker pull"}
}
