//go:build !linux

package main

import (
	"errors"
	"io"
)

var errLinux = errors.New("buckets are mounted on Linux only")

func serve() error { return errLinux }

func mount(string, io.Writer) error { return errLinux }

func order(string, io.Writer) error { return errLinux }

func list(string, io.Writer) error { return errLinux }

func leave(string, io.Writer) error { return errLinux }
