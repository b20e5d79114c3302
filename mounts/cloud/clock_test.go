//go:build unix

package cloud_test

import (
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"berth/internal/buckettest"
	"berth/mounts"
	"berth/mounts/cloud"
	"berth/mounts/objects"
)

// The clock of this program is off: that of a bubble, which can be set. The
// service's is right.
func TestClockIsOff(t *testing.T) {
	for service, start := range buckettest.Services {
		t.Run(service, func(t *testing.T) {
			job, refused := passing(t, start(t).Job)
			real := time.Now()
			for _, off := range []time.Duration{-time.Hour, time.Hour} {
				t.Run(off.String(), func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) {
						time.Sleep(time.Until(real.Add(off)))
						// It works nevertheless, or the clock is what is blamed.
						b, fault := cloud.Check(t.Context(), job)
						if fault != nil {
							checkFault(t, job, fault, mounts.FaultClock, "clock is 1h0m0s")
							t.Logf("told: %s", fault.Message)
							return
						}
						if _, err := b.Put(t.Context(), "file", strings.NewReader("x"), 1, objects.Options{}); err != nil {
							t.Errorf("the check finds nothing, and writing fails: %v", err)
						}
						if off < 0 { // set right, while the bucket is in use
							time.Sleep(-off)
							if _, err := b.Put(t.Context(), "file", strings.NewReader("y"), 1, objects.Options{}); err != nil {
								t.Errorf("with the clock set right, writing fails: %v", err)
							}
						}
					})
				})
			}
			// The test servers of Google and Azure look at no time.
			if service == "s3" && refused.Load() == 0 {
				t.Error("the service let a clock that is off pass")
			}
			if _, fault := cloud.Check(t.Context(), job); fault != nil {
				t.Errorf("with the clock right: %s", fault.Message)
			}
		})
	}
}

// passing leads a job through a proxy that ends each connection after one answer:
// a bubble's clock stands still while one is open. It counts the answers 403.
func passing(t *testing.T, j mounts.Job) (mounts.Job, *atomic.Int64) {
	u, err := url.Parse(j.Service.Endpoint)
	if err != nil {
		t.Fatal(err)
	}
	path := u.Path
	u.Path = ""
	to := httputil.NewSingleHostReverseProxy(u)
	refused := new(atomic.Int64)
	to.ModifyResponse = func(r *http.Response) error {
		if r.StatusCode == http.StatusForbidden {
			refused.Add(1)
		}
		return nil
	}
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Connection", "close")
		to.ServeHTTP(w, r)
	}))
	t.Cleanup(front.Close)
	j.Service.Endpoint = front.URL + path
	return j, refused
}

// Where the clocks agree, a refusal is no matter of theirs; where they do not, it
// is, whatever the service calls it.
func TestRefusalsByTheClock(t *testing.T) {
	for _, c := range []struct {
		kind mounts.Kind
		code string
	}{
		{mounts.S3, "RequestTimeTooSkewed"}, {mounts.S3, "SignatureDoesNotMatch"}, {mounts.S3, "AccessDenied"}, {mounts.Azure, "AuthenticationFailed"},
	} {
		for _, off := range []time.Duration{0, time.Hour, -time.Hour} {
			t.Run(c.code+off.String(), func(t *testing.T) {
				srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
					w.Header().Set("Date", time.Now().Add(off).UTC().Format(http.TimeFormat))
					w.Header().Set("X-Ms-Error-Code", c.code)
					w.Header().Set("Content-Type", "application/xml")
					w.WriteHeader(http.StatusForbidden)
					_, _ = w.Write([]byte("<?xml version=\"1.0\"?><Error><Code>" + c.code + "</Code><Message>no</Message></Error>"))
				}))
				defer srv.Close()
				j := mounts.Job{Bucket: "bucket", Service: mounts.Service{Kind: c.kind, Endpoint: srv.URL, Region: "us-east-1", AccessKeyID: "id", SecretAccessKey: "wrong-secret"}}
				if c.kind == mounts.Azure {
					j.Service = mounts.Service{Kind: c.kind, Endpoint: srv.URL + "/account", Account: "account", AccountKey: "d3Jvbmc="}
				}
				_, fault := cloud.Check(t.Context(), j)
				switch {
				case fault == nil:
					t.Error("the check finds nothing")
				case off != 0:
					checkFault(t, j, fault, mounts.FaultClock, "clock is 1h0m0s "+map[bool]string{true: "behind", false: "ahead of"}[off > 0])
				case strings.Contains(fault.Message, "clock") && c.code != "RequestTimeTooSkewed":
					t.Errorf("the clocks agree, and the check says %s: %s", fault.Kind, fault.Message)
				}
			})
		}
	}
}
