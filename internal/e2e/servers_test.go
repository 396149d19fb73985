package e2e

import (
	"syscall"
	"testing"
	"time"

	"wmproxy/socks"
)

// The application keeps its association, and targets see another address.
func TestAssociationsMoveToAnotherServer(t *testing.T) {
	t.Parallel()
	for _, end := range []struct {
		name string
		most time.Duration // until datagrams pass again
		args []string
		end  func(*serverProcess)
	}{
		{"killed", 6 * time.Second, nil, func(s *serverProcess) { s.Kill() }},
		{"draining", 2 * time.Second, []string{"--drain", "20s"}, func(s *serverProcess) {
			began := time.Now()
			_ = s.cmd.Process.Signal(syscall.SIGTERM)
			if code := s.WaitExit(); code != 0 || time.Since(began) > 10*time.Second {
				s.t.Errorf("exit code %d after %v; nobody was left to wait for", code, time.Since(began))
			}
		}},
	} {
		t.Run(end.name, func(t *testing.T) {
			t.Parallel()
			first, second := startServer(t, end.args...), startServer(t)
			c := startClient(t, second.Link, first.Link) // the last link is preferred least
			echo := startEcho(t)
			conn := associate(t, c.Socks())
			ping(t, conn, echo)

			end.end(first)
			began := time.Now()
			ping(t, conn, echo)
			took := time.Since(began)
			if took > end.most {
				t.Errorf("datagrams pass after %v, want at most %v", took, end.most)
			}
			if got := replyTo(t, c.Socks(), echo); got != socks.ReplySucceeded {
				t.Errorf("a stream: reply %d", got)
			}
			t.Logf("datagrams pass after %v", took.Round(time.Millisecond))
		})
	}
}
