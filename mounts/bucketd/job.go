package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"berth/mounts"
	"berth/mounts/cloud"
	"berth/mounts/objects"
)

// jobMax bounds a job's text; a service account's key has 2.3 KB.
const jobMax = 256 << 10

// checkTime bounds the check before a mount.
const checkTime = 30 * time.Second

// parseJob reads a job. Its errors hold nothing of the text.
func parseJob(text []byte) (mounts.Job, error) {
	var j mounts.Job
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(&j); err != nil {
		var syntax *json.SyntaxError
		var typ *json.UnmarshalTypeError
		switch {
		case errors.As(err, &syntax):
			return j, fmt.Errorf("the job is no JSON at byte %d", syntax.Offset)
		case errors.As(err, &typ):
			return j, fmt.Errorf("the job's %s has another type", typ.Field)
		}
		return j, errors.New("the job is no JSON of a known form")
	}
	return j, nil
}

func jobFault(err error) *mounts.Fault {
	return &mounts.Fault{Kind: mounts.FaultJob, Message: err.Error()}
}

// checked parses and checks a job, with a time limit.
func checked(text []byte) (mounts.Job, objects.Bucket, *mounts.Fault) {
	j, err := parseJob(text)
	if err != nil {
		return j, nil, jobFault(err)
	}
	b, fault := usable(j)
	return j, b, fault
}

// usable checks a job's bucket, with a time limit.
func usable(j mounts.Job) (objects.Bucket, *mounts.Fault) {
	ctx, cancel := context.WithTimeout(context.Background(), checkTime)
	defer cancel()
	return cloud.Check(ctx, j)
}

func writeReport(w io.Writer, r mounts.Report) error {
	text, err := json.Marshal(r)
	if err != nil {
		return err
	}
	_, err = w.Write(append(text, '\n'))
	return err
}

// check answers with one report.
func check(in io.Reader, out io.Writer) error {
	text, err := io.ReadAll(io.LimitReader(in, jobMax))
	if err != nil {
		return err
	}
	_, _, fault := checked(text)
	if err := writeReport(out, mounts.Report{Checked: fault == nil, Fault: fault}); err != nil {
		return err
	}
	if fault != nil {
		return errReported
	}
	return nil
}
