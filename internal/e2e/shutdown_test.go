package e2e

import (
	"io"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

func TestSignalEndsProcessesUnderTraffic(t *testing.T) {
	t.Parallel()
	overEach(t, []string{overQUIC, overYamux, overBoth, overProxy}, func(t *testing.T, kind string) {
		for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
			tu := startOver(t, kind, nil, nil)
			echo := startEcho(t)
			conn := associate(t, tu.Entry.Socks())
			ping(t, conn, echo)
			app, target := stream(t, tu.Entry.Socks())

			var traffic sync.WaitGroup
			moved := make(chan struct{})
			traffic.Go(func() {
				for datagram := make([]byte, 1200); ; {
					if _, err := conn.WriteToAddr(datagram, echo); err != nil {
						return
					}
				}
			})
			traffic.Go(func() { // to a target that reads
				for block := make([]byte, 1<<16); ; {
					if _, err := app.Write(block); err != nil {
						return
					}
				}
			})
			traffic.Go(func() {
				_, _ = io.CopyN(io.Discard, target, 1<<20)
				close(moved)
				_, _ = io.Copy(io.Discard, target)
			})
			<-moved

			if tu.Server == nil {
				t.Logf("the proxy: %v after %v", tu.Entry.StopBy(sig), sig)
			} else if sig == syscall.SIGTERM {
				t.Logf("the server: %v after %v", tu.Server.StopBy(sig), sig)
				t.Logf("the client, alone: %v after %v", tu.Entry.StopBy(sig), sig)
			} else {
				t.Logf("the client: %v after %v", tu.Entry.StopBy(sig), sig)
				t.Logf("the server, alone: %v after %v", tu.Server.StopBy(sig), sig)
			}
			conn.Close()
			app.Close()
			target.Close()
			traffic.Wait()
			if n := tu.Entry.CountLogs(message("association ended")); n != 1 {
				t.Errorf("%d associations ended, says the log, want 1", n)
			}
			if n := tu.Exit().CountLogs(message("flow ended")); n != 1 {
				t.Errorf("%d flows ended, says the log, want 1", n)
			}
		}
	})
}

func TestApplicationsSeeEndOfClient(t *testing.T) {
	t.Parallel()
	p := startProxy(t)
	conn := associate(t, p.Socks())
	ping(t, conn, startEcho(t))
	app, target := stream(t, p.Socks())
	p.Stop()
	_ = conn.SetReadDeadline(time.Now().Add(waitTimeout))
	if _, _, err := conn.ReadFromAddr(make([]byte, 1)); err == nil || isTimeout(err) {
		t.Errorf("the association: %v", err)
	}
	for name, c := range map[string]io.Reader{"application": app, "target": target} {
		if _, err := c.Read(make([]byte, 1)); err == nil || err == io.EOF || isTimeout(err) {
			t.Errorf("the %s's stream did not end as one that was cut off: %v", name, err)
		}
	}
}

func isTimeout(err error) bool {
	e, ok := err.(interface{ Timeout() bool })
	return ok && e.Timeout()
}

func TestDemoCommandPasses(t *testing.T) {
	t.Parallel()
	began := time.Now()
	cmd := exec.Command(program, "demo", "--once")
	cmd.Env = environment(t)
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "Everything passed.") {
		t.Errorf("%v\n%s", err, out)
	}
	t.Logf("%v", time.Since(began).Round(time.Millisecond))
}
