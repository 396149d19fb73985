package e2e

import (
	"os"
	"syscall"
	"testing"
	"time"

	"wmproxy/socks"
)

// startDraining sends the server SIGTERM and waits until it drains.
func startDraining(t testing.TB, s *serverProcess) {
	t.Helper()
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	s.WaitLog("the drain", containing("draining: "))
}

// A client without another server stays until the end, and reconnects when the server is
// back.
func TestClientWithOneLinkStaysDuringDrain(t *testing.T) {
	t.Parallel()
	const drain = 8 * time.Second
	overEach(t, []string{overQUIC, overYamux, overBoth}, func(t *testing.T, kind string) {
		t.Parallel()
		s := startServer(t, "--drain", drain.String())
		c := startClient(t, s.Link, "--transport", kind)
		echo := startEcho(t)
		conn := associate(t, c.Socks())
		ping(t, conn, echo)

		began := time.Now()
		startDraining(t, s)
		other := startClientAlone(t, s.Link)
		other.WaitLog("the refusal of who comes now", containing("about to stop"))
		other.Stop()
		ping(t, conn, echo)
		if got := replyTo(t, c.Socks(), echo); got != socks.ReplySucceeded {
			t.Errorf("a stream during the drain: reply %d", got)
		}
		if took := time.Since(began); took > drain {
			t.Fatalf("this machine is too slow: all that took %v", took)
		}
		code := s.WaitExit()
		took := time.Since(began)
		if code != 0 || took < drain || took > drain+shutdownBound {
			t.Errorf("exit code %d after %v, want 0 after %v to %v", code, took, drain, drain+shutdownBound)
		}

		began = time.Now()
		startServerIn(t, s.StateDir, s.Addr.String(), loopbackAllowed...)
		ping(t, conn, echo)
		t.Logf("datagrams pass %v after the next start", time.Since(began).Round(time.Millisecond))
		if n := c.CountLogs(message("association ended")); n != 0 {
			t.Errorf("%d associations ended, says the log", n)
		}
	})
}

func TestSecondSignalEndsDrain(t *testing.T) {
	t.Parallel()
	for _, sig := range []os.Signal{syscall.SIGTERM, os.Interrupt} {
		t.Run(sig.String(), func(t *testing.T) {
			t.Parallel()
			s := startServer(t, "--drain", "5m")
			c := startClient(t, s.Link)
			conn := associate(t, c.Socks())
			echo := startEcho(t)
			ping(t, conn, echo)
			startDraining(t, s)
			ping(t, conn, echo)
			t.Logf("%v after %v", s.StopBy(sig.(syscall.Signal)), sig)
		})
	}
}

func TestSIGINTDoesNotDrain(t *testing.T) {
	t.Parallel()
	s := startServer(t, "--drain", "5m")
	c := startClient(t, s.Link)
	ping(t, associate(t, c.Socks()), startEcho(t))
	t.Logf("it ended after %v", s.StopBy(syscall.SIGINT))
	if n := s.CountLogs(containing("draining: ")); n != 0 {
		t.Error("it drained")
	}
}
