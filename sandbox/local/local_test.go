//go:build linux

package local_test

import (
	"context"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"time"

	"berth/internal/buckettest"
	"berth/mounts/bucketbin"
	"berth/sandbox"
	"berth/sandbox/local"
	"berth/sandbox/local/client"
	"berth/sandbox/local/wire"
	"berth/sandbox/providertest"
)

const testLogLimit = 1 << 20

// The suite runs as whoever runs the tests: root in range mode, an ordinary
// user in sub mode and, where newuidmap is hidden from it, in single mode.
func TestProvider(t *testing.T) {
	t.Run("best_ids", func(t *testing.T) { conform(t) })
	if os.Geteuid() == 0 {
		return
	}
	t.Run("single_id", func(t *testing.T) {
		t.Setenv("PATH", t.TempDir())
		conform(t)
	})
}

func conform(t *testing.T) {
	dirs := map[sandbox.Provider]string{}
	open := func(t *testing.T, dir string) sandbox.Provider {
		p, err := local.New(local.Options{Dir: dir, LogBytes: testLogLimit,
			Bucketd: func(dir string) (string, error) { return bucketbin.Find(dir, runtime.GOARCH) }})
		must(t, err)
		dirs[p] = dir
		return p
	}
	instance := func(t *testing.T, p sandbox.Provider, key sandbox.Key) *local.Instance {
		in, err := p.Lookup(context.Background(), key)
		must(t, err)
		return in.(*local.Instance)
	}
	cannot := map[providertest.Ability]string{}
	for _, c := range local.Diagnose(t.Context(), local.Options{Dir: stateDir(t)}) {
		if c.Name == "user_ids" && c.State != local.OK {
			cannot[providertest.RootsOwn] = "user and root are one id: " + c.Detail
		}
	}
	if err := open(t, stateDir(t)).(sandbox.MountChecker).CheckMounts(t.Context()); err != nil {
		cannot[providertest.Mounts] = err.Error()
	}
	providertest.Run(t, providertest.Harness{
		Cannot: cannot,
		Bucket: func(t *testing.T, _ sandbox.Provider) providertest.Bucket {
			srv := buckettest.S3(t)
			return providertest.DirBucket(srv.Dir, srv.Job)
		},
		Open: func(t *testing.T) sandbox.Provider {
			dir := stateDir(t)
			t.Cleanup(func() {
				for _, d := range []string{"sealed", "volumes"} { // files of ids that only the provider can remove
					if _, err := os.Stat(filepath.Join(dir, d)); err == nil {
						local.RemoveBases(filepath.Join(dir, d))
					}
				}
			})
			p := open(t, dir)
			t.Cleanup(func() {
				last := open(t, dir)
				destroyAll(t, last)
				must(t, last.Close())
				must(t, p.Close())
			})
			return p
		},
		Reopen: func(t *testing.T, p sandbox.Provider) sandbox.Provider {
			must(t, p.Close())
			return open(t, dirs[p])
		},
		Crash: func(t *testing.T, p sandbox.Provider) sandbox.Provider { return open(t, dirs[p]) },
		Another: func(t *testing.T, p sandbox.Provider) sandbox.Provider {
			other := open(t, dirs[p])
			t.Cleanup(func() { must(t, other.Close()) })
			return other
		},
		Outside: func(t *testing.T) providertest.Echo {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			must(t, err)
			t.Cleanup(func() { _ = l.Close() })
			go func() {
				for {
					c, err := l.Accept()
					if err != nil {
						return
					}
					go func() {
						defer c.Close()
						_, _ = io.Copy(c, c)
					}()
				}
			}()
			port := netip.MustParseAddrPort(l.Addr().String()).Port()
			return providertest.Echo{Address: netip.AddrPortFrom(wire.NetHost, port), Opens: netip.MustParsePrefix("127.0.0.1/32")}
		},
		Kill: func(t *testing.T, p sandbox.Provider, key sandbox.Key) {
			dir := instance(t, p, key).Dir()
			r, alive, err := client.Alive(dir)
			must(t, err)
			if !alive {
				t.Fatalf("%v does not run", key)
			}
			for _, pid := range []int{r.MonitorPID, r.Ready.InitPID} {
				if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && err != syscall.ESRCH {
					t.Fatal(err)
				}
			}
			for alive {
				time.Sleep(time.Millisecond)
				_, alive, err = client.Alive(dir)
				must(t, err)
			}
		},
		Break: func(t *testing.T, p sandbox.Provider, key sandbox.Key) {
			dir := instance(t, p, key).Dir()
			for _, f := range []string{"sandbox.json", "sandbox.json.copy"} {
				must(t, os.WriteFile(filepath.Join(dir, f), []byte("{"), 0o600))
			}
		},
		LogLimit: testLogLimit,
		Timeout:  60 * time.Second,
	})
}
